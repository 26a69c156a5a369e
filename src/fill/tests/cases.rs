//! Filling when all goes well, and taking down.

use super::*;

#[test]
fn a_layer_is_read_piece_by_piece_and_proven_and_each_byte_fetched_once() {
    for (blob, ztoc) in [
        ("mixed-zlib6.tar.gz", "mixed-zlib6.tar.gz.span-256k.ztoc"),
        ("mixed-pigz-independent.tar.gz", "mixed-pigz-independent.tar.gz.ztoc"),
        ("small-multimember.tar.gz", "small-multimember.tar.gz.ztoc"),
        ("small-gzip-header-fields.tar.gz", "small-gzip-header-fields.tar.gz.ztoc"),
        ("empty.tar.gz", "empty.tar.gz.ztoc"),
    ] {
        let sample = &sample(blob, ztoc);
        let source = Scripted::new(sample.blob.clone(), &[]);
        let bench = Bench::new(sample, source.clone(), fast());
        let size = sample.table.layer_size().get();
        let mut starts: Vec<u64> = (0..size).step_by(300_000).collect();
        starts.reverse();
        for start in starts {
            bench.read(sample, start, (start + 300_000).min(size)).expect("present");
        }
        // A last span without layer bytes is wanted by no range; the proof wants it.
        bench.layer().prefetch(
            LayerRange::new(LayerOffset::ZERO, sample.table.layer_size()).expect("ordered"),
            Priority::Demand,
        );
        if bench.file.is_complete() {
            bench.wait_until("proven", || bench.file.is_proven());
        }
        let shared_bytes = u64_from_usize(sample.table.len());
        assert!(source.requested_bytes() <= u64_from_usize(sample.blob.len()) + shared_bytes, "{blob}: fetched twice");
        assert_eq!(bench.filler.memory_used(), 0);
    }
}

#[test]
fn many_readers_of_one_span_cause_one_request() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[]);
    let bench = Bench::new(sample, source.clone(), fast());
    let heard: Vec<_> = (0..50).map(|i| bench.ask(i, i + 10)).collect();
    for heard in heard {
        heard.recv_timeout(Duration::from_secs(60)).expect("told").expect("present");
    }
    assert_eq!(lock(&source.requests).len(), 1);
}

#[test]
fn the_background_completes_and_proves_a_layer() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[Fault::Busy, Fault::NotFound, Fault::Corrupt]);
    let bench = Bench::new(sample, source, FillConfig { background: true, ..fast() });
    bench.wait_until("proven", || bench.file.is_proven());
}

#[test]
fn taking_down_fails_the_waiters() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[]);
    source.always(Fault::Never);
    let mut bench = Bench::new(sample, source, fast());
    let heard = bench.ask(0, 10);
    assert_eq!(bench.layer().status().waiting, 1);
    bench.layer = None;
    let told = heard.recv_timeout(Duration::from_secs(60)).expect("told");
    assert!(matches!(told, Err(FillError::Stopping)));
    assert_eq!(bench.filler.memory_used(), 0);
}

#[test]
fn a_reader_that_only_meets_what_is_here_is_fetched_for_too() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[]);
    let bench = Bench::new(sample, source, FillConfig { read_ahead_bytes: 300_000, ..fast() });
    let at = |span: u32| sample.table.get(SpanId(span)).expect("in range").layer.start().get();
    let end = |from: u32| (from..).find(|span| !bench.file.has(SpanId(*span))).expect("not all of it");
    for span in 0..2 {
        bench.read(sample, at(span), at(span) + 1).expect("read");
    }
    bench.wait_until("something fetched ahead", || end(0) > 2 && bench.filler.memory_used() == 0);
    let ahead = end(0);
    for span in 2..ahead {
        bench.read(sample, at(span), at(span) + 1).expect("read");
    }
    bench.wait_until("more fetched ahead", || end(0) > ahead);
}

#[test]
fn a_recorded_order_is_fetched_without_readers() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[]);
    let bench = Bench::new(sample, source.clone(), fast());
    let at = |span: u32| sample.table.get(SpanId(span)).expect("in range").layer;
    let order = [at(9), at(3), at(10), at(4)].map(|range| (bench.layer(), range));
    bench.filler.prefetch_in_order(&order);
    bench.wait_until("fetched", || [3, 4, 9, 10].into_iter().all(|span| bench.file.has(SpanId(span))));
    assert_eq!(bench.file.present_spans(), 4);
    // Two transfers, on two threads: which of them asks first is not said.
    let start = |span: u32| sample.table.get(SpanId(span)).expect("in range").blob.start();
    let mut first: Vec<_> = lock(&source.requests).iter().take(2).map(|range| range.start()).collect();
    first.sort_unstable();
    assert_eq!(first, [start(3), start(9)]);
}

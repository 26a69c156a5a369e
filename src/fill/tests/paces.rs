//! One request, parallel requests, pieces: the bytes are the same.

use super::*;
use crate::fill::link::Link;

/// Spans of 4 MiB, which are worked on while they arrive.
fn long_spans() -> Sample {
    sample("mixed-zlib6.tar.gz", "mixed-zlib6.tar.gz.ztoc")
}

/// Teaches the link that its connections are slow to start.
fn make_slow_starting(link: &Link) {
    let ms = Duration::from_millis;
    link.begin(ms(0));
    (1..=100).for_each(|at| link.received(25_000, ms(at)));
    link.end();
    for _ in 0..2 {
        link.begin(ms(200));
        let sample = link.sample(1, ms(200));
        link.end();
        link.ended(&sample, 1_000_000, ms(5), ms(900));
    }
    assert_eq!(link.ways(1 << 20, 12), 4);
}

#[test]
fn a_slow_starting_link_is_asked_in_parallel() {
    let sample = long_spans();
    let source = Scripted::new(sample.blob.clone(), &[]);
    let bench = Bench::new(&sample, source.clone(), fast());
    make_slow_starting(&bench.layer().inner.link);
    let second = sample.table.get(SpanId(1)).expect("several spans");
    let start = second.layer.start().get();
    bench.read(&sample, start, start + 10).expect("present");
    let requests = lock(&source.requests).clone();
    assert_eq!(requests.len(), 4, "{requests:?}");
    assert_eq!(source.requested_bytes(), second.blob.len_bytes(), "each byte once");
    assert_eq!(bench.layer().status().fetched_bytes, second.blob.len_bytes());
    bench.read(&sample, 0, sample.table.layer_size().get()).expect("present");
    bench.wait_until("proven", || bench.file.is_proven());
}

#[test]
fn the_background_asks_for_pieces() {
    let sample = long_spans();
    let source = Scripted::new(sample.blob.clone(), &[]);
    let bench = Bench::new(&sample, source.clone(), FillConfig { background: true, ..fast() });
    bench.wait_until("proven", || bench.file.is_proven());
    let longest = lock(&source.requests).iter().map(BlobRange::len_bytes).max();
    assert!(longest <= Some(1 << 20), "{longest:?}");
    let shared_bytes = u64_from_usize(sample.table.len());
    assert!(source.requested_bytes() <= u64_from_usize(sample.blob.len()) + shared_bytes, "fetched twice");
}

#[test]
fn whatever_goes_wrong_with_a_part_or_a_piece_the_bytes_are_right() {
    let sample = long_spans();
    let faults = [Fault::Busy, Fault::CutAfter(0), Fault::CutAfter(100_000), Fault::Corrupt, Fault::IgnoreRange];
    for (number, fault) in faults.into_iter().enumerate() {
        for background in [false, true] {
            // The first, second or third request meets it.
            let mut script = vec![Fault::None; number % 3];
            script.push(fault);
            let source = Scripted::new(sample.blob.clone(), &script);
            let bench = Bench::new(&sample, source, FillConfig { background, ..fast() });
            if !background {
                make_slow_starting(&bench.layer().inner.link);
            }
            let whole = bench.read(&sample, 0, sample.table.layer_size().get());
            whole.unwrap_or_else(|e| panic!("{fault:?}, background {background}: {e}"));
            bench.wait_until("proven", || bench.file.is_proven());
            bench.wait_until("nothing reserved", || bench.filler.memory_used() == 0);
        }
    }
}

#[test]
fn a_server_that_never_knows_ranges_serves_pieces_and_parts_too() {
    let sample = long_spans();
    for background in [false, true] {
        let source = Scripted::new(sample.blob.clone(), &[]);
        source.always(Fault::IgnoreRange);
        let bench = Bench::new(&sample, source.clone(), FillConfig { background, ..fast() });
        // The background runs already, and the link would not be alone with its lessons.
        if !background {
            make_slow_starting(&bench.layer().inner.link);
        }
        bench.read(&sample, 0, sample.table.layer_size().get()).expect("present");
        bench.wait_until("proven", || bench.file.is_proven());
        let requests = lock(&source.requests).len();
        assert!(requests < 20, "{requests} times the whole blob");
    }
}

//! Registries that fail, disks that are full.

use super::*;

#[test]
fn every_transient_fault_is_retried_and_no_wrong_byte_is_served() {
    let sample = many_spans();
    for fault in [Fault::Busy, Fault::CutAfter(0), Fault::CutAfter(100_000), Fault::Corrupt, Fault::IgnoreRange] {
        let source = Scripted::new(sample.blob.clone(), &[fault]);
        let bench = Bench::new(sample, source.clone(), fast());
        bench.read(sample, 0, sample.table.layer_size().get()).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        bench.wait_until("proven", || bench.file.is_proven());
        assert_eq!(bench.layer().status().failures > 0, fault != Fault::IgnoreRange, "{fault:?}");
    }
}

#[test]
fn what_cannot_be_had_fails_clearly_and_is_tried_again_by_the_next_reader() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[Fault::NotFound, Fault::Corrupt, Fault::Corrupt]);
    let bench = Bench::new(sample, source, fast());
    let error = bench.read(sample, 0, 10).expect_err("not found");
    assert!(error.to_string().contains("not found"), "{error}");
    let error = bench.read(sample, 0, 10).expect_err("wrong digest, twice");
    assert!(matches!(&error, FillError::SpanDigest { span: SpanId(0), .. }), "{error}");
    assert!(error.to_string().contains("test.example/layer"), "{error}");
    assert!(!bench.file.has(SpanId(0)));
    bench.read(sample, 0, 10).expect("present now");
    assert_eq!(bench.layer().status().failures, 3);
    assert!(bench.layer().status().last_error.is_some());
}

#[test]
fn a_server_without_ranges_is_read_once() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[]);
    source.always(Fault::IgnoreRange);
    let bench = Bench::new(sample, source.clone(), fast());
    bench.read(sample, 5_000_000, 5_000_010).expect("present");
    bench.wait_until("all present", || bench.file.is_complete());
    bench.read(sample, 0, sample.table.layer_size().get()).expect("present");
    assert_eq!(lock(&source.requests).len(), 1);
}

#[test]
fn a_silent_server_is_given_up_and_a_reader_is_held_only_so_long() {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), &[Fault::Never]);
    let config = FillConfig { stall_limit: Duration::from_millis(20), ..fast() };
    let bench = Bench::new(sample, source, config);
    bench.read(sample, 0, 10).expect("present at the second try");

    let source = Scripted::new(sample.blob.clone(), &[]);
    source.always(Fault::Busy);
    let bench = Bench::new(sample, source, FillConfig { hold_limit: Duration::from_millis(50), ..fast() });
    let error = bench.read(sample, 0, 10).expect_err("held too long");
    assert!(matches!(&error, FillError::Held { last: Some(_), .. }), "{error}");
    assert!(error.to_string().contains("503"), "{error}");
}

#[test]
fn a_full_disk_evicts_what_it_can_and_then_fails_the_reader() {
    let test = "a_full_disk_evicts_what_it_can_and_then_fails_the_reader";
    let Some(disk) = SmallDisk::mount(test, c"size=6m") else { return };
    let sample = many_spans();
    let config = CacheConfig { min_idle: Duration::ZERO, ..CacheConfig::default() };
    let cache = Cache::open(disk.path(), config).expect("cache");
    let source = Scripted::new(sample.blob.clone(), &[]);
    let bench = Bench::with_cache(sample, source, fast(), Box::new(disk), cache);
    // Larger than the disk: each piece fits after earlier ones have gone, all together never.
    let size = sample.table.layer_size().get();
    for start in (0..size).step_by(1_000_000) {
        bench.read(sample, start, (start + 10).min(size)).expect("room is made");
    }
    // A reader that keeps what it has read pinned leaves nothing to evict.
    let mut pins = Vec::new();
    let failed = (0..size).step_by(300_000).find_map(|start| {
        let end = (start + 10).min(size);
        let range = LayerRange::new(LayerOffset::new(start), LayerOffset::new(end)).expect("ordered");
        let failed = bench.read(sample, start, end).err();
        pins.extend(bench.file.pin(sample.table.covering(range)));
        failed
    });
    let error = failed.expect("pinned spans and all others do not fit");
    assert!(matches!(&error, FillError::Cache { source } if source.is_no_space()), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]

    /// Many readers, any faults: every waiter is told once, and what is present is right.
    #[test]
    fn readers_and_faults_in_any_order(
        reads in proptest::collection::vec((0..20_000_000_u64, 1..3_000_000_u64), 1..40),
        faults in proptest::collection::vec(proptest::sample::select(vec![
            Fault::None, Fault::Busy, Fault::NotFound, Fault::CutAfter(70_000), Fault::Corrupt, Fault::IgnoreRange,
        ]), 0..20),
        read_ahead in proptest::bool::ANY,
    ) {
        let sample = many_spans();
        let size = sample.table.layer_size().get();
        let source = Scripted::new(sample.blob.clone(), &faults);
        let read_ahead_bytes = if read_ahead { 1 << 20 } else { 0 };
        let bench = Bench::new(sample, source, FillConfig { read_ahead_bytes, memory_bytes: 3 << 20, ..fast() });
        let heard: Vec<_> = reads.iter().map(|(start, len)| bench.ask(start % size, (start % size + len).min(size))).collect();
        for heard in heard {
            let told = heard.recv_timeout(Duration::from_secs(60)).expect("told");
            if let Err(error) = told {
                let given_up = matches!(error, FillError::Stopping | FillError::Held { .. });
                proptest::prop_assert!(!given_up, "{}", error);
            }
            proptest::prop_assert!(heard.try_recv().is_err(), "told twice");
        }
        for _ in 0..=faults.len() {
            if bench.read(sample, 0, size).is_ok() {
                break;
            }
        }
        bench.read(sample, 0, size).expect("the script has ended");
        bench.wait_until("nothing reserved", || bench.filler.memory_used() == 0);
        drop(bench.runtime);
    }
}

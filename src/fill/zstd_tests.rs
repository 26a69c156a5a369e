//! zstd layers: spans of many frames, and one of the whole layer, whose bytes wait on disk.

use std::path::Path;

use super::tests::{Bench, Fault, Sample, Scripted, fast, many_spans};
use super::*;
use crate::soci::build::{BuildOptions, build_file};
use crate::spans::ztoc::Ztoc;
use crate::units::u64_from_usize;

/// The corpus layer as zstd in frames of so many bytes; its zTOC lies in `dir`.
fn zstd_sample(dir: &Path, frame_bytes: usize) -> Sample {
    let tar = many_spans().tar.clone();
    let blob: Vec<u8> = tar.chunks(frame_bytes).flat_map(|part| ::zstd::encode_all(part, 1).expect("memory")).collect();
    let (layer, ztoc) = (dir.join("layer"), dir.join("ztoc"));
    std::fs::write(&layer, &blob).expect("written");
    let options = BuildOptions { span_size_bytes: 1 << 20, ..BuildOptions::default() };
    let built = build_file(&layer, options, &mut |_| ()).expect("a good layer");
    std::fs::write(&ztoc, &built.ztoc).expect("written");
    let table = Arc::new(Ztoc::parse(&built.ztoc).expect("our own").spans().clone());
    Sample { blob: blob.into(), tar, ztoc, table }
}

#[test]
fn a_zstd_layer_is_read_piece_by_piece_and_proven() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sample = zstd_sample(dir.path(), 300_000);
    assert!(sample.table.len() > 3);
    let source = Scripted::new(sample.blob.clone(), &[Fault::Busy, Fault::Corrupt, Fault::CutAfter(1000)]);
    let bench = Bench::new(&sample, source.clone(), fast());
    let size = sample.table.layer_size().get();
    bench.read(&sample, size / 2, size / 2 + 1000).expect("present");
    assert!(source.requested_bytes() < u64_from_usize(sample.blob.len()), "only some spans");
    for start in (0..size).step_by(400_000) {
        bench.read(&sample, start, (start + 400_000).min(size)).expect("present");
    }
    bench.wait_until("proven", || bench.file.is_proven());
}

#[test]
fn a_long_span_waits_on_disk_and_goes_on_where_it_broke() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sample = zstd_sample(dir.path(), usize::MAX);
    assert_eq!(sample.table.len(), 1);
    let third = sample.blob.len() / 3;
    let faults = [Fault::CutAfter(third), Fault::CutAfter(third)];
    let source = Scripted::new(sample.blob.clone(), &faults);
    // Less memory than the span has bytes.
    let config = FillConfig { long_span_bytes: 1000, memory_bytes: 11 << 20, ..fast() };
    let bench = Bench::new(&sample, source.clone(), config);
    bench.read(&sample, 100, 5000).expect("present");
    bench.wait_until("proven", || bench.file.is_proven());
    let asked: Vec<u64> = lock(&source.requests).iter().map(|range| range.start().get()).collect();
    assert_eq!(asked, [0, u64_from_usize(third), u64_from_usize(2 * third)]);
    let folder = bench.file.path().parent().expect("a folder").to_owned();
    let left: Vec<_> = std::fs::read_dir(folder).expect("readable").map(|e| e.expect("entry").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("spool")), "{left:?}");
}

#[test]
fn a_long_span_that_lies_is_asked_for_again_and_then_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sample = zstd_sample(dir.path(), usize::MAX);
    let long = || FillConfig { long_span_bytes: 1000, ..fast() };
    let once = Scripted::new(sample.blob.clone(), &[Fault::Corrupt]);
    Bench::new(&sample, once, long()).read(&sample, 0, 1000).expect("the second answer is good");
    let always = Scripted::new(sample.blob.clone(), &[Fault::Corrupt, Fault::Corrupt]);
    let error = Bench::new(&sample, always, long()).read(&sample, 0, 1000).expect_err("never the bytes");
    assert!(matches!(error, FillError::SpanDigest { .. }), "{error}");
    // A server that ignores ranges.
    let ignoring = Scripted::new(sample.blob.clone(), &[Fault::IgnoreRange, Fault::IgnoreRange]);
    Bench::new(&sample, ignoring, long()).read(&sample, 0, 1000).expect("present");
}

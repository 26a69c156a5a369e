//! Ours against C zlib on a real layer: whole spans from their checkpoints (4 MiB spans; goal: 2.4 times C zlib), and
//! building a zTOC against merely inflating the layer (goal: 1.75 times C zlib).
//!
//! `cargo bench --bench inflate`. Time is CPU time of one thread; throughput is layer bytes.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sociblk::inflate::{SpanInflater, Want};
use sociblk::soci::build::{BuildOptions, ZtocBuilder};
use sociblk::spans::Compression;
use sociblk::spans::ztoc::Ztoc;
use support::ThreadTime;
use support::czlib::CZlib;

fn spans(criterion: &mut Criterion<ThreadTime>) {
    let layer = support::layer();
    let ztoc = Ztoc::parse(&layer.ztoc).expect("SOCI's own zTOC");
    let table = ztoc.spans();
    let spans: Vec<_> = table
        .iter()
        .map(|(id, span)| {
            let start = usize::try_from(span.blob.start().get()).expect("small");
            let end = usize::try_from(span.blob.end().get()).expect("small");
            let window = span.window_at.and_then(|_| ztoc.checkpoint(id)).and_then(|c| c.window);
            let len = usize::try_from(span.layer.len_bytes()).expect("small");
            (id, span.bits, &layer.blob[start..end], window, len)
        })
        .collect();

    let mut group = criterion.benchmark_group(format!("spans of {}", layer.name));
    group.throughput(Throughput::Bytes(spans.iter().map(|s| s.4 as u64).sum()));
    group.sample_size(20);
    group.bench_function("sociblk", |b| {
        let mut inflater = SpanInflater::new();
        b.iter(|| {
            for (id, _, blob, window, len) in &spans {
                let mut sink = |bytes: &[u8]| {
                    black_box(bytes);
                    Ok(())
                };
                let done = inflater.inflate(table, *id, blob, window.as_deref(), Want::Whole, &mut sink);
                assert!(done.expect("good span").bytes >= *len as u64);
            }
        });
    });
    group.bench_function("C zlib", |b| {
        let mut zlib = CZlib::new(-15);
        let mut output = vec![0; spans.iter().map(|s| s.4).max().unwrap_or(0)];
        b.iter(|| {
            for (_, bits, blob, window, len) in &spans {
                let window = window.as_deref().map(|w| &w[..]);
                let made = zlib.span(blob, *bits, window, &mut output[..*len]);
                assert_eq!(made, *len);
                black_box(&output);
            }
        });
    });
    group.finish();
}

fn ztoc_build(criterion: &mut Criterion<ThreadTime>) {
    let layer = support::layer();
    let mut zlib = CZlib::new(15 + 16);
    let mut output = vec![0; 256 * 1024];
    let layer_bytes = zlib.member(&layer.blob, &mut output) as u64;

    let mut group = criterion.benchmark_group(format!("zTOC of {}", layer.name));
    group.throughput(Throughput::Bytes(layer_bytes));
    group.sample_size(20);
    let digests = |blob_digest, diff_id| BuildOptions { blob_digest, diff_id, ..BuildOptions::default() };
    for (name, options) in [
        ("sociblk build", digests(false, false)),
        ("sociblk build, blob digest", digests(true, false)),
        ("sociblk build, blob digest, diffID", digests(true, true)),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut builder = ZtocBuilder::new(options.clone(), Compression::Gzip).expect("memory");
                builder.push(&layer.blob, &mut |_| Ok(())).expect("good layer");
                let built = builder.finish(&mut |_| Ok(())).expect("good layer");
                assert_eq!(built.layer_size.get(), layer_bytes);
                black_box(built.ztoc)
            });
        });
    }
    group.bench_function("C zlib, inflate only", |b| {
        b.iter(|| assert_eq!(zlib.member(&layer.blob, &mut output) as u64, layer_bytes));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadTime);
    targets = spans, ztoc_build
}
criterion_main!(benches);

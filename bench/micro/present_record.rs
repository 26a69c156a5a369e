//! Which spans of a layer are here: the record's bytes, the hold around every read, opening a large layer, and noting that
//! spans came.
//!
//! `cargo bench --bench present_record`. Time is CPU time of one thread; where the disk is waited for, wall time.

#[path = "support/recorded.rs"]
mod recorded;
#[path = "support/thread_time.rs"]
mod thread_time;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sociblk::cache::{Cache, CacheConfig, LayerFile, record};
use sociblk::spans::{Compression, Span, SpanTable};
use sociblk::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange, SpanId};
use tempfile::TempDir;
use thread_time::ThreadTime;

/// 400 GB of layer at SOCI's usual span size. Nothing here depends on that size, so spans are small and bytes few.
const SPANS: u32 = 100_000;
const SPAN_BYTES: u64 = 4096;
/// As many written spans wait for one `fdatasync`; see `CacheConfig`.
const BATCH: u32 = 32;

fn table() -> Arc<SpanTable> {
    let span = |id: u32| {
        let at = u64::from(id) * SPAN_BYTES;
        Span {
            blob: BlobRange::from_len(BlobOffset::new(at), SPAN_BYTES).expect("small"),
            layer: LayerRange::from_len(LayerOffset::new(at), SPAN_BYTES).expect("small"),
            bits: 0,
            digest: Digest::of(&id.to_le_bytes()),
            window_at: None,
        }
    };
    let end = u64::from(SPANS) * SPAN_BYTES;
    let spans = (0..SPANS).map(span).collect();
    let table = SpanTable::new(Compression::Uncompressed, BlobOffset::new(end), LayerOffset::new(end), spans);
    Arc::new(table.expect("sound"))
}

/// A cache that flushes nothing by itself.
fn cache() -> (TempDir, Cache) {
    let root = tempfile::tempdir().expect("a directory");
    let config =
        CacheConfig { flush_spans: usize::MAX, flush_after: Duration::from_secs(3600), ..CacheConfig::default() };
    let cache = Cache::open(root.path(), config).expect("a cache");
    (root, cache)
}

fn in_memory(criterion: &mut Criterion<ThreadTime>) {
    let table = table();
    let geometry = record::geometry(&table);
    let mut group = criterion.benchmark_group("record");
    group.bench_function("slot encoded", |b| {
        let mut index = 0_u32;
        b.iter(|| {
            index = index.wrapping_add(1);
            record::slot(black_box(geometry), index, index)
        });
    });
    let bytes = recorded::full_record(&table);
    group.bench_function("parsed", |b| b.iter(|| record::parse(black_box(&bytes), geometry, SPANS)));
    group.bench_function("geometry", |b| b.iter(|| record::geometry(black_box(&table))));

    let (_root, cache) = cache();
    let digest = Digest::of(b"benchmark");
    recorded::lay_down(&cache, digest, &table);
    group.bench_function("opened", |b| b.iter(|| recorded::open(&cache, digest, &table)));
    let file = recorded::open(&cache, digest, &table);
    group.bench_function("hold and release", |b| {
        let mut at = 0_u32;
        b.iter(|| {
            // A step without a common factor: everywhere, and nowhere twice in a row.
            at = (at + 61_803) % SPANS;
            assert!(file.hold(at..at + 1));
            file.release(at..at + 1);
        });
    });
    group.finish();
}

/// Spans of fresh layers that nobody has written yet.
struct Unwritten {
    cache: Cache,
    table: Arc<SpanTable>,
    file: Arc<LayerFile>,
    next: u32,
    layers: u32,
    _root: TempDir,
}

impl Unwritten {
    fn new() -> Self {
        let ((root, cache), table) = (cache(), table());
        let file = cache.layer(Digest::of(b"0"), Arc::clone(&table)).expect("a layer file");
        Self { cache, table, file, next: 0, layers: 1, _root: root }
    }

    /// The first of [`BATCH`] spans, and whose they are. Nothing else of that layer waits to be recorded.
    fn batch(&mut self) -> (Arc<LayerFile>, u32) {
        self.file.flush().expect("recorded");
        if self.next + BATCH > SPANS {
            let digest = Digest::of(self.layers.to_string().as_bytes());
            self.file = self.cache.layer(digest, Arc::clone(&self.table)).expect("a layer file");
            (self.next, self.layers) = (0, self.layers + 1);
        }
        self.next += BATCH;
        (Arc::clone(&self.file), self.next - BATCH)
    }
}

fn write((file, first): &(Arc<LayerFile>, u32)) {
    for id in *first..first + BATCH {
        file.write_span(SpanId(id), &[0x5a; SPAN_BYTES as usize]).expect("room");
    }
}

fn on_disk(criterion: &mut Criterion) {
    let mut unwritten = Unwritten::new();
    let mut group = criterion.benchmark_group("disk");
    group.bench_function("32 spans marked", |b| {
        b.iter_batched(|| unwritten.batch(), |batch| write(&batch), BatchSize::PerIteration);
    });
    group.bench_function("32 spans flushed", |b| {
        let written = || {
            let batch = unwritten.batch();
            write(&batch);
            batch.0
        };
        b.iter_batched(written, |file| file.flush().expect("recorded"), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group! {
    name = memory;
    config = Criterion::default().with_measurement(ThreadTime);
    targets = in_memory
}
criterion_group!(disk, on_disk);
criterion_main!(memory, disk);

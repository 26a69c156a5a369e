//! What a read costs whose bytes are all here, short of reading them: from a range of the device to its pieces, from a
//! range of the layer to its spans, and both as a frontend asks, with the hold that keeps the spans from eviction.
//!
//! `cargo bench --bench lookup`. A layer of 100,000 files, half a GB; ranges at random places of its files, aligned to
//! 4 KiB. Time is CPU time of one thread.

#[path = "support/many_files.rs"]
mod many_files;
#[path = "support/recorded.rs"]
mod recorded;
#[path = "support/thread_time.rs"]
mod thread_time;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::future::BoxFuture;
use sociblk::cache::{Cache, CacheConfig};
use sociblk::erofs::{Piece, Space};
use sociblk::fill::{FillConfig, Filler, LayerSpec};
use sociblk::frontend::{Backend, Readiness, Segments};
use sociblk::node::paths::Paths;
use sociblk::node::{ChainLayer, Layer, Synthesized, synthesize};
use sociblk::registry::{BlobSource, BlobStream, RegistryError};
use sociblk::spans::Compression;
use sociblk::spans::ztoc::Ztoc;
use sociblk::units::{BlobOffset, BlobRange, DeviceOffset, DeviceRange, Digest, LayerRange};
use thread_time::ThreadTime;

const FILES: usize = 100_000;
const MEAN_BYTES: u64 = 5000;
const BLOCK: u64 = 4096;
/// As many places as no cache of a CPU holds with what lies around them.
const PLACES: usize = 1 << 15;
/// A page, and what a kernel reads at once from a file that is read on and on.
const LENGTHS: [(&str, u64); 2] = [("4 KiB", 4 << 10), ("128 KiB", 128 << 10)];

/// A layer as the daemon lays it out.
fn synthesized(root: &std::path::Path) -> (Digest, Synthesized) {
    // Plain, since nothing is inflated here, and deflating takes long.
    let bytes = many_files::make(FILES, MEAN_BYTES, Compression::Uncompressed, None).expect("a zTOC");
    let ztoc = root.join("ztoc");
    std::fs::write(&ztoc, &bytes).expect("room");
    let paths = Paths::new(root.to_owned());
    std::fs::create_dir_all(paths.meta_dir()).expect("a folder");
    let digest = Digest::of(b"benchmark");
    let blob_size = Ztoc::parse(&bytes).expect("our own").blob_size();
    let ztoc_digest = Digest::of(&bytes);
    let chain = [ChainLayer { key: digest, digest, blob_size, ztoc_digest, ztoc }];
    (digest, synthesize(&paths, &chain).expect("a good tree").remove(0))
}

/// Ranges among the files of a device, the same in each run.
fn places(space: &Space, len_bytes: u64) -> Vec<DeviceRange> {
    let (first, last) = (space.metadata_len() / BLOCK, (space.device_size().get() - len_bytes) / BLOCK);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut place = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        DeviceRange::from_len(DeviceOffset::new((first + state % (last - first)) * BLOCK), len_bytes)
    };
    (0..PLACES).map(|_| place().expect("within the device")).collect()
}

fn ranges_to_pieces_and_spans(criterion: &mut Criterion<ThreadTime>) {
    let root = tempfile::tempdir().expect("a directory");
    let (_, Synthesized { space, table, .. }) = synthesized(root.path());
    let mut group = criterion.benchmark_group("lookup");
    for (name, len_bytes) in LENGTHS {
        let places = places(&space, len_bytes);
        group.bench_function(format!("pieces of {name}"), |b| {
            let mut next = places.iter().cycle();
            b.iter(|| {
                let range = *next.next().expect("endless");
                let pieces = space.pieces(range).expect("within the device");
                for piece in pieces {
                    black_box(piece);
                }
            });
        });
        let layer_ranges: Vec<LayerRange> = places.iter().filter_map(|range| layer_part(&space, *range)).collect();
        group.bench_function(format!("spans of {name}"), |b| {
            let mut next = layer_ranges.iter().cycle();
            b.iter(|| black_box(table.covering(*next.next().expect("endless"))));
        });
    }
    group.finish();
}

/// From the first to the last layer byte of a device range.
fn layer_part(space: &Space, range: DeviceRange) -> Option<LayerRange> {
    let mut parts = space.pieces(range).expect("within the device").filter_map(|piece| match piece {
        Piece::Layer(part) => Some(part),
        Piece::Metadata { .. } | Piece::Zeros { .. } => None,
    });
    let first = parts.next()?;
    LayerRange::new(first.start(), parts.last().unwrap_or(first).end())
}

/// Where nobody asks, since all is here.
struct Nowhere;

impl BlobSource for Nowhere {
    fn digest(&self) -> Digest {
        Digest::of(b"benchmark")
    }
    fn size(&self) -> BlobOffset {
        BlobOffset::ZERO
    }
    fn describe(&self) -> String {
        "nowhere".to_owned()
    }
    fn open(&self, _: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        panic!("a layer that is all here was asked for")
    }
}

fn cached_reads(criterion: &mut Criterion<ThreadTime>) {
    let root = tempfile::tempdir().expect("a directory");
    let (digest, parts) = synthesized(root.path());
    let cache = Cache::open(root.path(), CacheConfig::default()).expect("a cache");
    recorded::lay_down(&cache, digest, &parts.table);
    let file = recorded::open(&cache, digest, &parts.table);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let filler = Filler::new(FillConfig::default(), runtime.handle().clone()).expect("threads");
    let fill = filler.add_layer(LayerSpec {
        digest,
        table: Arc::clone(&parts.table),
        windows: parts.ztoc.try_clone().expect("a descriptor"),
        source: Arc::new(Nowhere),
        file: Arc::clone(&file),
        diff_id: None,
    });
    let all_places = LENGTHS.map(|(name, len_bytes)| (name, places(&parts.space, len_bytes)));
    let layer = Layer::new("benchmark".to_owned(), parts, file, fill);
    let mut group = criterion.benchmark_group("cached");
    for (name, places) in &all_places {
        group.bench_function(format!("read of {name}"), |b| {
            let mut next = (0_usize..).zip(places.iter().cycle());
            b.iter(|| {
                let (number, range) = next.next().expect("endless");
                let mut segments = Segments::new();
                layer.segments(*range, &mut segments).expect("within the device");
                // What a frontend's completion takes with it: which request it is.
                let done = Box::new(move |_| {
                    black_box(number);
                });
                assert_eq!(layer.ensure(&segments, done), Readiness::Ready);
                layer.release(black_box(&segments));
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadTime);
    targets = ranges_to_pieces_and_spans, cached_reads
}
criterion_main!(benches);

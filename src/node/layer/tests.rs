//! A served layer over a real cache that is always told to give everything back.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use tokio::runtime::Runtime;

use super::*;
use crate::cache::{Cache, CacheConfig};
use crate::fill::{FillConfig, Filler, LayerSpec};
use crate::node::paths::Paths;
use crate::node::synthesis::{ChainLayer, synthesize};
use crate::registry::{BlobSource, BlobStream, RegistryError};
use crate::units::{BlobOffset, BlobRange, Digest};

/// A blob in memory.
struct Memory(Bytes);

impl BlobSource for Memory {
    fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
    fn size(&self) -> BlobOffset {
        BlobOffset::new(self.0.len() as u64)
    }
    fn describe(&self) -> String {
        "test.example/layer".into()
    }
    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        let bytes = self.0.slice(range.start().get() as usize..range.end().get() as usize);
        let starts_at = range.start();
        Box::pin(async move { Ok(BlobStream { starts_at, bytes: stream::iter([Ok(bytes)]).boxed() }) })
    }
}

/// In the order in which they must go.
struct Bench {
    layer: Arc<Layer>,
    _filler: Arc<Filler>,
    cache: Cache,
    tar: Vec<u8>,
    _runtime: Runtime,
    _root: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        use std::io::Read as _;
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        let blob: Bytes = std::fs::read(corpus.join("mixed-zlib6.tar.gz")).expect("corpus").into();
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&*blob).read_to_end(&mut tar).expect("gzip");
        let digest = Digest::of(&blob);

        let root = tempfile::tempdir().expect("root");
        let paths = Paths::new(root.path().to_owned());
        std::fs::create_dir_all(paths.meta_dir()).expect("folder");
        let blob_size = BlobOffset::new(blob.len() as u64);
        let ztoc = corpus.join("mixed-zlib6.tar.gz.span-256k.ztoc");
        let ztoc_digest = Digest::of(&std::fs::read(&ztoc).expect("corpus"));
        let mut parts = synthesize(&paths, &[ChainLayer { key: digest, digest, blob_size, ztoc_digest, ztoc }])
            .expect("synthesized");
        let parts = parts.remove(0);

        let config = CacheConfig { max_bytes: 0, min_idle: Duration::ZERO, ..CacheConfig::default() };
        let cache = Cache::open(root.path(), config).expect("cache");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("runtime");
        let config = FillConfig { cpu_threads: 2, read_ahead_bytes: 0, ..FillConfig::default() };
        let filler = Filler::new(config, runtime.handle().clone()).expect("filler");
        let file = cache.layer(digest, Arc::clone(&parts.table)).expect("layer file");
        let fill = filler.add_layer(LayerSpec {
            digest,
            table: Arc::clone(&parts.table),
            windows: parts.ztoc.try_clone().expect("descriptor"),
            source: Arc::new(Memory(blob)),
            file: Arc::clone(&file),
            diff_id: None,
        });
        let layer = Arc::new(Layer::new("layer".into(), parts, file, fill));
        Self { layer, _filler: filler, cache, tar, _runtime: runtime, _root: root }
    }

    fn cut(&self, start: u64, len: u64) -> Segments {
        let mut segments = Segments::new();
        let range = DeviceRange::from_len(DeviceOffset::new(start), len).expect("small");
        self.layer.segments(range, &mut segments).expect("in the device");
        segments
    }

    /// Asks until the bytes are there to be read.
    fn wait_ready(&self, segments: &Segments) {
        loop {
            let (told, heard) = channel();
            let done = Box::new(move |result| told.send(result).expect("the test listens"));
            if self.layer.ensure(segments, done) == Readiness::Ready {
                assert!(heard.recv().is_err(), "a completion that was not needed is dropped");
                return;
            }
            heard.recv_timeout(Duration::from_secs(60)).expect("a reader is always told").expect("fetched");
        }
    }

    /// As a frontend reads; compares with the tar.
    fn read(&self, segments: &Segments) {
        for segment in segments.iter().filter(|s| s.file == SourceFile::Layer) {
            let file = File::open(self.layer.file().path()).expect("layer file");
            let mut bytes = vec![0; segment.len_bytes as usize];
            file.read_exact_at(&mut bytes, segment.offset).expect("read");
            let start = segment.offset as usize;
            assert!(bytes == self.tar[start..start + bytes.len()], "wrong bytes at {start}");
        }
    }
}

#[test]
fn what_is_ready_stays_until_it_is_released_and_no_longer() {
    let bench = Bench::new();
    let size = bench.layer.size().get();
    for start in (0..size - (1 << 20)).step_by(3 << 20) {
        // Two readers of the same bytes.
        let segments = bench.cut(start, 1 << 20);
        bench.wait_ready(&segments);
        bench.wait_ready(&segments);
        bench.cache.shrink_to(0).expect("evicted");
        bench.read(&segments);
        bench.layer.release(&segments);
        bench.cache.shrink_to(0).expect("evicted");
        bench.read(&segments);
        bench.layer.release(&segments);
        bench.cache.shrink_to(0).expect("evicted");
        assert_eq!(bench.layer.file().present_spans(), 0, "nothing is held any more");
    }
}

#[test]
fn a_request_whose_bytes_are_not_all_here_holds_nothing() {
    let bench = Bench::new();
    let size = bench.layer.size().get();
    let first = bench.cut(0, size.min(1 << 20));
    bench.wait_ready(&first);
    // The first pieces are here, the last one is not.
    let both: Segments = first.iter().copied().chain(bench.cut(size / 2, 128 << 10)).collect();
    let (told, heard) = channel();
    let done = Box::new(move |result| told.send(result).expect("the test listens"));
    assert_eq!(bench.layer.ensure(&both, done), Readiness::Pending);
    heard.recv_timeout(Duration::from_secs(60)).expect("told").expect("fetched");
    bench.layer.release(&first);
    bench.cache.shrink_to(0).expect("evicted");
    assert_eq!(bench.layer.file().present_spans(), 0);
}

#[test]
fn bytes_are_right_while_everything_is_evicted_all_the_time() {
    const LEN: u64 = 128 << 10;
    let bench = Bench::new();
    let size = bench.layer.size().get();
    let readers_left = std::sync::atomic::AtomicUsize::new(2);
    std::thread::scope(|threads| {
        for reader in 0..2_u64 {
            let (bench, readers_left) = (&bench, &readers_left);
            threads.spawn(move || {
                for round in 0..150 {
                    let start = (round * 7 + reader * 3) * LEN % (size - LEN) / 4096 * 4096;
                    let segments = bench.cut(start, LEN);
                    bench.wait_ready(&segments);
                    bench.read(&segments);
                    bench.layer.release(&segments);
                }
                readers_left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while readers_left.load(Ordering::SeqCst) > 0 {
            bench.cache.shrink_to(0).expect("evicted");
        }
    });
    bench.cache.shrink_to(0).expect("evicted");
    assert_eq!(bench.layer.file().present_spans(), 0, "nothing is held any more");
}

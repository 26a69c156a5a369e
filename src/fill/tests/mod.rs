//! Filling for real: scheduler, runtime, threads, layer files, against sources that fail on command.

mod cases;
mod excerpts;
mod faults;
mod paces;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{LazyLock, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio::runtime::Runtime;

use super::*;
use crate::cache::tests::SmallDisk;
use crate::cache::{Cache, CacheConfig, LayerFile};
use crate::registry::{BlobSource, BlobStream, Phase};
use crate::spans::SpanTable;
use crate::spans::ztoc::Ztoc;
use crate::units::{BlobRange, LayerOffset, LayerRange, u64_from_usize, usize_from_u64};

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    Busy,
    NotFound,
    CutAfter(usize),
    Corrupt,
    IgnoreRange,
    Never,
}

/// A blob in memory whose requests fail by script.
pub(super) struct Scripted {
    blob: Bytes,
    faults: Mutex<VecDeque<Fault>>,
    /// For all requests behind the script.
    always: Mutex<Fault>,
    pub requests: Mutex<Vec<BlobRange>>,
}

impl Scripted {
    pub fn new(blob: Bytes, faults: &[Fault]) -> Arc<Self> {
        let faults = Mutex::new(faults.iter().copied().collect());
        Arc::new(Self { blob, faults, always: Mutex::new(Fault::None), requests: Mutex::default() })
    }

    fn always(&self, fault: Fault) {
        *lock(&self.always) = fault;
    }

    pub fn requested_bytes(&self) -> u64 {
        lock(&self.requests).iter().map(|r| r.len_bytes()).sum()
    }
}

impl BlobSource for Scripted {
    fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
    fn size(&self) -> BlobOffset {
        BlobOffset::new(u64_from_usize(self.blob.len()))
    }
    fn describe(&self) -> String {
        "test.example/layer".into()
    }
    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        lock(&self.requests).push(range);
        let fault = lock(&self.faults).pop_front().unwrap_or(*lock(&self.always));
        let url = self.describe();
        let at = |offset: BlobOffset| usize_from_u64(offset.get()).expect("in memory");
        let mut starts_at = range.start();
        let mut bytes = self.blob.slice(at(range.start())..at(range.end()));
        let mut end = None;
        match fault {
            Fault::None => {}
            Fault::Busy => {
                let error = RegistryError::Status { url, status: 503, message: String::new(), retry_after: None };
                return Box::pin(async { Err(error) });
            }
            Fault::NotFound => return Box::pin(async { Err(RegistryError::NotFound { url }) }),
            Fault::Never => return Box::pin(std::future::pending()),
            Fault::CutAfter(n) => {
                bytes.truncate(n);
                end = Some(Err(RegistryError::Timeout { url, phase: Phase::Body, limit: Duration::ZERO }));
            }
            Fault::Corrupt => bytes = bytes.iter().map(|b| !b).collect(),
            Fault::IgnoreRange => (starts_at, bytes) = (BlobOffset::ZERO, self.blob.clone()),
        }
        let pieces: Vec<_> = bytes.chunks(30_000).map(|c| Ok(bytes.slice_ref(c))).chain(end).collect();
        Box::pin(async move { Ok(BlobStream { starts_at, bytes: stream::iter(pieces).boxed() }) })
    }
}

/// A layer of the corpus.
pub(super) struct Sample {
    pub blob: Bytes,
    pub tar: Vec<u8>,
    pub ztoc: PathBuf,
    pub table: Arc<SpanTable>,
}

pub(super) fn sample(blob: &str, ztoc: &str) -> Sample {
    use std::io::Read as _;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let ztoc = corpus.join(ztoc);
    let document = std::fs::read(&ztoc).expect("corpus");
    let table = Arc::new(Ztoc::parse(&document).expect("SOCI's own").spans().clone());
    let blob = std::fs::read(corpus.join(blob)).expect("corpus");
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(&*blob).read_to_end(&mut tar).expect("gzip");
    Sample { blob: blob.into(), tar, ztoc, table }
}

pub(super) fn many_spans() -> &'static Sample {
    static SAMPLE: LazyLock<Sample> =
        LazyLock::new(|| sample("mixed-zlib6.tar.gz", "mixed-zlib6.tar.gz.span-256k.ztoc"));
    &SAMPLE
}

/// All that a test needs, in the order in which it must go.
pub(super) struct Bench {
    layer: Option<Arc<FillLayer>>,
    filler: Arc<Filler>,
    pub file: Arc<LayerFile>,
    _cache: Cache,
    runtime: Runtime,
    _root: Box<dyn std::any::Any>,
}

pub(super) fn fast() -> FillConfig {
    FillConfig {
        cpu_threads: 2,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(5),
        read_ahead_bytes: 0,
        max_ways: 4,
        ..FillConfig::default()
    }
}

impl Bench {
    pub(super) fn new(sample: &Sample, source: Arc<dyn BlobSource>, config: FillConfig) -> Self {
        let root = tempfile::tempdir().expect("tempdir");
        let cache = Cache::open(root.path(), CacheConfig::default()).expect("cache");
        Self::with_cache(sample, source, config, Box::new(root), cache)
    }

    fn with_cache(
        sample: &Sample,
        source: Arc<dyn BlobSource>,
        config: FillConfig,
        root: Box<dyn std::any::Any>,
        cache: Cache,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("runtime");
        let filler = Filler::new(config, runtime.handle().clone()).expect("filler");
        let file = cache.layer(Digest::of(&sample.blob), sample.table.clone()).expect("layer");
        let layer = filler.add_layer(LayerSpec {
            digest: Digest::of(&sample.blob),
            table: sample.table.clone(),
            windows: std::fs::File::open(&sample.ztoc).expect("corpus"),
            source,
            file: file.clone(),
            diff_id: Some(Digest::of(&sample.tar)),
        });
        Self { layer: Some(layer), filler, file, _cache: cache, runtime, _root: root }
    }

    fn layer(&self) -> &FillLayer {
        self.layer.as_deref().expect("not yet dropped")
    }

    fn ask(&self, start: u64, end: u64) -> Receiver<Result<(), FillError>> {
        let (told, heard) = channel();
        let range = LayerRange::new(LayerOffset::new(start), LayerOffset::new(end)).expect("ordered");
        if self.layer().hold(range) {
            self.layer().release(range);
            told.send(Ok(())).expect("the test listens");
        } else {
            self.layer().want(range, Box::new(move |result| told.send(result).expect("the test listens")));
        }
        heard
    }

    pub(super) fn read(&self, sample: &Sample, start: u64, end: u64) -> Result<(), FillError> {
        use std::os::unix::fs::FileExt as _;
        self.ask(start, end).recv_timeout(Duration::from_secs(60)).expect("a waiter is always told")?;
        let index = |n| usize_from_u64(n).expect("small");
        let end = end.min(sample.table.layer_size().get());
        let mut bytes = vec![0; index(end - start)];
        std::fs::File::open(self.file.path()).and_then(|f| f.read_exact_at(&mut bytes, start)).expect("read");
        assert!(bytes == sample.tar[index(start)..index(end)], "wrong bytes in [{start}, {end})");
        Ok(())
    }

    pub(super) fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let limit = std::time::Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(std::time::Instant::now() < limit, "{what}: {:?}", self.layer().status());
            std::thread::yield_now();
        }
    }
}

//! Filling for real: scheduler, runtime, threads, layer files, against sources that fail on command.

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
        let again = told.clone();
        let waiter = Box::new(move |result| told.send(result).expect("the test listens"));
        if self.layer().ensure(range, Priority::Demand, waiter) {
            again.send(Ok(())).expect("the test listens");
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

//! Layers without an index: streamed once at full speed, inflated once, proven, and indexed on the way.
//!
//! ```text
//! parallel ranges ─► in order ─► sha256 of the blob, inflate, sha256 of the tar, zTOC ─► layer file
//!     (tokio)        (bounded)                  (one blocking thread)
//! ```
//!
//! Pieces of the blob are requested in parallel and handed on in order. A piece that breaks resumes where it stopped. A
//! server that ignores ranges is read as one stream; when that breaks, what came already is skipped in the next one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::FillError;
use crate::cache::{Cache, CacheError, IngestFile};
use crate::registry::{Backoff, BackoffConfig, BlobSource, BlobStream};
use crate::soci::build::{BuildError, BuildOptions, Built, ZtocBuilder, detect_compression};
use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, u64_from_usize, usize_from_u64};

/// How a layer is taken in.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// Parallel requests.
    pub requests: usize,
    /// Length of a request, in blob bytes. `requests` of them are held in memory at most.
    pub piece_bytes: u64,
    /// A request that brings no byte for so long is given up and tried again.
    pub stall_limit: Duration,
    /// How long the registry may be in trouble without bringing a byte before the ingest fails.
    pub hold_limit: Duration,
    /// Upper bound of the first pause before a retry.
    pub first_pause: Duration,
    /// Upper bound of any pause.
    pub longest_pause: Duration,
    /// Span size of the zTOC, in layer bytes.
    pub span_size_bytes: u64,
    /// What the zTOC says built it.
    pub build_tool: String,
}

impl Default for IngestConfig {
    /// Three requests are what containerd's own pull spreads over the layers of an image; 8 MiB as for transfers.
    fn default() -> Self {
        let build = BuildOptions::default();
        Self {
            requests: 3,
            piece_bytes: 8 << 20,
            stall_limit: Duration::from_secs(60),
            hold_limit: Duration::from_secs(600),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(20),
            span_size_bytes: build.span_size_bytes,
            build_tool: build.build_tool,
        }
    }
}

/// A layer that was taken in: its file is in the cache, proven.
#[derive(Clone, Debug)]
pub struct Ingested {
    /// The layer's zTOC.
    pub ztoc: Vec<u8>,
    /// sha256 of the tar.
    pub diff_id: Digest,
    /// Length of the tar with its padding.
    pub layer_size: LayerOffset,
}

/// Why a layer could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Its bytes could not be had.
    #[error(transparent)]
    Fetch(#[from] FillError),
    /// The blob is not what the manifest names.
    #[error("layer {expected}: {from} sent bytes with digest {got}")]
    BlobDigest {
        /// Digest in the manifest.
        expected: Digest,
        /// Digest of the bytes.
        got: Digest,
        /// The source.
        from: String,
    },
    /// The tar is not what the image's config names.
    #[error("layer {layer} unpacks to {got}, the image's config says diffID {expected}: the image is inconsistent")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// The diffID of the config.
        expected: Digest,
        /// Digest of the tar.
        got: Digest,
    },
    /// It is no layer that can be read.
    #[error("layer {layer}: {source}")]
    Build {
        /// The layer.
        layer: Digest,
        /// What the builder said.
        source: BuildError,
    },
    /// The layer file could not be written.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The thread that does the work ended without a result.
    #[error("layer {layer}: the work was stopped")]
    Stopped {
        /// The layer.
        layer: Digest,
    },
}

/// Hears how many blob bytes were worked on; runs on a thread of the ingest.
pub type Progress = Box<dyn FnMut(BlobOffset) + Send>;

/// Takes in the layer behind `source`. When this returns, `cache` has the layer complete and proven, and the caller
/// the zTOC; without a cache only the zTOC is made. Dropped early, it leaves nothing. Must run on a tokio runtime.
///
/// # Errors
/// Any [`IngestError`]; nothing is left behind.
pub async fn ingest(
    cache: Option<&Cache>,
    source: Arc<dyn BlobSource>,
    diff_id: Option<Digest>,
    config: IngestConfig,
    progress: Progress,
) -> Result<Ingested, IngestError> {
    let layer = source.digest();
    let file = cache.map(|cache| cache.ingest(layer)).transpose()?;
    // Two chunks: one being worked on, one ready. More only delays the pressure on the connections.
    let (chunks, work) = mpsc::channel(2);
    let job = Job { layer, diff_id, from: source.describe(), config: config.clone(), file, progress };
    let worker = tokio::task::spawn_blocking(move || job.run(work));
    let fetched = Fetch { source, config: Arc::new(config) }.run(&chunks).await;
    match &fetched {
        Ok(()) => drop(chunks.send(Chunk::End).await),
        Err(_) => drop(chunks),
    }
    let worked = worker.await.map_err(|_| IngestError::Stopped { layer })?;
    match (fetched, worked) {
        // The worker gives up for want of bytes; why they are wanting is the better answer.
        (Err(error), Err(IngestError::Stopped { .. })) => Err(error.into()),
        (_, worked) => worked,
    }
}

enum Chunk {
    Bytes(Bytes),
    End,
}

/// The blocking half.
struct Job {
    layer: Digest,
    diff_id: Option<Digest>,
    from: String,
    config: IngestConfig,
    file: Option<IngestFile>,
    progress: Progress,
}

impl Job {
    fn run(mut self, mut work: mpsc::Receiver<Chunk>) -> Result<Ingested, IngestError> {
        let layer = self.layer;
        let mut builder: Option<ZtocBuilder> = None;
        let mut head = Vec::new();
        let mut done = BlobOffset::ZERO;
        loop {
            let Some(chunk) = work.blocking_recv() else { return Err(IngestError::Stopped { layer }) };
            let Chunk::Bytes(bytes) = chunk else { break };
            done = BlobOffset::new(done.get() + u64_from_usize(bytes.len()));
            match &mut builder {
                Some(builder) => self.work(|sink| builder.push(&bytes, sink))?,
                None => {
                    // The first chunk may be shorter than the mark of a compression.
                    head.extend_from_slice(&bytes);
                    if head.len() >= MARK_BYTES {
                        builder = Some(self.begin(&mut head)?);
                    }
                }
            }
            (self.progress)(done);
        }
        let builder = match builder {
            Some(builder) => builder,
            None => self.begin(&mut head)?,
        };
        let mut built = None;
        self.work(|sink| {
            built = Some(builder.finish(sink)?);
            Ok(())
        })?;
        let Some(Built { ztoc, blob_digest: Some(blob), diff_id: Some(got), layer_size, .. }) = built else {
            return Err(IngestError::Stopped { layer });
        };
        if blob != layer {
            return Err(IngestError::BlobDigest { expected: layer, got: blob, from: self.from });
        }
        if let Some(expected) = self.diff_id.filter(|expected| *expected != got) {
            return Err(IngestError::DiffId { layer, expected, got });
        }
        if let Some(file) = self.file {
            file.finish(got)?;
        }
        Ok(Ingested { ztoc, diff_id: got, layer_size })
    }

    fn begin(&mut self, head: &mut Vec<u8>) -> Result<ZtocBuilder, IngestError> {
        let layer = self.layer;
        let failed = |source| IngestError::Build { layer, source };
        let options = BuildOptions {
            span_size_bytes: self.config.span_size_bytes,
            build_tool: self.config.build_tool.clone(),
            blob_digest: true,
            diff_id: true,
        };
        let mut builder = ZtocBuilder::new(options, detect_compression(head).map_err(failed)?).map_err(failed)?;
        self.work(|sink| builder.push(head, sink))?;
        head.clear();
        Ok(builder)
    }

    /// Runs a step of the builder with the layer file, if there is one, as its sink.
    fn work(
        &mut self,
        step: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), BuildError>,
    ) -> Result<(), IngestError> {
        let mut failed = None;
        let file = &mut self.file;
        let done = step(&mut |bytes| {
            let Some(file) = file else { return Ok(()) };
            file.append(bytes).map_err(|error| {
                failed = Some(error);
                io::ErrorKind::Other.into()
            })
        });
        match (done, failed) {
            (_, Some(error)) => Err(error.into()),
            (Err(source), None) => Err(IngestError::Build { layer: self.layer, source }),
            (Ok(()), None) => Ok(()),
        }
    }
}

/// Enough of a blob to tell its compression.
const MARK_BYTES: usize = 8;

/// The async half.
#[derive(Clone)]
struct Fetch {
    source: Arc<dyn BlobSource>,
    config: Arc<IngestConfig>,
}

/// A piece under way, on a task of its own so that it goes on while an earlier piece is handed on. Dropped, it stops.
struct PieceTask(JoinHandle<Result<Piece, FillError>>);

impl Drop for PieceTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What one request brought.
enum Piece {
    Here(Vec<Bytes>),
    /// The server sends everything, whatever is asked for.
    RangesIgnored,
}

impl Fetch {
    async fn run(&self, chunks: &mpsc::Sender<Chunk>) -> Result<(), FillError> {
        let size = self.source.size().get();
        let piece_bytes = self.config.piece_bytes.max(1);
        if size <= piece_bytes || self.config.requests < 2 {
            return self.stream(0, chunks).await;
        }
        let mut next = 0;
        let mut delivered = 0;
        let mut running = VecDeque::new();
        loop {
            while running.len() < self.config.requests && next < size {
                let end = (next + piece_bytes).min(size);
                running.push_back(PieceTask(tokio::spawn(self.clone().piece(next, end))));
                next = end;
            }
            let Some(mut first) = running.pop_front() else { return Ok(()) };
            match (&mut first.0).await.map_err(|_| FillError::Stopping)?? {
                Piece::Here(bytes) => {
                    for bytes in bytes {
                        delivered += u64_from_usize(bytes.len());
                        if chunks.send(Chunk::Bytes(bytes)).await.is_err() {
                            return Err(FillError::Stopping);
                        }
                    }
                }
                Piece::RangesIgnored => {
                    drop(running);
                    tracing::info!(from = self.source.describe(), "the server ignores ranges: reading one stream");
                    return self.stream(delivered, chunks).await;
                }
            }
        }
    }

    /// One piece, held in memory, however many requests it takes.
    async fn piece(self, start: u64, end: u64) -> Result<Piece, FillError> {
        let mut bytes = Vec::new();
        let mut at = start;
        let mut trouble = Trouble::new(&self.config);
        loop {
            let before = at;
            let error = match self.attempt(at, end, &mut at, &mut |b| bytes.push(b)).await {
                Ok(true) => return Ok(Piece::Here(bytes)),
                Ok(false) => return Ok(Piece::RangesIgnored),
                Err(error) => error,
            };
            trouble.pause(error, at > before).await?;
        }
    }

    /// Reads until `end` or the first error. False: the answer begins at 0 though something else was asked for.
    async fn attempt(
        &self,
        start: u64,
        end: u64,
        at: &mut u64,
        take: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<bool, FillError> {
        let mut stream = self.open(start, end).await?;
        if stream.starts_at.get() != start {
            return if stream.starts_at == BlobOffset::ZERO { Ok(false) } else { Err(self.misplaced(start, &stream)) };
        }
        while *at < end {
            let mut bytes = self.next(&mut stream, *at, end).await?;
            bytes.truncate(usize_from_u64(end - *at).unwrap_or(usize::MAX));
            *at += u64_from_usize(bytes.len());
            take(bytes);
        }
        Ok(true)
    }

    /// From `at` to the end in order, one request at a time; what a server sends from before `at` is skipped.
    async fn stream(&self, mut at: u64, chunks: &mpsc::Sender<Chunk>) -> Result<(), FillError> {
        let size = self.source.size().get();
        let mut trouble = Trouble::new(&self.config);
        while at < size {
            let before = at;
            match self.stream_once(&mut at, size, chunks).await {
                Ok(()) => {}
                Err(error) => trouble.pause(error, at > before).await?,
            }
        }
        Ok(())
    }

    async fn stream_once(&self, at: &mut u64, size: u64, chunks: &mpsc::Sender<Chunk>) -> Result<(), FillError> {
        let mut stream = self.open(*at, size).await?;
        let mut position = stream.starts_at.get();
        if position != *at && position != 0 {
            return Err(self.misplaced(*at, &stream));
        }
        while *at < size {
            let mut bytes = self.next(&mut stream, position, size).await?;
            position += u64_from_usize(bytes.len());
            let fresh = usize_from_u64(position.saturating_sub(*at)).unwrap_or(usize::MAX);
            let old = bytes.len().saturating_sub(fresh);
            drop(bytes.split_to(old));
            bytes.truncate(usize_from_u64(size - *at).unwrap_or(usize::MAX));
            *at += u64_from_usize(bytes.len());
            if !bytes.is_empty() && chunks.send(Chunk::Bytes(bytes)).await.is_err() {
                return Err(FillError::Stopping);
            }
        }
        Ok(())
    }

    async fn open(&self, start: u64, end: u64) -> Result<BlobStream, FillError> {
        let layer = self.source.digest();
        let Some(range) = BlobRange::new(BlobOffset::new(start), BlobOffset::new(end)) else {
            return Err(FillError::Stopping);
        };
        let opened = self.limited(self.source.open(range)).await?;
        opened.map_err(|source| FillError::Registry { layer, source: Arc::new(source) })
    }

    async fn next(&self, stream: &mut BlobStream, at: u64, end: u64) -> Result<Bytes, FillError> {
        let layer = self.source.digest();
        match self.limited(stream.bytes.next()).await? {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(source)) => Err(FillError::Registry { layer, source: Arc::new(source) }),
            None => Err(FillError::CutOff {
                layer,
                from: self.source.describe(),
                at: BlobOffset::new(at),
                expected: BlobOffset::new(end),
            }),
        }
    }

    async fn limited<T>(&self, future: impl Future<Output = T>) -> Result<T, FillError> {
        let limit = self.config.stall_limit;
        tokio::time::timeout(limit, future).await.map_err(|_| FillError::Stalled {
            layer: self.source.digest(),
            from: self.source.describe(),
            limit_ms: limit.as_millis(),
        })
    }

    fn misplaced(&self, asked: u64, stream: &BlobStream) -> FillError {
        FillError::Misplaced {
            layer: self.source.digest(),
            from: self.source.describe(),
            asked: BlobOffset::new(asked),
            got: stream.starts_at,
        }
    }
}

/// Pauses between attempts, until there was no progress for too long.
struct Trouble {
    backoff: Backoff,
    since: Option<tokio::time::Instant>,
    hold_limit: Duration,
}

impl Trouble {
    fn new(config: &IngestConfig) -> Self {
        let backoff =
            Backoff::new(BackoffConfig { first: config.first_pause, longest: config.longest_pause, retries: None });
        Self { backoff, since: None, hold_limit: config.hold_limit }
    }

    async fn pause(&mut self, error: FillError, progress: bool) -> Result<(), FillError> {
        if progress {
            self.backoff.reset();
            self.since = None;
        }
        let waited = self.since.get_or_insert_with(tokio::time::Instant::now).elapsed();
        if !error.is_transient() {
            return Err(error);
        }
        if waited >= self.hold_limit {
            return Err(FillError::Held { waited, last: Some(Arc::new(error)) });
        }
        let pause = self.backoff.next_pause(error.retry_after()).unwrap_or_default();
        tracing::warn!(%error, pause_ms = pause.as_millis(), "ingest: trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

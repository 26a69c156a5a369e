//! Layers without an index: streamed once at full speed, inflated once, proven, and indexed on the way.
//!
//! ```text
//! parallel ranges ─► in order ─► sha256 of the blob, inflate, sha256 of the tar, zTOC ─► layer file
//!     (tokio)        (bounded)                  (one blocking thread)
//! ```
//!
//! Pieces of the blob are requested in parallel and handed on in order. A piece that breaks resumes where it stopped. A
//! server that ignores ranges is read as one stream; when that breaks, what came already is skipped in the next one.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{FillError, lock};
use crate::cache::{Cache, CacheError, IngestFile};
use crate::registry::BlobSource;
use crate::soci::build::{BuildError, BuildOptions, Built, ZtocBuilder, ZtocDocument, detect_compression};
use crate::soci::toc::FileSpans;
use crate::spans::Compression;
use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, u64_from_usize};

mod fetch;

use fetch::Fetch;

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
    /// Where the checkpoints wait until the zTOC is written; `None`: in memory, 32 KiB for each span.
    pub spool_dir: Option<PathBuf>,
    /// Names of files whose spans are wanted.
    pub locate: Vec<String>,
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
            spool_dir: None,
            locate: Vec::new(),
        }
    }
}

/// A layer that was taken in: its file is in the cache, proven.
#[derive(Debug)]
pub struct Ingested {
    /// The layer's zTOC.
    pub ztoc: ZtocDocument,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Whether the layer has extended attributes or opaque directories.
    pub needs_xattrs: bool,
    /// Where the files of [`IngestConfig::locate`] are, as far as the layer has them.
    pub located: Vec<FileSpans>,
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
    Fetch(Box<FillError>),
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

impl From<FillError> for IngestError {
    fn from(error: FillError) -> Self {
        Self::Fetch(Box::new(error))
    }
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
    let progress = Arc::new(Mutex::new(progress));
    let whole = BlobRange::new(BlobOffset::ZERO, source.size());
    loop {
        let hears = Arc::clone(&progress);
        let told = Box::new(move |at| lock(&hears)(at));
        match ingest_once(cache, Arc::clone(&source), diff_id, config.clone(), told).await {
            // These were not the blob's bytes: another host may have them.
            Err(error @ (IngestError::BlobDigest { .. } | IngestError::Build { .. }))
                if whole.is_some_and(|whole| source.reject(whole)) =>
            {
                tracing::warn!(%error, "ingest: beginning again with another host");
            }
            done => return done,
        }
    }
}

async fn ingest_once(
    cache: Option<&Cache>,
    source: Arc<dyn BlobSource>,
    diff_id: Option<Digest>,
    config: IngestConfig,
    progress: Progress,
) -> Result<Ingested, IngestError> {
    let layer = source.digest();
    let file = cache.map(|cache| cache.ingest(layer)).transpose()?;
    let job = Job { layer, diff_id, from: source.describe(), config: config.clone(), file, progress };
    match stream(source, config, move |pieces| job.run(pieces)).await? {
        // The worker gives up for want of bytes; why they are wanting is the better answer.
        (Err(error), Err(IngestError::Stopped { .. })) => Err(error.into()),
        (_, worked) => worked,
    }
}

/// The blob's bytes in order, for a thread that may block.
#[derive(Debug)]
pub struct Pieces(mpsc::Receiver<Chunk>);

/// No more bytes of a blob can be had; who fetches them knows why.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the blob's bytes ended early")]
pub struct Interrupted;

impl Pieces {
    /// Waits for the next bytes; `Ok(None)` at the end of the blob.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn receive(&mut self) -> Result<Option<Bytes>, Interrupted> {
        match self.0.blocking_recv() {
            Some(Chunk::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Chunk::End) => Ok(None),
            None => Err(Interrupted),
        }
    }
}

/// Reads the whole blob behind `source` once, in order, and has `work` take it on a blocking thread. Gives whether all
/// bytes could be had, and what `work` gave. Must run on a tokio runtime.
///
/// # Errors
/// [`IngestError::Stopped`] when the thread ended without a result.
pub async fn stream<T: Send + 'static>(
    source: Arc<dyn BlobSource>,
    config: IngestConfig,
    work: impl FnOnce(Pieces) -> T + Send + 'static,
) -> Result<(Result<(), FillError>, T), IngestError> {
    let layer = source.digest();
    // Two chunks: one being worked on, one ready. More only delays the pressure on the connections.
    let (chunks, received) = mpsc::channel(2);
    let worker = tokio::task::spawn_blocking(move || work(Pieces(received)));
    let fetched = Fetch { source, config: Arc::new(config) }.run(&chunks).await;
    match &fetched {
        Ok(()) => drop(chunks.send(Chunk::End).await),
        Err(_) => drop(chunks),
    }
    let worked = worker.await.map_err(|_| IngestError::Stopped { layer })?;
    Ok((fetched, worked))
}

#[derive(Debug)]
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
    fn run(mut self, mut work: Pieces) -> Result<Ingested, IngestError> {
        let layer = self.layer;
        let mut builder: Option<ZtocBuilder> = None;
        let mut head = Vec::new();
        let mut done = BlobOffset::ZERO;
        loop {
            let Some(bytes) = work.receive().map_err(|Interrupted| IngestError::Stopped { layer })? else { break };
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
            built = Some(builder.finish_spooled(sink)?);
            Ok(())
        })?;
        let Some(Built {
            ztoc,
            blob_digest: Some(blob),
            diff_id: Some(got),
            layer_size,
            compression,
            needs_xattrs,
            located,
            ..
        }) = built
        else {
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
        Ok(Ingested { ztoc, compression, needs_xattrs, located, diff_id: got, layer_size })
    }

    fn begin(&mut self, head: &mut Vec<u8>) -> Result<ZtocBuilder, IngestError> {
        let layer = self.layer;
        let failed = |source| IngestError::Build { layer, source };
        let options = BuildOptions {
            span_size_bytes: self.config.span_size_bytes,
            build_tool: self.config.build_tool.clone(),
            blob_digest: true,
            diff_id: true,
            spool_dir: self.config.spool_dir.clone(),
            locate: self.config.locate.clone(),
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

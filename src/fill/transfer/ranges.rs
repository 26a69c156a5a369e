//! The bytes of a blob range, in order: by one request, by several in parallel, or piece by piece, as the pace says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::fill::filler::Shared;
use crate::fill::layer::LayerInner;
use crate::fill::link::{Link, Sample};
use crate::fill::sched::Pace;
use crate::fill::{FillError, Priority};
use crate::registry::{BlobStream, RegistryError};
use crate::units::{BlobOffset, BlobRange, u64_from_usize, usize_from_u64};

/// Least length of the pieces of a recorded order: what it names will be read, so few requests matter more than making way.
const RECORDED_PIECE_BYTES: u64 = 1 << 20;

/// A range that is being fetched.
pub(super) struct Ranges {
    shared: Arc<Shared>,
    layer: Arc<LayerInner>,
    pace: watch::Receiver<Pace>,
    /// Least length of a piece.
    least_bytes: u64,
    starts_at: BlobOffset,
    /// Blob position of the next byte to hand on, the end of what was asked for, and of all.
    at: u64,
    asked: u64,
    end: u64,
    whole: bool,
    /// Requests under way, in order. All but the first receive on tasks of their own.
    parts: VecDeque<Part>,
    /// Of the last time that all that was left was asked for at once.
    sample: Option<(Sample, u64, Duration)>,
}

/// One request.
struct Part {
    end: u64,
    bytes: PartBytes,
}

enum PartBytes {
    Here(Opened),
    /// On its way on another task. What it holds is part of what the scheduler has reserved for the transfer.
    Elsewhere {
        chunks: mpsc::UnboundedReceiver<Result<Bytes, FillError>>,
        task: AbortHandle,
    },
}

impl Drop for PartBytes {
    fn drop(&mut self) {
        if let Self::Elsewhere { task, .. } = self {
            task.abort();
        }
    }
}

/// An answer that is being read.
struct Opened {
    shared: Arc<Shared>,
    layer: Arc<LayerInner>,
    starts_at: BlobOffset,
    /// Of the next byte.
    at: u64,
    end: u64,
    /// Bytes before what was asked for, from a server that ignores ranges.
    skip_bytes: u64,
    stream: BoxStream<'static, Result<Bytes, RegistryError>>,
    _active: Active,
}

/// Counts a request at the link, for as long as it lives.
struct Active(Arc<Link>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Ranges {
    /// Asks for `range`, or at least for its first bytes.
    pub async fn open(
        shared: &Arc<Shared>,
        layer: &Arc<LayerInner>,
        range: BlobRange,
        priority: Priority,
        pace: watch::Receiver<Pace>,
    ) -> Result<Self, FillError> {
        let start = range.start().get();
        let mut ranges = Self {
            shared: shared.clone(),
            layer: layer.clone(),
            pace,
            least_bytes: if priority == Priority::Recorded { RECORDED_PIECE_BYTES } else { 0 },
            starts_at: range.start(),
            at: start,
            asked: start,
            end: range.end().get(),
            whole: false,
            parts: VecDeque::new(),
            sample: None,
        };
        ranges.ask().await?;
        Ok(ranges)
    }

    /// Whether the server sends the whole blob, whatever was asked for.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Blob position of the first byte.
    pub fn starts_at(&self) -> BlobOffset {
        self.starts_at
    }

    /// The next bytes; there must be some left.
    pub async fn next(&mut self) -> Result<Bytes, FillError> {
        if self.parts.is_empty() {
            self.ask().await?;
        }
        let part = self.parts.front_mut().ok_or(FillError::Stopping)?;
        let chunk = match &mut part.bytes {
            PartBytes::Here(opened) => opened.next().await?,
            PartBytes::Elsewhere { chunks, .. } => chunks.recv().await.transpose()?,
        };
        // A task that ended without a word was stopped with the runtime.
        let chunk = chunk.ok_or(FillError::Stopping)?;
        self.at += u64_from_usize(chunk.len());
        if self.at >= part.end {
            self.parts.pop_front();
        }
        Ok(chunk)
    }

    /// Forgets what is under way; the next bytes are asked for from `at` on.
    pub fn restart(&mut self, at: BlobOffset) {
        self.parts.clear();
        (self.at, self.asked) = (at.get(), at.get());
        self.sample = None;
    }

    /// All bytes are here.
    pub fn finish(&mut self) {
        if let Some((sample, bytes, first_after)) = &self.sample {
            self.layer.link.ended(sample, *bytes, *first_after, self.shared.now());
        }
    }

    /// Asks for what is next, when the pace allows it.
    async fn ask(&mut self) -> Result<(), FillError> {
        // An error means that nobody sets the pace any more: the transfer is being stopped.
        let pace = *self.pace.wait_for(|pace| *pace != Pace::Held).await.map_err(|_| FillError::Stopping)?;
        let link = self.layer.link.clone();
        let left = self.end - self.asked;
        let began = self.shared.now();
        if pace == Pace::Full {
            let ways = match self.layer.ignores_ranges.load(Ordering::Relaxed) {
                true => 1,
                false => {
                    link.ways(left, self.shared.config.max_requests_per_host).min(self.shared.config.max_ways.max(1))
                }
            };
            let part_bytes = left.div_ceil(ways);
            // Later parts first: each only has to be sent, the first is waited for.
            let first_end = self.asked + part_bytes.min(left);
            let mut start = first_end;
            let mut later = VecDeque::new();
            while start < self.end {
                let end = (start + part_bytes).min(self.end);
                later.push_back(self.elsewhere(start, end));
                start = end;
            }
            let active = Active::new(&link, began);
            let sample = link.sample(1 + u64_from_usize(later.len()), began);
            let opened = Opened::request(&self.shared, &self.layer, self.asked, first_end, active).await?;
            self.sample = Some((sample, left, self.shared.now().saturating_sub(began)));
            self.take(opened, first_end);
            if !self.whole {
                self.parts.extend(later);
                self.asked = self.end;
            }
        } else {
            let end = self.asked + left.min(link.piece_bytes().max(self.least_bytes));
            let active = Active::new(&link, began);
            let opened = Opened::request(&self.shared, &self.layer, self.asked, end, active).await?;
            self.take(opened, end);
        }
        Ok(())
    }

    /// The first answer tells whether the server knows ranges at all.
    fn take(&mut self, mut opened: Opened, end: u64) {
        let is_first = self.at == self.starts_at.get() && self.parts.is_empty();
        let mut end = end;
        if is_first && opened.starts_at == BlobOffset::ZERO && self.at != 0 {
            self.whole = true;
            self.starts_at = BlobOffset::ZERO;
            end = self.layer.table.blob_size().get();
            (self.at, self.end) = (0, end);
            (opened.at, opened.end, opened.skip_bytes) = (0, end, 0);
            self.sample = None;
        } else if opened.skip_bytes > 0 {
            // No second time.
            end = self.end;
            opened.end = end;
        }
        self.asked = end;
        self.parts.push_back(Part { end, bytes: PartBytes::Here(opened) });
    }

    /// Fetches a part on a task of its own.
    fn elsewhere(&self, start: u64, end: u64) -> Part {
        let (told, chunks) = mpsc::unbounded_channel();
        let (shared, layer) = (self.shared.clone(), self.layer.clone());
        let active = Active::new(&layer.link, shared.now());
        let task = tokio::spawn(async move {
            let done = async {
                let mut opened = Opened::request(&shared, &layer, start, end, active).await?;
                if opened.starts_at.get() != start {
                    // The next attempt asks once, and takes what comes.
                    layer.ignores_ranges.store(true, Ordering::Relaxed);
                    return Err(opened.cut_off());
                }
                while let Some(chunk) = opened.next().await? {
                    let last = opened.at >= opened.end;
                    if told.send(Ok(chunk)).is_err() || last {
                        break;
                    }
                }
                Ok(())
            };
            if let Err(error) = done.await {
                // Nobody listens any more: so nobody needs to know.
                let _ = told.send(Err(error));
            }
        });
        Part { end, bytes: PartBytes::Elsewhere { chunks, task: task.abort_handle() } }
    }
}

impl Active {
    fn new(link: &Arc<Link>, now: Duration) -> Self {
        link.begin(now);
        Self(link.clone())
    }
}

impl Opened {
    /// Sends one request and waits for the head of its answer, which begins at `start` or with the blob.
    async fn request(
        shared: &Arc<Shared>,
        layer: &Arc<LayerInner>,
        start: u64,
        end: u64,
        active: Active,
    ) -> Result<Self, FillError> {
        let (shared, layer) = (shared.clone(), layer.clone());
        let range = BlobRange::new(BlobOffset::new(start), BlobOffset::new(end)).ok_or(FillError::Stopping)?;
        layer.requests.fetch_add(1, Ordering::Relaxed);
        let began = shared.now();
        let BlobStream { starts_at, bytes } =
            limited(&shared, &layer, layer.source.open(range)).await?.map_err(|e| layer.registry_error(e))?;
        layer.link.answered(shared.now().saturating_sub(began));
        if starts_at != range.start() && (starts_at != BlobOffset::ZERO || start == 0) {
            let from = layer.source.describe();
            return Err(FillError::Misplaced { layer: layer.digest, from, asked: range.start(), got: starts_at });
        }
        let skip_bytes = start - starts_at.get();
        Ok(Self { shared, layer, starts_at, at: start, end, skip_bytes, stream: bytes, _active: active })
    }

    fn cut_off(&self) -> FillError {
        FillError::CutOff {
            layer: self.layer.digest,
            from: self.layer.source.describe(),
            at: BlobOffset::new(self.at),
            expected: BlobOffset::new(self.end),
        }
    }

    /// The next bytes, none from behind the end.
    async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        loop {
            let Some(chunk) = limited(&self.shared, &self.layer, self.stream.next()).await? else {
                return Err(self.cut_off());
            };
            let mut chunk = chunk.map_err(|e| self.layer.registry_error(e))?;
            self.layer.link.received(chunk.len(), self.shared.now());
            let skipped = usize_from_u64(self.skip_bytes).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            self.skip_bytes -= u64_from_usize(skipped);
            let mut chunk = chunk.split_off(skipped);
            if let Some(left) = usize_from_u64(self.end - self.at) {
                chunk.truncate(left);
            }
            if !chunk.is_empty() {
                self.at += u64_from_usize(chunk.len());
                return Ok(Some(chunk));
            }
        }
    }
}

/// Gives up when nothing comes for too long. Dropping the future is what cancels the request.
async fn limited<T>(shared: &Shared, layer: &LayerInner, future: impl Future<Output = T>) -> Result<T, FillError> {
    let limit = shared.config.stall_limit;
    tokio::time::timeout(limit, future).await.map_err(|_| FillError::Stalled {
        layer: layer.digest,
        from: layer.source.describe(),
        limit_ms: limit.as_millis(),
    })
}

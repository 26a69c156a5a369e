//! One layer that can be filled.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::excerpt::{self, Excerpt, Loans};
use super::filler::Shared;
use super::link::Link;
use super::sched::{Ahead, Event, LayerId, Presence};
use super::touched::{Touch, Touched};
use super::waits::{Journal, Waits};
use super::{FillError, Priority, lock};
use crate::cache::{Bitmap, LayerFile};
use crate::registry::{BlobSource, RegistryError};
use crate::spans::SpanTable;
use crate::units::{Digest, LayerOffset, LayerRange, Offset as _, SliceId, SpanId};

/// Told once how it went. Must not block; runs on any of the filler's threads, never inside of the call that gave it.
pub type Waiter = Box<dyn FnOnce(Result<(), FillError>) + Send + 'static>;

/// A read that begins so close to the start of a span may go on from the span before: twice the kernel's usual readahead,
/// since a file's first bytes may lie behind a few small ones that nobody reads. Of reads that jump about, one in sixteen
/// lands there by chance.
const HEAD_BYTES: u64 = 256 << 10;

/// What filling a layer needs.
pub struct LayerSpec {
    /// The blob's digest.
    pub digest: Digest,
    /// Its spans.
    pub table: Arc<SpanTable>,
    /// The zTOC document, from which windows are read ([`crate::spans::Span::window_at`]).
    pub windows: File,
    /// Where the blob is.
    pub source: Arc<dyn BlobSource>,
    /// Where the tar goes.
    pub file: Arc<LayerFile>,
    /// The image's diffID, to prove the layer when it is complete.
    pub diff_id: Option<Digest>,
}

/// How a layer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerStatus {
    /// Blob bytes received since the layer was added.
    pub fetched_bytes: u64,
    /// Layer bytes in the layer file.
    pub present_bytes: u64,
    /// Spans in the layer file.
    pub present_spans: u32,
    /// Spans of the layer.
    pub spans: u32,
    /// Requests made.
    pub requests: u64,
    /// Transfers and spans that failed and were retried or given up.
    pub failures: u64,
    /// Spans that were fetched in the background.
    pub background_spans: u64,
    /// Readers that wait now.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub oldest_wait: Duration,
    /// The last trouble, for people.
    pub last_error: Option<String>,
    /// Whether the whole layer was found to have the image's diffID.
    pub proven: bool,
}

/// What transfers know of a layer.
pub(super) struct LayerInner {
    pub id: LayerId,
    pub digest: Digest,
    pub table: Arc<SpanTable>,
    pub windows: File,
    pub source: Arc<dyn BlobSource>,
    pub file: Arc<LayerFile>,
    pub diff_id: Option<Digest>,
    /// The way to its registry.
    pub link: Arc<Link>,
    /// Spans at which the scheduler wants to hear of readers.
    pub marks: Bitmap,
    /// What readers came to first, by span and by slice.
    pub touched: Touched,
    pub touched_slices: Touched,
    /// The excerpts that bring slices of it.
    pub loans: Loans,
    pub fetched_bytes: AtomicU64,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    /// Spans that were fetched while nobody waited.
    pub background_spans: AtomicU64,
    pub journal: Arc<Journal>,
    /// The end of the layer cannot be inflated, so that its diffID cannot be computed.
    pub tail_damaged: AtomicBool,
    /// A part of a transfer was answered with the whole blob: no more parts.
    pub ignores_ranges: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl LayerInner {
    pub fn new(id: LayerId, spec: LayerSpec, link: Arc<Link>) -> Self {
        let LayerSpec { digest, table, windows, source, file, diff_id } = spec;
        Self {
            id,
            digest,
            marks: Bitmap::new(u32::try_from(table.len()).unwrap_or(u32::MAX)),
            touched: Touched::new(table.len()),
            touched_slices: Touched::new(slices_of(&table).len()),
            loans: Loans::default(),
            table,
            windows,
            source,
            file,
            diff_id,
            link,
            fetched_bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            background_spans: AtomicU64::new(0),
            journal: Arc::default(),
            tail_damaged: AtomicBool::new(false),
            ignores_ranges: AtomicBool::new(false),
            last_error: Mutex::new(None),
        }
    }

    pub fn registry_error(&self, source: RegistryError) -> FillError {
        FillError::Registry { layer: self.digest, source: Arc::new(source) }
    }

    pub fn note(&self, error: &dyn std::error::Error) {
        *lock(&self.last_error) = Some(error.to_string());
    }
}

/// All slices of a layer.
fn slices_of(table: &SpanTable) -> Range<u32> {
    LayerRange::new(LayerOffset::ZERO, table.layer_size()).map_or(0..0, SliceId::covering)
}

impl Presence for LayerFile {
    fn has(&self, id: SpanId) -> bool {
        Self::has(self, id)
    }

    fn is_complete(&self) -> bool {
        Self::is_complete(self)
    }
}

/// A layer that can be filled. Dropping it stops its transfers and fails its waiters with [`FillError::Stopping`].
pub struct FillLayer {
    pub(super) shared: Arc<Shared>,
    pub(super) inner: Arc<LayerInner>,
}

impl FillLayer {
    /// If all of `range` is here, keeps it here until [`FillLayer::release`]. Else false: [`FillLayer::want`] it, then try
    /// again. Never blocks, allocates nothing; any thread may call.
    pub fn hold(&self, range: LayerRange) -> bool {
        let layer = &*self.inner;
        let spans = layer.table.covering(range);
        layer.touched.read(spans.clone());
        layer.touched_slices.read(SliceId::covering(range));
        if !layer.file.hold_range(range, spans.clone()) {
            return false;
        }
        if self.comes_from_start(range, &spans) && spans.clone().any(|span| layer.marks.clear(span)) {
            self.shared.apply(Event::MarkReached { layer: layer.id, spans, ahead: self.ahead() });
        }
        true
    }

    /// Undoes one [`FillLayer::hold`] of the same `range`.
    pub fn release(&self, range: LayerRange) {
        self.inner.file.release(self.inner.table.covering(range));
    }

    /// Makes `range` present for a reader that is blocked on it. `waiter` is called exactly once, from another thread or
    /// task. `Ok` means that it is worth another try: every span of it came, or what an excerpt has of it; but what nobody
    /// holds may be gone again, and an excerpt may have turned out to be no good. Never blocks; any thread may call.
    pub fn want(&self, range: LayerRange, waiter: Waiter) {
        let spans = self.inner.table.covering(range);
        self.inner.file.touch(spans.clone());
        self.inner.touched.read(spans.clone());
        self.inner.touched_slices.read(SliceId::covering(range));
        let ahead = if self.comes_from_start(range, &spans) { self.ahead() } else { Ahead::Nothing };
        let waiter = self.inner.journal.watch(range, spans.clone(), waiter);
        let Some(waiter) = excerpt::want_lent(&self.shared, &self.inner, range, waiter) else { return };
        self.shared.want(self.inner.id, spans, Priority::Demand, ahead, Some(waiter));
    }

    /// Whether a read of `range` enters the last of its spans where one comes in who reads on from the span before.
    fn comes_from_start(&self, range: LayerRange, spans: &Range<u32>) -> bool {
        let first = self.inner.table.get(SpanId(spans.start));
        let into = first.and_then(|span| range.start().bytes_since(span.layer.start())).unwrap_or(0);
        spans.len() > 1 || into < HEAD_BYTES
    }

    /// How far to read ahead of a reader that reads on.
    fn ahead(&self) -> Ahead {
        Ahead::UpTo { link_bytes: self.inner.link.ahead_bytes() }
    }

    /// Asks for `range` without waiting for it.
    pub fn prefetch(&self, range: LayerRange, priority: Priority) {
        let spans = self.inner.table.covering(range);
        if !self.inner.file.has_all(spans.clone()) {
            self.shared.want(self.inner.id, spans, priority, Ahead::Nothing, None);
        }
    }

    /// Makes all spans of `range` present without counting as a reader; where an excerpt lends some of it, they come all the
    /// same. `waiter` as for [`FillLayer::want`]. Never blocks; any thread may call.
    pub fn complete(&self, range: LayerRange, waiter: Waiter) {
        let spans = self.inner.table.covering(range);
        self.shared.want(self.inner.id, spans, Priority::Recorded, Ahead::Nothing, Some(waiter));
    }

    /// From `at_us` on, by [`super::read_clock_us`], the next read of each span is its first one again.
    pub fn begin_reads(&self, at_us: u64) {
        self.inner.touched.begin(at_us);
        self.inner.touched_slices.begin(at_us);
    }

    /// The first reads of spans at or after `since_us`, in their order.
    #[must_use]
    pub fn reads_since(&self, since_us: u64) -> Vec<Touch<SpanId>> {
        let touches = self.inner.touched.since(since_us).into_iter();
        touches.map(|(at_us, span)| Touch { at_us, what: SpanId(span) }).collect()
    }

    /// The first reads of slices at or after `since_us`, in their order.
    #[must_use]
    pub fn slices_since(&self, since_us: u64) -> Vec<Touch<SliceId>> {
        let touches = self.inner.touched_slices.since(since_us).into_iter();
        touches.map(|(at_us, slice)| Touch { at_us, what: SliceId(slice) }).collect()
    }

    /// Takes slices from an excerpt as they come with it: `places` says which of its slices is which of this layer. Readers of
    /// these slices wait for the excerpt and not for whole spans, as long as it is any good.
    pub fn borrow(&self, excerpt: &Arc<Excerpt>, places: impl Iterator<Item = (SliceId, SliceId)>) {
        excerpt::lend(&self.shared, &self.inner, excerpt, places.collect());
    }

    /// The layer's file.
    #[must_use]
    pub fn file(&self) -> &Arc<LayerFile> {
        &self.inner.file
    }

    /// What readers of the layer waited for, and wait for now.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.inner.journal.tell()
    }

    /// How the layer stands.
    #[must_use]
    pub fn status(&self) -> LayerStatus {
        let layer = &*self.inner;
        let numbers = self.shared.numbers(layer.id);
        LayerStatus {
            fetched_bytes: layer.fetched_bytes.load(Ordering::Relaxed),
            present_bytes: layer.file.present_bytes(),
            present_spans: layer.file.present_spans(),
            spans: u32::try_from(layer.table.len()).unwrap_or(u32::MAX),
            requests: layer.requests.load(Ordering::Relaxed),
            failures: layer.failures.load(Ordering::Relaxed),
            background_spans: layer.background_spans.load(Ordering::Relaxed),
            waiting: numbers.waiting,
            oldest_wait: numbers.oldest_wait,
            last_error: lock(&layer.last_error).clone(),
            proven: layer.file.is_proven(),
        }
    }
}

impl Drop for FillLayer {
    fn drop(&mut self) {
        excerpt::end(&self.inner);
        self.shared.remove(self.inner.id);
    }
}

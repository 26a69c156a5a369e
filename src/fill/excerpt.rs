//! Excerpts: what a start reads of an image's layers, slice by slice, in one blob of zstd frames, so that a start need not
//! fetch the rest of each span that it touches.
//!
//! An excerpt is filled like a layer: its frames are spans, with digests, priorities and retries like all others. What
//! comes of it is copied to where it belongs in the layers. A reader of a slice that is on its way waits for the frame that
//! has it; when the excerpt is no good, readers are told to ask again, and get whole spans.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use smallvec::SmallVec;

use super::filler::Shared;
use super::layer::{FillLayer, LayerInner, Waiter};
use super::sched::Ahead;
use super::span_bytes::cache_error;
use super::{FillError, Priority, lock};
use crate::spans::{Compression, Span, SpanTable, SpanTableError};
use crate::units::{
    BlobOffset, BlobRange, Digest, LayerOffset, LayerRange, Offset as _, SLICE_BYTES, SliceId, SpanId, usize_from_u64,
};

/// The table of an excerpt whose frames have these lengths in bytes and digests, and hold `frame_slices` slices each, the last
/// one what is left of `slices`.
///
/// # Errors
/// When they do not make a table.
pub fn excerpt_table(frames: &[(u64, Digest)], frame_slices: u32, slices: u32) -> Result<SpanTable, SpanTableError> {
    let size = LayerOffset::new(u64::from(slices) * SLICE_BYTES);
    let (mut blob, mut layer) = (BlobOffset::ZERO, LayerOffset::ZERO);
    let mut spans = Vec::with_capacity(frames.len());
    for (len_bytes, digest) in frames {
        let end = layer.checked_add(u64::from(frame_slices) * SLICE_BYTES).unwrap_or(size).min(size);
        let ranges = BlobRange::from_len(blob, *len_bytes).zip(LayerRange::new(layer, end));
        let (blob_range, layer_range) = ranges.ok_or(SpanTableError::LayerEnd { end, layer_size: size })?;
        (blob, layer) = (blob_range.end(), end);
        spans.push(Span { blob: blob_range, layer: layer_range, bits: 0, digest: *digest, window_at: None });
    }
    SpanTable::new(Compression::Zstd, blob, size, spans)
}

/// An excerpt that layers borrow from.
pub struct Excerpt {
    fill: Arc<FillLayer>,
    /// Nothing more is taken from it.
    broken: AtomicBool,
    /// Frames that layers still wait for, counted for each layer.
    wanted: AtomicUsize,
    /// Readers that wait for frames.
    waiting: Waiting,
}

impl Excerpt {
    /// `fill` has a table by [`excerpt_table`].
    pub(super) fn new(fill: Arc<FillLayer>) -> Arc<Self> {
        Arc::new(Self {
            fill,
            broken: AtomicBool::new(false),
            wanted: AtomicUsize::new(0),
            waiting: Waiting::default(),
        })
    }

    /// What fills it.
    #[must_use]
    pub fn fill(&self) -> &Arc<FillLayer> {
        &self.fill
    }

    /// Whether nothing more is taken from it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn give_up(&self, error: &dyn std::error::Error) {
        if !self.broken.swap(true, Ordering::Relaxed) {
            let excerpt = self.fill.inner.digest.short();
            tracing::warn!(%excerpt, %error, "an excerpt is given up: what it would have brought comes with whole spans");
            self.waiting.end(|| None);
        }
    }

    /// The frame that has a slice.
    fn frame(&self, place: SliceId) -> u32 {
        self.fill.inner.table.covering(place.range()).start
    }
}

/// What a layer takes from an excerpt.
struct Loan {
    excerpt: Arc<Excerpt>,
    /// Slices of the layer, and where in the excerpt they are.
    places: HashMap<SliceId, SliceId>,
}

/// What a layer borrows: images that share it may each have an excerpt.
#[derive(Default)]
pub(super) struct Loans {
    loans: Mutex<Vec<Arc<Loan>>>,
    waiting: Waiting,
}

/// Most loans of a layer; the oldest go.
const MAX_LOANS: usize = 4;

/// Readers that wait for frames.
#[derive(Default)]
struct Waiting(Mutex<Vec<Weak<Frames>>>);

impl Waiting {
    fn add(&self, frames: &Arc<Frames>) {
        let mut waiting = lock(&self.0);
        waiting.retain(|frames| frames.strong_count() > 0);
        waiting.push(Arc::downgrade(frames));
    }

    fn end(&self, error: impl Fn() -> Option<FillError>) {
        let waiting = std::mem::take(&mut *lock(&self.0));
        waiting.iter().filter_map(Weak::upgrade).for_each(|frames| frames.end(error()));
    }
}

type Parts = SmallVec<[(SliceId, SliceId); 4]>;

/// A waiter that is told in any case: a job that never runs says that the daemon stops.
struct Tell(Option<Waiter>);

impl Tell {
    fn now(mut self, result: Result<(), FillError>) {
        if let Some(waiter) = self.0.take() {
            waiter(result);
        }
    }
}

impl Drop for Tell {
    fn drop(&mut self) {
        if let Some(waiter) = self.0.take() {
            waiter(Err(FillError::Stopping));
        }
    }
}

/// What is done when all frames have come, or one failed.
type Then = Box<dyn FnOnce(Option<FillError>) + Send>;

/// Several frames that one reader waits for.
struct Frames {
    left: AtomicUsize,
    error: Mutex<Option<FillError>>,
    then: Mutex<Option<Then>>,
}

impl Frames {
    fn came(&self, result: Result<(), FillError>) {
        if let Err(error) = result {
            *lock(&self.error) = Some(error);
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let error = lock(&self.error).take();
            self.end(error);
        }
    }

    /// Tells the reader, if nobody has.
    fn end(&self, error: Option<FillError>) {
        let then = lock(&self.then).take();
        if let Some(then) = then {
            then(error);
        }
    }
}

/// From now on `layer` takes `places` from `excerpt`. Frames are wanted as a record says that they will be read.
pub(super) fn lend(
    shared: &Arc<Shared>,
    layer: &Arc<LayerInner>,
    excerpt: &Arc<Excerpt>,
    places: HashMap<SliceId, SliceId>,
) {
    let mut by_frame: HashMap<u32, Parts> = HashMap::new();
    for (slice, place) in &places {
        by_frame.entry(excerpt.frame(*place)).or_default().push((*slice, *place));
    }
    let loan = Arc::new(Loan { excerpt: Arc::clone(excerpt), places });
    let before = {
        let mut loans = lock(&layer.loans.loans);
        let first = loans.len().saturating_sub(MAX_LOANS - 1);
        let (old, good) = std::mem::take(&mut *loans)
            .into_iter()
            .enumerate()
            .partition::<Vec<_>, _>(|(at, loan)| *at < first || loan.excerpt.is_broken());
        loans.extend(good.into_iter().map(|(_, loan)| loan).chain([loan]));
        old
    };
    // Outside of the lock: one may be the last of its excerpt.
    drop(before);
    let mut frames: Vec<(u32, Parts)> = by_frame.into_iter().collect();
    frames.sort_unstable_by_key(|(frame, _)| *frame);
    excerpt.wanted.fetch_add(frames.len(), Ordering::SeqCst);
    for (frame, parts) in frames {
        // Weak: what waits must not keep what it waits for.
        let (layer, lender, jobs) = (Arc::downgrade(layer), Arc::downgrade(excerpt), Arc::clone(&shared.jobs));
        let waiter = move |result| {
            let both = (layer, lender);
            jobs.push(Priority::Recorded, Box::new(move |_: &mut _| arrived(&both, &parts, result)));
        };
        let inner = &excerpt.fill.inner;
        shared.want(inner.id, frame..frame + 1, Priority::Recorded, Ahead::Nothing, Some(Box::new(waiter)));
    }
}

/// The layer is taken down: nobody waits for its excerpt any more.
pub(super) fn end(layer: &LayerInner) {
    let loans = std::mem::take(&mut *lock(&layer.loans.loans));
    layer.loans.waiting.end(|| Some(FillError::Stopping));
    drop(loans);
}

/// A frame came that has `parts` of a layer.
fn arrived((layer, excerpt): &(Weak<LayerInner>, Weak<Excerpt>), parts: &Parts, result: Result<(), FillError>) {
    let Some(excerpt) = excerpt.upgrade() else { return };
    if let Some(layer) = layer.upgrade() {
        match result.and_then(|()| copy(&layer, &excerpt, parts)) {
            Ok(()) | Err(FillError::Stopping) => {}
            Err(error) => excerpt.give_up(&error),
        }
    }
    if excerpt.wanted.fetch_sub(1, Ordering::SeqCst) == 1 {
        // Its bytes are where they belong: no need to have them twice.
        if let Err(error) = excerpt.fill.inner.file.evict_all() {
            tracing::warn!(excerpt = %excerpt.fill.inner.digest.short(), %error, "the disk space of an excerpt is not given back");
        }
    }
}

/// If an excerpt brings all that is missing of `range`, waits for it; else gives the waiter back.
pub(super) fn want_lent(
    shared: &Arc<Shared>,
    layer: &Arc<LayerInner>,
    range: LayerRange,
    waiter: Waiter,
) -> Option<Waiter> {
    let loans = lock(&layer.loans.loans).clone();
    if loans.is_empty() {
        return Some(waiter);
    }
    let missing: SmallVec<[SliceId; 4]> =
        SliceId::covering(range).map(SliceId).filter(|slice| !layer.file.has_slice(*slice, range)).collect();
    if missing.is_empty() {
        // All came since the reader looked.
        let tell = Tell(Some(waiter));
        shared.jobs.push(Priority::Demand, Box::new(move |_: &mut _| tell.now(Ok(()))));
        return None;
    }
    // What is just being written comes with its span.
    if layer.file.is_contradicted() || layer.file.is_being_written(range) {
        return Some(waiter);
    }
    let Some((excerpt, parts)) = loans.iter().find_map(|loan| lent(loan, &missing)) else { return Some(waiter) };
    drop(loans);
    let frames: BTreeSet<u32> = parts.iter().map(|(_, place)| excerpt.frame(*place)).collect();
    let (tell, jobs, reader) = (Tell(Some(waiter)), Arc::clone(&shared.jobs), Arc::clone(layer));
    let lender = Arc::clone(&excerpt);
    let then = move |error: Option<FillError>| match error {
        Some(FillError::Stopping) => tell.now(Err(FillError::Stopping)),
        // Whoever asks again is not sent to this excerpt any more.
        Some(error) => {
            lender.give_up(&error);
            tell.now(Ok(()));
        }
        None => {
            let job = move |_: &mut _| {
                if let Err(error) = copy(&reader, &lender, &parts) {
                    lender.give_up(&error);
                }
                tell.now(Ok(()));
            };
            jobs.push(Priority::Demand, Box::new(job));
        }
    };
    let waits = Arc::new(Frames {
        left: AtomicUsize::new(frames.len()),
        error: Mutex::default(),
        then: Mutex::new(Some(Box::new(then))),
    });
    layer.loans.waiting.add(&waits);
    excerpt.waiting.add(&waits);
    shared.spawn(give_up_in_time(Arc::downgrade(&waits), Arc::downgrade(&excerpt), shared.config.excerpt_patience));
    for frame in frames {
        let waits = Arc::clone(&waits);
        let waiter: Waiter = Box::new(move |result| waits.came(result));
        shared.want(excerpt.fill.inner.id, frame..frame + 1, Priority::Demand, Ahead::Nothing, Some(waiter));
    }
    None
}

/// Gives up an excerpt that brings nothing while somebody waits for it.
async fn give_up_in_time(reader: Weak<Frames>, excerpt: Weak<Excerpt>, patience: Duration) {
    let came = || excerpt.upgrade().map(|excerpt| excerpt.fill.inner.fetched_bytes.load(Ordering::Relaxed));
    let mut before = came();
    loop {
        tokio::time::sleep(patience).await;
        let now = came();
        if reader.strong_count() == 0 || now.is_none() {
            return;
        }
        if let (true, Some(excerpt)) = (now == before, excerpt.upgrade()) {
            excerpt.give_up(&FillError::Held { waited: patience, last: None });
            return;
        }
        before = now;
    }
}

/// Where a loan has `slices`, if it has all of them.
fn lent(loan: &Loan, slices: &[SliceId]) -> Option<(Arc<Excerpt>, Parts)> {
    if loan.excerpt.is_broken() {
        return None;
    }
    let parts = slices.iter().map(|slice| Some((*slice, *loan.places.get(slice)?))).collect::<Option<Parts>>()?;
    Some((Arc::clone(&loan.excerpt), parts))
}

/// Copies slices that have come to where they belong. What is gone again is left out.
fn copy(layer: &Arc<LayerInner>, excerpt: &Excerpt, parts: &Parts) -> Result<(), FillError> {
    let mut bytes = vec![0; usize_from_u64(SLICE_BYTES).unwrap_or(0)];
    for (slice, place) in parts {
        if layer.file.has_slice(*slice, slice.range())
            || !excerpt.fill.inner.file.read_slice(*place, &mut bytes).map_err(cache_error)?
        {
            continue;
        }
        if !write(layer, *slice, &bytes)? {
            let (layer, span) = (layer.digest, layer.table.covering(slice.range()).start);
            return Err(FillError::Contradicted { layer, span: SpanId(span) });
        }
    }
    Ok(())
}

/// Writes a slice, if need be after other layers have made room.
fn write(layer: &Arc<LayerInner>, slice: SliceId, bytes: &[u8]) -> Result<bool, FillError> {
    match layer.file.write_slice(slice, bytes) {
        Err(error) if error.is_no_space() => {
            let freed = layer.file.make_room(SLICE_BYTES).map_err(cache_error)?;
            if freed == 0 {
                return Err(cache_error(error));
            }
            layer.file.write_slice(slice, bytes).map_err(cache_error)
        }
        written => written.map_err(cache_error),
    }
}

//! Parts of spans that an excerpt brought before their span.
//!
//! Slices are known in memory only: after a restart their bytes count as missing, and come again with their spans. They may
//! be evicted like spans, and are given up with them. When a span comes, what it has in place of a slice is compared with
//! it: an excerpt is believed on its maker's word, a span is proven.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{LayerFile, write_error};
use crate::cache::bitmap::Bitmap;
use crate::cache::{CacheError, lock};
use crate::spans::SpanTable;
use crate::units::{
    LayerOffset, LayerRange, Offset as _, SLICE_BYTES, SliceId, SpanId, u64_from_usize, usize_from_u64,
};

/// Which slices of a layer are in its file.
pub(super) struct Slices {
    here: Bitmap,
    /// A span came that had other bytes: no slice is taken any more.
    contradicted: AtomicBool,
}

impl Slices {
    pub fn new(table: &SpanTable) -> Self {
        let whole = LayerRange::new(LayerOffset::ZERO, table.layer_size());
        let len = whole.map_or(0, |whole| SliceId::covering(whole).end);
        Self { here: Bitmap::new(len), contradicted: AtomicBool::new(false) }
    }

    pub fn is_empty(&self) -> bool {
        self.here.count() == 0
    }

    fn has(&self, slice: u32) -> bool {
        self.here.has(slice) && !self.contradicted.load(Ordering::SeqCst)
    }

    /// Slices that have bytes of a span.
    fn of(&self, span: LayerRange) -> impl Iterator<Item = u32> + '_ {
        self.here.members(SliceId::covering(span))
    }

    pub fn forget_all(&self) {
        (0..self.here.len()).for_each(|slice| {
            self.here.clear(slice);
        });
    }
}

impl LayerFile {
    /// Whether all of `range` is in the file, by spans or by slices.
    #[must_use]
    pub fn has_range(&self, range: LayerRange) -> bool {
        SliceId::covering(range).all(|slice| self.has_slice(SliceId(slice), range))
    }

    /// Whether what `slice` and `range` have in common is in the file.
    #[must_use]
    pub fn has_slice(&self, slice: SliceId, range: LayerRange) -> bool {
        let part = || slice.range().intersection(&range);
        self.slices.has(slice.0) || part().is_none_or(|part| self.present.has_all(self.table.covering(part)))
    }

    /// What `slice` has of the layer; none beyond its end.
    #[must_use]
    pub fn range_of(&self, slice: SliceId) -> Option<LayerRange> {
        let whole = LayerRange::new(LayerOffset::ZERO, self.table.layer_size());
        whole.and_then(|whole| whole.intersection(&slice.range()))
    }

    /// Slices in the file that came before their spans.
    #[must_use]
    pub fn slices(&self) -> u32 {
        self.slices.here.count()
    }

    /// A span came that had other bytes than a slice.
    #[must_use]
    pub fn is_contradicted(&self) -> bool {
        self.slices.contradicted.load(Ordering::SeqCst)
    }

    /// Reads a slice, of spans alone: what an excerpt brought is not passed on. What lies beyond the layer's end is zeros.
    /// False when it is not here.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_slice(self: &Arc<Self>, slice: SliceId, bytes: &mut [u8]) -> Result<bool, CacheError> {
        bytes.fill(0);
        let Some(range) = self.range_of(slice) else { return Ok(false) };
        let Some(part) = usize_from_u64(range.len_bytes()).and_then(|len| bytes.get_mut(..len)) else {
            return Ok(false);
        };
        let ids = self.table.covering(range);
        if !self.hold(ids.clone()) {
            return Ok(false);
        }
        let read = self.data.read_exact_at(part, range.start().get());
        self.release(ids);
        read.map(|()| true).map_err(CacheError::io("read", &self.path()))
    }

    /// Whether somebody writes a span that has bytes of `range`.
    #[must_use]
    pub fn is_being_written(&self, range: LayerRange) -> bool {
        let spans = self.table.covering(range);
        lock(&self.writing).iter().any(|id| spans.contains(id))
    }

    /// Writes what is missing of one slice of an excerpt; what is here is proven, and stays. `bytes` may go on beyond the layer.
    /// False after a contradiction: then nothing is taken from excerpts any more. A slice whose span is just being written is
    /// left to it.
    ///
    /// # Errors
    /// [`CacheError::NoSpace`] and other failures leave it missing; one that is longer or shorter than a slice is none.
    pub fn write_slice(self: &Arc<Self>, slice: SliceId, bytes: &[u8]) -> Result<bool, CacheError> {
        let Some(range) = self.range_of(slice) else { return Ok(false) };
        let Some(bytes) = usize_from_u64(range.len_bytes()).and_then(|len| bytes.get(..len)) else { return Ok(false) };
        // Neither an eviction nor a writer that gives up punches a hole here before the slice counts.
        let _no_eviction = lock(&self.evicting);
        let writing = lock(&self.writing);
        if self.is_contradicted() {
            return Ok(false);
        }
        let spans = self.table.covering(range);
        if self.has_slice(slice, range) || writing.iter().any(|id| spans.contains(id)) {
            return Ok(true);
        }
        let parts = spans.filter_map(|id| Some((id, self.table.get(SpanId(id))?.layer.intersection(&range)?)));
        for (id, part) in parts {
            let at = part.start().bytes_since(range.start()).and_then(usize_from_u64).unwrap_or(0);
            let len = usize_from_u64(part.len_bytes()).unwrap_or(0);
            let Some(theirs) = bytes.get(at..at.saturating_add(len)) else { return Ok(false) };
            if !self.present.has(id) {
                let written = self.data.write_all_at(theirs, part.start().get());
                written.map_err(|error| write_error(error, self.digest, &self.path(), part.len_bytes()))?;
            } else if !self.is_same_at(part, theirs) {
                self.contradict(part);
                return Ok(false);
            }
        }
        self.touch(self.table.covering(range));
        if self.slices.here.set(slice.0) {
            self.shared.usage_bytes.fetch_add(range.len_bytes(), Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Whether a slice has bytes of this span.
    pub(super) fn has_slices_of(&self, id: SpanId) -> bool {
        !self.slices.is_empty() && self.table.get(id).is_some_and(|span| self.slices.of(span.layer).next().is_some())
    }

    /// Forgets the slices of a span; which they were.
    pub(super) fn forget_slices_of(&self, id: SpanId) -> Vec<u32> {
        if self.slices.is_empty() {
            return Vec::new();
        }
        let of_span = self.table.get(id).map(|span| self.slices.of(span.layer).collect::<Vec<_>>());
        of_span.unwrap_or_default().into_iter().filter(|slice| self.slices.here.clear(*slice)).collect()
    }

    pub(super) fn remember_slices(&self, slices: &[u32]) {
        slices.iter().for_each(|slice| {
            self.slices.here.set(*slice);
        });
    }

    /// Bytes of a span, which is proven, are about to be written at `at`: were its slices the same?
    pub(super) fn compare_slices(&self, at: LayerOffset, bytes: &[u8]) {
        if self.slices.is_empty() {
            return;
        }
        let Some(range) = LayerRange::from_len(at, u64_from_usize(bytes.len())) else { return };
        if self.slices.of(range).all(|slice| self.is_same(SliceId(slice), range, bytes)) {
            return;
        }
        self.contradict(range);
    }

    fn contradict(&self, at: LayerRange) {
        // First the mark: from now on no slice counts, whoever remembers one.
        let before = self.slices.contradicted.swap(true, Ordering::SeqCst);
        self.slices.forget_all();
        if !before {
            tracing::error!(
                layer = %self.digest.short(),
                at = at.start().get(),
                "an excerpt had other bytes than this layer has: what was read of it before may be wrong, and the kernel may keep it in \
                 memory. `sociblk explain IMAGE` names the excerpt. Remove it with its load order (from the registry, or by `sociblk prefetch rm`), \
                 remove all containers and mounts that use the layer, and start them again"
            );
        }
    }

    fn is_same(&self, slice: SliceId, range: LayerRange, bytes: &[u8]) -> bool {
        let Some(both) = slice.range().intersection(&range) else { return true };
        let part = || -> Option<Range<usize>> {
            let from = usize_from_u64(both.start().bytes_since(range.start())?)?;
            Some(from..from.checked_add(usize_from_u64(both.len_bytes())?)?)
        };
        part().and_then(|part| bytes.get(part)).is_none_or(|proven| self.is_same_at(both, proven))
    }

    /// Whether the file has these bytes at `at`, as far as the layer goes.
    fn is_same_at(&self, at: LayerRange, bytes: &[u8]) -> bool {
        let whole = LayerRange::new(LayerOffset::ZERO, self.table.layer_size());
        let Some(at) = whole.and_then(|whole| whole.intersection(&at)) else { return true };
        let mut here = vec![0; usize_from_u64(at.len_bytes()).unwrap_or(0)];
        // What cannot be read is not known to differ.
        self.data.read_exact_at(&mut here, at.start().get()).is_err() || bytes.starts_with(&here)
    }

    /// Disk space that evicting a span gives.
    pub(in crate::cache) fn evictable_bytes(&self, id: SpanId) -> u64 {
        let Some(span) = self.table.get(id) else { return 0 };
        match self.present.has(id.0) {
            true => span.layer.len_bytes(),
            false => self.slices.of(span.layer).count() as u64 * SLICE_BYTES,
        }
    }
}

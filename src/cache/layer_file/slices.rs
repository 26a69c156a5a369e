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
use crate::units::{LayerOffset, LayerRange, Offset as _, SliceId, SpanId, u64_from_usize, usize_from_u64};

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
        self.slices.here.has(slice.0) || part().is_none_or(|part| self.present.has_all(self.table.covering(part)))
    }

    /// Slices in the file that came before their spans.
    #[must_use]
    pub fn slices(&self) -> u32 {
        self.slices.here.count()
    }

    /// A span came that had other bytes than a slice.
    #[must_use]
    pub fn is_contradicted(&self) -> bool {
        self.slices.contradicted.load(Ordering::Relaxed)
    }

    /// Reads a slice; what lies beyond the layer's end is zeros. False when it is not here.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_slice(self: &Arc<Self>, slice: SliceId, bytes: &mut [u8]) -> Result<bool, CacheError> {
        bytes.fill(0);
        let whole = LayerRange::new(LayerOffset::ZERO, self.table.layer_size());
        let Some(range) = whole.and_then(|whole| whole.intersection(&slice.range())) else { return Ok(false) };
        let Some(part) = usize_from_u64(range.len_bytes()).and_then(|len| bytes.get_mut(..len)) else {
            return Ok(false);
        };
        let ids = self.table.covering(range);
        if !self.hold_range(range, ids.clone()) {
            return Ok(false);
        }
        let read = self.data.read_exact_at(part, range.start().get());
        self.release(ids);
        read.map(|()| true).map_err(CacheError::io("read", &self.path()))
    }

    /// Writes one slice of an excerpt, unless its bytes are here. `bytes` may go on beyond the layer. Whether the slice can
    /// be read now: not after a contradiction.
    ///
    /// # Errors
    /// [`CacheError::NoSpace`] and other failures leave it missing; one that is longer or shorter than a slice is none.
    pub fn write_slice(self: &Arc<Self>, slice: SliceId, bytes: &[u8]) -> Result<bool, CacheError> {
        let whole = LayerRange::new(LayerOffset::ZERO, self.table.layer_size());
        let Some(range) = whole.and_then(|whole| whole.intersection(&slice.range())) else { return Ok(false) };
        let Some(bytes) = usize_from_u64(range.len_bytes()).and_then(|len| bytes.get(..len)) else { return Ok(false) };
        // Neither an eviction nor a writer that gives up punches a hole here before the slice counts.
        let _no_eviction = lock(&self.evicting);
        let _no_writer_gives_up = lock(&self.writing);
        if self.is_contradicted() {
            return Ok(false);
        }
        if self.has_slice(slice, range) {
            return Ok(true);
        }
        let written = self.data.write_all_at(bytes, range.start().get());
        written.map_err(|error| write_error(error, self.digest, &self.path(), u64_from_usize(bytes.len())))?;
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
        self.slices.forget_all();
        if !self.slices.contradicted.swap(true, Ordering::SeqCst) {
            tracing::error!(
                layer = %self.digest.short(),
                at = range.start().get(),
                "an excerpt had other bytes than the layer has: what was read here before may be wrong. Stop the containers that use \
                 this layer, remove the load order with its excerpt from the registry, and start them again"
            );
        }
    }

    fn is_same(&self, slice: SliceId, range: LayerRange, bytes: &[u8]) -> bool {
        let Some(both) = slice.range().intersection(&range) else { return true };
        let part = || -> Option<Range<usize>> {
            let from = usize_from_u64(both.start().bytes_since(range.start())?)?;
            Some(from..from.checked_add(usize_from_u64(both.len_bytes())?)?)
        };
        let Some(proven) = part().and_then(|part| bytes.get(part)) else { return true };
        let mut here = vec![0; proven.len()];
        // What cannot be read is not known to differ; it is written anew in any case.
        self.data.read_exact_at(&mut here, both.start().get()).is_err() || here == proven
    }
}

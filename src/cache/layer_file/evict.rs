//! Taking spans away from a layer in use.

use std::io;
use std::sync::atomic::Ordering;

use super::{LayerFile, Record};
use crate::cache::state::LayerState;
use crate::cache::{CacheError, lock};
use crate::units::{SliceId, SpanId};

impl LayerFile {
    /// The spans that may be evicted, with the time of their last use.
    pub(in crate::cache) fn idle_spans(&self, not_after_secs: u32) -> Vec<(u32, SpanId)> {
        let here = |id: &u32| self.present.has(*id) || self.has_slices_of(SpanId(*id));
        let ids = (0..self.present.len()).filter(|id| here(id) && !self.pins.is_pinned(*id));
        ids.filter_map(|id| Some((self.touched.get(id as usize)?.load(Ordering::Relaxed), SpanId(id))))
            .filter(|(touched, _)| *touched <= not_after_secs)
            .collect()
    }

    /// Takes all spans away that nobody holds.
    ///
    /// # Errors
    /// When the record cannot be written, or the file system refuses.
    pub fn evict_all(&self) -> Result<(), CacheError> {
        let all: Vec<SpanId> = (0..self.present.len()).map(SpanId).collect();
        match self.shared.can_punch {
            true => self.evict(&all),
            false => Ok(()),
        }
    }

    /// Takes spans away: memory, record, `fdatasync`, hole. Those that are held or being written stay.
    pub(in crate::cache) fn evict(&self, ids: &[SpanId]) -> Result<(), CacheError> {
        let _evicting = lock(&self.evicting);
        let mut record = lock(&self.record);
        let taken = ids.iter().map(|id| (id.0, self.present.clear(id.0), self.forget_slices_of(*id)));
        let taken: Vec<_> = taken.filter(|(_, present, slices)| *present || !slices.is_empty()).collect();
        let mut gone: Vec<u32> = Vec::new();
        let mut whole: Vec<u32> = Vec::new();
        let mut forgotten_slices: Vec<u32> = Vec::new();
        for (id, present, slices) in taken {
            if !self.pins.is_pinned(id) && !lock(&self.writing).contains(&id) {
                gone.push(id);
                whole.extend(present.then_some(id));
                forgotten_slices.extend(slices);
                continue;
            }
            if present {
                self.present.set(id);
            }
            self.remember_slices(&slices);
        }
        if gone.is_empty() {
            return Ok(());
        }
        lock(&self.pending).retain(|id| !gone.contains(id));
        let forgotten = self.demote(&mut record).and_then(|()| record.change(self.geometry, &gone, false));
        if let Err(error) = forgotten {
            // Slices come again with their spans.
            for id in whole {
                self.present.set(id);
            }
            return Err(error);
        }
        gone.sort_unstable();
        for run in gone.chunk_by(|a, b| a + 1 == *b) {
            let ends = run.first().zip(run.last());
            let spans = ends.and_then(|(a, b)| self.table.get(SpanId(*a)).zip(self.table.get(SpanId(*b))));
            let Some((first, last)) = spans else { continue };
            let (start, end) = (first.layer.start().get(), last.layer.end().get());
            self.punch(start, end)?;
        }
        for slice in forgotten_slices {
            self.punch_beyond(SliceId(slice), &gone)?;
        }
        Ok(())
    }

    /// What a forgotten slice has in spans that stay missing is nobody's any more, unless somebody reads there still.
    fn punch_beyond(&self, slice: SliceId, gone: &[u32]) -> Result<(), CacheError> {
        for id in self.table.covering(slice.range()) {
            let used = self.present.has(id) || self.pins.is_pinned(id) || lock(&self.writing).contains(&id);
            let part = self.table.get(SpanId(id)).and_then(|span| span.layer.intersection(&slice.range()));
            if let (Some(part), false, Err(_)) = (part, used, gone.binary_search(&id)) {
                self.punch(part.start().get(), part.end().get())?;
            }
        }
        Ok(())
    }

    /// A layer that loses a span is no longer proven. The record takes over what the proof stood for, first.
    fn demote(&self, record: &mut Record) -> Result<(), CacheError> {
        if !self.is_proven() {
            return Ok(());
        }
        let present: Vec<u32> = self.present.members(0..self.present.len()).collect();
        self.data.sync_data().map_err(CacheError::io("sync", &self.path()))?;
        record.change(self.geometry, &present, true)?;
        LayerState::new(Some(self.geometry)).write(&self.folder)?;
        self.proven.store(false, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn punch(&self, start: u64, end: u64) -> Result<(), CacheError> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.data, flags, start, end - start)
            .map_err(io::Error::from)
            .map_err(CacheError::io("punch a hole into", &self.path()))
    }
}

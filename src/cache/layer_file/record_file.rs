//! The record of present spans as an open file. Its bytes: [`record`].

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::cache::{CacheError, record};
use crate::units::{Digest, u64_from_usize};

/// The open record file and the bits that it holds.
pub(super) struct Record {
    file: File,
    path: PathBuf,
    pub bits: Vec<u32>,
}

impl Record {
    /// Opens the record; one that is missing or foreign is replaced by an empty one.
    pub fn open(folder: &Path, geometry: Digest, spans: u32) -> Result<Self, CacheError> {
        let path = folder.join("present");
        let length = record::slot_position(record::slots(spans));
        let old = std::fs::read(&path).unwrap_or_default();
        let header = record::header(geometry, spans);
        let bits = record::parse(&old, geometry, spans);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(CacheError::io("open", &path))?;
        if u64_from_usize(old.len()) != length || !old.starts_with(&header) {
            // Empty slots are written, not left as a hole, so that later updates in place need no space.
            let slots = (0..).zip(&bits).map(|(index, bits)| record::slot(geometry, index, *bits));
            let fresh: Vec<u8> = header.into_iter().chain(slots.flatten()).collect();
            file.set_len(length)
                .and_then(|()| file.write_all_at(&fresh, 0))
                .and_then(|()| file.sync_all())
                .map_err(CacheError::io("write", &path))?;
        }
        Ok(Self { file, path, bits })
    }

    /// Sets or clears the bits of `ids`, durably.
    pub fn change(&mut self, geometry: Digest, ids: &[u32], present: bool) -> Result<(), CacheError> {
        let mut slots: Vec<u32> = ids.iter().map(|id| id / record::SPANS_PER_SLOT).collect();
        slots.sort_unstable();
        slots.dedup();
        for id in ids {
            let bit = 1 << (id % record::SPANS_PER_SLOT);
            if let Some(bits) = self.bits.get_mut((id / record::SPANS_PER_SLOT) as usize) {
                *bits = if present { *bits | bit } else { *bits & !bit };
            }
        }
        for index in slots {
            let bits = self.bits.get(index as usize).copied().unwrap_or(0);
            let slot = record::slot(geometry, index, bits);
            self.file.write_all_at(&slot, record::slot_position(index)).map_err(CacheError::io("write", &self.path))?;
        }
        self.file.sync_data().map_err(CacheError::io("sync", &self.path))
    }
}

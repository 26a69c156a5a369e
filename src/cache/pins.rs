//! Pins: spans that a reader relies on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::LayerFile;

/// How many readers rely on each span.
pub(super) struct Pins(Box<[AtomicU32]>);

impl Pins {
    pub fn new(len: u32) -> Self {
        Self((0..len).map(|_| AtomicU32::new(0)).collect())
    }

    pub fn add(&self, ids: Range<u32>) {
        for count in self.slice(ids) {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub fn remove(&self, ids: Range<u32>) {
        for count in self.slice(ids) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub fn is_pinned(&self, id: u32) -> bool {
        self.0.get(id as usize).is_some_and(|count| count.load(Ordering::SeqCst) != 0)
    }

    fn slice(&self, ids: Range<u32>) -> &[AtomicU32] {
        self.0.get(ids.start as usize..ids.end as usize).unwrap_or_default()
    }
}

/// Keeps the spans of a range on disk while it lives: hold it from before the read until the bytes are out.
#[must_use]
pub struct ReadPin {
    file: Arc<LayerFile>,
    ids: Range<u32>,
}

impl ReadPin {
    pub(super) fn new(file: Arc<LayerFile>, ids: Range<u32>) -> Self {
        Self { file, ids }
    }
}

impl Drop for ReadPin {
    fn drop(&mut self) {
        self.file.release(self.ids.clone());
    }
}

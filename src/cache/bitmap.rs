//! A set of span numbers that ring threads read without a lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Which of `len` spans are in the set. Loads and stores are `SeqCst`: eviction and pinning decide by who was first.
pub(crate) struct Bitmap {
    words: Box<[AtomicU64]>,
    len: u32,
    count: AtomicU32,
}

impl Bitmap {
    /// An empty set for spans `0..len`.
    pub fn new(len: u32) -> Self {
        let words = (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, len, count: AtomicU32::new(0) }
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    fn word(&self, id: u32) -> Option<(&AtomicU64, u64)> {
        (id < self.len).then(|| Some((self.words.get(id as usize / 64)?, 1 << (id % 64)))).flatten()
    }

    /// Whether `id` is in the set; false beyond the end.
    pub fn has(&self, id: u32) -> bool {
        self.word(id).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    /// Whether all of `ids` are in the set; true for an empty range.
    pub fn has_all(&self, ids: Range<u32>) -> bool {
        ids.into_iter().all(|id| self.has(id))
    }

    /// Adds `id`; whether it was not there.
    pub fn set(&self, id: u32) -> bool {
        let Some((word, bit)) = self.word(id) else { return false };
        let new = word.fetch_or(bit, Ordering::SeqCst) & bit == 0;
        if new {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        new
    }

    /// Removes `id`; whether it was there.
    pub fn clear(&self, id: u32) -> bool {
        let Some((word, bit)) = self.word(id) else { return false };
        let was = word.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
        if was {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        was
    }

    /// The members among `ids`, ascending.
    pub fn members(&self, ids: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        ids.filter(|id| self.has(*id))
    }
}

//! What became of the layers that containerd asked for.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the histogram of preparing times, in milliseconds.
pub const PREPARE_BOUNDS_MS: [u64; 10] = [5, 10, 20, 50, 100, 250, 1000, 5000, 30_000, 300_000];

/// Counts since the daemon began.
#[derive(Debug, Default)]
pub struct Counters {
    lazy: AtomicU64,
    local: AtomicU64,
    deferred: AtomicU64,
    show_failures: AtomicU64,
    times: [AtomicU64; PREPARE_BOUNDS_MS.len() + 1],
    sum_ms: AtomicU64,
}

/// What became of one layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Shown before its bytes are here.
    Lazy,
    /// Shown, all bytes here.
    Local,
    /// Left to containerd: the image has no index.
    Deferred,
    /// Left to containerd because showing it failed.
    Failed,
}

impl Counters {
    pub(super) fn count(&self, outcome: Outcome) {
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Lazy => add(&self.lazy),
            Outcome::Local => add(&self.local),
            Outcome::Deferred => add(&self.deferred),
            Outcome::Failed => {
                add(&self.show_failures);
                add(&self.deferred)
            }
        };
    }

    /// A layer was prepared and is shown.
    pub(super) fn took(&self, ms: u64) {
        let at = PREPARE_BOUNDS_MS.iter().position(|bound| ms <= *bound).unwrap_or(PREPARE_BOUNDS_MS.len());
        if let Some(count) = self.times.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// How many preparations took at most each of [`PREPARE_BOUNDS_MS`] and longer than the one before; the last: longer
    /// than all. And their sum in milliseconds.
    #[must_use]
    pub fn times(&self) -> (Vec<u64>, u64) {
        (self.times.iter().map(|n| n.load(Ordering::Relaxed)).collect(), self.sum_ms.load(Ordering::Relaxed))
    }

    /// Layers shown lazily.
    #[must_use]
    pub fn lazy(&self) -> u64 {
        self.lazy.load(Ordering::Relaxed)
    }

    /// Layers that were fetched whole by us.
    #[must_use]
    pub fn local(&self) -> u64 {
        self.local.load(Ordering::Relaxed)
    }

    /// Layers left to containerd.
    #[must_use]
    pub fn deferred(&self) -> u64 {
        self.deferred.load(Ordering::Relaxed)
    }

    /// Of those, the ones that should have been shown.
    #[must_use]
    pub fn show_failures(&self) -> u64 {
        self.show_failures.load(Ordering::Relaxed)
    }
}

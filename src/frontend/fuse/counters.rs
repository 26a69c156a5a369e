//! What the session did, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reading of the session's counters. All only grow, except `waiting`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct FuseCounters {
    /// Read requests taken from the kernel.
    pub reads: u64,
    /// Bytes sent in answer to them.
    pub read_bytes: u64,
    /// Reads that found their bytes missing and had to wait.
    pub pending: u64,
    /// Reads that wait at this moment.
    pub waiting: u64,
    /// Reads answered with an error, for whatever reason.
    pub failed: u64,
    /// Of these, reads that were dropped without an answer and got EIO from their guard.
    pub dropped: u64,
    /// Signals that readers were sent while they waited.
    pub interrupted: u64,
    /// Reads given up because their reader was killed; not failed.
    pub killed: u64,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    pending: AtomicU64,
    waiting: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    interrupted: AtomicU64,
    killed: AtomicU64,
}

impl Counters {
    pub(super) fn read_arrived(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_answered(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.read_failed();
    }

    pub(super) fn read_interrupted(&self) {
        self.interrupted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_killed(&self) {
        self.killed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn wait_began(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_pended(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn wait_ended(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> FuseCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FuseCounters {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            pending: get(&self.pending),
            waiting: get(&self.waiting),
            failed: get(&self.failed),
            dropped: get(&self.dropped),
            interrupted: get(&self.interrupted),
            killed: get(&self.killed),
        }
    }
}

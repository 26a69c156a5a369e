//! Per-device counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// Live counters, written by one ring thread.
#[derive(Debug, Default)]
pub(super) struct DeviceStats {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    lost: AtomicU64,
    waiting: AtomicU64,
}

/// A reading of a device's counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceCounters {
    /// Requests answered, well or not.
    pub requests: u64,
    /// Bytes delivered.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Of these: requests that the code dropped and their guard answered. More than 0 is a bug.
    pub lost: u64,
    /// Requests that wait for layer bytes right now.
    pub waiting: u64,
}

impl DeviceStats {
    pub(super) fn answered(&self, result: Result<u32, ()>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(bytes) => self.bytes.fetch_add(bytes.into(), Ordering::Relaxed),
            Err(()) => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    pub(super) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn wait_begins(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn wait_ends(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> DeviceCounters {
        DeviceCounters {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}

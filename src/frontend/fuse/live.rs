//! How many session threads there are.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Counts session threads.
#[derive(Default)]
pub(super) struct Live {
    threads: Mutex<usize>,
    changed: Condvar,
}

impl Live {
    pub(super) fn add(&self, change: isize) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        *threads = threads.saturating_add_signed(change);
        self.changed.notify_all();
    }

    pub(super) fn wait_for_none(&self, patience: Duration) -> bool {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let (threads, _) = self
            .changed
            .wait_timeout_while(threads, patience, |threads| *threads > 0)
            .unwrap_or_else(PoisonError::into_inner);
        *threads == 0
    }
}

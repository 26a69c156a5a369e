//! Progress of work on several layers side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::protocol::Progress;
use crate::units::Digest;

/// Bytes done of one step, over all layers that are worked on.
pub(super) struct Shown {
    step: &'static str,
    progress: mpsc::UnboundedSender<Progress>,
    total_bytes: u64,
    done: Mutex<HashMap<Digest, u64>>,
}

impl Shown {
    /// Tells `progress` of `step`, which has `total_bytes` in all.
    pub(super) fn new(step: &'static str, total_bytes: u64, progress: mpsc::UnboundedSender<Progress>) -> Arc<Self> {
        Arc::new(Self { step, progress, total_bytes, done: Mutex::default() })
    }

    /// `layer` is `bytes` far.
    pub(super) fn at(&self, layer: Digest, bytes: u64) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.insert(layer, bytes);
        let done_bytes = done.values().sum();
        // Nobody may be there to hear it.
        let _ = self.progress.send(Progress { step: self.step.to_owned(), done_bytes, total_bytes: self.total_bytes });
    }
}

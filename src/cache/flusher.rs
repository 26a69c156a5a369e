//! Group commit: one thread that makes written spans durable, by count or by time.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::store::Shared;
use super::{LayerFile, lock};

/// Layers with unrecorded spans. They are held, not just named: a layer file never closes with spans unrecorded.
#[derive(Default)]
pub(super) struct FlushQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    dirty: Vec<Arc<LayerFile>>,
    due: Option<Instant>,
    hurry: bool,
    stopped: bool,
}

impl FlushQueue {
    /// Notes that `file` has something to record; false when the flusher has ended and the caller must do it.
    pub fn add(&self, file: &Arc<LayerFile>, hurry: bool) -> bool {
        let mut state = lock(&self.state);
        if state.stopped {
            return false;
        }
        let first = state.dirty.is_empty();
        if !state.dirty.iter().any(|known| Arc::ptr_eq(known, file)) {
            state.dirty.push(file.clone());
        }
        if first || (hurry && !state.hurry) {
            state.hurry |= hurry;
            self.wake.notify_one();
        }
        true
    }

    fn take(&self) -> Vec<Arc<LayerFile>> {
        let mut state = lock(&self.state);
        state.due = None;
        state.hurry = false;
        std::mem::take(&mut state.dirty)
    }

    /// Waits until something is due; false when the flusher should end.
    fn wait(&self, shared: &Shared) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return false;
            }
            if state.dirty.is_empty() {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let now = Instant::now();
            let due = *state.due.get_or_insert(now + shared.config.flush_after);
            if state.hurry || now >= due {
                return true;
            }
            state = self.wake.wait_timeout(state, due - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn stop(&self) {
        lock(&self.state).stopped = true;
        self.wake.notify_one();
    }
}

/// Owns the thread; ends it, after a last flush, when dropped.
pub(super) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let work = shared.clone();
        let thread = std::thread::Builder::new().name("cache-flush".into()).spawn(move || {
            while work.flush.wait(&work) {
                flush_all(&work);
                super::evict::keep_limit(&work);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.flush.stop();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the cache's flush thread had panicked: spans written since may be fetched again");
        }
        flush_all(&self.shared);
    }
}

/// Records what all layers have pending.
pub(super) fn flush_all(shared: &Shared) {
    for file in shared.flush.take() {
        flush_one(&file);
    }
}

/// Records what one layer has pending; failures cost a refetch and are told.
pub(super) fn flush_one(file: &LayerFile) {
    if let Err(error) = file.flush() {
        tracing::error!(layer = %file.digest().short(), %error, "spans could not be made durable");
    }
}

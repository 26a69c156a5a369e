//! The threads that answer reads which had to wait.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::ReadError;
use super::read::ReadRequest;

/// A request whose wait is over, and how it ended.
type Job = (ReadRequest, Result<(), ReadError>);

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// The queue between those who complete (the fill scheduler) and those who answer. As long as the number of reads that
/// the kernel has outstanding; pushing never blocks.
#[derive(Default)]
pub(super) struct ReplyQueue {
    state: Mutex<State>,
    arrived: Condvar,
}

impl ReplyQueue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request on. After [`close`](Self::close) it is dropped, which answers EIO.
    pub(super) fn push(&self, request: ReadRequest, result: Result<(), ReadError>) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            drop(request);
            return;
        }
        state.jobs.push_back((request, result));
        drop(state);
        self.arrived.notify_one();
    }

    /// Lets the threads end once the queue is empty.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_all();
    }

    fn pop(&self) -> Option<Job> {
        let mut state = self
            .arrived
            .wait_while(self.state(), |state| state.jobs.is_empty() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.jobs.pop_front()
    }

    /// Starts `count` threads that answer until the queue is closed. `prepare` runs first on each.
    pub(super) fn start(self: &Arc<Self>, count: usize, prepare: fn()) -> std::io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let queue = Arc::clone(self);
            let started = std::thread::Builder::new().name(format!("fuse-reply-{number}")).spawn(move || {
                prepare();
                while let Some((request, result)) = queue.pop() {
                    match result {
                        // The bytes came, and may have gone again: only `Ready` keeps them.
                        Ok(()) => drop(request.ask(&queue)),
                        Err(error) => request.give_up(error),
                    }
                }
            });
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.close();
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }
}

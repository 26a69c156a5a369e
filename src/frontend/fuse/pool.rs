//! The threads that answer reads which had to wait, and look after those whose reader was sent a signal.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::ReadError;
use super::interrupt::{Interrupted, LOOK_AGAIN, Waits};
use super::read::ReadRequest;

/// A request whose wait is over, and how it ended.
type Job = (ReadRequest, Result<(), ReadError>);

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    interrupted: Vec<Interrupted>,
    /// When to look at these.
    look_at: Option<Instant>,
    closed: bool,
}

enum Work {
    Answer(Job),
    LookAt(Vec<Interrupted>),
}

/// The queue between those who complete (the fill scheduler) and those who answer. As long as the number of reads that
/// the kernel has outstanding; pushing never blocks.
#[derive(Default)]
pub(super) struct ReplyQueue {
    state: Mutex<State>,
    arrived: Condvar,
    waits: Waits,
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

    /// Reads that wait.
    pub(super) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// The reader of a request was sent a signal.
    pub(super) fn interrupted(&self, unique: u64) {
        let mut state = self.state();
        state.interrupted.push(Interrupted::new(unique));
        state.look_at = Some(Instant::now());
        drop(state);
        self.arrived.notify_one();
    }

    /// Ends what has to end of `interrupted`; the rest is looked at again after a while.
    fn look_at(&self, interrupted: Vec<Interrupted>) {
        let rest: Vec<_> = interrupted.into_iter().filter_map(|one| one.settle(&self.waits)).collect();
        if rest.is_empty() {
            return;
        }
        let mut state = self.state();
        state.interrupted.extend(rest);
        state.look_at.get_or_insert_with(|| Instant::now() + LOOK_AGAIN);
    }

    /// Lets the threads end once the queue is empty.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_all();
    }

    fn pop(&self) -> Option<Work> {
        let mut state = self.state();
        loop {
            let left = state.look_at.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                state.look_at = None;
                return Some(Work::LookAt(std::mem::take(&mut state.interrupted)));
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(Work::Answer(job));
            }
            if state.closed {
                return None;
            }
            state = match left {
                Some(left) => self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Starts `count` threads that answer until the queue is closed. `prepare` runs first on each.
    pub(super) fn start(self: &Arc<Self>, count: usize, prepare: fn()) -> std::io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let queue = Arc::clone(self);
            let started = std::thread::Builder::new().name(format!("fuse-reply-{number}")).spawn(move || {
                prepare();
                while let Some(work) = queue.pop() {
                    match work {
                        // The bytes came, and may have gone again: only `Ready` keeps them.
                        Work::Answer((request, Ok(()))) => drop(request.ask(&queue)),
                        Work::Answer((request, Err(error))) => request.give_up(error),
                        Work::LookAt(interrupted) => queue.look_at(interrupted),
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

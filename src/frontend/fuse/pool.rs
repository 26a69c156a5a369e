//! The threads that answer reads which had to wait, and look after those whose reader was sent a signal.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ReadError;
use super::interrupt::{Interrupted, LOOK_AGAIN, Waits};
use super::read::ReadRequest;
use crate::sys::thread::become_io_flusher;

/// A request whose wait is over, and how it ended.
type Job = (ReadRequest, Result<(), ReadError>);

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    interrupted: Vec<Interrupted>,
    /// When to look at these.
    look_at: Option<Instant>,
    /// Threads that wait for work.
    waiting: usize,
    /// All but the first one, and those that have ended since the last one was started.
    helpers: Vec<JoinHandle<()>>,
    running_helpers: usize,
    closed: bool,
}

enum Work {
    Answer(Job),
    LookAt(Vec<Interrupted>),
}

/// A thread beside the first one that had nothing to do for so long ends: an idle daemon should be small.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// How long a thread lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stays {
    Always,
    WhileBusy,
}

/// Said once: every later read would say it again.
fn warn_of_limits(error: &std::io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(%error, "no further thread can be had, reads are answered by fewer: look at the limits of threads \
            (TasksMax of the unit, pids.max, RLIMIT_NPROC)");
    });
}

/// The queue between those who complete (the fill scheduler) and those who answer. As long as the number of reads that
/// the kernel has outstanding; pushing never blocks.
pub(super) struct ReplyQueue {
    state: Mutex<State>,
    arrived: Condvar,
    waits: Waits,
    /// How many threads there may be beside the first one.
    most_helpers: usize,
}

impl ReplyQueue {
    /// For `threads` threads at most; none is there yet.
    pub(super) fn new(threads: NonZeroUsize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            arrived: Condvar::new(),
            waits: Waits::default(),
            most_helpers: threads.get() - 1,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request on. After [`close`](Self::close) it is dropped, which answers EIO.
    pub(super) fn push(self: &Arc<Self>, request: ReadRequest, result: Result<(), ReadError>) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            drop(request);
            return;
        }
        state.jobs.push_back((request, result));
        if state.jobs.len() > state.waiting && state.running_helpers < self.most_helpers {
            self.start_helper(&mut state);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// One more thread, for as long as there is work. Where none can be had, the others have more to do.
    fn start_helper(self: &Arc<Self>, state: &mut State) {
        state.helpers.retain(|helper| !helper.is_finished());
        match self.spawn(1 + state.running_helpers, Stays::WhileBusy) {
            Ok(helper) => {
                state.running_helpers += 1;
                state.helpers.push(helper);
            }
            Err(error) => warn_of_limits(&error),
        }
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
        drop(state);
        // Others sleep without knowing of it.
        self.arrived.notify_one();
    }

    /// Lets the threads end once the queue is empty. These beside the first one are the caller's to join.
    pub(super) fn close(&self) -> Vec<JoinHandle<()>> {
        let mut state = self.state();
        state.closed = true;
        self.arrived.notify_all();
        std::mem::take(&mut state.helpers)
    }

    /// What to do next, waiting for it; `None`: nothing any more. A thread that does not stay is no longer counted then.
    fn pop(&self, stays: Stays) -> Option<Work> {
        let mut state = self.state();
        loop {
            let left = state.look_at.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                state.look_at = None;
                // Woken for a job, perhaps: that is the next one's.
                self.arrived.notify_one();
                return Some(Work::LookAt(std::mem::take(&mut state.interrupted)));
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(Work::Answer(job));
            }
            if state.closed {
                return None;
            }
            let idle = (stays == Stays::WhileBusy).then_some(IDLE_LIMIT);
            state.waiting += 1;
            let timed_out;
            (state, timed_out) = match left.or(idle) {
                Some(limit) => {
                    let woken = self.arrived.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
                    (woken.0, woken.1.timed_out() && left.is_none())
                }
                None => (self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner), false),
            };
            state.waiting -= 1;
            if timed_out && state.jobs.is_empty() {
                state.running_helpers -= 1;
                return None;
            }
        }
    }

    /// Starts the thread that answers until the queue is closed; others join it while there is much to do.
    pub(super) fn start(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        self.spawn(0, Stays::Always)
    }

    fn spawn(self: &Arc<Self>, number: usize, stays: Stays) -> std::io::Result<JoinHandle<()>> {
        let queue = Arc::clone(self);
        std::thread::Builder::new().name(format!("fuse-reply-{number}")).spawn(move || {
            become_io_flusher();
            while let Some(work) = queue.pop(stays) {
                match work {
                    // The bytes came, and may have gone again: only `Ready` keeps them.
                    Work::Answer((request, Ok(()))) => drop(request.ask(&queue)),
                    Work::Answer((request, Err(error))) => request.give_up(error),
                    Work::LookAt(interrupted) => queue.look_at(interrupted),
                }
            }
        })
    }
}

//! The CPU pool: plain threads that hash, inflate and write. Urgent work first, else in order of arrival.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Priority, lock};
use crate::inflate::SpanInflater;
use crate::units::WINDOW_BYTES;

/// What a thread keeps between jobs: engines and scratch memory.
pub(super) struct Scratch {
    pub inflater: SpanInflater,
    pub window: Box<[u8; WINDOW_BYTES]>,
}

impl Scratch {
    fn new() -> Self {
        Self { inflater: SpanInflater::new(), window: Box::new([0; WINDOW_BYTES]) }
    }
}

/// A thread without work for so long gives its scratch memory back: an idle daemon should be small.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

pub(super) type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

struct Queued {
    priority: Priority,
    seq: Reverse<u64>,
    job: Job,
}

impl Queued {
    fn key(&self) -> (Priority, Reverse<u64>) {
        (self.priority, self.seq)
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

enum Next {
    Job(Job),
    Idle,
    Stop,
}

#[derive(Default)]
struct State {
    jobs: BinaryHeap<Queued>,
    seq: u64,
    /// Threads that wait for a job.
    waiting: usize,
    /// All but the first one, and those that have ended since the last one was started.
    helpers: Vec<JoinHandle<()>>,
    running_helpers: usize,
}

/// Where jobs go. Bounded by the scheduler's memory budget: no job without reserved memory.
pub(super) struct JobQueue {
    state: Mutex<State>,
    wake: Condvar,
    /// How many threads there may be beside the first one.
    most_helpers: usize,
    pub stopped: AtomicBool,
}

impl JobQueue {
    pub fn push(self: &Arc<Self>, priority: Priority, job: Job) {
        let mut state = lock(&self.state);
        state.seq += 1;
        let seq = Reverse(state.seq);
        state.jobs.push(Queued { priority, seq, job });
        if state.jobs.len() > state.waiting && state.running_helpers < self.most_helpers {
            self.start_helper(&mut state);
        }
        self.wake.notify_one();
    }

    /// One more thread, for as long as there is work. Where none can be had, the others have more to do.
    fn start_helper(self: &Arc<Self>, state: &mut State) {
        if self.stopped.load(Ordering::SeqCst) {
            return;
        }
        state.helpers.retain(|helper| !helper.is_finished());
        match self.spawn(1 + state.running_helpers, Stays::WhileBusy) {
            Ok(helper) => {
                state.running_helpers += 1;
                state.helpers.push(helper);
            }
            Err(error) => warn_of_limits(&error),
        }
    }

    fn spawn(self: &Arc<Self>, number: usize, stays: Stays) -> io::Result<JoinHandle<()>> {
        let queue = Arc::clone(self);
        std::thread::Builder::new().name(format!("fill-cpu-{number}")).spawn(move || {
            let mut scratch: Option<Scratch> = None;
            loop {
                match queue.pop(stays, scratch.is_some()) {
                    Next::Job(job) => job(scratch.get_or_insert_with(Scratch::new)),
                    Next::Idle if stays == Stays::Always => scratch = None,
                    Next::Idle | Next::Stop => return,
                }
            }
        })
    }

    /// The next job, waiting for it; [`Next::Idle`] when there was none for [`IDLE_LIMIT`] and the thread has something to
    /// give back. A thread that does not stay is no longer counted then.
    fn pop(&self, stays: Stays, has_scratch: bool) -> Next {
        let limit = (has_scratch || stays == Stays::WhileBusy).then_some(IDLE_LIMIT);
        let mut state = lock(&self.state);
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return Next::Stop;
            }
            if let Some(queued) = state.jobs.pop() {
                return Next::Job(queued.job);
            }
            state.waiting += 1;
            let timed_out;
            (state, timed_out) = match limit {
                Some(limit) => {
                    let (state, waited) = self.wake.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
                    (state, waited.timed_out())
                }
                None => (self.wake.wait(state).unwrap_or_else(PoisonError::into_inner), false),
            };
            state.waiting -= 1;
            if timed_out && state.jobs.is_empty() {
                if stays == Stays::WhileBusy {
                    state.running_helpers -= 1;
                }
                return Next::Idle;
            }
        }
    }

    /// The helpers are the caller's to join; jobs that wait are dropped by it, outside of the lock: they own things that
    /// may call back.
    fn stop(&self) -> (Vec<Queued>, Vec<JoinHandle<()>>) {
        let mut state = lock(&self.state);
        self.stopped.store(true, Ordering::SeqCst);
        self.wake.notify_all();
        (std::mem::take(&mut state.jobs).into_vec(), std::mem::take(&mut state.helpers))
    }
}

/// Said once: every later job would say it again.
fn warn_of_limits(error: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(%error, "no further thread can be had, spans are inflated by fewer: look at the limits of threads \
            (TasksMax of the unit, pids.max, RLIMIT_NPROC)");
    });
}

/// How long a thread lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stays {
    Always,
    WhileBusy,
}

/// Owns the threads: one that always waits for work, the others while there is more than it can do.
pub(super) struct Pool {
    pub queue: Arc<JobQueue>,
    first: Option<JoinHandle<()>>,
}

impl Pool {
    /// At most `threads` threads; 0: one per core.
    pub fn start(threads: usize) -> io::Result<Self> {
        let most = match threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n,
        };
        let queue = Arc::new(JobQueue {
            state: Mutex::default(),
            wake: Condvar::new(),
            most_helpers: most - 1,
            stopped: AtomicBool::new(false),
        });
        let first = Some(queue.spawn(0, Stays::Always)?);
        Ok(Self { queue, first })
    }

    /// Ends the threads after their present job; jobs that wait are dropped.
    pub fn stop(&mut self) {
        let (jobs, helpers) = self.queue.stop();
        drop(jobs);
        let me = std::thread::current().id();
        for thread in self.first.take().into_iter().chain(helpers) {
            // A completion may have dropped the last handle from within the pool.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a fill thread had panicked");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

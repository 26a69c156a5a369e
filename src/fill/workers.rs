//! The CPU pool: plain threads that hash, inflate and write. Urgent work first, else in order of arrival.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
}

/// Where jobs go. Bounded by the scheduler's memory budget: no job without reserved memory.
#[derive(Default)]
pub(super) struct JobQueue {
    state: Mutex<State>,
    wake: Condvar,
    pub stopped: AtomicBool,
}

impl JobQueue {
    pub fn push(&self, priority: Priority, job: Job) {
        let mut state = lock(&self.state);
        state.seq += 1;
        let seq = Reverse(state.seq);
        state.jobs.push(Queued { priority, seq, job });
        self.wake.notify_one();
    }

    /// The next job, waiting for it; with a limit, [`Next::Idle`] when there was none for so long.
    fn pop(&self, limit: Option<Duration>) -> Next {
        let mut state = lock(&self.state);
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return Next::Stop;
            }
            if let Some(queued) = state.jobs.pop() {
                return Next::Job(queued.job);
            }
            state = match limit {
                Some(limit) => {
                    let (state, waited) = self.wake.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() && state.jobs.is_empty() {
                        return Next::Idle;
                    }
                    state
                }
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn stop(&self) -> Vec<Job> {
        let mut state = lock(&self.state);
        self.stopped.store(true, Ordering::SeqCst);
        self.wake.notify_all();
        // Dropped by the caller, outside of the lock: jobs own things that may call back.
        std::mem::take(&mut state.jobs).into_iter().map(|queued| queued.job).collect()
    }
}

/// Owns the threads.
pub(super) struct Pool {
    pub queue: Arc<JobQueue>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads; 0: one per core.
    pub fn start(threads: usize) -> io::Result<Self> {
        let count = match threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n,
        };
        let mut pool = Self { queue: Arc::default(), threads: Vec::with_capacity(count) };
        for number in 0..count {
            let queue = pool.queue.clone();
            let thread = std::thread::Builder::new().name(format!("fill-cpu-{number}")).spawn(move || {
                let mut scratch: Option<Scratch> = None;
                loop {
                    match queue.pop(scratch.as_ref().map(|_| IDLE_LIMIT)) {
                        Next::Job(job) => job(scratch.get_or_insert_with(Scratch::new)),
                        Next::Idle => scratch = None,
                        Next::Stop => return,
                    }
                }
            })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Ends the threads after their present job; jobs that wait are dropped.
    pub fn stop(&mut self) {
        drop(self.queue.stop());
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
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

//! Readers that are killed while they wait.
//!
//! A reader whose request a server has taken waits for the answer where no signal reaches it; of the first signal the
//! kernel tells the server, once (FUSE_INTERRUPT; Linux `fs/fuse/dev.c`, `request_wait_answer`). Only reads that the
//! kernel sends in the background are free of this, and EROFS on Linux 6.12 sends none of these.
//!
//! Files never answer EINTR to a signal that has a handler, and programs rely on it. So an interrupted read goes on
//! waiting until its reader really has to die, which is looked up again and again: the kernel marks every thread of a
//! process that a signal ends with a pending SIGKILL.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::read::{ReadRequest, Slot};

/// How often a reader that was sent a signal is looked at.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// For how long an interrupted request that does not wait is looked for: between being taken from the kernel and waiting,
/// and between its bytes and its answer, it cannot be found.
const GRACE: Duration = Duration::from_secs(2);

/// A request and who waits for it, by the numbers that the kernel gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub(super) unique: u64,
    /// The waiting thread, in the PID namespace of the mount; 0 for one outside of it.
    pub(super) thread: u32,
}

/// The reads that wait, so that an interrupt finds them.
#[derive(Default)]
pub(super) struct Waits(Mutex<HashMap<u64, (u32, Weak<Slot>)>>);

impl Waits {
    fn map(&self) -> MutexGuard<'_, HashMap<u64, (u32, Weak<Slot>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, asked: Asked, slot: Weak<Slot>) {
        self.map().insert(asked.unique, (asked.thread, slot));
    }

    /// Forgets a slot that is about to go; not one that came after it with the same request.
    pub(super) fn remove(&self, unique: u64, slot: *const Slot) {
        let mut map = self.map();
        if map.get(&unique).is_some_and(|(_, known)| std::ptr::eq(known.as_ptr(), slot)) {
            map.remove(&unique);
        }
    }

    /// What is to be done about an interrupted request.
    pub(super) fn look_at(&self, unique: u64) -> Verdict {
        let Some((thread, slot)) = self.map().get(&unique).cloned() else { return Verdict::Unknown };
        if !is_killed(thread) {
            return Verdict::Waits;
        }
        match slot.upgrade().and_then(|slot| slot.take()) {
            Some(request) => Verdict::Killed(request),
            None => Verdict::Unknown,
        }
    }
}

/// See [`Waits::look_at`].
pub(super) enum Verdict {
    /// It does not wait: it is being answered, or was.
    Unknown,
    /// Its reader lives.
    Waits,
    /// Its reader can only die.
    Killed(ReadRequest),
}

/// An interrupted request.
pub(super) struct Interrupted {
    unique: u64,
    /// Since when it is not found.
    missed_since: Option<Instant>,
}

impl Interrupted {
    pub(super) fn new(unique: u64) -> Self {
        Self { unique, missed_since: None }
    }

    /// Ends the request if its reader has to die. Itself, when it is to be looked at again.
    pub(super) fn settle(mut self, waits: &Waits) -> Option<Self> {
        match waits.look_at(self.unique) {
            Verdict::Killed(request) => {
                request.interrupt();
                None
            }
            Verdict::Waits => Some(Self { missed_since: None, ..self }),
            Verdict::Unknown => {
                let since = *self.missed_since.get_or_insert_with(Instant::now);
                (since.elapsed() < GRACE).then_some(self)
            }
        }
    }
}

/// Whether a SIGKILL is pending for a thread: sent to it or its process, or what a signal that ends the process became.
fn is_killed(thread: u32) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else { return false };
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL_BIT != 0)
}

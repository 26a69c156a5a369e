//! Answers on their way to the thread that owns a ring: a queue and a bell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::frontend::bell::Bell;
use crate::sys::fuse_ring::Held;

/// What lies in a [`Postbox`].
#[derive(Default)]
pub(super) struct Post {
    /// Answers for the kernel.
    pub(super) answers: Vec<Held>,
    /// The thread is to end.
    pub(super) end: bool,
    /// It looks again before it sleeps.
    awake: bool,
}

/// The queue. What the ring's own thread puts in while it works costs no system call.
pub(super) struct Postbox {
    post: Mutex<Post>,
    bell: Bell,
}

impl Postbox {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { post: Mutex::default(), bell: Bell::new()? }))
    }

    fn post(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is in the box and wakes the thread if it may sleep.
    fn put(&self, change: impl FnOnce(&mut Post)) {
        let mut post = self.post();
        change(&mut post);
        let asleep = !std::mem::replace(&mut post.awake, true);
        drop(post);
        if asleep {
            self.bell.ring();
        }
    }

    /// Has the thread end.
    pub(super) fn end(&self) {
        self.put(|post| post.end = true);
    }

    /// Moves the answers to `answers`, which is empty, and says whether to end. What comes from now on wakes the thread.
    pub(super) fn take(&self, answers: &mut Vec<Held>) -> bool {
        let mut post = self.post();
        std::mem::swap(&mut post.answers, answers);
        post.awake = false;
        post.end
    }

    /// Says that the thread does not sleep, until it takes the next time.
    pub(super) fn awake(&self) {
        self.post().awake = true;
    }

    /// Takes back what woke it.
    pub(super) fn clear(&self) {
        self.bell.silence();
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// An entry of a ring with a request in it, and the way back to that ring.
pub(super) struct Entry {
    pub(super) held: Held,
    pub(super) postbox: Arc<Postbox>,
}

impl Entry {
    /// Answers with so many bytes of the entry's room, or an error.
    pub(super) fn commit(self, unique: u64, answer: Result<usize, Errno>) {
        let Self { mut held, postbox } = self;
        let answer = answer.and_then(|len| u32::try_from(len).map_err(|_| Errno::IO));
        match answer {
            Ok(len_bytes) => held.answer(unique, 0, len_bytes),
            Err(errno) => held.answer(unique, -errno.raw_os_error(), 0),
        }
        postbox.put(|post| post.answers.push(held));
    }
}

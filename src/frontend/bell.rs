//! Wakes a thread that sleeps in a ring: an eventfd which that ring watches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// The eventfd. It stays readable from the first [`ring`](Bell::ring) to the next [`silence`](Bell::silence).
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn ring(&self) {
        if let Err(errno) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            // Only a full counter (2^64) could be in the way, and that one wakes as well.
            tracing::error!(%errno, "cannot wake the thread of a ring");
        }
    }

    pub(super) fn silence(&self) {
        // EAGAIN means that it is silent already.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

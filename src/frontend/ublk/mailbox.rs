//! Messages to a ring thread: a queue and a bell.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::UblkError;
use super::engine::DeviceSetup;
use crate::frontend::ReadError;
use crate::frontend::bell::Bell;

/// A request in a ring thread's table; `serial` tells it from later users of the same entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RequestId {
    pub index: u32,
    pub serial: u64,
}

/// What a ring thread can be told.
pub(super) enum Message {
    /// The bytes of a pending request are here, or cannot be had.
    Ensured(RequestId, Result<(), ReadError>),
    /// Serve a device: map its descriptors, send its fetches, answer with its slot.
    Attach(Box<DeviceSetup>, OwnedFd, SyncSender<Result<u32, UblkError>>),
    /// From now on answer requests of this slot with EIO instead of waiting for bytes.
    Fail(u32),
    /// Answer when all tags are back, no read is in flight and the character device is closed.
    Release(u32, SyncSender<()>),
    /// Leave: finish local reads (until the limit), answer nothing more, close everything.
    Leave(Duration),
}

/// The queue. A burst of messages costs one wake-up.
pub(super) struct Mailbox {
    queue: Mutex<VecDeque<Message>>,
    bell: Bell,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::new(VecDeque::new()), bell: Bell::new()? })
    }

    /// Queues a message and wakes the ring thread. Never blocks for longer than another such call.
    pub(super) fn send(&self, message: Message) {
        let first = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push_back(message);
            queue.len() == 1
        };
        if first {
            self.bell.ring();
        }
    }

    /// Everything queued. The bell is silenced first: a message that comes meanwhile wakes again.
    pub(super) fn drain(&self) -> VecDeque<Message> {
        self.bell.silence();
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(mailbox: &Mailbox) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(mailbox.event(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 1
    }

    #[test]
    fn messages_wake_and_a_drain_takes_all_in_order() {
        let mailbox = Mailbox::new().expect("eventfd");
        assert!(!readable(&mailbox));
        for slot in 0..3 {
            mailbox.send(Message::Fail(slot));
        }
        assert!(readable(&mailbox));
        let slots: Vec<u32> =
            mailbox.drain().into_iter().map(|m| if let Message::Fail(slot) = m { slot } else { u32::MAX }).collect();
        assert_eq!(slots, [0, 1, 2]);
        assert!(!readable(&mailbox));
        mailbox.send(Message::Fail(3));
        assert!(readable(&mailbox));
    }
}

//! The thread that owns an io_uring and serves its devices.
//!
//! Liveness contract: it lives as long as it has devices, since the driver takes its exit for the death of the server; a
//! panic ends the process, which the next start recovers from, where a dead thread in a living process would hang the
//! readers for good. It never opens, mounts or looks at a device of ours, and waits for nothing but its ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::UblkError;
use super::config::MAX_REQUEST_BYTES;
use super::engine::{DeviceSetup, Engine, Port};
use super::mailbox::{Mailbox, Message};
use super::token::{TagId, Token};
use crate::sys::ring::{BufferId, CommandAddress, Completion, DataRing, RingSizes, Target};
use crate::sys::thread::{AbortOnPanic, become_io_flusher};
use crate::sys::ublk::{IoCmd, IoDesc, QueueDescs, copy_position, opcode};

const SUBMISSIONS: u32 = 512;
const COMPLETIONS: u32 = 8192;
/// How long the ring must be idle before copy buffers give their memory back.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// Starts the thread; returns when its ring is up. `fixed_buffers` is the size of the fixed-buffer table, 0 for none.
pub(super) fn spawn(
    number: usize,
    fixed_buffers: u32,
    copy_buffers: u16,
    mailbox: Arc<Mailbox>,
) -> Result<JoinHandle<()>, UblkError> {
    let failed = |source| UblkError::Ring { source };
    let sizes = RingSizes {
        submissions: SUBMISSIONS,
        completions: COMPLETIONS,
        fixed_buffers,
        pool_buffers: copy_buffers,
        buffer_bytes: MAX_REQUEST_BYTES,
    };
    let (ready, is_ready) = sync_channel(1);
    let thread = thread::Builder::new()
        .name(format!("ublk-ring-{number}"))
        .spawn(move || {
            let _abort = AbortOnPanic;
            become_io_flusher();
            // A ring may be used by the thread that made it only.
            match DataRing::new(&sizes) {
                Ok(ring) => {
                    // The receiver waits, so this cannot fail; if it did, the mailbox's messages would tell.
                    let _ = ready.send(Ok(()));
                    RingThread::new(ring, mailbox).run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })
        .map_err(failed)?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(UblkError::Stopped),
    }
}

/// A device's descriptors. The ring's operations name the fd; it is closed when none is left.
struct OpenDevice {
    cdev: OwnedFd,
    queues: Vec<QueueDescs>,
}

/// The engine's hands: the ring and the open character devices, by slot.
struct RingPort {
    ring: DataRing,
    open: Vec<Option<OpenDevice>>,
}

impl RingPort {
    fn device(&self, slot: u32) -> Option<&OpenDevice> {
        self.open.get(slot as usize)?.as_ref()
    }

    fn desc(&self, id: TagId) -> Option<IoDesc> {
        self.device(id.slot)?.queues.get(usize::from(id.queue))?.desc(id.tag)
    }

    fn command(&mut self, opcode: u32, id: TagId, result: i32, address: CommandAddress) {
        let Some(Some(device)) = self.open.get(id.slot as usize) else { return };
        let command = IoCmd { q_id: id.queue, tag: id.tag, result, addr: 0 };
        self.ring.command(device.cdev.as_fd(), opcode, command, address, Token::Command(id).encode());
    }
}

impl Port for RingPort {
    fn fetch(&mut self, id: TagId, address: CommandAddress) {
        self.command(opcode::FETCH_REQ, id, 0, address);
    }

    fn commit(&mut self, id: TagId, result: i32, address: CommandAddress) {
        self.command(opcode::COMMIT_AND_FETCH_REQ, id, result, address);
    }

    fn read(&mut self, file: BorrowedFd<'_>, offset: u64, target: Target, len_bytes: u32, token: Token) {
        self.ring.read(file, offset, target, len_bytes, token.encode());
    }

    fn copy_out(&mut self, id: TagId, buffer: BufferId, from: u32, len_bytes: u32, token: Token) {
        let Some(Some(device)) = self.open.get(id.slot as usize) else { return };
        let position = copy_position(id.queue, id.tag, from);
        self.ring.write(device.cdev.as_fd(), position, buffer, from, len_bytes, token.encode());
    }

    fn take_buffer(&mut self) -> Option<BufferId> {
        self.ring.take_buffer()
    }

    fn give_back(&mut self, buffer: BufferId) {
        self.ring.give_back(buffer);
    }
}

struct RingThread {
    engine: Engine,
    port: RingPort,
    mailbox: Arc<Mailbox>,
    completions: Vec<Completion>,
    /// Devices whose fetches are on their way to the driver.
    attaching: Vec<(u32, SyncSender<Result<u32, UblkError>>)>,
    leave_until: Option<Instant>,
}

impl RingThread {
    fn new(ring: DataRing, mailbox: Arc<Mailbox>) -> Self {
        Self {
            engine: Engine::new(Arc::clone(&mailbox)),
            port: RingPort { ring, open: Vec::new() },
            mailbox,
            completions: Vec::new(),
            attaching: Vec::new(),
            leave_until: None,
        }
    }

    fn run(mut self) {
        let event_token = Token::Mailbox.encode();
        self.port.ring.watch(self.mailbox.event(), event_token);
        loop {
            let limit = match self.leave_until {
                Some(_) if self.port.ring.data_in_flight() == 0 => break,
                Some(until) if until <= Instant::now() => break,
                Some(until) => Some(until.saturating_duration_since(Instant::now())),
                None if !self.attaching.is_empty() => Some(Duration::ZERO),
                None => self.port.ring.is_dirty().then_some(TRIM_AFTER),
            };
            if let Err(error) = self.port.ring.submit_and_wait(limit) {
                panic!("io_uring_enter: {error}");
            }
            let mut completions = std::mem::take(&mut self.completions);
            self.port.ring.reap(&mut completions);
            if completions.is_empty() && limit == Some(TRIM_AFTER) {
                self.port.ring.trim();
            }
            // What was submitted before is answered now; attachments that come with this batch are for the next round.
            let attached = std::mem::take(&mut self.attaching);
            for completion in completions.drain(..) {
                self.handle(completion);
            }
            self.completions = completions;
            for (slot, reply) in attached {
                self.reply_attached(slot, &reply);
            }
            if self.leave_until.is_none() {
                for (slot, reply) in self.engine.settle(&mut self.port) {
                    if let Some(place) = self.port.open.get_mut(slot as usize) {
                        *place = None;
                    }
                    // A caller that gave up waiting does not mind.
                    let _ = reply.send(());
                }
            }
        }
        // Fields drop in order: engine (backends), then the ring, which ends all fetches, then the character devices.
    }

    fn handle(&mut self, completion: Completion) {
        let result = completion.result;
        match Token::decode(completion.user_data) {
            Token::Mailbox => {
                if !completion.more {
                    self.port.ring.watch(self.mailbox.event(), Token::Mailbox.encode());
                }
                for message in self.mailbox.drain() {
                    self.obey(message);
                }
            }
            Token::Command(id) => {
                let desc = if result == 0 { self.port.desc(id) } else { None };
                self.engine.commanded(&mut self.port, id, result, desc);
            }
            Token::Read { request, piece } => self.engine.read_done(&mut self.port, request, piece, result),
            Token::Write { request } => self.engine.copied_out(&mut self.port, request, result),
        }
    }

    fn obey(&mut self, message: Message) {
        match message {
            Message::Ensured(id, result) => self.engine.ensured(&mut self.port, id, result),
            Message::Attach(setup, cdev, reply) => match self.attach(*setup, cdev) {
                Ok(slot) => self.attaching.push((slot, reply)),
                Err(source) => {
                    let _ = reply.send(Err(UblkError::Ring { source }));
                }
            },
            Message::Fail(slot) => self.engine.fail_slot(&mut self.port, slot),
            Message::Release(slot, reply) => self.engine.release(slot, reply),
            Message::Leave(limit) => {
                self.engine.leave();
                self.leave_until = Some(Instant::now() + limit);
            }
        }
    }

    fn attach(&mut self, setup: DeviceSetup, cdev: OwnedFd) -> io::Result<u32> {
        if self.leave_until.is_some() {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        let queues =
            (0..setup.queues).map(|q| QueueDescs::map(cdev.as_fd(), q, setup.depth)).collect::<io::Result<_>>()?;
        let slot = self.engine.next_slot();
        let index = slot as usize;
        if self.port.open.len() <= index {
            self.port.open.resize_with(index + 1, || None);
        }
        if let Some(place) = self.port.open.get_mut(index) {
            *place = Some(OpenDevice { cdev, queues });
        }
        self.engine.attach(&mut self.port, slot, setup);
        Ok(slot)
    }

    fn reply_attached(&mut self, slot: u32, reply: &SyncSender<Result<u32, UblkError>>) {
        let answer = match self.engine.refused(slot) {
            None => Ok(slot),
            Some(errno) => {
                // Nobody will ask for this slot: it goes when the caller has stopped the device. Nobody hears the reply.
                self.engine.release(slot, sync_channel(1).0);
                Err(UblkError::Ring { source: io::Error::from_raw_os_error(errno) })
            }
        };
        // The caller waits for this.
        let _ = reply.send(answer);
    }
}

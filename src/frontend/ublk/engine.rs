//! The requests of one ring thread: a state machine from "a tag has a request" to "the answer is committed", for many
//! devices. It owns no descriptor and makes no system call; a [`Port`] does that, the ring thread's in the product and a
//! scripted one in the tests.
//!
//! Contract: every request is answered exactly once, as long as the thread lives. When it leaves (planned stop or death)
//! what is open stays unanswered: the driver gives it to the next server (`USER_RECOVERY_REISSUE`).

mod transfer;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::config::DataMode;
use super::mailbox::{Mailbox, RequestId};
use super::request::{LostTags, Owed, Phase, Request, RequestError, parse, pieces, segments};
use super::slots::SlotRun;
use super::stats::DeviceStats;
use super::ticket::ensure;
use super::token::{TagId, Token};
use crate::frontend::{Backend, ReadError, Readiness, Segments, SourceFile};
use crate::sys::ring::{BufferId, CommandAddress, Target};
use crate::sys::ublk::{IoDesc, RESULT_ABORT, auto_buffer_address, io_op};

/// What the engine needs done.
pub(super) trait Port {
    /// Waits for a tag's first request.
    fn fetch(&mut self, tag: TagId, address: CommandAddress);
    /// Answers with bytes or a negated errno and waits for the next request. A buffer in `address` goes back to the pool.
    fn commit(&mut self, tag: TagId, result: i32, address: CommandAddress);
    /// Reads from a local file.
    fn read(&mut self, file: BorrowedFd<'_>, offset: u64, target: Target, len_bytes: u32, token: Token);
    /// Writes a buffer's bytes from `from` on into the pages of the request at `tag`.
    fn copy_out(&mut self, tag: TagId, buffer: BufferId, from: u32, len_bytes: u32, token: Token);
    /// A free copy buffer.
    fn take_buffer(&mut self) -> Option<BufferId>;
    /// Gives a buffer back that nothing uses any more.
    fn give_back(&mut self, buffer: BufferId);
}

/// A device to serve.
pub(super) struct DeviceSetup {
    pub id: u32,
    pub queues: u16,
    pub depth: u16,
    pub mode: DataMode,
    /// Entries of the fixed-buffer table. `None` in [`DataMode::AutoBufReg`] means that the table was full: every request
    /// then arrives unregistered and is copied.
    pub fixed: Option<SlotRun>,
    pub backend: Arc<dyn Backend>,
    pub stats: Arc<DeviceStats>,
}

struct Device {
    setup: DeviceSetup,
    /// Tags that the driver or a request of ours still holds.
    tags_left: u32,
    open_requests: u32,
    /// Fetches that were refused.
    refused: Option<i32>,
    failing: bool,
    release: Option<SyncSender<()>>,
}

/// Requests and devices of one ring thread.
pub(super) struct Engine {
    devices: Vec<Option<Device>>,
    requests: Vec<Option<Request>>,
    free_requests: Vec<u32>,
    next_serial: u64,
    /// Requests that wait for a copy buffer, oldest first.
    queued: VecDeque<RequestId>,
    lost: LostTags,
    mailbox: Arc<Mailbox>,
    leaving: bool,
    scratch: Segments,
}

impl Engine {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self {
            devices: Vec::new(),
            requests: Vec::new(),
            free_requests: Vec::new(),
            next_serial: 0,
            queued: VecDeque::new(),
            lost: LostTags::default(),
            mailbox,
            leaving: false,
            scratch: Segments::new(),
        }
    }

    /// A place for a device that is about to be attached.
    pub(super) fn next_slot(&self) -> u32 {
        self.devices.iter().position(Option::is_none).unwrap_or(self.devices.len()) as u32
    }

    /// Takes a device and sends all its fetches.
    pub(super) fn attach(&mut self, port: &mut impl Port, slot: u32, setup: DeviceSetup) {
        let (queues, depth) = (setup.queues, setup.depth);
        let tags_left = u32::from(queues) * u32::from(depth);
        let device = Device { setup, tags_left, open_requests: 0, refused: None, failing: false, release: None };
        let index = slot as usize;
        if self.devices.len() <= index {
            self.devices.resize_with(index + 1, || None);
        }
        if let Some(place) = self.devices.get_mut(index) {
            *place = Some(device);
        }
        for queue in 0..queues {
            for tag in 0..depth {
                let tag = TagId { slot, queue, tag };
                port.fetch(tag, self.address(tag));
            }
        }
    }

    /// The errno of a refused fetch, if any was.
    pub(super) fn refused(&self, slot: u32) -> Option<i32> {
        self.device(slot).and_then(|d| d.refused)
    }

    /// A tag's command completed: with 0 it has the request `desc`, else the driver is done with the tag.
    pub(super) fn commanded(&mut self, port: &mut impl Port, tag: TagId, result: i32, desc: Option<IoDesc>) {
        if result == 0 {
            if let Some(desc) = desc {
                self.begin(port, tag, &desc);
            }
            return;
        }
        let Some(device) = self.device_mut(tag.slot) else { return };
        device.tags_left = device.tags_left.saturating_sub(1);
        if result != RESULT_ABORT {
            device.refused = Some(-result);
            let error = io::Error::from_raw_os_error(-result);
            tracing::error!(dev = device.setup.id, queue = tag.queue, tag = tag.tag, %error, "ublk refused a tag's command");
        }
    }

    fn begin(&mut self, port: &mut impl Port, tag: TagId, desc: &IoDesc) {
        if self.leaving {
            return;
        }
        let owed = Owed::new(tag, &self.lost);
        let Some(device) = self.device_mut(tag.slot) else { return };
        device.open_requests += 1;
        if desc.op() == io_op::FLUSH {
            return self.answer(port, owed, Ok(0), CommandAddress::Any);
        }
        let backend = Arc::clone(&device.setup.backend);
        let failing = device.failing;
        let registered = device.setup.mode == DataMode::AutoBufReg
            && device.setup.fixed.is_some()
            && desc.op_flags & io_op::NEED_REG_BUF == 0;

        let mut scratch = std::mem::take(&mut self.scratch);
        let parsed = parse(desc).and_then(|range| {
            segments(&*backend, range, &mut scratch)?;
            Ok(range)
        });
        match parsed {
            Err(error) => {
                self.report(tag, None, &error);
                self.answer(port, owed, Err(error), CommandAddress::Any);
            }
            Ok(range) => {
                let len_bytes = scratch.iter().map(|s| s.len_bytes).sum();
                let serial = self.next_serial;
                self.next_serial += 1;
                let id = self.keep(Request {
                    owed,
                    serial,
                    phase: Phase::Filling,
                    range,
                    len_bytes,
                    pieces: pieces(&scratch),
                    reads_left: 0,
                    buffer: None,
                    registered,
                    error: None,
                });
                if failing {
                    self.fail(port, id.index, RequestError::Removing);
                } else {
                    self.fill(port, id, &*backend, &scratch);
                }
            }
        }
        self.scratch = scratch;
    }

    fn fill(&mut self, port: &mut impl Port, id: RequestId, backend: &dyn Backend, segments: &Segments) {
        // The metadata file is always whole.
        if segments.iter().all(|s| s.file == SourceFile::Metadata) {
            return self.read(port, id.index);
        }
        let (readiness, dropped) = ensure(backend, segments, &self.mailbox, id);
        match readiness {
            Readiness::Ready => self.read(port, id.index),
            Readiness::Pending => {
                self.count_wait(id.index, true);
                if dropped {
                    self.ensured(port, id, Err(ReadError::Unavailable));
                }
            }
        }
    }

    /// The backend's word on a pending request.
    pub(super) fn ensured(&mut self, port: &mut impl Port, id: RequestId, result: Result<(), ReadError>) {
        let current = self.request_mut(id.index).is_some_and(|r| r.serial == id.serial && r.phase == Phase::Filling);
        // A backend that is stopping leaves its readers to the next server: no answer is better than EIO.
        if !current || self.leaving || result == Err(ReadError::Stopping) {
            return;
        }
        self.count_wait(id.index, false);
        match result {
            Ok(()) => self.read(port, id.index),
            Err(error) => self.fail(port, id.index, error.into()),
        }
    }

    fn report(&self, tag: TagId, request: Option<&Request>, error: &RequestError) {
        let Some(device) = self.device(tag.slot) else { return };
        match request {
            Some(request) => device.setup.backend.failed(request.range, error),
            None => tracing::warn!(dev = device.setup.id, %error, "unusable block request"),
        }
    }

    /// The one place where answers leave. `address` is a buffer or `Any`, which becomes what the device's mode wants.
    fn answer(&mut self, port: &mut impl Port, owed: Owed, result: Result<u32, RequestError>, address: CommandAddress) {
        let tag = owed.settle();
        let address = if let CommandAddress::Buffer(_) = address { address } else { self.address(tag) };
        let Some(device) = self.device_mut(tag.slot) else { return };
        device.open_requests = device.open_requests.saturating_sub(1);
        let code = match &result {
            // At most 1 MiB.
            Ok(bytes) => *bytes as i32,
            Err(_) => -libc::EIO,
        };
        device.setup.stats.answered(result.map_err(drop));
        port.commit(tag, code, address);
    }

    /// What the command of `tag` says about buffers when it brings none.
    fn address(&self, tag: TagId) -> CommandAddress {
        match self.device(tag.slot).map(|d| (d.setup.mode, d.setup.fixed, d.setup.depth)) {
            Some((DataMode::Copy, ..)) => CommandAddress::Any,
            Some((DataMode::AutoBufReg, fixed, depth)) => {
                // Without entries: one that no table has, so that the driver falls back.
                let entry = fixed.map_or(u16::MAX, |run| run.first + tag.queue * depth + tag.tag);
                CommandAddress::Register(auto_buffer_address(entry))
            }
            Some((DataMode::UserCopy, ..)) | None => CommandAddress::None,
        }
    }

    /// Answers what waits for bytes on `slot` with EIO, now and later.
    pub(super) fn fail_slot(&mut self, port: &mut impl Port, slot: u32) {
        if self.leaving {
            return;
        }
        let Some(device) = self.device_mut(slot) else { return };
        device.failing = true;
        for index in 0..self.requests.len() as u32 {
            let phase = self.request_mut(index).filter(|r| r.owed.tag().slot == slot).map(|r| r.phase);
            match phase {
                Some(Phase::Filling) => {
                    self.count_wait(index, false);
                    self.fail(port, index, RequestError::Removing);
                }
                Some(Phase::Queued) => self.fail(port, index, RequestError::Removing),
                Some(Phase::Reading | Phase::Writing { .. }) | None => {}
            }
        }
    }

    /// Notes who wants to know that `slot` is done with; see [`Engine::settle`].
    pub(super) fn release(&mut self, slot: u32, reply: SyncSender<()>) {
        if let Some(device) = self.device_mut(slot) {
            device.release = Some(reply);
        }
        // A device that is gone already: dropping the reply says so.
    }

    /// To be called after each batch of events: answers lost requests, gives freed buffers to those that wait, and
    /// returns the slots that are done with, whose character device the caller closes before it sends the reply.
    pub(super) fn settle(&mut self, port: &mut impl Port) -> Vec<(u32, SyncSender<()>)> {
        let lost = std::mem::take(&mut *self.lost.borrow_mut());
        for tag in lost {
            if let Some(device) = self.device(tag.slot) {
                tracing::error!(
                    dev = device.setup.id,
                    queue = tag.queue,
                    tag = tag.tag,
                    "a request was lost; answered EIO"
                );
                device.setup.stats.lost();
            }
            let owed = Owed::new(tag, &self.lost);
            self.answer(port, owed, Err(RequestError::Removing), CommandAddress::Any);
        }
        while let Some(&id) = self.queued.front() {
            let waits = self.request_mut(id.index).is_some_and(|r| r.serial == id.serial && r.phase == Phase::Queued);
            if waits {
                let Some(buffer) = port.take_buffer() else { break };
                if let Some(request) = self.request_mut(id.index) {
                    request.buffer = Some(buffer);
                }
                self.read(port, id.index);
            }
            self.queued.pop_front();
        }
        let mut done = Vec::new();
        for (slot, place) in self.devices.iter_mut().enumerate() {
            let finished = |d: &mut Device| d.tags_left == 0 && d.open_requests == 0 && d.release.is_some();
            if place.as_mut().is_some_and(finished)
                && let Some(device) = place.take()
                && let Some(reply) = device.release
            {
                done.push((slot as u32, reply));
            }
        }
        done
    }

    /// From now on nothing is started or answered.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    fn keep(&mut self, request: Request) -> RequestId {
        let serial = request.serial;
        let index = self.free_requests.pop().unwrap_or_else(|| {
            self.requests.push(None);
            self.requests.len() as u32 - 1
        });
        if let Some(place) = self.requests.get_mut(index as usize) {
            *place = Some(request);
        }
        RequestId { index, serial }
    }

    fn forget(&mut self, index: u32) -> Option<Request> {
        let request = self.requests.get_mut(index as usize)?.take()?;
        self.free_requests.push(index);
        Some(request)
    }

    fn count_wait(&mut self, index: u32, begins: bool) {
        let Some(slot) = self.request_mut(index).map(|r| r.owed.tag().slot) else { return };
        if let Some(device) = self.device(slot) {
            if begins { device.setup.stats.wait_begins() } else { device.setup.stats.wait_ends() }
        }
    }

    fn device(&self, slot: u32) -> Option<&Device> {
        self.devices.get(slot as usize)?.as_ref()
    }

    fn device_mut(&mut self, slot: u32) -> Option<&mut Device> {
        self.devices.get_mut(slot as usize)?.as_mut()
    }

    fn request_mut(&mut self, index: u32) -> Option<&mut Request> {
        self.requests.get_mut(index as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests;

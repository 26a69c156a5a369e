//! From "the bytes are in local files" to "they are in the request".

use std::io;

use super::{Engine, Port};
use crate::frontend::ublk::config::DataMode;
use crate::frontend::ublk::mailbox::RequestId;
use crate::frontend::ublk::request::{Phase, RequestError};
use crate::frontend::ublk::token::Token;
use crate::sys::ring::{CommandAddress, Target};

impl Engine {
    /// Starts the local reads of a request, or queues it for a buffer.
    pub(super) fn read(&mut self, port: &mut impl Port, index: u32) {
        if self.leaving {
            return;
        }
        let Some(request) = self.requests.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if !request.registered && request.buffer.is_none() {
            // Those who wait come first: under load every buffer that comes back finds a newer request in the same batch.
            request.buffer = if self.queued.is_empty() { port.take_buffer() } else { None };
            if request.buffer.is_none() {
                request.phase = Phase::Queued;
                self.queued.push_back(RequestId { index, serial: request.serial });
                return;
            }
        }
        request.phase = Phase::Reading;
        request.reads_left = request.pieces.len() as u32;
        for piece in 0..request.pieces.len() {
            self.read_piece(port, index, piece as u16);
        }
    }

    fn read_piece(&mut self, port: &mut impl Port, index: u32, piece: u16) {
        let Some(request) = self.requests.get(index as usize).and_then(Option::as_ref) else { return };
        let tag = request.owed.tag();
        let Some(device) = self.device(tag.slot) else { return };
        let Some(part) = request.pieces.get(usize::from(piece)) else { return };
        let target = match (request.buffer, device.setup.fixed) {
            (Some(buffer), _) => Target::Pool { buffer, at: part.at },
            (None, Some(run)) => {
                Target::Fixed { slot: run.first + tag.queue * device.setup.depth + tag.tag, at: part.at }
            }
            (None, None) => return,
        };
        let file = device.setup.backend.file(part.file);
        port.read(file, part.offset, target, part.len_bytes, Token::Read { request: index, piece });
    }

    /// A local read completed with bytes or a negated errno.
    pub(in super::super) fn read_done(&mut self, port: &mut impl Port, index: u32, piece: u16, result: i32) {
        let Some(request) = self.request_mut(index) else { return };
        let Some(part) = request.pieces.get_mut(usize::from(piece)) else { return };
        let (file, offset) = (part.file, part.offset);
        match u32::try_from(result) {
            Ok(0) => request.error = Some(RequestError::EndOfFile { file, offset }),
            Ok(bytes) if bytes < part.len_bytes => {
                part.offset += u64::from(bytes);
                part.at += bytes;
                part.len_bytes -= bytes;
                return self.read_piece(port, index, piece);
            }
            Ok(_) => {}
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => return self.read_piece(port, index, piece),
            Err(_) => {
                let source = io::Error::from_raw_os_error(-result);
                request.error = Some(RequestError::File { file, offset, source });
            }
        }
        request.reads_left -= 1;
        if request.reads_left > 0 || self.leaving {
            return;
        }
        let Some(request) = self.request_mut(index) else { return };
        if let Some(error) = request.error.take() {
            return self.fail(port, index, error);
        }
        let slot = request.owed.tag().slot;
        let copy_out = request.buffer.is_some() && self.device(slot).is_some_and(|d| d.setup.mode != DataMode::Copy);
        if copy_out { self.copy_out(port, index, 0) } else { self.succeed(port, index) }
    }

    fn copy_out(&mut self, port: &mut impl Port, index: u32, done_bytes: u32) {
        let Some(request) = self.request_mut(index) else { return };
        let Some(buffer) = request.buffer else { return };
        request.phase = Phase::Writing { done_bytes };
        let left = request.len_bytes - done_bytes;
        port.copy_out(request.owed.tag(), buffer, done_bytes, left, Token::Write { request: index });
    }

    /// A write into a request's pages completed with bytes or a negated errno.
    pub(in super::super) fn copied_out(&mut self, port: &mut impl Port, index: u32, result: i32) {
        if self.leaving {
            return;
        }
        let Some(request) = self.request_mut(index) else { return };
        let Phase::Writing { done_bytes } = request.phase else { return };
        match u32::try_from(result) {
            Ok(bytes) if bytes > 0 && done_bytes + bytes < request.len_bytes => {
                self.copy_out(port, index, done_bytes + bytes);
            }
            Ok(bytes) if bytes > 0 => self.succeed(port, index),
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => self.copy_out(port, index, done_bytes),
            _ => {
                let errno = if result < 0 { -result } else { libc::EIO };
                let source = io::Error::from_raw_os_error(errno);
                self.fail(port, index, RequestError::CopyOut { source });
            }
        }
    }

    fn succeed(&mut self, port: &mut impl Port, index: u32) {
        let Some(request) = self.forget(index) else { return };
        let address = match request.buffer {
            Some(buffer) if self.device(request.owed.tag().slot).is_some_and(|d| d.setup.mode == DataMode::Copy) => {
                CommandAddress::Buffer(buffer)
            }
            Some(buffer) => {
                port.give_back(buffer);
                CommandAddress::Any
            }
            None => CommandAddress::Any,
        };
        self.answer(port, request.owed, Ok(request.len_bytes), address);
    }

    pub(super) fn fail(&mut self, port: &mut impl Port, index: u32, error: RequestError) {
        let Some(request) = self.forget(index) else { return };
        if let Some(buffer) = request.buffer {
            port.give_back(buffer);
        }
        self.report(request.owed.tag(), Some(&request), &error);
        self.answer(port, request.owed, Err(error), CommandAddress::Any);
    }
}

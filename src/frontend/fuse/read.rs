//! One read request from its arrival to its only answer.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::channel::Reply;
use super::counters::Counters;
use super::interrupt::Asked;
use super::pool::ReplyQueue;
use super::{Backend, ReadError, Readiness, Segments, SourceFile};
use crate::units::{DeviceRange, usize_from_u64};

/// Why a request got EIO although its bytes were said to be there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    /// A local file could not be read.
    #[error("reading {len_bytes} bytes at {offset} of the {file:?} file")]
    Local { file: SourceFile, offset: u64, len_bytes: u32, source: io::Error },
    /// Backend and request disagree about the length.
    #[error("the backend named {got_bytes} bytes for a request of {want_bytes}")]
    Length { got_bytes: u64, want_bytes: u64 },
    /// Nobody answered.
    #[error("the request was dropped without an answer")]
    Dropped,
}

/// Owns the duty to answer: exactly once, with EIO when dropped; and with it what the backend holds for the read. Where
/// this server leaves and another one follows, what fails only because of that is left unanswered: the kernel gives the
/// request to the next server.
pub(super) struct ReadRequest {
    reply: Option<Reply>,
    backend: Arc<dyn Backend>,
    range: DeviceRange,
    segments: Segments,
    held: bool,
    counters: Arc<Counters>,
}

impl ReadRequest {
    pub(super) fn new(reply: Reply, backend: Arc<dyn Backend>, range: DeviceRange, counters: Arc<Counters>) -> Self {
        Self { reply: Some(reply), backend, range, segments: Segments::new(), held: false, counters }
    }

    /// Asks the backend for the pieces of this request.
    pub(super) fn cut(&mut self) -> Result<(), ReadError> {
        self.backend.segments(self.range, &mut self.segments)
    }

    /// Answers if the bytes are here; else the request comes back through `replies` when they came.
    pub(super) fn ask(self, replies: &Arc<ReplyQueue>) -> Readiness {
        let backend = Arc::clone(&self.backend);
        let segments = self.segments.clone();
        let asked = self.reply.as_ref().map(Reply::asked);
        self.counters.wait_began();
        // The request lies in a slot that both sides can reach: on `Ready` this thread takes it back from a completion
        // that was dropped unused; a completion dropped while pending takes the request with it, which answers EIO.
        let slot = {
            let (counters, replies) = (Arc::clone(&self.counters), Arc::clone(replies));
            Arc::new(Slot { request: Mutex::new(Some(self)), asked, counters, replies })
        };
        // Before it can come back and ask again.
        if let Some(asked) = asked {
            replies.waits().add(asked, Arc::downgrade(&slot));
        }
        let completion = {
            let (slot, replies) = (Arc::clone(&slot), Arc::clone(replies));
            Box::new(move |result: Result<(), ReadError>| {
                if let Some(request) = slot.take() {
                    replies.push(request, result);
                }
            })
        };
        let readiness = backend.ensure(&segments, completion);
        if readiness == Readiness::Ready {
            match slot.take() {
                Some(mut request) => {
                    request.held = true;
                    request.serve();
                }
                None => backend.release(&segments),
            }
        }
        readiness
    }

    /// Reads the bytes from the local files and answers: straight into the answer where it has room.
    fn serve(mut self) {
        let (len_bytes, backend) = (self.range.len_bytes(), self.backend.as_ref());
        let room = self.reply.as_mut().zip(usize_from_u64(len_bytes)).and_then(|(reply, len)| reply.room(len));
        let outcome = if let Some(room) = room {
            let len = room.len();
            read_segments(backend, &self.segments, room).map(|()| {
                if let Some(reply) = self.reply.take() {
                    reply.filled(len);
                }
            })
        } else {
            with_scratch(len_bytes, |buffer| {
                read_segments(backend, &self.segments, buffer)?;
                if let Some(reply) = self.reply.take() {
                    reply.data(buffer);
                }
                Ok(())
            })
        };
        match outcome {
            Ok(()) => self.counters.read_answered(len_bytes),
            Err(error) => self.fail(&error),
        }
    }

    /// Ends a request whose bytes did not come.
    pub(super) fn give_up(mut self, error: ReadError) {
        if !self.leave_to_the_next() {
            self.fail(&error);
        }
    }

    /// True: a server follows, which gets this request again.
    fn leave_to_the_next(&mut self) -> bool {
        let leaving = self.reply.as_ref().is_some_and(Reply::is_leaving);
        if leaving {
            self.reply = None;
        }
        leaving
    }

    /// Ends a request whose reader dies without seeing the answer.
    pub(super) fn interrupt(mut self) {
        self.counters.read_killed();
        if let Some(reply) = self.reply.take() {
            reply.error(Errno::INTR);
        }
    }

    /// Answers EIO and tells the backend why.
    pub(super) fn fail(mut self, error: &dyn std::error::Error) {
        // Told before answered: whoever sees the error finds its reason.
        self.counters.read_failed();
        self.backend.failed(self.range, error);
        if let Some(reply) = self.reply.take() {
            reply.error(Errno::IO);
        }
    }
}

impl Drop for ReadRequest {
    fn drop(&mut self) {
        if !self.leave_to_the_next()
            && let Some(reply) = self.reply.take()
        {
            self.counters.read_dropped();
            self.backend.failed(self.range, &ServeError::Dropped);
            reply.error(Errno::IO);
        }
        if self.held {
            self.backend.release(&self.segments);
        }
    }
}

/// Where a request waits for its bytes. `waiting` counts slots: it goes down when the slot dies, however that happens.
pub(super) struct Slot {
    request: Mutex<Option<ReadRequest>>,
    asked: Option<Asked>,
    counters: Arc<Counters>,
    replies: Arc<ReplyQueue>,
}

impl Slot {
    pub(super) fn take(&self) -> Option<ReadRequest> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counters.wait_ended();
        if let Some(asked) = self.asked {
            self.replies.waits().remove(asked.unique, self);
        }
    }
}

/// Fills `buffer` from the files that `segments` name, in order.
fn read_segments(backend: &dyn Backend, segments: &Segments, buffer: &mut [u8]) -> Result<(), ServeError> {
    let want_bytes = buffer.len() as u64;
    let got_bytes: u64 = segments.iter().map(|segment| u64::from(segment.len_bytes)).sum();
    if got_bytes != want_bytes {
        return Err(ServeError::Length { got_bytes, want_bytes });
    }
    let mut rest = buffer;
    for segment in segments {
        let (piece, tail) = std::mem::take(&mut rest).split_at_mut(segment.len_bytes as usize);
        rest = tail;
        read_exact_at(backend, segment.file, piece, segment.offset).map_err(|source| ServeError::Local {
            file: segment.file,
            offset: segment.offset,
            len_bytes: segment.len_bytes,
            source,
        })?;
    }
    Ok(())
}

fn read_exact_at(backend: &dyn Backend, file: SourceFile, mut piece: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !piece.is_empty() {
        match rustix::io::pread(backend.file(file), &mut *piece, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                piece = piece.split_at_mut(count).1;
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Lends this thread's buffer, which grows to the longest request and stays.
fn with_scratch<T>(len_bytes: u64, run: impl FnOnce(&mut [u8]) -> Result<T, ServeError>) -> Result<T, ServeError> {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let too_long = || ServeError::Length { got_bytes: 0, want_bytes: len_bytes };
    let len = usize_from_u64(len_bytes).ok_or_else(too_long)?;
    SCRATCH.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        run(buffer.get_mut(..len).ok_or_else(too_long)?)
    })
}

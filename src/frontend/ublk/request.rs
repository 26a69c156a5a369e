//! One kernel request on its way to an answer.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::config::MAX_REQUEST_BYTES;
use super::mailbox::{Mailbox, RequestId};
use super::ticket;
use super::token::TagId;
use crate::frontend::{Backend, ReadError, Readiness, Segment, Segments, SourceFile};
use crate::sys::ring::BufferId;
use crate::sys::ublk::{IoDesc, SECTOR_BYTES, io_op};
use crate::units::{DeviceOffset, DeviceRange};

/// Why a request is answered with EIO.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Backend(#[from] ReadError),
    #[error("operation {op} on a read-only device")]
    Operation { op: u8 },
    #[error("a request of {bytes} bytes; the device takes 1 to {MAX_REQUEST_BYTES}")]
    Length { bytes: u64 },
    #[error("the backend cut {want_bytes} bytes into {got_bytes}")]
    Coverage { want_bytes: u64, got_bytes: u64 },
    #[error("{file:?} file at {offset}: {source}")]
    File { file: SourceFile, offset: u64, source: io::Error },
    #[error("{file:?} file ends at {offset}, inside a request")]
    EndOfFile { file: SourceFile, offset: u64 },
    #[error("copy into the request: {source}")]
    CopyOut { source: io::Error },
    #[error("the device is being removed")]
    Removing,
}

/// Tags whose guard was dropped without an answer.
pub(super) type LostTags = Rc<RefCell<Vec<TagId>>>;

/// The duty to answer one request. Dropped unanswered, it notes its tag; the engine then answers EIO and counts it.
#[must_use]
pub(super) struct Owed {
    tag: TagId,
    lost: Option<LostTags>,
}

impl Owed {
    pub(super) fn new(tag: TagId, lost: &LostTags) -> Self {
        Self { tag, lost: Some(Rc::clone(lost)) }
    }

    pub(super) fn tag(&self) -> TagId {
        self.tag
    }

    /// The answer is being committed.
    pub(super) fn settle(mut self) -> TagId {
        self.lost = None;
        self.tag
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(lost) = self.lost.take() {
            lost.borrow_mut().push(self.tag);
        }
    }
}

/// A run of the request that is one read of one local file. Shrinks from the front as bytes arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub file: SourceFile,
    /// Position in the file.
    pub offset: u64,
    /// Position in the request.
    pub at: u32,
    pub len_bytes: u32,
}

/// Where a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The backend fetches its bytes.
    Filling,
    /// Waits for a copy buffer.
    Queued,
    /// Local reads run.
    Reading,
    /// The buffer is being written to the character device; this much is there.
    Writing { done_bytes: u32 },
}

/// Where the bytes of a request come from. Dropped, it lets go of what the backend holds for it.
pub(super) struct Sources {
    backend: Arc<dyn Backend>,
    segments: Segments,
    held: bool,
}

impl Sources {
    pub(super) fn new(backend: Arc<dyn Backend>, segments: Segments) -> Self {
        Self { backend, segments, held: false }
    }

    /// Asks the backend for them; what it says is as with [`ticket::ensure`].
    pub(super) fn ensure(&mut self, mailbox: &Arc<Mailbox>, id: RequestId) -> (Readiness, bool) {
        // The metadata file is always whole.
        if self.segments.iter().all(|s| s.file == SourceFile::Metadata) {
            return (Readiness::Ready, true);
        }
        let (readiness, dropped) = ticket::ensure(&*self.backend, &self.segments, mailbox, id);
        self.held = readiness == Readiness::Ready;
        (readiness, dropped)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        if self.held {
            self.backend.release(&self.segments);
        }
    }
}

pub(super) struct Request {
    pub owed: Owed,
    pub serial: u64,
    pub phase: Phase,
    pub range: DeviceRange,
    pub sources: Sources,
    pub len_bytes: u32,
    pub pieces: SmallVec<[Piece; 2]>,
    /// Reads that the kernel still works on.
    pub reads_left: u32,
    pub buffer: Option<BufferId>,
    /// The driver put the pages into the fixed-buffer table.
    pub registered: bool,
    pub error: Option<RequestError>,
}

/// A request that was found sound: which bytes of the device it wants.
pub(super) fn parse(desc: &IoDesc) -> Result<DeviceRange, RequestError> {
    let op = desc.op();
    if op != io_op::READ {
        return Err(RequestError::Operation { op });
    }
    let bytes = u64::from(desc.nr_sectors) * SECTOR_BYTES;
    if bytes == 0 || bytes > u64::from(MAX_REQUEST_BYTES) {
        return Err(RequestError::Length { bytes });
    }
    let start = desc.start_sector.checked_mul(SECTOR_BYTES).ok_or(ReadError::OutOfRange)?;
    Ok(DeviceRange::from_len(DeviceOffset::new(start), bytes).ok_or(ReadError::OutOfRange)?)
}

/// Asks the backend for the segments of `range` and checks that they cover it: an uncovered byte would show the reader
/// old kernel memory.
pub(super) fn segments(backend: &dyn Backend, range: DeviceRange) -> Result<Segments, RequestError> {
    let mut out = Segments::new();
    if range.end() > backend.size() {
        return Err(ReadError::OutOfRange.into());
    }
    backend.segments(range, &mut out)?;
    let got_bytes: u64 = out.iter().map(|s| u64::from(s.len_bytes)).sum();
    let whole = got_bytes == range.len_bytes() && out.iter().all(|s| s.len_bytes > 0) && out.len() <= MAX_PIECES;
    if whole { Ok(out) } else { Err(RequestError::Coverage { want_bytes: range.len_bytes(), got_bytes }) }
}

const MAX_PIECES: usize = u16::MAX as usize;

/// Segments with their places in the request.
pub(super) fn pieces(segments: &[Segment]) -> SmallVec<[Piece; 2]> {
    let mut at = 0;
    segments
        .iter()
        .map(|s| {
            let piece = Piece { file: s.file, offset: s.offset, at, len_bytes: s.len_bytes };
            at += s.len_bytes;
            piece
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(op_flags: u32, start_sector: u64, nr_sectors: u32) -> IoDesc {
        IoDesc { op_flags, nr_sectors, start_sector, addr: 0 }
    }

    #[test]
    fn only_sound_reads_pass() {
        let range = parse(&desc(0x700, 8, 2048)).expect("a read with fail-fast flags");
        assert_eq!((range.start().get(), range.len_bytes()), (4096, 1 << 20));
        for (bad, word) in [
            (desc(1, 0, 8), "operation 1"),
            (desc(0, 0, 0), "of 0 bytes"),
            (desc(0, 0, 2049), "device takes"),
            (desc(0, u64::MAX / 512 + 1, 8), "beyond the end"),
            (desc(0, u64::MAX / 512, 8), "beyond the end"),
        ] {
            let error = parse(&bad).expect_err("bad").to_string();
            assert!(error.contains(word), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_dropped_duty_is_noted_and_a_settled_one_is_not() {
        let lost = LostTags::default();
        let tag = TagId { slot: 1, queue: 0, tag: 3 };
        let _ = Owed::new(tag, &lost).settle();
        assert!(lost.borrow().is_empty());
        drop(Owed::new(tag, &lost));
        assert_eq!(*lost.borrow(), [tag]);
    }
}

//! The engine for everything that one call of the whole-span engine cannot do: it works piece by piece, stops early and
//! walks gzip members.

use std::io;

use zlib_rs::{Inflate, InflateFlush, Status};

use super::{LayerSink, gzip, prefix};
use crate::units::{WINDOW_BYTES, u64_from_usize};

/// Output goes to the sink in pieces of this size: they stay in the second-level cache.
const PIECE_BYTES: usize = 256 * 1024;

/// Raw deflate (no zlib header), 32 KiB of history.
const WINDOW_BITS: u8 = 15;

/// How an attempt ended that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ended {
    /// Bytes given to the sink.
    pub produced: u64,
    /// Why it ended.
    pub end: End,
}

/// Why inflating ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The limit was reached; more may follow.
    Limit,
    /// The blob bytes ran out in the middle of a member.
    InMember,
    /// The last member is complete.
    Members,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum StreamError {
    /// No valid deflate data, this many blob bytes into the span and behind this much output.
    Data { at_bytes: u64, produced: u64, reason: &'static str },
    /// The sink's own error.
    Sink(io::Error),
}

/// The piecewise engine with its scratch memory.
pub(super) struct StreamEngine {
    inflate: Inflate,
    piece: Box<[u8]>,
}

impl StreamEngine {
    pub(super) fn new() -> Self {
        Self { inflate: Inflate::new(false, WINDOW_BITS), piece: vec![0; PIECE_BYTES].into() }
    }

    /// Inflates from a checkpoint until `limit_bytes` of output, the end of `blob` or of its last gzip member.
    pub(super) fn run(
        &mut self,
        blob: &[u8],
        bits: u8,
        window: Option<&[u8; WINDOW_BYTES]>,
        limit_bytes: u64,
        sink: LayerSink<'_>,
    ) -> Result<Ended, StreamError> {
        let mut run = Run { produced: 0, limit_bytes, filled: 0, sink };
        let at_start = |_| StreamError::Data { at_bytes: 0, produced: 0, reason: "inflate engine refused the window" };
        self.inflate.reset(false);
        if let Some(window) = window {
            self.inflate.set_dictionary(window).map_err(at_start)?;
        }
        let mut at = 0;
        if bits != 0
            && let Some(&shared) = blob.first()
        {
            let mut head = Vec::with_capacity(32);
            prefix::push_bit_offset(&mut head, bits, shared);
            at = 1;
            if self.member(&head, 0, &mut run)?.is_some() {
                // A member cannot end within its first 7 bits, so only the limit (0) stops here.
                return run.end(&self.piece, End::Limit);
            }
        }
        let end = loop {
            match self.member(blob.get(at..).unwrap_or_default(), at, &mut run)? {
                None if run.limit_reached() => break End::Limit,
                None => break End::InMember,
                Some(consumed) => at += consumed,
            }
            let Some(rest) = blob.get(at + gzip::TRAILER_BYTES..) else { break End::Members };
            // What is no member (zero padding, garbage) ends the layer, as it does for gzip itself.
            let Some(header) = gzip::header_bytes(rest) else { break End::Members };
            at += gzip::TRAILER_BYTES + header;
            self.inflate.reset(false);
        };
        run.end(&self.piece, end)
    }

    /// Inflates until the member ends (then how many bytes of `input` it took), `input` ends or the limit is reached.
    fn member(&mut self, input: &[u8], at: usize, run: &mut Run<'_>) -> Result<Option<usize>, StreamError> {
        let mut consumed = 0;
        loop {
            let room = run.room(self.piece.len());
            let output = self.piece.get_mut(run.filled..run.filled + room).unwrap_or_default();
            let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
            let input = input.get(consumed..).unwrap_or_default();
            let status = self.inflate.decompress(input, output, InflateFlush::NoFlush);
            let step = usize::try_from(self.inflate.total_in() - in_before).unwrap_or(0);
            let made = usize::try_from(self.inflate.total_out() - out_before).unwrap_or(0);
            consumed += step;
            run.filled += made;
            match status {
                Ok(Status::StreamEnd) => return Ok(Some(consumed)),
                Ok(Status::Ok | Status::BufError) => {}
                Err(e) => {
                    // What came before the error is good.
                    run.flush(&self.piece)?;
                    return Err(StreamError::Data {
                        at_bytes: u64_from_usize(at + consumed),
                        produced: run.produced,
                        reason: self.inflate.error_message().unwrap_or(e.as_str()),
                    });
                }
            }
            if run.filled == self.piece.len() {
                run.flush(&self.piece)?;
            } else if step == 0 && made == 0 || run.limit_reached() {
                return Ok(None);
            }
        }
    }
}

/// What one attempt has done so far.
struct Run<'a> {
    /// Bytes given to the sink.
    produced: u64,
    limit_bytes: u64,
    /// Bytes of the piece that the sink has not seen.
    filled: usize,
    sink: LayerSink<'a>,
}

impl Run<'_> {
    fn room(&self, piece_bytes: usize) -> usize {
        let left = self.limit_bytes - self.produced - u64_from_usize(self.filled);
        (piece_bytes - self.filled).min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn limit_reached(&self) -> bool {
        self.produced + u64_from_usize(self.filled) == self.limit_bytes
    }

    fn flush(&mut self, piece: &[u8]) -> Result<(), StreamError> {
        let bytes = piece.get(..self.filled).unwrap_or_default();
        if !bytes.is_empty() {
            (self.sink)(bytes).map_err(StreamError::Sink)?;
        }
        self.produced += u64_from_usize(self.filled);
        self.filled = 0;
        Ok(())
    }

    fn end(mut self, piece: &[u8], end: End) -> Result<Ended, StreamError> {
        self.flush(piece)?;
        Ok(Ended { produced: self.produced, end })
    }
}

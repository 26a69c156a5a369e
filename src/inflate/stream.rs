//! Inflates blob bytes from a checkpoint on: piece by piece, stopping early where asked to, and across gzip members.

use std::io;

use super::deflate::{Deflate, Pause};
use super::pieces::Pieces;
use super::{DataFault, LayerSink, gzip};
use crate::units::{WINDOW_BYTES, u64_from_usize};

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
    Data { at_bytes: u64, produced: u64, reason: DataFault },
    /// The sink's own error.
    Sink(io::Error),
}

/// The engine with its scratch memory.
pub(super) struct StreamEngine {
    deflate: Deflate,
    pieces: Pieces,
    /// Of the checkpoint.
    bits: u8,
    begun: bool,
    /// Blob bytes that are used up.
    at: usize,
    produced: u64,
}

impl StreamEngine {
    pub(super) fn new() -> Self {
        Self { deflate: Deflate::new(), pieces: Pieces::new(), bits: 0, begun: false, at: 0, produced: 0 }
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
        self.begin(bits, window);
        let ended = self.advance(blob, true, limit_bytes, sink)?;
        Ok(ended.unwrap_or(Ended { produced: self.produced, end: End::InMember }))
    }

    /// Goes to a checkpoint.
    pub(super) fn begin(&mut self, bits: u8, window: Option<&[u8; WINDOW_BYTES]>) {
        self.pieces.restart(window);
        (self.bits, self.begun, self.at, self.produced) = (bits, false, 0, 0);
    }

    /// Inflates what `blob`, all bytes from the checkpoint on that are here, has more than at the last call; `complete` says that
    /// there will be no more. `None` as long as more are needed.
    pub(super) fn advance(
        &mut self,
        blob: &[u8],
        complete: bool,
        limit_bytes: u64,
        sink: LayerSink<'_>,
    ) -> Result<Option<Ended>, StreamError> {
        if !self.begun {
            match blob.first() {
                Some(&shared) if self.bits != 0 => {
                    self.deflate.restart(self.bits, shared);
                    self.at = 1;
                }
                None if !complete => return Ok(None),
                _ => self.deflate.restart(0, 0),
            }
            self.begun = true;
        }
        loop {
            let rest = blob.get(self.at..).unwrap_or_default();
            let left_bytes = limit_bytes.saturating_sub(self.produced);
            let (step, made) = self.pieces.inflate(&mut self.deflate, rest, left_bytes, u64::MAX);
            self.at += step.consumed;
            self.produced += u64_from_usize(made);
            let mut lacks_input = false;
            let end = match step.result {
                // What is no member (zero padding, garbage) ends the layer, as it does for gzip itself.
                Ok(Pause::End) => match blob.get(self.at + gzip::TRAILER_BYTES..).and_then(gzip::header_bytes) {
                    Some(header) => {
                        self.at += gzip::TRAILER_BYTES + header;
                        self.deflate.restart(0, 0);
                        self.pieces.new_member();
                        None
                    }
                    None if complete => Some(End::Members),
                    None => {
                        lacks_input = true;
                        None
                    }
                },
                // Whatever is wrong behind the limit is not asked for.
                _ if self.produced == limit_bytes => Some(End::Limit),
                Ok(Pause::Input) if complete => Some(End::InMember),
                Ok(Pause::Input) => {
                    lacks_input = true;
                    None
                }
                Ok(Pause::Output | Pause::Boundary { .. }) => None,
                Err(reason) => {
                    // What came before the error is good.
                    self.pieces.flush(sink).map_err(StreamError::Sink)?;
                    let (at_bytes, produced) = (u64_from_usize(self.at), self.produced);
                    return Err(StreamError::Data { at_bytes, produced, reason });
                }
            };
            if end.is_some() || lacks_input || self.pieces.is_full() {
                self.pieces.flush(sink).map_err(StreamError::Sink)?;
            }
            if lacks_input {
                return Ok(None);
            }
            if let Some(end) = end {
                return Ok(Some(Ended { produced: self.produced, end }));
            }
        }
    }
}

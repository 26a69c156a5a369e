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
}

impl StreamEngine {
    pub(super) fn new() -> Self {
        Self { deflate: Deflate::new(), pieces: Pieces::new() }
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
        self.pieces.restart(window);
        let mut at = 0;
        match blob.first() {
            Some(&shared) if bits != 0 => {
                self.deflate.restart(bits, shared);
                at = 1;
            }
            _ => self.deflate.restart(0, 0),
        }
        let mut produced = 0;
        loop {
            let rest = blob.get(at..).unwrap_or_default();
            let (step, made) = self.pieces.inflate(&mut self.deflate, rest, limit_bytes - produced, u64::MAX);
            at += step.consumed;
            produced += u64_from_usize(made);
            let end = match step.result {
                // What is no member (zero padding, garbage) ends the layer, as it does for gzip itself.
                Ok(Pause::End) => match blob.get(at + gzip::TRAILER_BYTES..).and_then(gzip::header_bytes) {
                    Some(header) => {
                        at += gzip::TRAILER_BYTES + header;
                        self.deflate.restart(0, 0);
                        self.pieces.new_member();
                        None
                    }
                    None => Some(End::Members),
                },
                // Whatever is wrong behind the limit is not asked for.
                _ if produced == limit_bytes => Some(End::Limit),
                Ok(Pause::Input) => Some(End::InMember),
                Ok(Pause::Output | Pause::Boundary { .. }) => None,
                Err(reason) => {
                    // What came before the error is good.
                    self.pieces.flush(sink).map_err(StreamError::Sink)?;
                    return Err(StreamError::Data { at_bytes: u64_from_usize(at), produced, reason });
                }
            };
            if end.is_some() || self.pieces.is_full() {
                self.pieces.flush(sink).map_err(StreamError::Sink)?;
            }
            if let Some(end) = end {
                return Ok(Ended { produced, end });
            }
        }
    }
}

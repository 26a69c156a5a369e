//! One span of a zstd layer: whole frames in, layer bytes out.

use std::io::{self, Read};

use super::{Event, Failure, Frames, PIECE_BYTES};
use crate::inflate::span::Job;
use crate::inflate::{DataFault, InflateError, Inflated, LayerSink, TAIL_LIMIT_BYTES, Want};
use crate::units::{u64_from_usize, usize_from_u64};

/// Blob bytes, piece by piece.
pub(in crate::inflate) trait Pieces {
    /// The next ones; `None` behind the last.
    fn next(&mut self) -> io::Result<Option<&[u8]>>;
}

/// Bytes in memory, as one piece.
pub(in crate::inflate) struct Once<'a>(pub Option<&'a [u8]>);

impl Pieces for Once<'_> {
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        Ok(self.0.take())
    }
}

/// Bytes that are read.
pub(in crate::inflate) struct Reading<'a> {
    from: &'a mut dyn Read,
    buffer: Vec<u8>,
}

impl<'a> Reading<'a> {
    pub(in crate::inflate) fn new(from: &'a mut dyn Read) -> Self {
        Self { from, buffer: vec![0; PIECE_BYTES] }
    }
}

impl Pieces for Reading<'_> {
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            match self.from.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(len) => return Ok(self.buffer.get(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Why no more of a span is decoded.
enum Stop {
    /// As much as was wanted came, or more than there may be.
    Limit,
    Sink(io::Error),
    Source(io::Error),
}

impl Job<'_> {
    /// The decoder lives as long as this: its window, of up to 128 MiB, is not kept for the next span.
    pub(in crate::inflate) fn zstd(
        &self,
        blob: &mut dyn Pieces,
        want: Want,
        sink: LayerSink<'_>,
    ) -> Result<Inflated, InflateError> {
        let len_bytes = self.span.layer.len_bytes();
        let (need_bytes, limit_bytes, tail) = match want {
            Want::First(bytes) => (bytes.min(len_bytes), bytes.min(len_bytes), false),
            Want::Whole if self.is_last => (len_bytes, len_bytes.saturating_add(TAIL_LIMIT_BYTES), true),
            // One byte more than declared would show a span that is too long.
            Want::Whole => (len_bytes, len_bytes.saturating_add(1), false),
        };
        let most_bytes = if tail { limit_bytes } else { need_bytes };
        let mut frames = Frames::new();
        let mut produced = 0;
        let mut hear = |event: Event<'_>| {
            let Event::Bytes(bytes) = event else { return Ok(()) };
            let room = usize_from_u64(most_bytes.saturating_sub(produced)).unwrap_or(usize::MAX);
            if let Some(bytes @ [_, ..]) = bytes.get(..room.min(bytes.len())) {
                sink(bytes).map_err(Stop::Sink)?;
            }
            produced = limit_bytes.min(produced.saturating_add(u64_from_usize(bytes.len())));
            if produced == limit_bytes { Err(Stop::Limit) } else { Ok(()) }
        };
        let mut done = if limit_bytes == 0 { Err(Failure::Heard(Stop::Limit)) } else { Ok(()) };
        while done.is_ok() {
            match blob.next() {
                Ok(Some(piece)) => done = frames.push(piece, &mut hear),
                Ok(None) => break,
                Err(error) => done = Err(Failure::Heard(Stop::Source(error))),
            }
        }
        let ended = done.is_ok();
        let bad = |reason| self.bad_data(frames.at(), produced, reason);
        let complete = match done {
            Err(Failure::Heard(Stop::Sink(source))) => return Err(InflateError::Sink { span: self.id, source }),
            Err(Failure::Heard(Stop::Source(source))) => return Err(InflateError::Source { span: self.id, source }),
            Err(Failure::Heard(Stop::Limit)) => false,
            // The tail is broken, the span is not: only what the zTOC counts is read.
            Err(Failure::Data { .. }) if tail && produced >= need_bytes => false,
            Err(Failure::Data { reason, .. }) => return Err(bad(reason)),
            Ok(()) => frames.is_between_frames(),
        };
        if ended && !complete && !tail {
            return Err(bad(DataFault::OpenFrame));
        }
        if produced < need_bytes || (!tail && produced > need_bytes) {
            return Err(self.wrong_length(need_bytes, produced));
        }
        Ok(Inflated { bytes: produced, end_of_layer: tail && complete })
    }
}

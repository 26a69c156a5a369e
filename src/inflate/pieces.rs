//! Where output grows: the history that matches reach back to, and behind it the piece for the sink.

use std::io;

use super::LayerSink;
use super::deflate::{Deflate, Step};
use crate::units::{WINDOW_BYTES, u64_from_usize, usize_from_u64};

/// Layer bytes go to the sink in pieces of this size; with the history in front they fit the second-level cache, so
/// that whoever hashes, reads or writes them finds them there.
const PIECE_BYTES: usize = 256 * 1024;

/// The output buffer.
pub(super) struct Pieces {
    /// The last 32 KiB that the sink has seen (zeros before there were any), then the piece being filled.
    buffer: Box<[u8]>,
    /// Bytes of the piece.
    filled: usize,
    /// How far back matches may reach.
    history: u64,
}

impl Pieces {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; WINDOW_BYTES + PIECE_BYTES].into(), filled: 0, history: 0 }
    }

    /// Starts anew, with the history of a checkpoint.
    pub(super) fn restart(&mut self, window: Option<&[u8; WINDOW_BYTES]>) {
        self.filled = 0;
        self.history = 0;
        if let Some(window) = window {
            // The buffer is longer than the window by PIECE_BYTES.
            self.buffer[..WINDOW_BYTES].copy_from_slice(window);
            self.history = u64_from_usize(WINDOW_BYTES);
        }
    }

    /// A new member begins: its matches do not reach into the one before.
    pub(super) fn new_member(&mut self) {
        self.history = 0;
    }

    /// Runs `deflate` until the piece is full or longer by `limit_bytes`, and for a boundary at `boundary_after_bytes` or
    /// more. Gives the step and how many bytes it made.
    pub(super) fn inflate(
        &mut self,
        deflate: &mut Deflate,
        input: &[u8],
        limit_bytes: u64,
        boundary_after_bytes: u64,
    ) -> (Step, usize) {
        let start = WINDOW_BYTES + self.filled;
        let end = usize_from_u64(limit_bytes)
            .map_or(self.buffer.len(), |limit| start.saturating_add(limit).min(self.buffer.len()));
        let boundary_from =
            usize_from_u64(boundary_after_bytes).map_or(usize::MAX, |bytes| start.saturating_add(bytes));
        let oldest = usize_from_u64(self.history).map_or(0, |history| start.saturating_sub(history));
        let mut at = start;
        let step = deflate.run(input, self.buffer.get_mut(..end).unwrap_or_default(), &mut at, oldest, boundary_from);
        let made = at - start;
        self.filled += made;
        self.history += u64_from_usize(made);
        (step, made)
    }

    /// The bytes that the sink has not seen.
    pub(super) fn pending(&self) -> &[u8] {
        self.buffer.get(WINDOW_BYTES..WINDOW_BYTES + self.filled).unwrap_or_default()
    }

    /// Whether no more can be made before a flush.
    pub(super) fn is_full(&self) -> bool {
        self.filled == PIECE_BYTES
    }

    /// The last 32 KiB of output.
    pub(super) fn window(&self) -> Box<[u8; WINDOW_BYTES]> {
        let mut window = Box::new([0; WINDOW_BYTES]);
        // `filled` is at most PIECE_BYTES and the buffer that much longer than the window.
        window.copy_from_slice(&self.buffer[self.filled..self.filled + WINDOW_BYTES]);
        window
    }

    /// Gives the piece to the sink and keeps its last 32 KiB as history.
    pub(super) fn flush(&mut self, sink: LayerSink<'_>) -> io::Result<()> {
        if self.filled > 0 {
            sink(self.pending())?;
            self.buffer.copy_within(self.filled..self.filled + WINDOW_BYTES, 0);
            self.filled = 0;
        }
        Ok(())
    }
}

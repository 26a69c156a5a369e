//! A decoder for one deflate stream (RFC 1951) that can pause anywhere.
//!
//! Input and output come in pieces of any size. What a pause leaves behind is the bit buffer (less than one symbol), the
//! lengths of a half-read block header, or a match whose rest had no room: a few hundred bytes beside the decode tables,
//! however large a block is. Nothing lags: all output that the given input determines is out before more input is asked
//! for, so that a block boundary shows with the byte in which it lies.
//!
//! The bulk is the loop of [`crate::sys::inflate`]; here are block headers, stored blocks and the symbols near the ends of
//! the buffers.

mod bits;
mod header;

use super::DataFault;
use super::table;
use crate::sys::inflate::{
    Bits, Buffers, DISTANCE_BITS, END_OF_BLOCK, EXCEPTIONAL, Kernel, LITERAL, LITLEN_BITS, Stopped, Tables, value,
};
use bits::refill;
use header::Header;

/// Why the decoder paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pause {
    /// All input is used; more is needed.
    Input,
    /// The output is full.
    Output,
    /// A block ended that is not the last, at or behind the place in question.
    Boundary {
        /// How many high bits of the last consumed byte belong to the next block, 0..=7.
        bits: u8,
    },
    /// The last block ended. What follows begins with the next byte.
    End,
}

/// Where a pause leaves the decoder.
#[derive(Clone, Copy)]
enum State {
    BlockStart,
    StoredLength,
    Stored {
        left: usize,
    },
    /// The counts of a dynamic block's header.
    Counts,
    PrecodeLengths {
        got: usize,
    },
    CodeLengths {
        got: usize,
    },
    Symbols,
    Match {
        left: usize,
        distance: usize,
    },
    End,
}

/// Which codes the tables hold.
#[derive(PartialEq, Eq)]
enum Codes {
    Fixed,
    Other,
}

/// The decoder. About 19 KiB, most of it decode tables.
pub(super) struct Deflate {
    kernel: Kernel,
    bits: Bits,
    state: State,
    last_block: bool,
    tables: Box<Tables>,
    codes: Codes,
    header: Box<Header>,
}

/// What one call gave.
pub(super) struct Step {
    /// Input bytes consumed, the partly used one included.
    pub consumed: usize,
    /// Why it paused, or what is wrong with the data.
    pub result: Result<Pause, DataFault>,
}

impl Deflate {
    /// A decoder before the first block, as fast as this processor allows.
    pub(super) fn new() -> Self {
        Self::with(Kernel::detect())
    }

    /// A decoder that uses the instructions of `kernel`.
    pub(super) fn with(kernel: Kernel) -> Self {
        Self {
            kernel,
            bits: Bits::default(),
            state: State::BlockStart,
            last_block: false,
            tables: Box::new(Tables { litlen: [0; 4096], distance: [0; 512] }),
            codes: Codes::Other,
            header: Box::new(Header::new()),
        }
    }

    /// Starts anew before a block whose first bits are the high `bits` (0..=7) of `shared`.
    pub(super) fn restart(&mut self, bits: u8, shared: u8) {
        self.bits = match bits {
            1..=7 => Bits { buffer: u64::from(shared >> (8 - bits)), count: u32::from(bits) },
            _ => Bits::default(),
        };
        self.state = State::BlockStart;
        self.last_block = false;
    }

    /// Decodes `input` into `output` from `*out_at` on, until one of them ends, the last block ends, or a block
    /// ends at `boundary_from` or behind. `output` before `*out_at` is history from `oldest` on; behind, it may be written to
    /// beyond the new `*out_at`. After an error, what was written before is good.
    pub(super) fn run(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        out_at: &mut usize,
        oldest: usize,
        boundary_from: usize,
    ) -> Step {
        let mut at = Buffers { input, in_at: 0, output, out_at: *out_at, oldest };
        let result = self.advance(&mut at, boundary_from);
        *out_at = at.out_at;
        // Whole bytes that were not used go back. They came with this call: what an earlier one left was less than
        // a symbol needs, so it is used up or all of the input is still too little.
        if result != Ok(Pause::Input) {
            let unused = (self.bits.count / 8).min(u32::try_from(at.in_at).unwrap_or(u32::MAX));
            at.in_at -= unused as usize;
            self.bits.count -= unused * 8;
        }
        self.bits.buffer &= (1 << self.bits.count) - 1;
        Step { consumed: at.in_at, result }
    }

    fn advance(&mut self, at: &mut Buffers<'_>, boundary_from: usize) -> Result<Pause, DataFault> {
        loop {
            let pause = match self.state {
                State::BlockStart => self.block_start(at)?,
                State::StoredLength => self.stored_length(at)?,
                State::Stored { left } => self.stored(at, left),
                State::Counts => self.counts(at)?,
                State::PrecodeLengths { got } => self.precode_lengths(at, got)?,
                State::CodeLengths { got } => self.code_lengths(at, got)?,
                State::Symbols => self.symbols(at)?,
                State::Match { left, distance } => self.copy_match(at, left, distance),
                State::End => Some(Pause::End),
            };
            match pause {
                Some(Pause::Boundary { .. }) if at.out_at < boundary_from => {}
                Some(pause) => return Ok(pause),
                None => {}
            }
        }
    }

    /// Takes `len_bits` (up to 32), if the input has them.
    fn take(&mut self, at: &mut Buffers<'_>, len_bits: u32) -> Option<usize> {
        refill(&mut self.bits, at);
        let bits = self.bits.buffer & ((1 << len_bits) - 1);
        self.bits.consume(len_bits)?;
        usize::try_from(bits).ok()
    }

    fn block_start(&mut self, at: &mut Buffers<'_>) -> Result<Option<Pause>, DataFault> {
        let Some(header) = self.take(at, 3) else { return Ok(Some(Pause::Input)) };
        self.last_block = header & 1 != 0;
        self.state = match header >> 1 {
            0 => State::StoredLength,
            1 => {
                if self.codes != Codes::Fixed {
                    table::build_fixed(&mut self.tables)?;
                    self.codes = Codes::Fixed;
                }
                State::Symbols
            }
            2 => State::Counts,
            _ => return Err(DataFault::BlockType),
        };
        Ok(None)
    }

    fn block_end(&mut self) -> Pause {
        if self.last_block {
            self.state = State::End;
            self.bits.align();
            return Pause::End;
        }
        self.state = State::BlockStart;
        Pause::Boundary { bits: (self.bits.count % 8) as u8 }
    }

    fn stored_length(&mut self, at: &mut Buffers<'_>) -> Result<Option<Pause>, DataFault> {
        self.bits.align();
        let Some(lengths) = self.take(at, 32) else { return Ok(Some(Pause::Input)) };
        if lengths & 0xffff != !lengths >> 16 & 0xffff {
            return Err(DataFault::StoredLength);
        }
        self.state = State::Stored { left: lengths & 0xffff };
        Ok(None)
    }

    fn stored(&mut self, at: &mut Buffers<'_>, mut left: usize) -> Option<Pause> {
        while left > 0 && self.bits.count >= 8 {
            let Some(slot) = at.output.get_mut(at.out_at) else {
                self.state = State::Stored { left };
                return Some(Pause::Output);
            };
            *slot = (self.bits.buffer & 0xff) as u8;
            let _ = self.bits.consume(8);
            at.out_at += 1;
            left -= 1;
        }
        if left > 0 {
            // What else the buffer holds is what is copied now.
            self.bits = Bits::default();
            let from = at.input.get(at.in_at..).unwrap_or_default();
            let to = at.output.get_mut(at.out_at..).unwrap_or_default();
            let now = left.min(from.len()).min(to.len());
            for (to, from) in to.get_mut(..now).into_iter().zip(from.get(..now)) {
                to.copy_from_slice(from);
            }
            at.in_at += now;
            at.out_at += now;
            left -= now;
            if left > 0 {
                self.state = State::Stored { left };
                return Some(if at.out_at >= at.output.len() { Pause::Output } else { Pause::Input });
            }
        }
        Some(self.block_end())
    }

    fn symbols(&mut self, at: &mut Buffers<'_>) -> Result<Option<Pause>, DataFault> {
        loop {
            match self.kernel.decode(&self.tables, &mut self.bits, at) {
                Stopped::NearEnd => {}
                Stopped::BlockEnd => return Ok(Some(self.block_end())),
                Stopped::BadLitlen => return Err(DataFault::NoSuchLitlen),
                Stopped::BadDistance => return Err(DataFault::NoSuchDistance),
                Stopped::TooFarBack => return Err(DataFault::TooFarBack),
            }
            if let Some(pause) = self.symbol(at)? {
                return Ok(Some(pause));
            }
            if let State::Match { left, distance } = self.state
                && let Some(pause) = self.copy_match(at, left, distance)
            {
                return Ok(Some(pause));
            }
        }
    }

    /// One symbol, with its distance if it is a match. Consumes nothing when the input does not hold all of it or the
    /// output has no room.
    fn symbol(&mut self, at: &mut Buffers<'_>) -> Result<Option<Pause>, DataFault> {
        refill(&mut self.bits, at);
        let mut bits = self.bits;
        let Some((entry, before)) = bits.lookup(&self.tables.litlen, LITLEN_BITS) else {
            return Ok(Some(Pause::Input));
        };
        if entry & LITERAL != 0 {
            let Some(slot) = at.output.get_mut(at.out_at) else { return Ok(Some(Pause::Output)) };
            *slot = (entry >> 16 & 0xff) as u8;
            at.out_at += 1;
            self.bits = bits;
            return Ok(None);
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & END_OF_BLOCK == 0 {
                return Err(DataFault::NoSuchLitlen);
            }
            self.bits = bits;
            return Ok(Some(self.block_end()));
        }
        let left = value(entry, before);
        let Some((entry, before)) = bits.lookup(&self.tables.distance, DISTANCE_BITS) else {
            return Ok(Some(Pause::Input));
        };
        if entry & EXCEPTIONAL != 0 {
            return Err(DataFault::NoSuchDistance);
        }
        let distance = value(entry, before);
        if distance > at.out_at.saturating_sub(at.oldest) {
            return Err(DataFault::TooFarBack);
        }
        self.bits = bits;
        self.state = State::Match { left, distance };
        Ok(None)
    }

    /// Copies a match as far as there is room.
    fn copy_match(&mut self, at: &mut Buffers<'_>, mut left: usize, distance: usize) -> Option<Pause> {
        while left > 0 {
            let from = at.out_at.checked_sub(distance).and_then(|from| at.output.get(from)).copied();
            let (Some(byte), Some(slot)) = (from, at.output.get_mut(at.out_at)) else {
                self.state = State::Match { left, distance };
                return Some(Pause::Output);
            };
            *slot = byte;
            at.out_at += 1;
            left -= 1;
        }
        self.state = State::Symbols;
        None
    }
}

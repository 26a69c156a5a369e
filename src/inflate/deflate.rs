//! A decoder for one deflate stream (RFC 1951) that can pause anywhere.
//!
//! Input and output come in pieces of any size. What a pause leaves behind is the bit buffer (less than one symbol), the
//! lengths of a half-read block header, or a match whose rest had no room: a few hundred bytes beside the decode tables,
//! however large a block is. Nothing lags: all output that the given input determines is out before more input is asked
//! for, so that a block boundary shows with the byte in which it lies.
//!
//! The bulk is the loop of [`crate::sys::inflate`]; here are block headers, stored blocks and the symbols near the ends of
//! the buffers.

use super::DataFault;
use super::table::{self, PRECODE_SYMBOLS, Precode};
use crate::sys::inflate::{
    Bits, Buffers, DISTANCE_BITS, END_OF_BLOCK, EXCEPTIONAL, LITERAL, LITLEN_BITS, SUBTABLE, Stopped, Tables, decode,
    second_index, value,
};

/// Most symbols that a block may give lengths for; more is an error, as in zlib.
const MAX_LITLEN: usize = 286;
const MAX_DISTANCE: usize = 30;

/// The order in which lengths of the code length code come (RFC 1951, section 3.2.7).
const PRECODE_ORDER: [usize; PRECODE_SYMBOLS] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

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
    bits: Bits,
    state: State,
    last_block: bool,
    tables: Box<Tables>,
    codes: Codes,
    header: Box<Header>,
}

/// The header of a dynamic block, as far as it is read.
struct Header {
    litlen: usize,
    distance: usize,
    precode: usize,
    precode_lengths: [u8; PRECODE_SYMBOLS],
    precode_table: Precode,
    lengths: [u8; MAX_LITLEN + MAX_DISTANCE],
}

/// What one call gave.
pub(super) struct Step {
    /// Input bytes consumed, the partly used one included.
    pub consumed: usize,
    /// Why it paused, or what is wrong with the data.
    pub result: Result<Pause, DataFault>,
}

impl Deflate {
    /// A decoder before the first block.
    pub(super) fn new() -> Self {
        Self {
            bits: Bits::default(),
            state: State::BlockStart,
            last_block: false,
            tables: Box::new(Tables { litlen: [0; 4096], distance: [0; 512] }),
            codes: Codes::Other,
            header: Box::new(Header {
                litlen: 0,
                distance: 0,
                precode: 0,
                precode_lengths: [0; PRECODE_SYMBOLS],
                precode_table: [0; 128],
                lengths: [0; MAX_LITLEN + MAX_DISTANCE],
            }),
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

    fn counts(&mut self, at: &mut Buffers<'_>) -> Result<Option<Pause>, DataFault> {
        let Some(counts) = self.take(at, 14) else { return Ok(Some(Pause::Input)) };
        self.header.litlen = 257 + (counts & 0x1f);
        self.header.distance = 1 + (counts >> 5 & 0x1f);
        self.header.precode = 4 + (counts >> 10);
        if self.header.litlen > MAX_LITLEN || self.header.distance > MAX_DISTANCE {
            return Err(DataFault::TooManySymbols);
        }
        self.header.precode_lengths = [0; PRECODE_SYMBOLS];
        self.state = State::PrecodeLengths { got: 0 };
        Ok(None)
    }

    fn precode_lengths(&mut self, at: &mut Buffers<'_>, got: usize) -> Result<Option<Pause>, DataFault> {
        for (i, symbol) in PRECODE_ORDER.into_iter().enumerate().take(self.header.precode).skip(got) {
            let Some(length) = self.take(at, 3) else {
                self.state = State::PrecodeLengths { got: i };
                return Ok(Some(Pause::Input));
            };
            self.header.precode_lengths[symbol] = length as u8;
        }
        let Header { precode_table, precode_lengths, .. } = &mut *self.header;
        table::build_precode(precode_table, precode_lengths)?;
        self.state = State::CodeLengths { got: 0 };
        Ok(None)
    }

    fn code_lengths(&mut self, at: &mut Buffers<'_>, mut got: usize) -> Result<Option<Pause>, DataFault> {
        let header = &mut *self.header;
        let wanted = header.litlen + header.distance;
        let mut bits = self.bits;
        while got < wanted {
            refill(&mut bits, at);
            let before = bits;
            let entry = header.precode_table[(bits.buffer & 0x7f) as usize];
            let (mut length, mut times) = ((entry >> 16) as u8, 1);
            let mut known = bits.consume(entry & 0xff);
            if length >= 16 {
                let (base, extra_bits) = match length {
                    16 => (3, 2),
                    17 => (3, 3),
                    _ => (11, 7),
                };
                times = base + (bits.buffer & ((1 << extra_bits) - 1)) as usize;
                known = known.and_then(|()| bits.consume(extra_bits));
            }
            if known.is_none() {
                self.bits = before;
                self.state = State::CodeLengths { got };
                return Ok(Some(Pause::Input));
            }
            if length == 16 {
                let previous = got.checked_sub(1).ok_or(DataFault::NothingToRepeat)?;
                length = header.lengths[previous];
            } else if length > 16 {
                length = 0;
            }
            let repeated = header.lengths[..wanted].get_mut(got..got + times).ok_or(DataFault::TooManyLengths)?;
            repeated.fill(length);
            got += times;
        }
        self.bits = bits;
        let (litlen, distance) = header.lengths[..wanted].split_at(header.litlen);
        if litlen[256] == 0 {
            return Err(DataFault::NoEndOfBlock);
        }
        self.codes = Codes::Other;
        table::build(&mut self.tables, litlen, distance)?;
        self.state = State::Symbols;
        Ok(None)
    }

    fn symbols(&mut self, at: &mut Buffers<'_>) -> Result<Option<Pause>, DataFault> {
        loop {
            match decode(&self.tables, &mut self.bits, at) {
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

impl Bits {
    /// Drops bits; `None` when there are fewer.
    fn consume(&mut self, len_bits: u32) -> Option<()> {
        self.count = self.count.checked_sub(len_bits)?;
        self.buffer >>= len_bits;
        Some(())
    }

    /// Drops what is left of a partly used byte.
    fn align(&mut self) {
        let _ = self.consume(self.count % 8);
    }

    /// Decodes and consumes a code word with its extra bits; gives its entry and the bits that begin with its last lookup.
    /// `None` when not all of it is there. Bits that are missing cannot mislead: what the bits at hand do not decide
    /// needs more of them than there are.
    fn lookup(&mut self, table: &[u32], main_bits: u32) -> Option<(u32, u64)> {
        let mut before = self.buffer;
        let mut entry = *table.get((before & ((1 << main_bits) - 1)) as usize)?;
        self.consume(entry & 0xff)?;
        if entry & SUBTABLE != 0 {
            before = self.buffer;
            entry = *table.get(second_index(entry, before))?;
            self.consume(entry & 0xff)?;
        }
        Some((entry, before))
    }
}

/// Takes whole bytes from the input, until at least 56 bits are there or the input ends.
fn refill(bits: &mut Bits, at: &mut Buffers<'_>) {
    if let Some(word) = at.input.get(at.in_at..).and_then(|rest| rest.first_chunk::<8>()) {
        bits.buffer |= u64::from_le_bytes(*word) << bits.count;
        at.in_at += 7 - (bits.count as usize >> 3);
        bits.count |= 56;
        return;
    }
    while bits.count < 56
        && let Some(&byte) = at.input.get(at.in_at)
    {
        // Bits above the count may be set already, from a whole word: to the same values.
        bits.buffer |= u64::from(byte) << bits.count;
        bits.count += 8;
        at.in_at += 1;
    }
}

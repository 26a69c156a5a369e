//! The header of a block with codes of its own: from its bits to decode tables (RFC 1951, section 3.2.7).

use super::bits::refill;
use super::{Codes, Deflate, Pause, State};
use crate::inflate::DataFault;
use crate::inflate::table::{self, PRECODE_SYMBOLS, Precode};
use crate::sys::inflate::Buffers;

/// Most symbols that a block may give lengths for; more is an error, as in zlib.
const MAX_LITLEN: usize = 286;
const MAX_DISTANCE: usize = 30;

/// The order in which lengths of the code length code come (RFC 1951, section 3.2.7).
const PRECODE_ORDER: [usize; PRECODE_SYMBOLS] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The header of a dynamic block, as far as it is read.
pub(super) struct Header {
    litlen: usize,
    distance: usize,
    precode: usize,
    precode_lengths: [u8; PRECODE_SYMBOLS],
    precode_table: Precode,
    lengths: [u8; MAX_LITLEN + MAX_DISTANCE],
}

impl Header {
    pub(super) fn new() -> Self {
        Self {
            litlen: 0,
            distance: 0,
            precode: 0,
            precode_lengths: [0; PRECODE_SYMBOLS],
            precode_table: [0; 128],
            lengths: [0; MAX_LITLEN + MAX_DISTANCE],
        }
    }
}

impl Deflate {
    pub(super) fn counts(&mut self, at: &mut Buffers<'_>) -> Result<Option<Pause>, DataFault> {
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

    pub(super) fn precode_lengths(&mut self, at: &mut Buffers<'_>, got: usize) -> Result<Option<Pause>, DataFault> {
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

    pub(super) fn code_lengths(&mut self, at: &mut Buffers<'_>, mut got: usize) -> Result<Option<Pause>, DataFault> {
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
}

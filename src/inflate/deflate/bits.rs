//! The bit buffer near the ends of the input, where each step asks whether it has what it needs.

use crate::sys::inflate::{Bits, Buffers, SUBTABLE, second_index};

impl Bits {
    /// Drops bits; `None` when there are fewer.
    pub(super) fn consume(&mut self, len_bits: u32) -> Option<()> {
        self.count = self.count.checked_sub(len_bits)?;
        self.buffer >>= len_bits;
        Some(())
    }

    /// Drops what is left of a partly used byte.
    pub(super) fn align(&mut self) {
        let _ = self.consume(self.count % 8);
    }

    /// Decodes and consumes a code word with its extra bits; gives its entry and the bits that begin with its last lookup.
    /// `None` when not all of it is there. Bits that are missing cannot mislead: what the bits at hand do not decide
    /// needs more of them than there are.
    pub(super) fn lookup(&mut self, table: &[u32], main_bits: u32) -> Option<(u32, u64)> {
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
pub(super) fn refill(bits: &mut Bits, at: &mut Buffers<'_>) {
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

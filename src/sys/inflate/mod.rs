//! The inner loop of inflate: symbols to bytes while neither end of the buffers is near.
//!
//! The algorithm is libdeflate's (Eric Biggers, MIT licence): a 64-bit bit buffer that is filled without a branch, decode
//! tables whose 32-bit entries say at once what to consume and what to do, the next entry loaded before a match is
//! copied, and copies in whole words that may run over their end. Unsafe because that needs loads and stores without
//! a bounds check each: the bounds are checked once per iteration, for the most that an iteration can touch.
//!
//! Memory safety does not depend on the tables: whatever an entry says, lookups are masked to the table, the input
//! advances by what the loop itself bounds, and lengths and distances are checked before they are used.

mod copy;

use copy::{FIRST_CHUNKS, LONGEST_MATCH, copy_match, put};

/// Code words up to this length are decoded with one lookup; longer ones with a second one.
pub const LITLEN_BITS: u32 = 11;
/// The same for distances.
pub const DISTANCE_BITS: u32 = 8;

/// Entry: the symbol is a literal, its byte is in bits 16..24.
pub const LITERAL: u32 = 1 << 31;
/// Entry: neither literal nor length or distance. One of the two flags below, or no code word of this code.
pub const EXCEPTIONAL: u32 = 1 << 15;
/// Exceptional entry: bits 16.. are where the second table begins, bits 8..14 the number of bits that index it.
pub const SUBTABLE: u32 = 1 << 14;
/// Exceptional entry: end of block.
pub const END_OF_BLOCK: u32 = 1 << 13;

// The rest of an entry: bits 0..8 how many bits to consume, extra bits included; bits 8..12 how many of these are code
// word; for lengths and distances the base is in bits 16..31.

/// 11 bits need at most 2342 entries with second tables (zlib's `enough`); a power of two makes every masked index valid.
const LITLEN_ENTRIES: usize = 4096;
/// 8 bits need at most 402.
const DISTANCE_ENTRIES: usize = 512;

/// The decode tables of a block.
pub struct Tables {
    /// Literals, lengths, end of block.
    pub litlen: [u32; LITLEN_ENTRIES],
    /// Distances.
    pub distance: [u32; DISTANCE_ENTRIES],
}

/// Bits taken from the input and not used yet; the next one is the lowest.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bits {
    /// The bits. Above `count` lie zeros or what the next input bytes hold anyway.
    pub buffer: u64,
    /// How many are valid, 0..=63.
    pub count: u32,
}

/// Where the loop works: positions move, the slices stay.
pub struct Buffers<'a> {
    /// Compressed bytes.
    pub input: &'a [u8],
    /// The first byte that is not in [`Bits`].
    pub in_at: usize,
    /// History, then room for output. The loop may write rubbish behind `out_at`, within the slice.
    pub output: &'a mut [u8],
    /// Where the next byte goes.
    pub out_at: usize,
    /// Where in `output` the oldest byte lies that a match may copy.
    pub oldest: usize,
}

/// Why the loop stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// The end of input or output is near; the next symbol is not consumed.
    NearEnd,
    /// The end-of-block symbol was consumed.
    BlockEnd,
    /// No code word for a literal or length.
    BadLitlen,
    /// No code word for a distance.
    BadDistance,
    /// A match reaches back beyond the oldest byte.
    TooFarBack,
}

/// What an iteration can write: two literals, then a match with its overrun.
const OUT_ROOM: usize = 2 + LONGEST_MATCH + FIRST_CHUNKS;
/// What an iteration can read: three refills of 8 bytes, each of which advances by at most 7. The one before the first
/// iteration makes it four.
const IN_ROOM: usize = 3 * 7 + 8;

/// The reading side. Invariant: callers keep `next` at most the end of the input less 8 when they refill.
struct Reader {
    buffer: u64,
    /// Only the low 8 bits count: consuming an entry subtracts all of it.
    count: u32,
    next: *const u8,
}

impl Reader {
    /// Fills the buffer up to at least 56 bits and advances by at most 7 bytes. Bits above the count are loaded again, with the same
    /// values, the next time.
    ///
    /// # Safety
    /// 8 bytes must be readable at `next`.
    #[inline(always)]
    unsafe fn refill(&mut self) {
        // SAFETY: raw pointer access; 8 readable bytes are this function's own precondition, `add` stays within them.
        unsafe {
            let word = u64::from_le(self.next.cast::<u64>().read_unaligned());
            self.buffer |= word.wrapping_shl(self.count);
            self.next = self.next.add(7 - (self.count >> 3 & 7) as usize);
        }
        self.count |= 56;
    }

    #[inline(always)]
    fn count(&self) -> u32 {
        self.count & 0xff
    }

    #[inline(always)]
    fn litlen(&self, tables: &Tables) -> u32 {
        tables.litlen[self.buffer as usize & ((1 << LITLEN_BITS) - 1)]
    }

    /// Consumes what `entry` says; gives the bits as they were before.
    #[inline(always)]
    fn consume(&mut self, entry: u32) -> u64 {
        let before = self.buffer;
        self.buffer = before.wrapping_shr(entry);
        self.count = self.count.wrapping_sub(entry);
        before
    }
}

/// Where in the table the second table of `entry` has the code word that goes on with `buffer`.
#[inline(always)]
pub fn second_index(entry: u32, buffer: u64) -> usize {
    (entry >> 16) as usize + (buffer & !u64::MAX.wrapping_shl(entry >> 8 & 0x3f)) as usize
}

/// Base plus extra bits of a length or distance; `bits` begin with its code word.
#[inline(always)]
pub fn value(entry: u32, bits: u64) -> usize {
    let extra = (bits & !u64::MAX.wrapping_shl(entry)).wrapping_shr(entry >> 8 & 0xf);
    (entry >> 16) as usize + extra as usize
}

/// Which instructions the loop is made of. None can be had that the processor does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// Set only where the processor was asked first: the safety of [`Kernel::decode`] rests on that.
    bmi2: bool,
}

impl Kernel {
    /// Instructions that every processor knows.
    pub const PORTABLE: Self = Self { bmi2: false };

    /// The fastest that this processor can do: on x86-64 with BMI2, whose shifts take their count from any register and
    /// leave the flags alone: 9 % faster.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") {
            return Self { bmi2: true };
        }
        Self::PORTABLE
    }

    /// Decodes until an end is near, the block ends or something is wrong. Positions and `bits` are then where the
    /// next symbol begins; after an error they are somewhere behind the last good one.
    pub fn decode(self, tables: &Tables, bits: &mut Bits, at: &mut Buffers<'_>) -> Stopped {
        #[cfg(target_arch = "x86_64")]
        if self.bmi2 {
            // SAFETY: unsafe because not every processor has these instructions; `detect` alone makes such a kernel, and
            // only where they are.
            return unsafe { decode_with_bmi2(tables, bits, at) };
        }
        decode(tables, bits, at)
    }
}

/// The same loop, compiled for BMI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn decode_with_bmi2(tables: &Tables, bits: &mut Bits, at: &mut Buffers<'_>) -> Stopped {
    decode(tables, bits, at)
}

/// The loop of [`Kernel::decode`], inlined so that its caller's instructions apply.
#[inline(always)]
fn decode(tables: &Tables, bits: &mut Bits, at: &mut Buffers<'_>) -> Stopped {
    let (in_room, out_room) = (at.input.len().checked_sub(IN_ROOM), at.output.len().checked_sub(OUT_ROOM));
    let (Some(last_in), Some(last_out)) = (in_room, out_room) else { return Stopped::NearEnd };
    if at.in_at > last_in || at.out_at > last_out || at.oldest > at.out_at {
        return Stopped::NearEnd;
    }
    let input = at.input.as_ptr();
    let output = at.output.as_mut_ptr();
    // SAFETY: pointer arithmetic within one slice each: in_at <= last_in < input.len(), oldest <= out_at <= last_out <
    // output.len(), checked above.
    let (next, in_last, mut out, out_last, oldest) = unsafe {
        (input.add(at.in_at), input.add(last_in), output.add(at.out_at), output.add(last_out), output.add(at.oldest))
    };
    let mut reader = Reader { buffer: bits.buffer, count: bits.count & 63, next };

    // SAFETY: the refill: next <= in_last, and IN_ROOM >= 8 bytes lie behind that.
    unsafe { reader.refill() };
    let mut entry = reader.litlen(tables);
    let stopped = loop {
        // Here always: at least 56 bits are buffered and `entry` is the next one, not consumed. In the first iteration
        // next <= in_last + 7 (one refill behind the check), in later ones next <= in_last; out <= out_last.
        let mut before = reader.consume(entry);
        if entry & LITERAL != 0 {
            // Up to three literals of at most 11 bits each, with 56 there.
            let first = (entry >> 16) as u8;
            entry = reader.litlen(tables);
            before = reader.consume(entry);
            // SAFETY: store of the iteration's first byte: OUT_ROOM bytes are writable at out.
            out = unsafe { put(out, first) };
            if entry & LITERAL != 0 {
                let second = (entry >> 16) as u8;
                entry = reader.litlen(tables);
                before = reader.consume(entry);
                // SAFETY: store of the iteration's second byte, as above.
                out = unsafe { put(out, second) };
                if entry & LITERAL != 0 {
                    let third = (entry >> 16) as u8;
                    // SAFETY: store of the iteration's third byte, as above. The refill: the iteration's first; next is at
                    // most in_last + 7, and IN_ROOM >= 7 + 8.
                    unsafe {
                        out = put(out, third);
                        entry = reader.litlen(tables);
                        reader.refill();
                    }
                    if reader.next > in_last || out > out_last {
                        break Stopped::NearEnd;
                    }
                    continue;
                }
            }
        }
        // At least 56 - 22 - 20 bits are left.
        if entry & EXCEPTIONAL != 0 {
            if entry & SUBTABLE != 0 {
                entry = tables.litlen[second_index(entry, reader.buffer) % LITLEN_ENTRIES];
                before = reader.consume(entry);
            }
            if entry & LITERAL != 0 {
                // SAFETY: store of at most the iteration's third byte, as above. The refill: the iteration's first, as above.
                unsafe {
                    out = put(out, (entry >> 16) as u8);
                    entry = reader.litlen(tables);
                    reader.refill();
                }
                if reader.next > in_last || out > out_last {
                    break Stopped::NearEnd;
                }
                continue;
            }
            if entry & EXCEPTIONAL != 0 {
                break if entry & END_OF_BLOCK != 0 { Stopped::BlockEnd } else { Stopped::BadLitlen };
            }
        }
        let length = value(entry, before);

        // A distance of the first table needs up to 8 + 13 bits, the lookup of the next entry 11 more.
        if reader.count() < DISTANCE_BITS + 13 + LITLEN_BITS {
            // SAFETY: the refill: the iteration's first, as above.
            unsafe { reader.refill() };
        }
        entry = tables.distance[reader.buffer as usize & ((1 << DISTANCE_BITS) - 1)];
        before = reader.consume(entry);
        if entry & EXCEPTIONAL != 0 {
            if entry & SUBTABLE == 0 {
                break Stopped::BadDistance;
            }
            // Of the second table: up to 7 + 13, and 11.
            if reader.count() < 7 + 13 + LITLEN_BITS {
                // SAFETY: the refill: the iteration's second; next is at most in_last + 14, and IN_ROOM >= 14 + 8.
                unsafe { reader.refill() };
            }
            entry = tables.distance[second_index(entry, reader.buffer) % DISTANCE_ENTRIES];
            before = reader.consume(entry);
            if entry & EXCEPTIONAL != 0 {
                break Stopped::BadDistance;
            }
        }
        let distance = value(entry, before);
        let reach = out.addr() - oldest.addr();
        // Distance 0 and lengths beyond 258 come from no table of ours; they are refused so that the copy is sound by itself.
        if distance.wrapping_sub(1) >= reach || length > LONGEST_MATCH {
            break Stopped::TooFarBack;
        }

        entry = reader.litlen(tables);
        // SAFETY: the refill: the iteration's third: next is at most in_last + 21, and IN_ROOM = 21 + 8. The copy:
        // 1 <= distance <= reach bytes lie initialized before out in the same slice; the iteration wrote at most 2
        // literals before, so that LONGEST_MATCH + FIRST_CHUNKS bytes are writable at out, and length <= LONGEST_MATCH.
        out = unsafe {
            reader.refill();
            copy_match(out, distance, length)
        };
        if reader.next > in_last || out > out_last {
            break Stopped::NearEnd;
        }
    };
    at.in_at = reader.next.addr() - input.addr();
    at.out_at = out.addr() - output.addr();
    bits.count = reader.count() & 63;
    bits.buffer = reader.buffer & !u64::MAX.wrapping_shl(bits.count);
    stopped
}

//! Stores of the loop: bytes, and matches in whole chunks that may run over their end.

/// The longest match of the format.
pub(super) const LONGEST_MATCH: usize = 258;
/// A match copy writes whole chunks, as large as the largest register that every processor has,
type Chunk = u128;
const CHUNK: usize = size_of::<Chunk>();
/// and up to this much from its start whatever its length.
pub(super) const FIRST_CHUNKS: usize = 2 * CHUNK;

/// Stores a byte; gives the place behind it.
///
/// # Safety
/// `out` must be writable and not the last byte of its slice.
#[inline(always)]
pub(super) unsafe fn put(out: *mut u8, byte: u8) -> *mut u8 {
    // SAFETY: raw pointer access; this function's own precondition.
    unsafe {
        out.write(byte);
        out.add(1)
    }
}

/// Copies `length` bytes from `distance` before `out`, as if byte by byte; gives the place behind them. Writes up to
/// [`FIRST_CHUNKS`] bytes, or `CHUNK - 1` beyond the end.
///
/// # Safety
/// `distance` >= 1 initialized bytes must lie before `out` in its slice, and behind it, writable,
/// `length` + [`FIRST_CHUNKS`] bytes.
#[inline(always)]
pub(super) unsafe fn copy_match(out: *mut u8, distance: usize, length: usize) -> *mut u8 {
    // SAFETY: raw pointer access. `from` is `distance` initialized bytes before `to` at first, and never moves past it.
    // Every store begins before `end` or is one of the first two, so that it ends within length + FIRST_CHUNKS. A load of a
    // chunk may read bytes behind `to` that no match has written: they are initialized (the slice is) and overwritten later.
    unsafe {
        let end = out.add(length);
        let (mut to, mut from) = (out, out.sub(distance).cast_const());
        if distance >= CHUNK {
            copy_chunk(from, to);
            copy_chunk(from.add(CHUNK), to.add(CHUNK));
            if length > FIRST_CHUNKS {
                (from, to) = (from.add(FIRST_CHUNKS), to.add(FIRST_CHUNKS));
                while to < end {
                    copy_chunk(from, to);
                    (from, to) = (from.add(CHUNK), to.add(CHUNK));
                }
            }
        } else if distance == 1 {
            let chunk = Chunk::from_ne_bytes([from.read(); CHUNK]);
            while to < end {
                to.cast::<Chunk>().write_unaligned(chunk);
                to = to.add(CHUNK);
            }
        } else {
            // What lies between `from` and `to` repeats: each copy doubles it until a chunk fits between them.
            while to < end && to.offset_from_unsigned(from) < CHUNK {
                copy_chunk(from, to);
                to = to.add(to.offset_from_unsigned(from));
            }
            while to < end {
                copy_chunk(from, to);
                (from, to) = (from.add(CHUNK), to.add(CHUNK));
            }
        }
        end
    }
}

/// Loads a chunk, then stores it: the two may overlap.
///
/// # Safety
/// A chunk must be readable at `from`, initialized, and writable at `to`.
#[inline(always)]
unsafe fn copy_chunk(from: *const u8, to: *mut u8) {
    // SAFETY: raw pointer access, any alignment; this function's own precondition.
    unsafe { to.cast::<Chunk>().write_unaligned(from.cast::<Chunk>().read_unaligned()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_of_every_distance_and_length_are_copied_within_their_room() {
        const CANARY: u8 = 0xa5;
        for distance in (1..=70).chain([255, 256, 257, 300]) {
            for length in 0..=LONGEST_MATCH {
                let mut expected: Vec<u8> = (0..300_u32).map(|i| (i * 7 % 251) as u8).collect();
                let start = expected.len();
                let mut bytes = expected.clone();
                (0..length).for_each(|_| expected.push(expected[expected.len() - distance]));
                // Not a byte more than the copy is promised: Miri and ASan see one that it takes nevertheless.
                bytes.resize(start + length + FIRST_CHUNKS, CANARY);
                let base = bytes.as_mut_ptr();
                // SAFETY: a copy to test it: `distance` <= start bytes lie before, length + FIRST_CHUNKS behind.
                let end = unsafe { copy_match(base.add(start), distance, length) };
                assert_eq!(end.addr() - base.addr(), start + length, "distance {distance}, length {length}");
                assert!(bytes[..start + length] == expected, "distance {distance}, length {length}");
            }
        }
    }
}

//! Deflate bits made by hand: they bring an engine that can only start at the head of a stream to any checkpoint.
//!
//! A checkpoint lies `c = 8 - bits` bits deep in a byte. Empty blocks whose lengths add up to `c` modulo 8 bring a decoder
//! there without a byte of output. A stored block in front holds the 32 KiB of history for an engine that takes no
//! dictionary, and an empty last block ends the stream for one that wants an end (RFC 1951, section 3.2). Prior art:
//! `NOPRIME` in zlib's examples/zran.c.

use crate::units::WINDOW_BYTES;

/// Collects bits in deflate's order: the first bit is the lowest of the first byte.
struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    used_bits: u32,
}

impl BitWriter<'_> {
    fn put(&mut self, value: u32, len_bits: u32) {
        for i in 0..len_bits {
            if self.used_bits == 0 {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= u8::from(value >> i & 1 == 1) << self.used_bits;
            }
            self.used_bits = (self.used_bits + 1) % 8;
        }
    }

    /// An empty block with the fixed codes: 10 bits.
    fn empty_fixed_block(&mut self, last: bool) {
        self.put(u32::from(last), 1);
        self.put(1, 2);
        self.put(0, 7);
    }

    /// An empty block with codes of its own: 103 bits, an odd number. Every code is complete, so that strict decoders
    /// take it.
    fn empty_dynamic_block(&mut self) {
        self.put(0, 1);
        self.put(2, 2);
        // 257 literal/length codes, 2 distance codes, 18 lengths of the code length code.
        self.put(0, 5);
        self.put(1, 5);
        self.put(14, 4);
        // In the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1: symbol 18 and 0 get 2 bits, symbol 1 gets 1.
        for len in [0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] {
            self.put(len, 3);
        }
        // Lengths of the literals 0..255: 255 zeros in three runs (symbol 18 is the code 11, with 7 bits of count - 11).
        for run in [138, 106, 11] {
            self.put(0b11, 2);
            self.put(run - 11, 7);
        }
        // Literal 255, the end of block (256) and both distances: 1 bit each (symbol 1 is the code 0).
        self.put(0, 4);
        // End of block: of the two 1-bit codes the second.
        self.put(1, 1);
    }
}

/// Appends the bytes that bring a decoder to the place where the last `bits` (1..=7) of `shared` begin, `shared` itself
/// included.
pub(super) fn push_bit_offset(input: &mut Vec<u8>, bits: u8, shared: u8) {
    let consumed_bits = 8 - u32::from(bits);
    let mut writer = BitWriter { bytes: input, used_bits: 0 };
    if consumed_bits % 2 == 1 {
        writer.empty_dynamic_block();
    }
    while writer.used_bits != consumed_bits {
        writer.empty_fixed_block(false);
    }
    writer.put(u32::from(shared) >> consumed_bits, u32::from(bits));
}

/// Appends a stored block that leaves `window` as history behind (and [`WINDOW_BYTES`] of output in front).
pub(super) fn push_window(input: &mut Vec<u8>, window: &[u8; WINDOW_BYTES]) {
    // WINDOW_BYTES is 0x8000; the second pair of bytes is its complement.
    input.extend_from_slice(&[0, 0x00, 0x80, 0xff, 0x7f]);
    input.extend_from_slice(window);
}

/// Ends the stream behind the last block: of the last byte of `input` the high `next_bits` (0..=7) belong to what
/// follows and are replaced.
pub(super) fn end_stream(input: &mut Vec<u8>, next_bits: u8) {
    let used_bits = if next_bits == 0 { 0 } else { 8 - u32::from(next_bits) };
    if used_bits != 0
        && let Some(last) = input.last_mut()
    {
        *last &= (1 << used_bits) - 1;
    }
    BitWriter { bytes: input, used_bits }.empty_fixed_block(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_offset_is_reached_without_output_and_the_stream_ends_behind_it() {
        for bits in 1..=7 {
            // The shared byte holds what the last `bits` bits begin: a last block with the fixed codes, EOB 0000000.
            let mut input = Vec::new();
            push_bit_offset(&mut input, bits, 0b011u8.checked_shl(8 - u32::from(bits)).unwrap_or(0));
            assert!(input.len() <= 17, "bits {bits}: {} bytes", input.len());
            end_stream(&mut input, bits);
            assert_eq!(miniz_oxide::inflate::decompress_to_vec(&input).ok(), Some(Vec::new()), "bits {bits}");
            let mut out = [0; 1];
            let n = libdeflater::Decompressor::new().deflate_decompress(&input, &mut out);
            assert_eq!(n.ok(), Some(0), "bits {bits}");
        }
    }

    #[test]
    fn the_window_becomes_output_and_history() {
        let mut window = [0; WINDOW_BYTES];
        for (i, b) in window.iter_mut().enumerate() {
            *b = u8::try_from(i * 7 % 251).unwrap_or(0);
        }
        let mut input = Vec::new();
        push_window(&mut input, &window);
        end_stream(&mut input, 0);
        assert_eq!(miniz_oxide::inflate::decompress_to_vec(&input).ok().as_deref(), Some(&window[..]));
    }
}

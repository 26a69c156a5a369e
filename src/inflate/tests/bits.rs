//! Deflate bits made by hand (RFC 1951, section 3.2): streams that no compressor writes, and heads that bring other
//! decoders, which can only start at the head of a stream, to any checkpoint.

use super::Random;

/// Writes bits in deflate's order: the first bit is the lowest of the first byte.
#[derive(Default)]
pub(super) struct BitWriter {
    pub bytes: Vec<u8>,
    pub used_bits: u32,
}

/// A literal, or a match of (length, distance).
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Literal(u8),
    Match(usize, usize),
}

/// Symbol, extra bits and their number for a length or distance: the last symbol whose base is not beyond it.
fn coded(value: usize, first: usize, count: usize, extra_of: impl Fn(usize) -> u32) -> (usize, usize, u32) {
    let mut base = first;
    for symbol in 0..count {
        let extra = extra_of(symbol);
        if value < base + (1 << extra) {
            return (symbol, value - base, extra);
        }
        base += 1 << extra;
    }
    panic!("{value} has no symbol");
}

pub(super) fn length_symbol(length: usize) -> (usize, usize, u32) {
    if length == 258 {
        return (285, 0, 0);
    }
    let (symbol, value, extra) =
        coded(length, 3, 28, |s| if s < 8 { 0 } else { u32::try_from(s / 4 - 1).expect("few") });
    (257 + symbol, value, extra)
}

pub(super) fn distance_symbol(distance: usize) -> (usize, usize, u32) {
    coded(distance, 1, 30, |s| if s < 4 { 0 } else { u32::try_from(s / 2 - 1).expect("few") })
}

/// Canonical code words (RFC 1951, section 3.2.2) of these lengths, first bit highest.
fn code_words(lengths: &[u8]) -> Vec<u32> {
    let mut words = vec![0; lengths.len()];
    let mut word = 0;
    for length in 1..=15 {
        word <<= 1;
        for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| **l == length) {
            words[symbol] = word;
            word += 1;
        }
    }
    words
}

/// Lengths of a complete code with `count` words of up to `longest` bits: words are split at random. One word alone gets
/// a single bit and leaves the code incomplete.
pub(super) fn code_lengths(count: usize, longest: u8, random: &mut Random) -> Vec<u8> {
    let mut lengths = if count == 1 { vec![1] } else { vec![1, 1] };
    while lengths.len() < count {
        let start = random.below(lengths.len());
        let at = (0..lengths.len()).map(|i| (start + i) % lengths.len()).find(|&i| lengths[i] < longest);
        let at = at.expect("room for all words");
        lengths[at] += 1;
        lengths.insert(random.below(lengths.len() + 1), lengths[at]);
    }
    lengths
}

impl BitWriter {
    pub(super) fn put(&mut self, value: usize, len_bits: u32) {
        for i in 0..len_bits {
            if self.used_bits == 0 {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().expect("just pushed") |= u8::from(value >> i & 1 == 1) << self.used_bits;
            self.used_bits = (self.used_bits + 1) % 8;
        }
    }

    fn word(&mut self, word: u32, length: u8) {
        assert!(length > 0, "a symbol without code word");
        for i in (0..length).rev() {
            self.put((word >> i & 1) as usize, 1);
        }
    }

    pub(super) fn stored_block(&mut self, last: bool, bytes: &[u8]) {
        self.put(usize::from(last), 3);
        self.used_bits = 0;
        let len = u16::try_from(bytes.len()).expect("one block");
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(&(!len).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// Operations and the end of block, with codes of these lengths.
    pub(super) fn symbols(&mut self, ops: &[Op], litlen: &[u8], distance: &[u8]) {
        let (litlen_words, distance_words) = (code_words(litlen), code_words(distance));
        for op in ops {
            match *op {
                Op::Literal(byte) => self.word(litlen_words[usize::from(byte)], litlen[usize::from(byte)]),
                Op::Match(length, back) => {
                    let (symbol, value, extra) = length_symbol(length);
                    self.word(litlen_words[symbol], litlen[symbol]);
                    self.put(value, extra);
                    let (symbol, value, extra) = distance_symbol(back);
                    self.word(distance_words[symbol], distance[symbol]);
                    self.put(value, extra);
                }
            }
        }
        self.word(litlen_words[256], litlen[256]);
    }

    pub(super) fn fixed_block(&mut self, last: bool, ops: &[Op]) {
        self.put(usize::from(last) | 1 << 1, 3);
        let litlen: Vec<u8> = (0..288)
            .map(|s| {
                if s < 144 {
                    8
                } else if s < 256 {
                    9
                } else if s < 280 {
                    7
                } else {
                    8
                }
            })
            .collect();
        self.symbols(ops, &litlen, &[5; 32]);
    }

    /// The header of a block with codes of its own. The code length code has a word for each of its symbols.
    pub(super) fn dynamic_header(&mut self, last: bool, litlen: &[u8], distance: &[u8]) {
        self.put(usize::from(last) | 2 << 1, 3);
        self.put(litlen.len() - 257, 5);
        self.put(distance.len() - 1, 5);
        self.put(15, 4);
        // 13 words of 4 bits and 6 of 5 are complete; the order is that of the format.
        let precode: Vec<u8> = (0..19).map(|s| if s < 13 { 4 } else { 5 }).collect();
        for symbol in [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15] {
            self.put(usize::from(precode[symbol]), 3);
        }
        let words = code_words(&precode);
        let lengths: Vec<u8> = litlen.iter().chain(distance).copied().collect();
        let mut at = 0;
        while at < lengths.len() {
            let run = lengths[at..].iter().take_while(|l| **l == lengths[at]).count();
            let (symbol, value, extra, times) = match (lengths[at], run) {
                (0, 11..) => (18, run.min(138) - 11, 7, run.min(138)),
                (0, 3..) => (17, run.min(10) - 3, 3, run.min(10)),
                (l, 3..) if at > 0 && lengths[at - 1] == l => (16, run.min(6) - 3, 2, run.min(6)),
                (l, _) => (usize::from(l), 0, 0, 1),
            };
            self.word(words[symbol], precode[symbol]);
            self.put(value, extra);
            at += times;
        }
    }

    pub(super) fn dynamic_block(&mut self, last: bool, ops: &[Op], litlen: &[u8], distance: &[u8]) {
        self.dynamic_header(last, litlen, distance);
        self.symbols(ops, litlen, distance);
    }
}

/// The bytes that bring a decoder to the place where the last `bits` (1..=7) of `shared` begin, `shared` itself included: a
/// checkpoint lies `8 - bits` bits deep in a byte, and empty blocks whose lengths add up to that modulo 8 bring a decoder
/// there without a byte of output (prior art: `NOPRIME` in zlib's examples/zran.c).
pub(super) fn bit_offset_head(bits: u8, shared: u8) -> Vec<u8> {
    let consumed_bits = 8 - u32::from(bits);
    let mut writer = BitWriter::default();
    if consumed_bits % 2 == 1 {
        // 3 + 14 + 57 bits, three words of 5 and 7 bits of count, two words of 4 and one of a bit: an odd number.
        let mut litlen = [0; 257];
        litlen[0] = 1;
        litlen[256] = 1;
        writer.dynamic_block(false, &[], &litlen, &[0]);
    }
    if (consumed_bits + writer.used_bits) % 2 == 1 {
        panic!("an even number of bits is left: {consumed_bits}, {}", writer.used_bits);
    }
    while writer.used_bits != consumed_bits {
        writer.fixed_block(false, &[]);
    }
    writer.put(usize::from(shared) >> consumed_bits, u32::from(bits));
    writer.bytes
}

#[test]
fn every_bit_offset_is_reached_without_output() {
    for bits in 1..=7_u8 {
        let mut writer = BitWriter::default();
        writer.put(0x55, 8 - u32::from(bits));
        writer.fixed_block(true, &[]);
        let mut stream = bit_offset_head(bits, writer.bytes[0]);
        stream.extend_from_slice(&writer.bytes[1..]);
        assert_eq!(miniz_oxide::inflate::decompress_to_vec(&stream).ok(), Some(Vec::new()), "bits {bits}");
    }
}

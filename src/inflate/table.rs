//! From code lengths to the decode tables of [`crate::sys::inflate`] (RFC 1951, sections 3.2.2 and 3.2.5).

use super::DataFault;
use crate::sys::inflate::{DISTANCE_BITS, END_OF_BLOCK, EXCEPTIONAL, LITERAL, LITLEN_BITS, SUBTABLE, Tables};

/// Longest code word.
const MAX_BITS: usize = 15;
/// Symbols of the literal/length code, the two that never occur included.
pub(super) const LITLEN_SYMBOLS: usize = 288;
/// Symbols of the distance code, the two that never occur included.
pub(super) const DISTANCE_SYMBOLS: usize = 32;
/// Symbols of the code length code.
pub(super) const PRECODE_SYMBOLS: usize = 19;
/// Longest code word of the code length code.
const PRECODE_BITS: u32 = 7;

/// Tells of no code word; one bit long, so that it is only ever met with a bit at hand.
const NO_CODE_WORD: u32 = EXCEPTIONAL | 0x0101;

/// A decode table for the code length code: the symbol is in bits 16.., the length in the low 8 bits.
pub(super) type Precode = [u32; 1 << PRECODE_BITS];

/// Entries of the literal/length symbols, without the length of their code words.
const LITLEN: [u32; LITLEN_SYMBOLS] = {
    let mut entries = [EXCEPTIONAL; LITLEN_SYMBOLS];
    let mut symbol = 0;
    while symbol < 256 {
        entries[symbol as usize] = LITERAL | symbol << 16;
        symbol += 1;
    }
    entries[256] = EXCEPTIONAL | END_OF_BLOCK;
    // 257..=264 have no extra bits, then every four symbols one more; 285 is the longest match alone.
    let (mut symbol, mut base) = (257, 3);
    while symbol < 285 {
        let extra = if symbol < 265 { 0 } else { (symbol as u32 - 261) / 4 };
        entries[symbol] = base << 16 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    entries[285] = 258 << 16;
    entries
};

/// The same for distances.
const DISTANCE: [u32; DISTANCE_SYMBOLS] = {
    let mut entries = [EXCEPTIONAL; DISTANCE_SYMBOLS];
    let (mut symbol, mut base) = (0, 1);
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { symbol as u32 / 2 - 1 };
        entries[symbol] = base << 16 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    entries
};

/// The same for the code length code.
const PRECODE: [u32; PRECODE_SYMBOLS] = {
    let mut entries = [0; PRECODE_SYMBOLS];
    let mut symbol = 0;
    while symbol < PRECODE_SYMBOLS {
        entries[symbol] = (symbol as u32) << 16;
        symbol += 1;
    }
    entries
};

/// Builds the tables of a block with codes of its own.
pub(super) fn build(tables: &mut Tables, litlen: &[u8], distance: &[u8]) -> Result<(), DataFault> {
    if !fill(&mut tables.litlen, LITLEN_BITS, litlen, &LITLEN, true) {
        return Err(DataFault::LitlenCode);
    }
    if !fill(&mut tables.distance, DISTANCE_BITS, distance, &DISTANCE, true) {
        return Err(DataFault::DistanceCode);
    }
    Ok(())
}

/// Builds the tables of a block with the fixed codes (RFC 1951, section 3.2.6).
pub(super) fn build_fixed(tables: &mut Tables) -> Result<(), DataFault> {
    let mut litlen = [8; LITLEN_SYMBOLS];
    litlen[144..256].fill(9);
    litlen[256..280].fill(7);
    build(tables, &litlen, &[5; DISTANCE_SYMBOLS])
}

/// Builds the table of the code length code, which must be complete.
pub(super) fn build_precode(table: &mut Precode, lengths: &[u8; PRECODE_SYMBOLS]) -> Result<(), DataFault> {
    if fill(table, PRECODE_BITS, lengths, &PRECODE, false) { Ok(()) } else { Err(DataFault::PrecodeCode) }
}

/// Fills `table`, whose first `1 << main_bits` entries are indexed by the next bits of input; `symbols` holds what each
/// symbol's entry says beside the length of its code word. False when the lengths make no code: too many code words, or too
/// few. As zlib does, a code of a single one-bit word or without any is taken where `lenient`; meeting a code word that it
/// does not have is the error then.
fn fill(table: &mut [u32], main_bits: u32, lengths: &[u8], symbols: &[u32], lenient: bool) -> bool {
    let mut counts = [0_usize; MAX_BITS + 1];
    for &length in lengths {
        counts[usize::from(length)] += 1;
    }
    counts[0] = 0;
    let mut free = 1_usize;
    for count in &counts[1..] {
        free *= 2;
        if *count > free {
            return false;
        }
        free -= count;
    }
    let words: usize = counts.iter().sum();
    if free > 0 {
        if !lenient || words > 1 || words != counts[1] {
            return false;
        }
        table[..1 << main_bits].fill(NO_CODE_WORD);
    }

    // Symbols in the order of their code words: by length, then by number.
    let mut places = [0_usize; MAX_BITS + 2];
    for length in 1..=MAX_BITS {
        places[length + 1] = places[length] + counts[length];
    }
    let mut sorted = [0_u16; LITLEN_SYMBOLS];
    for (symbol, &length) in (0..).zip(lengths) {
        if length != 0 {
            let place = &mut places[usize::from(length)];
            sorted[*place] = symbol;
            *place += 1;
        }
    }

    // Code words count up; in the input their first bit comes lowest, so they are kept reversed.
    let main_size = 1_usize << main_bits;
    let (mut word, mut next) = (0_usize, 0);
    let (mut second_start, mut second_end, mut second_of) = (0, main_size, usize::MAX);
    for length in 1..=MAX_BITS {
        for left in (1..=counts[length]).rev() {
            let symbol = symbols[usize::from(sorted[next])];
            next += 1;
            let length_bits = length as u32;
            if length_bits <= main_bits {
                put(&mut table[..main_size], word, length_bits, symbol);
            } else {
                if word % main_size != second_of {
                    second_of = word % main_size;
                    second_start = second_end;
                    let second_bits = second_table_bits(&counts, length, left, main_bits);
                    second_end = second_start + (1 << second_bits);
                    table[second_of] =
                        EXCEPTIONAL | SUBTABLE | (second_start as u32) << 16 | second_bits << 8 | main_bits;
                }
                put(&mut table[second_start..second_end], word >> main_bits, length_bits - main_bits, symbol);
            }
            word = next_reversed(word, length_bits);
        }
    }
    true
}

/// Enters a code word (reversed, `length_bits` long) at every index that ends in it.
fn put(table: &mut [u32], word: usize, length_bits: u32, symbol: u32) {
    let entry = symbol + length_bits * 0x0101;
    for slot in table[word..].iter_mut().step_by(1 << length_bits) {
        *slot = entry;
    }
}

/// The reversed code word after `word` of `length_bits`. Longer words go on from it as it stands: they add zeros at the end,
/// which is the top here.
fn next_reversed(word: usize, length_bits: u32) -> usize {
    let mut bit = 1 << (length_bits - 1);
    while word & bit != 0 {
        bit >>= 1;
    }
    // Behind the last word of a complete code there is none; nothing is entered then.
    if bit == 0 { 0 } else { word & (bit - 1) | bit }
}

/// How many bits index the second table that begins with a word of `length`, of which `left` are still to come: as many as
/// it takes until the words to come fill it.
fn second_table_bits(counts: &[usize; MAX_BITS + 1], length: usize, left: usize, main_bits: u32) -> u32 {
    let mut bits = length as u32 - main_bits;
    let mut used = left;
    for count in &counts[length + 1..] {
        if used >= 1 << bits {
            break;
        }
        bits += 1;
        used = used * 2 + count;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::inflate::second_index;

    /// All code words by the book (RFC 1951, section 3.2.2): (length, word, first bit highest).
    fn words(lengths: &[u8]) -> Vec<(u32, u32)> {
        let mut next = [0_u32; MAX_BITS + 2];
        for bits in 1..=MAX_BITS {
            let shorter = lengths.iter().filter(|&&l| usize::from(l) == bits - 1 && l != 0).count();
            next[bits] = (next[bits - 1] + u32::try_from(shorter).expect("few")) << 1;
        }
        let mut word = |length: u8| {
            let next = &mut next[usize::from(length)];
            *next += 1;
            (u32::from(length), *next - 1)
        };
        lengths.iter().map(|&l| word(l)).collect()
    }

    fn check(lengths: &[u8], main_bits: u32, entries: usize) {
        let symbols: Vec<u32> = (0..288).map(|s| s << 16).collect();
        let mut table = vec![0xdead_0000; entries];
        assert!(fill(&mut table, main_bits, lengths, &symbols, false), "{lengths:?}");
        for (symbol, (length, word)) in (0_u32..).zip(words(lengths)).filter(|(_, (length, _))| *length != 0) {
            let reversed = u64::from(word.reverse_bits() >> (32 - length));
            for above in [0, u64::MAX, 0x5555_5555] {
                let bits = reversed | above << length;
                let mut entry = table[usize::try_from(bits & ((1 << main_bits) - 1)).expect("small")];
                let mut consumed = entry & 0xff;
                if entry & SUBTABLE != 0 {
                    entry = table[second_index(entry, bits >> main_bits)];
                    consumed += entry & 0xff;
                }
                assert_eq!((entry >> 16, consumed), (symbol, length), "{lengths:?}");
            }
        }
    }

    /// Lengths of a complete code: one word is split again and again.
    fn complete(symbols: usize, longest: u8, seed: &mut u64) -> Vec<u8> {
        let mut lengths = vec![1, 1];
        while lengths.len() < symbols {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(*seed >> 33).expect("small") % lengths.len();
            let at = (0..lengths.len()).map(|i| (at + i) % lengths.len()).find(|&i| lengths[i] < longest);
            let at = at.expect("room for all symbols");
            lengths[at] += 1;
            lengths.insert(at, lengths[at]);
        }
        lengths
    }

    #[test]
    fn every_code_word_is_found_in_the_tables() {
        let mut seed = 1;
        for round in 0..300 {
            check(&complete(2 + round % 285, 15, &mut seed), LITLEN_BITS, 4096);
            check(&complete(2 + round % 30, 15, &mut seed), DISTANCE_BITS, 512);
            check(&complete(2 + round % 17, 7, &mut seed), PRECODE_BITS, 128);
        }
        // The most uneven code, and the one that zlib's `enough` names as the greediest.
        let mut uneven: Vec<u8> = (1..=15).collect();
        uneven.push(15);
        check(&uneven, LITLEN_BITS, 4096);
        check(&uneven, DISTANCE_BITS, 512);
        let mut greedy = vec![1_u8, 2, 3, 4, 5, 6, 7, 8];
        greedy.extend([9; 1]);
        greedy.extend([15; 64]);
        check(&greedy, DISTANCE_BITS, 512);
    }

    #[test]
    fn lengths_that_make_no_code_are_refused_as_zlib_does() {
        let mut table = [0; 512];
        for (lengths, lenient, strict) in [
            (&[1, 1][..], true, true),
            (&[1, 1, 1], false, false),
            (&[1, 2], false, false),
            (&[0, 1], true, false),
            (&[0, 0], true, false),
            (&[2, 0], false, false),
            (&[1, 2, 2, 15], false, false),
            (&[2, 2, 2], false, false),
        ] {
            assert_eq!(fill(&mut table, DISTANCE_BITS, lengths, &DISTANCE, true), lenient, "{lengths:?}");
            assert_eq!(fill(&mut table, DISTANCE_BITS, lengths, &DISTANCE, false), strict, "{lengths:?}");
        }
    }

    #[test]
    fn base_entries_are_those_of_the_rfc() {
        let of = |entry: u32| (entry >> 16, entry & 0xff);
        assert_eq!(
            [257, 264, 265, 269, 281, 284, 285].map(|s: usize| of(LITLEN[s])),
            [(3, 0), (10, 0), (11, 1), (19, 2), (131, 5), (227, 5), (258, 0)]
        );
        assert_eq!([0, 3, 4, 5, 29].map(|s: usize| of(DISTANCE[s])), [(1, 0), (4, 0), (5, 1), (7, 1), (24577, 13)]);
        assert_eq!([LITLEN[286], LITLEN[287], DISTANCE[30], DISTANCE[31]], [EXCEPTIONAL; 4]);
    }
}

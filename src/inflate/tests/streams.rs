//! The decoder against a model and against zlib-rs and miniz_oxide: streams made by hand, whole and damaged.

use super::Random;
use super::bits::{BitWriter, Op, bit_offset_head, code_lengths, distance_symbol, length_symbol};
use super::judge::{End, Stream};
use crate::inflate::deflate::{Deflate, Pause};
use crate::units::WINDOW_BYTES;

/// A stream with what it must give.
struct Made {
    history: Vec<u8>,
    bits: u8,
    bytes: Vec<u8>,
    out: Vec<u8>,
}

impl Made {
    fn stream(&self) -> Stream<'_> {
        Stream { bytes: &self.bytes, bits: self.bits, history: &self.history }
    }
}

/// What `ops` make, byte by byte.
fn play(ops: &[Op], bytes: &mut Vec<u8>) {
    for op in ops {
        match *op {
            Op::Literal(byte) => bytes.push(byte),
            Op::Match(length, back) => (0..length).for_each(|_| bytes.push(bytes[bytes.len() - back])),
        }
    }
}

/// Operations that need no more than `known` bytes before the first.
fn random_ops(random: &mut Random, mut known: usize) -> Vec<Op> {
    let count = random.below(400);
    let literals = random.below(100);
    let mut op = || {
        if known == 0 || random.below(100) < literals {
            known += 1;
            return Op::Literal(random.next().to_le_bytes()[0] >> (literals % 3 * 2));
        }
        let length = match random.below(4) {
            0 => 258,
            1 => 3 + random.below(8),
            _ => 3 + random.below(256),
        };
        let back = match random.below(4) {
            0 => 1 + random.below(known.min(40)),
            1 => known.min(WINDOW_BYTES),
            _ => 1 + random.below(known.min(WINDOW_BYTES)),
        };
        known += length;
        Op::Match(length, back)
    };
    (0..count).map(|_| op()).collect()
}

/// Lengths of codes that hold what `ops` need, as short or long as chance has it.
fn random_codes(random: &mut Random, ops: &[Op]) -> (Vec<u8>, Vec<u8>) {
    let mut litlen = vec![0; 286];
    let mut distance = vec![0; 30];
    litlen[256] = 1;
    for op in ops {
        match *op {
            Op::Literal(byte) => litlen[usize::from(byte)] = 1,
            Op::Match(length, back) => {
                litlen[length_symbol(length).0] = 1;
                distance[distance_symbol(back).0] = 1;
            }
        }
    }
    for lengths in [&mut litlen, &mut distance] {
        let count = lengths.iter().filter(|&&l| l != 0).count();
        let longest = if random.below(2) == 0 { 15 } else { 9 };
        let mut given = if count == 0 { Vec::new() } else { code_lengths(count, longest, random) };
        for length in lengths.iter_mut().filter(|l| **l != 0) {
            *length = given.pop().expect("one for each");
        }
    }
    let used = |lengths: &[u8], least| lengths.iter().rposition(|&l| l != 0).map_or(0, |at| at + 1).max(least);
    if random.below(2) == 0 {
        litlen.truncate(used(&litlen, 257));
        distance.truncate(used(&distance, 1));
    }
    (litlen, distance)
}

fn random_stream(seed: u64) -> Made {
    let mut random = Random(seed);
    let history_len = [0, 1, 2, 15, 16, 17, 40, 1000, WINDOW_BYTES - 1, WINDOW_BYTES][random.below(10)];
    let history: Vec<u8> = (0..history_len).map(|_| random.next().to_le_bytes()[0]).collect();
    let bits = u8::try_from(random.below(8)).expect("small");
    let mut writer = BitWriter::default();
    if bits != 0 {
        writer.put(random.below(128), 8 - u32::from(bits));
    }
    let mut known = history.clone();
    let blocks = 1 + random.below(6);
    for block in 1..=blocks {
        let last = block == blocks;
        match random.below(5) {
            0 => {
                let len = [0, 1, 3, 300, 65_535][random.below(5)];
                let bytes: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[0]).collect();
                writer.stored_block(last, &bytes);
                known.extend(bytes);
            }
            1 => {
                let ops = random_ops(&mut random, known.len());
                writer.fixed_block(last, &ops);
                play(&ops, &mut known);
            }
            _ => {
                let ops = random_ops(&mut random, known.len());
                let (litlen, distance) = random_codes(&mut random, &ops);
                writer.dynamic_block(last, &ops, &litlen, &distance);
                play(&ops, &mut known);
            }
        }
    }
    Made { bits, bytes: writer.bytes, out: known.split_off(history_len), history }
}

#[test]
fn streams_of_all_kinds_of_blocks_are_what_they_say() {
    let mut plain = 0;
    for seed in 1..400 {
        let made = random_stream(seed);
        let (out, end) = made.stream().agreed(&format!("seed {seed}"), made.out.len() + 1000);
        assert!(out == made.out, "seed {seed}: not what was meant");
        assert_eq!(end, End::Complete(made.bytes.len()), "seed {seed}");
        if made.history.is_empty() && made.bits == 0 {
            plain += 1;
            assert!(miniz_oxide::inflate::decompress_to_vec(&made.bytes).ok() == Some(made.out), "seed {seed}: miniz");
        }
    }
    assert!(plain > 3);
}

#[test]
fn damaged_streams_end_as_with_zlib() {
    let mut ends = [0; 3];
    for seed in 1..1500 {
        let mut random = Random(seed * 7919);
        let mut made = random_stream(1 + seed % 100);
        for _ in 0..random.below(3) {
            let near_the_start = random.below(2) == 0;
            let at = random.below(if near_the_start { made.bytes.len().min(100) } else { made.bytes.len() });
            made.bytes[at] ^= 1 << random.below(8);
        }
        if random.below(3) == 0 {
            made.bytes.truncate(random.below(made.bytes.len() + 1));
        }
        if random.below(3) == 0 {
            made.history.truncate(random.below(made.history.len() + 1));
        }
        let (_, end) = made.stream().agreed(&format!("seed {seed}"), made.out.len() + 5000);
        match end {
            End::Complete(_) => ends[0] += 1,
            End::Input | End::Output => ends[1] += 1,
            End::Bad => ends[2] += 1,
        }
    }
    assert!(ends.iter().all(|&n| n > 100), "complete, cut off, bad: {ends:?}");
}

#[test]
fn every_short_distance_repeats_as_if_copied_byte_by_byte() {
    let history: Vec<u8> = (0..=255).cycle().take(WINDOW_BYTES).collect();
    for back in (1..=66).chain([255, 256, 257, 32_767, 32_768]) {
        let lengths: Vec<Op> = (3..=258).map(|length| Op::Match(length, back)).collect();
        let mut writer = BitWriter::default();
        writer.fixed_block(true, &lengths);
        let mut known = history.clone();
        play(&lengths, &mut known);
        let stream = Stream { bytes: &writer.bytes, bits: 0, history: &history };
        let (out, _) = stream.agreed(&format!("distance {back}"), known.len());
        assert!(out == known[WINDOW_BYTES..], "distance {back}");
    }
}

#[test]
fn a_match_reaches_back_to_the_first_byte_of_history_and_no_further() {
    for len in [0, 1, 2, 100, 4097, WINDOW_BYTES] {
        let history = vec![7; len];
        for (back, good) in [(len, true), (len + 1, false)] {
            if !(1..=WINDOW_BYTES).contains(&back) {
                continue;
            }
            let mut writer = BitWriter::default();
            writer.fixed_block(true, &[Op::Match(3, back)]);
            // Room for the fast loop, which must see it, too.
            writer.bytes.extend([0; 400]);
            let stream = Stream { bytes: &writer.bytes, bits: 0, history: &history };
            let (_, end) = stream.agreed(&format!("{back} of {len}"), 1000);
            assert_eq!(matches!(end, End::Complete(_)), good, "{back} of {len}");
        }
    }
}

/// Code lengths that zlib takes or refuses; what follows are 300 bytes of the bits given.
#[test]
fn odd_codes_are_taken_or_refused_as_zlib_does() {
    let litlen = |lengths: &[(usize, u8)]| {
        let mut all = vec![0; 286];
        lengths.iter().for_each(|&(symbol, length)| all[symbol] = length);
        all
    };
    let text = litlen(&[(97, 2), (98, 2), (256, 2), (257, 2)]);
    let cases: &[(&str, Vec<u8>, Vec<u8>, bool)] = &[
        ("no distance", text.clone(), vec![0], true),
        ("one distance", text.clone(), vec![1], true),
        ("one distance, the last", text.clone(), litlen(&[(29, 1)])[..30].to_vec(), true),
        ("one distance of two bits", text.clone(), vec![2], false),
        ("two of three distances", text.clone(), vec![2, 2], false),
        ("three one-bit distances", text.clone(), vec![1, 1, 1], false),
        ("end of block alone", litlen(&[(256, 1)]), vec![0], true),
        ("end of block alone, two bits", litlen(&[(256, 2)]), vec![0], false),
        ("no end of block", litlen(&[(97, 1), (98, 1)]), vec![1, 1], false),
        ("too few literals", litlen(&[(97, 2), (256, 1)]), vec![1, 1], false),
        ("too many literals", litlen(&[(97, 1), (98, 1), (256, 1)]), vec![1, 1], false),
    ];
    for (name, litlen, distance, good_header) in cases {
        let mut header = BitWriter::default();
        header.dynamic_header(true, litlen, distance);
        for pattern in 0..=255_usize {
            let mut writer = BitWriter { bytes: header.bytes.clone(), used_bits: header.used_bits };
            (0..300).for_each(|_| writer.put(pattern, 8));
            for len in [writer.bytes.len(), header.bytes.len() + 3] {
                let stream = Stream { bytes: &writer.bytes[..len], bits: 0, history: &[1, 2, 3, 4, 5] };
                let (_, end) = stream.agreed(&format!("{name}, pattern {pattern:#x}"), 100_000);
                assert!(*good_header || end == End::Bad, "{name}: {end:?}");
            }
        }
    }
}

/// zlib takes such a code, reads a length of 0 from every bit and then misses the end-of-block symbol; nobody needs
/// those bits.
#[test]
fn a_code_length_code_without_code_words_is_refused_where_it_ends() {
    for precode in [4, 19_usize] {
        let mut writer = BitWriter::default();
        writer.put(5, 3);
        writer.put(0, 10);
        writer.put(precode - 4, 4);
        let header_bits = 17 + 3 * precode;
        (0..3 * precode).for_each(|_| writer.put(0, 1));
        assert_eq!(writer.bytes.len(), header_bits.div_ceil(8));
        let cut = Stream { bytes: &writer.bytes, bits: 0, history: &[] };
        assert_eq!((cut.ours(1, 10, 10).1, cut.zlib(10).1), (End::Bad, End::Input));
        let shorter = Stream { bytes: &writer.bytes[..writer.bytes.len() - 1], bits: 0, history: &[] };
        assert_eq!(shorter.agreed("cut off before it ends", 10).1, End::Input);
        writer.bytes.extend([0xff; 40]);
        assert_eq!(Stream { bytes: &writer.bytes, bits: 0, history: &[] }.agreed("all of it", 10).1, End::Bad);
    }
}

#[test]
fn headers_that_promise_too_much_are_refused_as_zlib_does() {
    for seed in 1..3000 {
        let mut random = Random(seed);
        let mut writer = BitWriter::default();
        writer.put(5, 3);
        (0..60).for_each(|_| writer.put(random.below(1 << 16), 16));
        Stream { bytes: &writer.bytes, bits: 0, history: &[0; 300] }.agreed(&format!("random header {seed}"), 10_000);
    }
    for kind in 0..4 {
        for len in 0..40_u8 {
            let mut bytes = vec![u8::try_from(1 | kind << 1).expect("small")];
            bytes.extend((0..len).map(|i| i.wrapping_mul(len)));
            Stream { bytes: &bytes, bits: 0, history: &[] }.agreed(&format!("kind {kind}, {len} bytes"), 10_000);
        }
    }
}

#[test]
fn a_boundary_is_told_with_its_byte_and_is_a_place_to_start() {
    for seed in 1..150 {
        let made = random_stream(seed);
        for piece in [1, 64, usize::MAX / 2] {
            let mut decoder = Deflate::new();
            let mut input = &made.bytes[..];
            if made.bits != 0 {
                decoder.restart(made.bits, made.bytes[0]);
                input = &input[1..];
            }
            let offset = made.bytes.len() - input.len();
            let mut buffer = made.history.clone();
            let start = buffer.len();
            buffer.resize(start + made.out.len(), 0);
            let (mut at, mut in_at) = (start, 0_usize);
            loop {
                let in_end = input.len().min(in_at.saturating_add(piece));
                let step = decoder.run(&input[in_at..in_end], &mut buffer, &mut at, 0, 0);
                assert!(piece != 1 || step.consumed == in_end - in_at, "seed {seed}: a byte was held back");
                in_at += step.consumed;
                match step.result.expect("good stream") {
                    Pause::Boundary { bits } => {
                        let from = in_at + offset - usize::from(bits != 0);
                        let history = &buffer[at.saturating_sub(WINDOW_BYTES)..at];
                        let rest = Stream { bytes: &made.bytes[from..], bits, history };
                        let (out, end) = rest.ours(usize::MAX / 2, made.out.len() + 1, made.out.len() + 1);
                        assert!(out == made.out[at - start..], "seed {seed}: wrong from the boundary on");
                        assert_eq!(end, End::Complete(made.bytes.len() - from), "seed {seed}");
                    }
                    Pause::Input => {}
                    Pause::End => break,
                    Pause::Output => assert!(at == buffer.len() && in_at <= input.len()),
                }
            }
            assert!(buffer[start..] == made.out, "seed {seed}");
        }
    }
}

#[test]
fn a_head_for_a_bit_offset_is_short() {
    assert!((1..8).all(|bits| bit_offset_head(bits, 0).len() <= 24));
}

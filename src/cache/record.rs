//! The record of present spans, `layers/<hex>/present`.
//!
//! All numbers are little-endian. A header of 64 bytes is followed by one slot of 8 bytes for every 32 spans:
//!
//! | bytes | header field |
//! |---|---|
//! | 0..8 | magic `sbpresnt` |
//! | 8..12 | version, 1 |
//! | 12..16 | number of spans |
//! | 16..48 | geometry: sha256 over the span table ([`geometry`]) |
//! | 48..60 | zeros |
//! | 60..64 | crc32c of bytes 0..60 |
//!
//! | bytes of slot `i`, at `64 + 8 * i` | field |
//! |---|---|
//! | 0..4 | bit `b` set: span `32 * i + b` is present |
//! | 4..8 | crc32c of geometry, `i` as 4 bytes, bytes 0..4 |
//!
//! Slots are overwritten in place. They are aligned to their size and so never cross a sector: a write torn between
//! sectors leaves whole slots, a slot torn nevertheless has a wrong checksum and counts as empty, which costs a refetch
//! of up to 32 spans. A slot from another layer, another geometry or another place never checks out. A slot of zeros,
//! never written, has a wrong checksum too. Whatever the bytes are, [`parse`] does not fail: what it cannot trust is
//! not present.
//!
//! Another header, another slot size or another meaning of a bit is a format break and needs a new version, which old
//! code takes as "nothing present".

use crate::spans::SpanTable;
use crate::units::{Digest, DigestHasher};

/// Bytes before the first slot.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 8;
/// Spans that one slot speaks of.
pub const SPANS_PER_SLOT: u32 = 32;

const MAGIC: &[u8; 8] = b"sbpresnt";
const VERSION: u32 = 1;

/// Identity of a way to cut a layer: two tables with one geometry have the same spans with the same bytes.
#[must_use]
pub fn geometry(table: &SpanTable) -> Digest {
    let mut hasher = DigestHasher::new();
    hasher.update(b"sociblk geometry 1");
    hasher.update(&table.blob_size().get().to_le_bytes());
    hasher.update(&table.layer_size().get().to_le_bytes());
    for (_, span) in table.iter() {
        for number in [span.blob.start().get(), span.blob.end().get(), span.layer.start().get()] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&[span.bits]);
        hasher.update(span.digest.as_bytes());
    }
    hasher.finish()
}

/// The header of a record for `spans` spans.
#[must_use]
pub fn header(geometry: Digest, spans: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&spans.to_le_bytes());
    bytes[16..48].copy_from_slice(geometry.as_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Slot `index` with these 32 presence bits.
#[must_use]
pub fn slot(geometry: Digest, index: u32, bits: u32) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..4].copy_from_slice(&bits.to_le_bytes());
    bytes[4..].copy_from_slice(&slot_crc(geometry, index, bits).to_le_bytes());
    bytes
}

/// Number of slots for `spans` spans.
#[must_use]
pub fn slots(spans: u32) -> u32 {
    spans.div_ceil(SPANS_PER_SLOT)
}

/// File position of slot `index`.
#[must_use]
pub fn slot_position(index: u32) -> u64 {
    HEADER_BYTES as u64 + u64::from(index) * SLOT_BYTES as u64
}

/// The presence bits of every slot that a record for this geometry needs. Any bytes may come in: slots that are
/// missing, torn or foreign come out as 0, and so does everything when the header is not exactly the one expected.
#[must_use]
pub fn parse(bytes: &[u8], geometry: Digest, spans: u32) -> Vec<u32> {
    let trusted = bytes.get(..HEADER_BYTES).is_some_and(|head| head == header(geometry, spans));
    let body = if trusted { bytes.get(HEADER_BYTES..).unwrap_or_default() } else { &[] };
    let mut found = body.chunks_exact(SLOT_BYTES);
    (0..slots(spans)).map(|index| found.next().map_or(0, |raw| slot_bits(raw, geometry, index, spans))).collect()
}

fn slot_bits(raw: &[u8], geometry: Digest, index: u32, spans: u32) -> u32 {
    let Some((bits, crc)) = raw.split_first_chunk::<4>() else { return 0 };
    let bits = u32::from_le_bytes(*bits);
    let in_use = spans - index * SPANS_PER_SLOT;
    let beyond = if in_use < SPANS_PER_SLOT { u32::MAX << in_use } else { 0 };
    if crc == slot_crc(geometry, index, bits).to_le_bytes() && bits & beyond == 0 { bits } else { 0 }
}

fn slot_crc(geometry: Digest, index: u32, bits: u32) -> u32 {
    let crc = crc32c::crc32c(geometry.as_bytes());
    let crc = crc32c::crc32c_append(crc, &index.to_le_bytes());
    crc32c::crc32c_append(crc, &bits.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(spans: u32) -> (Digest, Vec<u8>, Vec<u32>) {
        let geometry = Digest::of(b"geometry");
        let mut file = header(geometry, spans).to_vec();
        let mut bits = Vec::new();
        for index in 0..slots(spans) {
            let in_use = (spans - index * SPANS_PER_SLOT).min(32);
            let mask = if in_use == 32 { u32::MAX } else { (1 << in_use) - 1 };
            bits.push(0x9e37_79b9_u32.rotate_left(index) & mask);
            file.extend_from_slice(&slot(geometry, index, bits[index as usize]));
        }
        (geometry, file, bits)
    }

    #[test]
    fn a_record_reads_back() {
        for spans in [1, 31, 32, 33, 100, 1000] {
            let (geometry, file, bits) = sample(spans);
            assert_eq!(parse(&file, geometry, spans), bits, "{spans} spans");
            assert!(parse(&file, Digest::of(b"other"), spans).iter().all(|b| *b == 0));
            assert!(parse(&file, geometry, spans + 1).iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn a_record_cut_anywhere_keeps_whole_slots_and_invents_nothing() {
        let (geometry, file, bits) = sample(200);
        for cut in 0..file.len() {
            let whole = cut.saturating_sub(HEADER_BYTES) / SLOT_BYTES;
            for (index, got) in parse(&file[..cut], geometry, 200).into_iter().enumerate() {
                assert_eq!(got, if index < whole { bits[index] } else { 0 }, "cut at {cut}, slot {index}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_costs_its_slot_and_never_adds_a_span() {
        let (geometry, file, bits) = sample(200);
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut torn = file.clone();
                torn[at] ^= 1 << bit;
                for (index, got) in parse(&torn, geometry, 200).into_iter().enumerate() {
                    let hit = at < HEADER_BYTES || (at - HEADER_BYTES) / SLOT_BYTES == index;
                    assert_eq!(got, if hit { 0 } else { bits[index] }, "byte {at} bit {bit}, slot {index}");
                }
            }
        }
    }

    #[test]
    fn slots_at_the_wrong_place_are_not_believed() {
        let (geometry, file, _) = sample(64);
        let mut swapped = file.clone();
        swapped[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&file[HEADER_BYTES + 8..HEADER_BYTES + 16]);
        swapped[HEADER_BYTES + 8..HEADER_BYTES + 16].copy_from_slice(&file[HEADER_BYTES..HEADER_BYTES + 8]);
        assert_eq!(parse(&swapped, geometry, 64), vec![0, 0]);
    }
}

//! The frame around deflate data: gzip member headers and trailers (RFC 1952, section 2.3).

/// Bytes after the deflate data of a member: CRC-32 and length, 4 bytes each.
pub(crate) const TRAILER_BYTES: usize = 8;

const FIXED_BYTES: usize = 10;
const MAGIC: [u8; 2] = [0x1f, 0x8b];
const METHOD_DEFLATE: u8 = 8;
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// Length in bytes of the member header that `bytes` begin with; `None` when they begin with no complete header.
pub(crate) fn header_bytes(bytes: &[u8]) -> Option<usize> {
    let fixed = bytes.get(..FIXED_BYTES)?;
    let flags = *fixed.get(3)?;
    if !fixed.starts_with(&MAGIC) || fixed.get(2) != Some(&METHOD_DEFLATE) || flags & RESERVED != 0 {
        return None;
    }
    optional_fields_bytes(bytes.get(FIXED_BYTES..)?, flags).map(|n| FIXED_BYTES + n)
}

/// Whether a member header could begin anywhere in `bytes`. Deflate data look like one by chance: once in 16 MiB.
pub(crate) fn may_hold_header(bytes: &[u8]) -> bool {
    bytes.windows(3).any(|w| w == [MAGIC[0], MAGIC[1], METHOD_DEFLATE])
}

/// Length of the optional header fields that `rest`, the bytes after the fixed 10, begin with.
fn optional_fields_bytes(rest: &[u8], flags: u8) -> Option<usize> {
    let mut at = 0;
    if flags & FEXTRA != 0 {
        let (low, high) = (*rest.get(at)?, *rest.get(at + 1)?);
        at += 2 + usize::from(u16::from_le_bytes([low, high]));
    }
    for field in [FNAME, FCOMMENT] {
        if flags & field != 0 {
            at += rest.get(at..)?.iter().position(|&b| b == 0)? + 1;
        }
    }
    if flags & FHCRC != 0 {
        at += 2;
    }
    (at <= rest.len()).then_some(at)
}

/// Where the deflate data may begin in bytes that follow the fixed 10 of a header whose flags were not kept: one
/// offset for each combination of optional fields that fits, the plain header first.
pub(crate) fn deflate_starts(rest: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut combinations: Vec<u8> = (0..0x20).step_by(2).map(|f: u8| f & (FHCRC | FEXTRA | FNAME | FCOMMENT)).collect();
    combinations.sort_by_key(|f| f.count_ones());
    combinations.into_iter().filter_map(|flags| optional_fields_bytes(rest, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, fields: &[u8]) -> Vec<u8> {
        let mut h = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255];
        h.extend_from_slice(fields);
        h
    }

    #[test]
    fn header_lengths_follow_the_flags_and_cut_ones_are_none() {
        for (flags, fields) in [
            (0, &b""[..]),
            (FNAME, b"layer.tar\0"),
            (FCOMMENT, b"\0"),
            (FEXTRA, b"\x03\0abc"),
            (FHCRC, b"\x12\x34"),
            (FEXTRA | FNAME | FCOMMENT | FHCRC, b"\x01\0zname\0comment\0\x12\x34"),
            (1, b""),
        ] {
            let whole = header(flags, fields);
            let mut longer = whole.clone();
            longer.extend_from_slice(b"deflate");
            assert_eq!(header_bytes(&longer), Some(whole.len()), "flags {flags:#x}");
            assert!(deflate_starts(&longer[10..]).any(|n| n == fields.len()), "flags {flags:#x}");
            for cut in 0..whole.len() {
                assert_eq!(header_bytes(&whole[..cut]), None, "flags {flags:#x} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_gzip_header_is_none() {
        for (at, byte) in [(0, 0x1e), (1, 0), (2, 7), (3, 0x20), (3, 0x80)] {
            let mut h = header(0, b"");
            h[at] = byte;
            assert_eq!(header_bytes(&h), None, "byte {at} = {byte:#x}");
        }
    }
}

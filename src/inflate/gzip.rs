//! The frame around deflate data: gzip member headers and trailers (RFC 1952, section 2.3).

use super::DataFault;

/// Bytes after the deflate data of a member: CRC-32 and length, 4 bytes each.
pub(super) const TRAILER_BYTES: usize = 8;

const FIXED_BYTES: usize = 10;
const MAGIC: [u8; 2] = [0x1f, 0x8b];
const METHOD_DEFLATE: u8 = 8;
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// Why bytes are no gzip member header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeaderFault {
    /// No magic number, another compression method, or flags that mean nothing yet.
    NotGzip,
    /// The header's own checksum is wrong.
    Checksum,
}

/// Reads a member header byte by byte.
pub(super) struct HeaderReader {
    field: Field,
    flags: u8,
    /// Of all header bytes; `None` when some of them are not known.
    crc: Option<crc32fast::Hasher>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy)]
enum Field {
    Fixed(usize),
    ExtraLengthLow,
    ExtraLengthHigh(u8),
    Extra(u16),
    Name,
    Comment,
    CrcLow(u16),
    CrcHigh(u16, u8),
    End,
}

impl HeaderReader {
    pub(super) fn new() -> Self {
        Self { field: Field::Fixed(0), flags: 0, crc: Some(crc32fast::Hasher::new()) }
    }

    /// A reader behind the fixed bytes of a header with these flags.
    fn after_fixed_bytes(flags: u8) -> Self {
        let mut reader = Self { field: Field::End, flags, crc: None };
        reader.field = reader.optional_from(FEXTRA);
        reader
    }

    /// Takes bytes until the header is complete; then says how many of `bytes` belonged to it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeaderFault> {
        for (i, &byte) in bytes.iter().enumerate() {
            if matches!(self.field, Field::End) {
                return Ok(Some(i));
            }
            self.field = self.byte(byte)?;
        }
        Ok(matches!(self.field, Field::End).then_some(bytes.len()))
    }

    fn byte(&mut self, byte: u8) -> Result<Field, HeaderFault> {
        let crc_before = self.crc.clone();
        if let Some(crc) = &mut self.crc {
            crc.update(&[byte]);
        }
        Ok(match self.field {
            Field::Fixed(at) => {
                let good = match at {
                    0 | 1 => MAGIC.get(at) == Some(&byte),
                    2 => byte == METHOD_DEFLATE,
                    3 => {
                        self.flags = byte;
                        byte & RESERVED == 0
                    }
                    _ => true,
                };
                match at + 1 {
                    _ if !good => return Err(HeaderFault::NotGzip),
                    FIXED_BYTES => self.optional_from(FEXTRA),
                    next => Field::Fixed(next),
                }
            }
            Field::ExtraLengthLow => Field::ExtraLengthHigh(byte),
            Field::ExtraLengthHigh(low) => match u16::from_le_bytes([low, byte]) {
                0 => self.optional_from(FNAME),
                left => Field::Extra(left),
            },
            Field::Extra(1) => self.optional_from(FNAME),
            Field::Extra(left) => Field::Extra(left - 1),
            Field::Name if byte == 0 => self.optional_from(FCOMMENT),
            Field::Comment if byte == 0 => self.optional_from(FHCRC),
            Field::CrcLow(crc) => Field::CrcHigh(crc, byte),
            Field::CrcHigh(crc, low) if crc_before.is_some() && crc != u16::from_le_bytes([low, byte]) => {
                return Err(HeaderFault::Checksum);
            }
            Field::Name | Field::Comment => self.field,
            Field::CrcHigh(..) | Field::End => Field::End,
        })
    }

    /// The next field that the flags promise, beginning with the one of flag `first`.
    fn optional_from(&self, first: u8) -> Field {
        // In the order of the fields; the flag of the header's checksum is the lowest, its field the last.
        let order = [(FEXTRA, Field::ExtraLengthLow), (FNAME, Field::Name), (FCOMMENT, Field::Comment)];
        let from = order.iter().position(|(flag, _)| *flag == first).unwrap_or(order.len());
        for (flag, field) in order.into_iter().skip(from) {
            if self.flags & flag != 0 {
                return field;
            }
        }
        if self.flags & FHCRC == 0 {
            return Field::End;
        }
        let crc = self.crc.clone().map_or(0, crc32fast::Hasher::finalize);
        Field::CrcLow((crc & 0xffff) as u16)
    }
}

/// Length in bytes of the member header that `bytes` begin with; `None` when they begin with no complete header.
pub(super) fn header_bytes(bytes: &[u8]) -> Option<usize> {
    HeaderReader::new().push(bytes).ok().flatten()
}

/// Where the deflate data may begin in bytes that follow the fixed 10 of a header whose flags were not kept: one
/// offset for each combination of optional fields that fits, the plain header first.
pub(super) fn deflate_starts(rest: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut combinations: Vec<u8> = (0..0x20).step_by(2).map(|f: u8| f & (FHCRC | FEXTRA | FNAME | FCOMMENT)).collect();
    combinations.sort_by_key(|f| f.count_ones());
    combinations.into_iter().filter_map(|flags| HeaderReader::after_fixed_bytes(flags).push(rest).ok().flatten())
}

/// Checks the data of a member against its trailer, while they go by.
pub(super) struct Trailer {
    crc: crc32fast::Hasher,
    len: u32,
    bytes: [u8; TRAILER_BYTES],
    got: usize,
}

impl Trailer {
    pub(super) fn new() -> Self {
        Self { crc: crc32fast::Hasher::new(), len: 0, bytes: [0; TRAILER_BYTES], got: 0 }
    }

    /// Takes uncompressed bytes of the member.
    pub(super) fn data(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        // Modulo 2^32 by the format.
        self.len = self.len.wrapping_add(bytes.len() as u32);
    }

    /// Takes bytes that follow the deflate data until the trailer is complete; gives how many belonged to it, and whether it
    /// is complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(usize, bool), DataFault> {
        let room = self.bytes.get_mut(self.got..).unwrap_or_default();
        let taken = room.len().min(bytes.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.got += taken;
        if self.got < TRAILER_BYTES {
            return Ok((taken, false));
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3] = self.bytes;
        if self.crc.clone().finalize() != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(DataFault::DataCheck);
        }
        if self.len != u32::from_le_bytes([l0, l1, l2, l3]) {
            return Err(DataFault::LengthCheck);
        }
        Ok((taken, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, fields: &[u8], checksum: bool) -> Vec<u8> {
        let flags = if checksum { flags | FHCRC } else { flags };
        let mut h = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255];
        h.extend_from_slice(fields);
        if checksum {
            let crc = crc32fast::hash(&h).to_le_bytes();
            h.extend_from_slice(&crc[..2]);
        }
        h
    }

    #[test]
    fn header_lengths_follow_the_flags_and_cut_ones_are_none() {
        for (flags, fields) in [
            (0, &b""[..]),
            (FNAME, b"layer.tar\0"),
            (FCOMMENT, b"\0"),
            (FEXTRA, b"\x03\0abc"),
            (FEXTRA, b"\0\0"),
            (FEXTRA | FNAME | FCOMMENT, b"\x01\0zname\0comment\0"),
            (1, b""),
        ] {
            for checksum in [false, true] {
                let whole = header(flags, fields, checksum);
                let mut longer = whole.clone();
                longer.extend_from_slice(b"deflate");
                assert_eq!(header_bytes(&longer), Some(whole.len()), "flags {flags:#x}");
                assert!(deflate_starts(&longer[10..]).any(|n| n == whole.len() - 10), "flags {flags:#x}");
                for cut in 0..whole.len() {
                    assert_eq!(header_bytes(&whole[..cut]), None, "flags {flags:#x} cut at {cut}");
                }
                if checksum {
                    longer[4] ^= 1;
                    assert_eq!(HeaderReader::new().push(&longer), Err(HeaderFault::Checksum), "flags {flags:#x}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_gzip_header_is_none() {
        for (at, byte) in [(0, 0x1e), (1, 0), (2, 7), (3, 0x20), (3, 0x80)] {
            let mut h = header(0, b"", false);
            h[at] = byte;
            assert_eq!(header_bytes(&h), None, "byte {at} = {byte:#x}");
        }
    }
}

//! One header block, in any of the formats that archive/tar reads.

use super::TarError;
use crate::spans::ModTime;
use crate::spans::entry::printable;
use crate::units::LayerOffset;

/// A tar is made of blocks of this size (POSIX `pax`, "ustar interchange format").
pub(super) const BLOCK_BYTES: usize = 512;

pub(super) type Block = [u8; BLOCK_BYTES];

/// A header's fields. Numbers that a zTOC stores signed are kept signed until it is known what the entry is.
pub(super) struct Header {
    pub typeflag: u8,
    pub name: Vec<u8>,
    pub linkname: Vec<u8>,
    pub size_bytes: u64,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub mtime: ModTime,
    pub uname: Vec<u8>,
    pub gname: Vec<u8>,
    pub devmajor: i64,
    pub devminor: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// Reads a block that is not all zeros.
    pub fn parse(block: &Block, at: LayerOffset) -> Result<Self, TarError> {
        if !checksum_holds(block) {
            return Err(TarError::Checksum { at });
        }
        let format = format(block);
        let own_name = text(field::<100>(block, 0));
        let number =
            |raw: &[u8], field| number(raw).ok_or_else(|| TarError::Number { at, name: printable(own_name), field });
        let size = number(field::<12>(block, 124), "size")?;
        let mut header = Self {
            typeflag: field::<1>(block, 156)[0],
            name: Vec::new(),
            linkname: text(field::<100>(block, 157)).to_vec(),
            size_bytes: 0,
            mode: number(field::<8>(block, 100), "mode")?,
            uid: number(field::<8>(block, 108), "owner")?,
            gid: number(field::<8>(block, 116), "group")?,
            mtime: ModTime { secs: number(field::<12>(block, 136), "modification time")?, nanos: 0 },
            uname: Vec::new(),
            gname: Vec::new(),
            devmajor: 0,
            devminor: 0,
        };
        // The size of entries without data means nothing and may be anything.
        header.size_bytes = match u64::try_from(size) {
            Ok(size_bytes) => size_bytes,
            Err(_) if header.has_no_data() => 0,
            Err(_) => return Err(TarError::Number { at, name: printable(own_name), field: "size" }),
        };
        let mut prefix: &[u8] = b"";
        if format != Format::V7 {
            header.uname = text(field::<32>(block, 265)).to_vec();
            header.gname = text(field::<32>(block, 297)).to_vec();
            header.devmajor = number(field::<8>(block, 329), "device major number")?;
            header.devminor = number(field::<8>(block, 337), "device minor number")?;
            prefix = match format {
                Format::Ustar => text(field::<155>(block, 345)),
                Format::Star => text(field::<131>(block, 345)),
                Format::Gnu => gnu_prefix(block),
                Format::V7 => b"",
            };
        }
        if !prefix.is_empty() {
            header.name.reserve_exact(prefix.len() + 1 + own_name.len());
            header.name.extend_from_slice(prefix);
            header.name.push(b'/');
        }
        header.name.extend_from_slice(own_name);
        Ok(header)
    }

    /// Links, devices, directories and pipes: no data follow, whatever the size says.
    pub fn has_no_data(&self) -> bool {
        matches!(self.typeflag, b'1'..=b'6')
    }
}

/// A field of fixed place and length.
fn field<const LEN: usize>(block: &Block, at: usize) -> &[u8; LEN] {
    block.get(at..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; LEN])
}

/// A string field: up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or(field)
}

/// POSIX sums unsigned bytes, Sun's tar summed signed ones; the checksum field itself counts as spaces.
fn checksum_holds(block: &Block) -> bool {
    let claimed = field::<8>(block, 148);
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let negative = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte >> 7)).sum::<u32>();
    let unsigned = i64::from(sum(block)) - i64::from(sum(claimed)) + 8 * i64::from(b' ');
    let signed = unsigned - 256 * (i64::from(negative(block)) - i64::from(negative(claimed)));
    octal(claimed).is_some_and(|value| value == unsigned || value == signed)
}

fn format(block: &Block) -> Format {
    match (field::<6>(block, 257), field::<2>(block, 263)) {
        (b"ustar\0", _) if field::<4>(block, 508) == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    }
}

/// GNU headers have access and change time where ustar has its prefix. Go before 1.8 wrote GNU headers with a prefix:
/// when the times cannot be read and the place holds ASCII, it is one (golang.org/issues/12594, 21005).
fn gnu_prefix(block: &Block) -> &[u8] {
    let readable = |time: &[u8; 12]| time[0] == 0 || number(time).is_some();
    if readable(field(block, 345)) && readable(field(block, 357)) {
        return b"";
    }
    let prefix = text(field::<155>(block, 345));
    if prefix.is_ascii() { prefix } else { b"" }
}

/// A number in octal, or in base 256 (GNU, star) when the first bit is set: big-endian two's complement, the second bit
/// being the sign. `None` when it is neither or overflows 64 bits.
fn number(field: &[u8]) -> Option<i64> {
    match field.split_first() {
        Some((&first, rest)) if first & 0x80 != 0 => {
            let sign = if first & 0x40 == 0 { 0 } else { 0xff };
            let mut value = u64::from((first ^ sign) & 0x7f);
            for byte in rest {
                if value >> 56 != 0 {
                    return None;
                }
                value = value << 8 | u64::from(byte ^ sign);
            }
            let value = i64::try_from(value).ok()?;
            Some(if sign == 0 { value } else { !value })
        }
        _ => octal(field),
    }
}

/// An octal number between spaces and NULs; empty is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte));
    let end = field.iter().rposition(|byte| !blank(byte));
    let (Some(start), Some(end)) = (start, end) else { return Some(0) };
    let mut value: i64 = 0;
    for &digit in text(field.get(start..=end)?) {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

/// An owner or group as a zTOC holds it: SOCI cuts Go's 64-bit numbers to 32 bits, so that -1 is 4294967295.
pub(super) fn wrap_id(id: i64) -> u32 {
    u32::try_from(id & i64::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0 17\0\0\0", Some(0o17)),
            (b"644\0junk", Some(0o644)),
            (b"", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"6 4\0", None),
            (b"0x12", None),
            (b"9\0", None),
            (b"-1\0", None),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
        ] {
            assert_eq!(number(field), want, "{field:?}");
        }
    }

    #[test]
    fn owners_wrap_like_a_cast_to_uint32() {
        for (id, want) in [(0, 0), (-1, u32::MAX), (-2, u32::MAX - 1), (1 << 32, 0), (i64::MIN, 0)] {
            assert_eq!(wrap_id(id), want);
        }
    }
}

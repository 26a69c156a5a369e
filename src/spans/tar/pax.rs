//! PAX extended headers (POSIX `pax`, "pax Header Block"): lines of `LENGTH KEY=VALUE\n`.

use std::borrow::Cow;

use super::header::Header;
use crate::spans::entry::{PaxRecord, sort_records};
use crate::spans::{ModTime, XATTR_PREFIX};

/// Shortest record: `5 k=\n`.
const MIN_RECORD_BYTES: usize = 5;

/// The records of one PAX header, sorted by key, the last of equal keys.
#[derive(Default)]
pub(super) struct Records(Vec<PaxRecord<'static>>);

type Fault = &'static str;

impl Records {
    pub fn parse(mut content: &[u8]) -> Result<Self, Fault> {
        let mut records = Vec::new();
        while !content.is_empty() {
            let ((key, value), rest) = record(content)?;
            records.push((Cow::Owned(key.to_vec()), Cow::Owned(value.to_vec())));
            content = rest;
        }
        sort_records(&mut records);
        Ok(Self(records))
    }

    /// Puts the records that mean a header field into the header. An empty value leaves the field as it is.
    pub fn merge_into(&self, header: &mut Header) -> Result<(), Fault> {
        for (key, value) in &self.0 {
            if value.is_empty() || key.starts_with(XATTR_PREFIX) {
                continue;
            }
            match key.as_ref() {
                b"path" => header.name = value.to_vec(),
                b"linkpath" => header.linkname = value.to_vec(),
                b"uname" => header.uname = value.to_vec(),
                b"gname" => header.gname = value.to_vec(),
                b"uid" => header.uid = integer(value).ok_or("uid is no number")?,
                b"gid" => header.gid = integer(value).ok_or("gid is no number")?,
                b"mtime" => header.mtime = time(value).ok_or("mtime is no time")?,
                b"size" => {
                    let size = integer(value).ok_or("size is no number")?;
                    header.size_bytes = match u64::try_from(size) {
                        Ok(size_bytes) => size_bytes,
                        Err(_) if header.has_no_data() => 0,
                        Err(_) => return Err("size is negative"),
                    };
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the records describe a sparse file in one of GNU tar's three PAX formats.
    pub fn is_sparse(&self) -> bool {
        let version = (self.get(b"GNU.sparse.major"), self.get(b"GNU.sparse.minor"));
        match version {
            (b"0", b"0" | b"1") | (b"1", b"0") => true,
            (b"", b"") => [&b"GNU.sparse.map"[..], b"GNU.sparse.offset", b"GNU.sparse.numbytes"]
                .iter()
                .any(|key| !self.get(key).is_empty()),
            _ => false,
        }
    }

    pub fn into_inner(self) -> Vec<PaxRecord<'static>> {
        self.0
    }

    fn get(&self, key: &[u8]) -> &[u8] {
        let found = self.0.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok();
        found.and_then(|i| self.0.get(i)).map_or(b"", |(_, value)| value)
    }
}

/// Key and value as they stand in a header.
type RawRecord<'a> = (&'a [u8], &'a [u8]);

/// The first record, and what follows it.
fn record(content: &[u8]) -> Result<(RawRecord<'_>, &[u8]), Fault> {
    let digits = content.iter().position(|&byte| byte == b' ').ok_or("record without length")?;
    let len = content.get(..digits).and_then(integer).and_then(|len| usize::try_from(len).ok());
    let len = len.filter(|&len| len >= MIN_RECORD_BYTES && len > digits + 1).ok_or("record of impossible length")?;
    let (line, rest) = content.split_at_checked(len).ok_or("record longer than its header")?;
    let line = line.get(digits + 1..).and_then(|line| line.strip_suffix(b"\n")).ok_or("record without line end")?;
    let equals = line.iter().position(|&byte| byte == b'=').ok_or("record without '='")?;
    let (key, value) = line.split_at_checked(equals).ok_or("record without '='")?;
    let value = value.get(1..).unwrap_or_default();
    let nul_in = |bytes: &[u8]| bytes.contains(&0);
    let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || nul_in(key) || (is_text && nul_in(value)) {
        return Err("record with an impossible key or value");
    }
    Ok(((key, value), rest))
}

/// A decimal number with an optional sign.
fn integer(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `SECONDS[.FRACTION]`; digits beyond nanoseconds are dropped. A negative time counts its fraction backwards.
fn time(value: &[u8]) -> Option<ModTime> {
    let point = value.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = match point {
        Some(at) => (value.get(..at)?, value.get(at + 1..)?),
        None => (value, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let secs = integer(whole)?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    if whole.starts_with(b"-") && nanos != 0 {
        return Some(ModTime { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(ModTime { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, want) in [
            ("0", Some((0, 0))),
            ("1700000000.123456789", Some((1_700_000_000, 123_456_789))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-1", Some((-1, 0))),
            ("+5", Some((5, 0))),
            (".5", None),
            ("", None),
            ("1.-5", None),
            ("1e5", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), want.map(|(secs, nanos)| ModTime { secs, nanos }), "{text}");
        }
    }

    #[test]
    fn records_are_sorted_and_the_last_of_a_key_counts() {
        let records = Records::parse(b"8 b=one\n8 a=two\n11 b=three\n5 c=\n").expect("records");
        let found: Vec<_> = records.0.iter().map(|(k, v)| (k.as_ref(), v.as_ref())).collect();
        assert_eq!(found, [(&b"a"[..], &b"two"[..]), (b"b", b"three"), (b"c", b"")]);
    }

    #[test]
    fn broken_records_are_refused() {
        for content in [
            &b"no length"[..],
            b"6 a=b",
            b"60 a=b\n",
            b"6 a=bX",
            b"7 abcd\n",
            b"4 =\n",
            b"5 =b\n",
            b"-6 a=b\n",
            b"2 a=b\n",
            b"99999999999999999999 a=b\n",
            b"10 path=a\0\n\n",
            b"8 a\0c=b\n",
            b"     \n",
        ] {
            assert!(Records::parse(content).is_err(), "{content:?}");
        }
    }
}

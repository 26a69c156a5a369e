//! OCI archives: an OCI image layout in a tar file. Blobs are read where they lie; nothing is unpacked.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::RegistryError;

const BLOCK: u64 = 512;
/// Longest GNU or PAX header that is read for a member's name.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Where a member's bytes lie in the archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub at: u64,
    pub size_bytes: u64,
}

/// Finds a member by its name, with or without a leading `./`. Walks over the headers alone. The last member of that
/// name counts, as it does when a tar is unpacked.
pub(super) fn find(path: &Path, name: &str) -> Result<Member, RegistryError> {
    let io = |source| RegistryError::Io { path: path.to_owned(), source };
    let bad = |reason: String| RegistryError::Document { what: path.display().to_string(), reason };
    let mut file = File::open(path).map_err(io)?;
    let end = file.metadata().map_err(io)?.len();
    let (mut at, mut found, mut long_name) = (0, None, None);
    while at + BLOCK <= end {
        let mut block = [0; BLOCK as usize];
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        file.read_exact(&mut block).map_err(io)?;
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let head = header(&block).ok_or_else(|| match block {
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                bad("the archive is compressed; unpack it first, with gzip -d or zstd -d".to_owned())
            }
            _ => bad(format!("no tar header at byte {at}: it is no OCI archive")),
        })?;
        let data = at + BLOCK;
        let padded = head.size_bytes.checked_next_multiple_of(BLOCK).and_then(|size| data.checked_add(size));
        let next = padded.filter(|_| head.size_bytes <= end - data).ok_or_else(|| {
            bad(format!("the archive ends within the member {:?}; fetch it again", String::from_utf8_lossy(&head.name)))
        })?;
        match head.kind {
            b'L' | b'x' => {
                if head.size_bytes > MAX_EXTENSION_BYTES {
                    return Err(bad(format!("a tar header of {} bytes at byte {at}", head.size_bytes)));
                }
                let mut text = Vec::new();
                Read::by_ref(&mut file).take(head.size_bytes).read_to_end(&mut text).map_err(io)?;
                let named = if head.kind == b'L' { Some(until_nul(&text).to_vec()) } else { pax_path(&text) };
                long_name = named.or(long_name);
            }
            b'g' | b'K' => {}
            kind => {
                let is = long_name.take().unwrap_or(head.name);
                let is = is.strip_prefix(b"./").unwrap_or(&is);
                if is == name.as_bytes() && matches!(kind, 0 | b'0' | b'7') {
                    found = Some(Member { at: data, size_bytes: head.size_bytes });
                }
            }
        }
        at = next;
    }
    found.ok_or_else(|| io(io::Error::new(io::ErrorKind::NotFound, format!("the archive has no {name}"))))
}

struct Header {
    name: Vec<u8>,
    size_bytes: u64,
    kind: u8,
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// POSIX.1-1988 (ustar) and GNU headers.
fn header(block: &[u8; BLOCK as usize]) -> Option<Header> {
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    if number(&block[148..156])? != u64::from(sum) {
        return None;
    }
    let mut name = until_nul(&block[..100]).to_vec();
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        name = [until_nul(&block[345..500]), b"/", &name].concat();
    }
    Some(Header { name, size_bytes: number(&block[124..136])?, kind: block[156] })
}

/// Octal digits, or GNU's base 256 for what they cannot hold.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        let (zeros, value) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
        let value = u64::from_be_bytes(*value.first_chunk()?);
        return zeros.iter().all(|byte| *byte == 0).then_some(value);
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// The record `path` among `LENGTH KEY=VALUE\n`.
fn pax_path(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut path = None;
    while !text.is_empty() {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(text.get(..space)?).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(value.to_vec());
        }
        text = text.get(length..)?;
    }
    path
}

/// Writes a tar of regular files, all with the same owner and time, so that equal content gives equal bytes.
pub(super) struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Begins a member; exactly `size_bytes` must follow through [`Writer::out`], then [`Writer::end`].
    pub fn begin(&mut self, name: &str, size_bytes: u64) -> io::Result<()> {
        let mut block = [0; BLOCK as usize];
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the name of a tar member is too long");
        block
            .get_mut(..name.len())
            .filter(|_| name.len() <= 100)
            .ok_or_else(too_long)?
            .copy_from_slice(name.as_bytes());
        let is_dir = name.ends_with('/');
        let mut octal = |at: usize, text: String| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        octal(100, if is_dir { "0000755" } else { "0000644" }.to_owned());
        octal(108, "0000000".to_owned());
        octal(116, "0000000".to_owned());
        if size_bytes < 1 << 33 {
            octal(124, format!("{size_bytes:011o}"));
        }
        octal(136, "00000000000".to_owned());
        octal(148, " ".repeat(8));
        octal(156, if is_dir { "5" } else { "0" }.to_owned());
        octal(257, "ustar\0".to_owned() + "00");
        if size_bytes >= 1 << 33 {
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size_bytes.to_be_bytes());
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&block)
    }

    /// Where a member's bytes go.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends a member of `size_bytes`.
    pub fn end(&mut self, size_bytes: u64) -> io::Result<()> {
        let padding = usize::try_from(size_bytes.wrapping_neg() % BLOCK).unwrap_or(0);
        self.out.write_all(&[0; BLOCK as usize][..padding])
    }

    /// A whole member.
    pub fn member(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let size_bytes = bytes.len() as u64;
        self.begin(name, size_bytes)?;
        self.out.write_all(bytes)?;
        self.end(size_bytes)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_in_what_was_written_and_in_what_others_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut writer = Writer::new(Vec::new());
        writer.member("blobs/sha256/a", b"first").expect("memory");
        writer.member("index.json", &[7; 512]).expect("memory");
        let ours = writer.finish().expect("memory");
        let names: Vec<String> = tar::Archive::new(ours.as_slice())
            .entries()
            .expect("a tar")
            .map(|e| e.expect("an entry").path().expect("a path").display().to_string())
            .collect();
        assert_eq!(names, ["blobs/sha256/a", "index.json"]);

        let mut theirs = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        theirs.append_data(&mut header, format!("./{}", "long/".repeat(40)), &b"other"[..]).expect("memory");
        theirs.append_data(&mut header, "./blobs/sha256/a", &b"first"[..]).expect("memory");
        let theirs = theirs.into_inner().expect("memory");
        for bytes in [ours, theirs] {
            let path = dir.path().join("archive.tar");
            std::fs::write(&path, &bytes).expect("written");
            let member = find(&path, "blobs/sha256/a").expect("found");
            let at = usize::try_from(member.at).expect("small");
            assert_eq!(&bytes[at..at + 5], b"first");
            assert!(find(&path, "blobs/sha256/b").expect_err("none").is_not_found());
            std::fs::write(&path, &bytes[..at + 2]).expect("written");
            assert!(find(&path, "blobs/sha256/a").expect_err("cut").to_string().contains("ends within"));
        }
    }

    #[test]
    fn what_is_no_archive_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        for (bytes, want) in [
            ([[0x1f, 0x8b].as_slice(), &[8; 600]].concat(), "compressed"),
            (vec![b'x'; 600], "no OCI archive"),
            (vec![0; 600], "has no index.json"),
        ] {
            std::fs::write(&path, bytes).expect("written");
            let error = find(&path, "index.json").expect_err("no archive").to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}

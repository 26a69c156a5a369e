//! The table of contents of a layer, from the bytes of its tar.
//!
//! A push parser: layer bytes go in, in order and in pieces of any size; file data are skipped, never kept. What it
//! takes for an entry, and what for the end of the tar, is what Go's `archive/tar` does, because SOCI builds with it and
//! containerd unpacks with it:
//!
//! - V7, ustar (with prefix), star, GNU (long names, base-256 numbers) and PAX headers are read; checksums may be of
//!   signed or unsigned bytes;
//! - PAX records override header fields and are kept, all of them, sorted; GNU long names override PAX;
//! - only regular files have data, whatever other entries' headers say;
//! - a tar ends with two zero blocks, with one at the end of the bytes, between entries, or within the padding of the last
//!   file; what follows two zero blocks is ignored.
//!
//! It goes on where SOCI gives up: PAX global headers (`git archive` writes them) are skipped, as containerd does
//! when it unpacks, and contiguous files (type 7) are regular files, as POSIX wants. Sparse files do not lie in one
//! piece in the tar and are [`TarError::Unsupported`].

mod error;
mod header;
mod pax;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use error::TarError;

use self::header::{BLOCK_BYTES, Block, Header};
use self::pax::Records;
use super::entry::printable;
use super::{EntryKind, TocEntry};
use crate::units::{LayerOffset, LayerRange, u64_from_usize};

/// Limit of a PAX or GNU extension header, as in archive/tar and libarchive.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Limit of what entries may take up in memory. A zTOC must stay below 2 GiB anyway, and a few megabytes of gzip can
/// hold headers without end.
const MAX_KEPT_BYTES: usize = 1 << 30;

/// About what an entry takes up beside its strings.
const ENTRY_BYTES: usize = 256;

/// What a tar holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarToc {
    /// The entries in the order of the tar.
    pub entries: Vec<TocEntry<'static>>,
    /// Where the tar ends for archive/tar; the zTOC's uncompressed size. Padding may follow.
    pub end: LayerOffset,
}

/// What the next bytes are.
enum State {
    /// A header, or the first zero block.
    Header,
    /// The second of two zero blocks.
    SecondZero,
    /// File data to be skipped, then padding.
    Skip { data_bytes: u64, padding_bytes: u64 },
    /// Content of an extension header, then padding.
    Extension { kind: Extension, missing_bytes: u64, padding_bytes: u64 },
    /// Whatever: the tar has ended.
    End { at: LayerOffset },
}

#[derive(Clone, Copy)]
enum Extension {
    Pax,
    LongName,
    LongLink,
}

/// What extension headers say about the entry that follows.
#[derive(Default)]
struct Pending {
    pax: Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

/// Reads a tar as its bytes arrive.
pub struct TarIndexer {
    state: State,
    position: u64,
    /// A header or zero block that arrives in pieces.
    block: Box<Block>,
    block_bytes: usize,
    /// Content of an extension header so far.
    extension: Vec<u8>,
    pending: Pending,
    entries: Vec<TocEntry<'static>>,
    kept_bytes: usize,
    failed: Option<TarError>,
}

impl Default for TarIndexer {
    fn default() -> Self {
        Self::new()
    }
}

impl TarIndexer {
    /// An indexer at the start of a layer.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Header,
            position: 0,
            block: Box::new([0; BLOCK_BYTES]),
            block_bytes: 0,
            extension: Vec::new(),
            pending: Pending::default(),
            entries: Vec::new(),
            kept_bytes: 0,
            failed: None,
        }
    }

    /// Takes the next bytes of the layer.
    ///
    /// # Errors
    /// When they are no tar that can be served lazily; every later call gives the same error.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance(bytes).inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// The table of contents, once all bytes have been fed.
    ///
    /// # Errors
    /// When the tar was cut short, or an earlier call failed.
    pub fn finish(self) -> Result<TarToc, TarError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let at = LayerOffset::new(self.position);
        let cut = |missing_bytes, part| Err(TarError::Truncated { at, missing_bytes, part });
        match self.state {
            State::Header | State::SecondZero if self.block_bytes != 0 => {
                cut(u64_from_usize(BLOCK_BYTES - self.block_bytes), "a header block".to_owned())
            }
            State::Skip { data_bytes: missing @ 1.., .. } => {
                let last = self.entries.last().filter(|entry| entry.data.end() > at);
                let name = last.map(|entry| format!("{:?}", printable(&entry.name)));
                cut(missing, name.unwrap_or_else(|| "a global header".to_owned()))
            }
            State::Extension { missing_bytes: missing @ 1.., .. } => cut(missing, "an extension header".to_owned()),
            State::End { at } => Ok(TarToc { entries: self.entries, end: at }),
            State::Header | State::SecondZero | State::Skip { .. } | State::Extension { .. } => {
                Ok(TarToc { entries: self.entries, end: at })
            }
        }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::Header | State::SecondZero => match bytes.first_chunk() {
                    Some(block) if self.block_bytes == 0 => {
                        self.position += u64_from_usize(BLOCK_BYTES);
                        self.block(block)?;
                        BLOCK_BYTES
                    }
                    _ => self.collect_block(bytes)?,
                },
                State::Skip { data_bytes, padding_bytes } => {
                    let used = take(data_bytes, bytes);
                    let used = used + take(padding_bytes, bytes.get(used..).unwrap_or_default());
                    if *data_bytes == 0 && *padding_bytes == 0 {
                        self.state = State::Header;
                    }
                    self.position += u64_from_usize(used);
                    used
                }
                State::Extension { kind, missing_bytes, padding_bytes } => {
                    let used = take(missing_bytes, bytes);
                    self.extension.extend_from_slice(bytes.get(..used).unwrap_or_default());
                    let used = used + take(padding_bytes, bytes.get(used..).unwrap_or_default());
                    let (kind, done) = (*kind, *missing_bytes == 0 && *padding_bytes == 0);
                    self.position += u64_from_usize(used);
                    if done {
                        self.state = State::Header;
                        self.end_extension(kind)?;
                    }
                    used
                }
                State::End { .. } => {
                    self.position += u64_from_usize(bytes.len());
                    bytes.len()
                }
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Adds to the block that arrives in pieces; reads it when it is whole. Returns how many bytes were used.
    fn collect_block(&mut self, bytes: &[u8]) -> Result<usize, TarError> {
        let used = bytes.len().min(BLOCK_BYTES - self.block_bytes);
        let free = self.block.get_mut(self.block_bytes..).unwrap_or_default();
        for (to, &from) in free.iter_mut().zip(bytes) {
            *to = from;
        }
        self.block_bytes += used;
        self.position += u64_from_usize(used);
        if self.block_bytes == BLOCK_BYTES {
            self.block_bytes = 0;
            let block = *self.block;
            self.block(&block)?;
        }
        Ok(used)
    }

    /// Reads a whole block; `position` stands behind it.
    fn block(&mut self, block: &Block) -> Result<(), TarError> {
        let at = LayerOffset::new(self.position - u64_from_usize(BLOCK_BYTES));
        let zero = block.iter().all(|&byte| byte == 0);
        match (&self.state, zero) {
            (State::SecondZero, true) => self.state = State::End { at: LayerOffset::new(self.position) },
            (State::SecondZero, false) => return Err(TarError::LoneZeroBlock { at }),
            (_, true) => self.state = State::SecondZero,
            (_, false) => return self.header(Header::parse(block, at)?, at),
        }
        Ok(())
    }

    fn header(&mut self, header: Header, at: LayerOffset) -> Result<(), TarError> {
        let extension = match header.typeflag {
            b'x' => Extension::Pax,
            b'L' => Extension::LongName,
            b'K' => Extension::LongLink,
            b'g' => {
                // archive/tar hands a global header out like an entry; extension headers before it are lost.
                self.pending = Pending::default();
                self.skip(header.size_bytes);
                return Ok(());
            }
            _ => return self.entry(header, at),
        };
        if header.size_bytes > MAX_EXTENSION_BYTES {
            return Err(TarError::ExtensionTooLarge { at, size_bytes: header.size_bytes });
        }
        if header.size_bytes == 0 {
            return self.end_extension(extension);
        }
        let padding_bytes = padding(header.size_bytes);
        self.state = State::Extension { kind: extension, missing_bytes: header.size_bytes, padding_bytes };
        Ok(())
    }

    fn end_extension(&mut self, kind: Extension) -> Result<(), TarError> {
        let content = std::mem::take(&mut self.extension);
        match kind {
            Extension::Pax => {
                let at = LayerOffset::new(self.position);
                self.pending.pax = Records::parse(&content).map_err(|what| TarError::Pax { at, what })?;
            }
            Extension::LongName => self.pending.long_name = header::text(&content).to_vec(),
            Extension::LongLink => self.pending.long_link = header::text(&content).to_vec(),
        }
        Ok(())
    }

    fn entry(&mut self, mut header: Header, at: LayerOffset) -> Result<(), TarError> {
        let Pending { pax, long_name, long_link } = std::mem::take(&mut self.pending);
        pax.merge_into(&mut header).map_err(|what| TarError::Pax { at, what })?;
        if !long_name.is_empty() {
            header.name = long_name;
        }
        if !long_link.is_empty() {
            header.linkname = long_link;
        }
        let unsupported = |what| TarError::Unsupported { at, name: printable(&header.name), what };
        let kind = match header.typeflag {
            0 if header.name.ends_with(b"/") => EntryKind::Dir,
            0 | b'0' | b'7' => EntryKind::Reg,
            b'1' => EntryKind::Hardlink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Char,
            b'4' => EntryKind::Block,
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            b'S' => return Err(unsupported("a GNU sparse file".to_owned())),
            other => return Err(unsupported(format!("of the unknown type {:?}", char::from(other)))),
        };
        if pax.is_sparse() {
            return Err(unsupported("a sparse file".to_owned()));
        }
        let number = |value: i64, field| {
            u32::try_from(value).map_err(|_| TarError::Number { at, name: printable(&header.name), field })
        };
        let is_device = matches!(kind, EntryKind::Char | EntryKind::Block);
        let device =
            |value, field| if is_device { number(value, field) } else { Ok(u32::try_from(value).unwrap_or(0)) };
        let mode = number(header.mode, "mode")?;
        let devmajor = device(header.devmajor, "device major number")?;
        let devminor = device(header.devminor, "device minor number")?;
        let size_bytes = if kind == EntryKind::Reg { header.size_bytes } else { 0 };
        let data = LayerRange::from_len(LayerOffset::new(self.position), size_bytes);
        let size = || TarError::Number { at, name: printable(&header.name), field: "size" };
        let data = data.ok_or_else(size)?;

        let entry = TocEntry {
            data,
            kind,
            mode,
            uid: header::wrap_id(header.uid),
            gid: header::wrap_id(header.gid),
            mtime: header.mtime,
            devmajor,
            devminor,
            name: Cow::Owned(header.name),
            linkname: Cow::Owned(header.linkname),
            uname: Cow::Owned(header.uname),
            gname: Cow::Owned(header.gname),
            pax: pax.into_inner(),
        };
        self.kept_bytes += ENTRY_BYTES + entry.name.len() + entry.linkname.len();
        self.kept_bytes += entry.pax.iter().map(|(key, value)| 64 + key.len() + value.len()).sum::<usize>();
        if self.kept_bytes > MAX_KEPT_BYTES {
            return Err(TarError::TooLarge { at });
        }
        self.entries.push(entry);
        self.skip(size_bytes);
        Ok(())
    }

    fn skip(&mut self, data_bytes: u64) {
        self.state = match data_bytes {
            0 => State::Header,
            _ => State::Skip { data_bytes, padding_bytes: padding(data_bytes) },
        };
    }
}

/// Takes what there is of `missing`; returns how many bytes that was.
fn take(missing: &mut u64, bytes: &[u8]) -> usize {
    let used = usize::try_from(*missing).unwrap_or(usize::MAX).min(bytes.len());
    *missing -= u64_from_usize(used);
    used
}

/// Bytes from `size_bytes` to the next block.
fn padding(size_bytes: u64) -> u64 {
    size_bytes.wrapping_neg() % u64_from_usize(BLOCK_BYTES)
}

//! Looking into metadata that this module wrote: an inode, a name, a directory, at the price of a few cache lines each.
//!
//! Nothing is built: what a layer's files are like costs no memory beyond the bytes themselves, which may be mapped from
//! a file. The bytes are ours, but nothing here relies on it: whatever makes no sense is an error, never a panic.

use zerocopy::FromBytes;

use super::ErofsError;
use super::format::{
    DIRENT_BYTES, Dirent, FORMAT_EXTENDED, INODE_BYTES, Inode, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, MAGIC, NID_BYTES,
    SUPERBLOCK_AT, SuperBlock, XattrEntry, XattrHeader,
};
use super::xattrs::{filter_bit, prefix};
use crate::units::{DeviceOffset, u64_from_usize, usize_from_u64};

/// Metadata that can be looked into. Inodes go by their place in units of 32 bytes, EROFS's *nid*: the same metadata
/// give the same numbers, always.
#[derive(Debug)]
pub struct Metadata<B> {
    bytes: B,
    root: u64,
    inode_count: u64,
    block_count: u64,
    block_bytes: usize,
    shared_at: usize,
}

impl<B: AsRef<[u8]>> Metadata<B> {
    /// Takes metadata.
    ///
    /// # Errors
    /// [`ErofsError::Unreadable`] when they do not begin with a superblock of ours or have no root.
    pub fn open(bytes: B) -> Result<Self, ErofsError> {
        let bad = |reason| ErofsError::Unreadable { reason };
        let at = usize_from_u64(SUPERBLOCK_AT).unwrap_or(usize::MAX);
        let superblock = bytes.as_ref().get(at..).and_then(|rest| SuperBlock::read_from_prefix(rest).ok());
        let (superblock, _) = superblock.ok_or(bad("too short"))?;
        if superblock.magic.get() != MAGIC || ![9, 12].contains(&superblock.blkszbits) {
            return Err(bad("no superblock of ours"));
        }
        let block_bytes = 1_usize << superblock.blkszbits;
        let metadata = Self {
            root: superblock.root_nid.get().into(),
            inode_count: superblock.inos.get(),
            block_count: superblock.blocks.get().into(),
            block_bytes,
            // Both fit into 32 and 13 bits.
            shared_at: superblock.xattr_blkaddr.get() as usize * block_bytes,
            bytes,
        };
        match metadata.inode(metadata.root) {
            Some(root) if root.is_dir() => Ok(metadata),
            _ => Err(bad("no root directory")),
        }
    }

    /// The root directory.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// All numbers of inodes are lower.
    pub fn number_limit(&self) -> u64 {
        u64_from_usize(self.bytes.as_ref().len()) / NID_BYTES
    }

    /// Inodes, the root included.
    pub fn inode_count(&self) -> u64 {
        self.inode_count
    }

    /// Length of the whole image in blocks.
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Size of a block in bytes.
    pub fn block_bytes(&self) -> u64 {
        u64_from_usize(self.block_bytes)
    }

    /// The inode at `number`; `None` when there cannot be one.
    pub fn inode(&self, number: u64) -> Option<InodeView<'_>> {
        let bytes = self.bytes.as_ref();
        let at = usize_from_u64(number.checked_mul(NID_BYTES)?)?;
        let (raw, _) = Inode::read_from_prefix(bytes.get(at..)?).ok()?;
        let layout = raw.format.get() >> 1;
        if raw.format.get() & 1 != FORMAT_EXTENDED || ![LAYOUT_FLAT_PLAIN, LAYOUT_FLAT_INLINE].contains(&layout) {
            return None;
        }
        let xattrs_at = at.checked_add(usize_from_u64(INODE_BYTES)?)?;
        let xattr_bytes = match raw.xattr_icount.get() {
            0 => 0,
            count => size_of::<XattrHeader>() + (usize::from(count) - 1) * 4,
        };
        let inline = layout == LAYOUT_FLAT_INLINE;
        let shared = bytes.get(self.shared_at..).unwrap_or_default();
        Some(InodeView { bytes, block_bytes: self.block_bytes, shared, raw, xattrs_at, xattr_bytes, inline })
    }
}

/// One inode.
#[derive(Clone, Copy)]
pub struct InodeView<'a> {
    bytes: &'a [u8],
    block_bytes: usize,
    shared: &'a [u8],
    raw: Inode,
    xattrs_at: usize,
    xattr_bytes: usize,
    inline: bool,
}

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryView<'a> {
    /// The name; `.` and `..` are among them.
    pub name: &'a [u8],
    /// What it names.
    pub inode: u64,
    /// Its type, as directory entries have it (Linux `FT_*`).
    pub file_type: u8,
    /// Position of the name behind it, for [`InodeView::entries`]; never 0.
    pub next: u64,
}

/// An extended attribute: the name is `prefix` and `rest` together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XattrView<'a> {
    /// Such as `user.`.
    pub prefix: &'static [u8],
    /// What follows.
    pub rest: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> InodeView<'a> {
    /// Type and permissions, as `st_mode` has them.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.raw.mode.get()
    }

    fn is_type(&self, bits: u16) -> bool {
        self.mode() & 0o170_000 == bits
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.is_type(0o040_000)
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.is_type(0o100_000)
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.raw.uid.get()
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.raw.gid.get()
    }

    /// Modification time in seconds and nanoseconds.
    #[must_use]
    pub fn mtime(&self) -> (i64, u32) {
        (self.raw.mtime.get().cast_signed(), self.raw.mtime_nsec.get())
    }

    /// Number of names.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        self.raw.nlink.get()
    }

    /// Bytes of a file, a directory or a symbolic link's target.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.raw.size.get()
    }

    /// Device number in the kernel's 32-bit form; 0 for what is no device.
    #[must_use]
    pub fn device(&self) -> u32 {
        if self.is_type(0o020_000) || self.is_type(0o060_000) { self.raw.u.get() } else { 0 }
    }

    /// Where a regular file's data begin on the device; they lie there in one piece.
    #[must_use]
    pub fn data_start(&self) -> Option<DeviceOffset> {
        let start = u64::from(self.raw.u.get()) * u64_from_usize(self.block_bytes);
        self.is_file().then_some(DeviceOffset::new(start))
    }

    /// Where a symbolic link points.
    #[must_use]
    pub fn target(&self) -> Option<&'a [u8]> {
        let len = usize_from_u64(self.size_bytes()).filter(|_| self.is_type(0o120_000))?;
        let start = if self.inline {
            self.xattrs_at.checked_add(self.xattr_bytes)?
        } else {
            (self.raw.u.get() as usize).checked_mul(self.block_bytes)?
        };
        self.bytes.get(start..start.checked_add(len)?)
    }

    /// What lies in one block of the contents of a directory.
    fn contents(&self, block: usize) -> Option<&'a [u8]> {
        let skipped = block.checked_mul(self.block_bytes)?;
        let left = usize_from_u64(self.size_bytes())?.checked_sub(skipped).filter(|&left| left > 0)?;
        let start = if self.inline && left < self.block_bytes {
            self.xattrs_at.checked_add(self.xattr_bytes)?
        } else {
            (self.raw.u.get() as usize).checked_mul(self.block_bytes)?.checked_add(skipped)?
        };
        self.bytes.get(start..start.checked_add(left.min(self.block_bytes))?)
    }

    fn block(&self, number: usize) -> Option<DirBlock<'a>> {
        self.contents(number).filter(|_| self.is_dir()).and_then(DirBlock::new)
    }

    /// What `name` names in this directory; `.` and `..` are names, too.
    #[must_use]
    pub fn child(&self, name: &[u8]) -> Option<u64> {
        let blocks = usize_from_u64(self.size_bytes())?.div_ceil(self.block_bytes);
        // The last block whose first name is not behind the one that is looked for.
        let (mut low, mut high) = (0, blocks);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.block(middle)?.name(0)? <= name { low = middle } else { high = middle }
        }
        let block = self.block(low)?;
        let (mut from, mut to) = (0, block.count);
        while from < to {
            let middle = from + (to - from) / 2;
            match block.name(middle)?.cmp(name) {
                std::cmp::Ordering::Equal => return Some(block.dirent(middle)?.nid.get()),
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        None
    }

    /// The names of a directory from a position on: 0, or the `next` of another one.
    pub fn entries(&self, from: u64) -> impl Iterator<Item = EntryView<'a>> + use<'a> {
        let dir = *self;
        let mut at = usize_from_u64(from).unwrap_or(usize::MAX);
        let mut open: Option<(usize, DirBlock<'a>)> = None;
        std::iter::from_fn(move || {
            let number = at / dir.block_bytes;
            let block = match open {
                Some((opened, block)) if opened == number => block,
                _ => open.insert((number, dir.block(number)?)).1,
            };
            let slot = at % dir.block_bytes / DIRENT_BYTES;
            let (name, dirent) = (block.name(slot)?, block.dirent(slot)?);
            at = if slot + 1 < block.count {
                number * dir.block_bytes + (slot + 1) * DIRENT_BYTES
            } else {
                (number + 1).checked_mul(dir.block_bytes)?
            };
            let next = u64_from_usize(at);
            Some(EntryView { name, inode: dirent.nid.get(), file_type: dirent.file_type, next })
        })
    }

    /// Its extended attributes.
    pub fn xattrs(&self) -> impl Iterator<Item = XattrView<'a>> + use<'a> {
        let body = self.xattrs_at.checked_add(self.xattr_bytes).and_then(|end| self.bytes.get(self.xattrs_at..end));
        let (header, body) = match body.and_then(|body| XattrHeader::read_from_prefix(body).ok()) {
            Some((header, body)) => (header, body),
            None => (XattrHeader::default(), &[][..]),
        };
        let ids = body.get(..usize::from(header.shared_count) * 4).unwrap_or_default();
        let mut inline = body.get(ids.len()..).unwrap_or_default();
        let region = self.shared;
        let shared = ids.as_chunks::<4>().0.iter().map_while(move |id| {
            let at = (u32::from_le_bytes(*id) as usize).checked_mul(4)?;
            Some(xattr(region.get(at..)?)?.0)
        });
        shared.chain(std::iter::from_fn(move || {
            let (found, rest) = xattr(inline)?;
            inline = rest;
            Some(found)
        }))
    }

    /// The value of an extended attribute.
    #[must_use]
    pub fn xattr(&self, name: &[u8]) -> Option<&'a [u8]> {
        let body = self.bytes.get(self.xattrs_at..)?.get(..self.xattr_bytes)?;
        let (header, _) = XattrHeader::read_from_prefix(body).ok()?;
        // A bit that is set says that no name with this hash is there.
        if header.name_filter.get() >> filter_bit(name) & 1 == 1 {
            return None;
        }
        self.xattrs().find(|x| name.strip_prefix(x.prefix) == Some(x.rest)).map(|x| x.value)
    }
}

/// The first attribute in `bytes`, and what follows it.
fn xattr(bytes: &[u8]) -> Option<(XattrView<'_>, &[u8])> {
    let (header, rest) = XattrEntry::read_from_prefix(bytes).ok()?;
    let (name, rest) = rest.split_at_checked(header.name_len.into())?;
    let (value, rest) = rest.split_at_checked(header.value_size.get().into())?;
    // The last one may end with the region.
    let padding =
        (header.name_len as usize + value.len()).next_multiple_of(4) - (header.name_len as usize + value.len());
    Some((XattrView { prefix: prefix(header.name_index)?, rest: name, value }, rest.get(padding..).unwrap_or_default()))
}

/// One block of a directory: all entries, then all names.
#[derive(Clone, Copy)]
struct DirBlock<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> DirBlock<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let (first, _) = Dirent::read_from_prefix(bytes).ok()?;
        let names_at = usize::from(first.nameoff.get());
        let sound = names_at >= DIRENT_BYTES && names_at.is_multiple_of(DIRENT_BYTES) && names_at <= bytes.len();
        sound.then_some(Self { bytes, count: names_at / DIRENT_BYTES })
    }

    fn dirent(&self, slot: usize) -> Option<Dirent> {
        let at = slot.checked_mul(DIRENT_BYTES).filter(|_| slot < self.count)?;
        Some(Dirent::read_from_prefix(self.bytes.get(at..)?).ok()?.0)
    }

    fn name(&self, slot: usize) -> Option<&'a [u8]> {
        let start = usize::from(self.dirent(slot)?.nameoff.get());
        if slot + 1 < self.count {
            return self.bytes.get(start..usize::from(self.dirent(slot + 1)?.nameoff.get()));
        }
        // Zeros follow the last name, up to the end of the block.
        self.bytes.get(start..)?.split(|&byte| byte == 0).next()
    }
}

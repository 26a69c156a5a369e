//! First pass: where everything lies.
//!
//! ```text
//! 0     1024        1152                                                              multiple of 4096
//! [zero][superblock][inodes, attributes, tails][blocks of big directories][shared attributes]
//! ```
//!
//! Inodes stand in the order of the tree: a directory, its files, then its subdirectories, so that a walk reads
//! neighbouring blocks. Addresses count from the start of the image (`meta_blkaddr` 0): the first inode then has
//! number 36, and no inode has number 0, which readdir(3) of glibc would hide (kernel-notes/erofs-nid-zero.md).

use super::dirs::{self, Entry};
use super::format::{INODE_BYTES, NID_BYTES, SUPERBLOCK_AT, SuperBlock};
use super::space::{Row, Space};
use super::xattrs::XattrPlan;
use super::{BlockSize, ErofsError, WriterOptions};
use crate::tree::{NodeKind, NodeView, Tree};
use crate::units::{DeviceOffset, LayerRange, Offset, u64_from_usize};

/// The metadata end on a page boundary in both forms: the device wants it, and a file can be cloned from there.
const METADATA_ALIGN: u64 = 4096;

/// Zeros behind the data of a device: programs that look for RAID and partition trailers read there, and must not
/// cause fetches (`blkid` reads the last megabyte at most).
const TAIL_ZEROS: u64 = 1 << 20;

/// Where one inode and its contents lie.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Address of the inode in units of 32 bytes.
    pub(super) nid: u64,
    /// First block of its contents; relative to the block region until that is placed.
    pub(super) start_block: u32,
    /// Whether the last, partial block follows the inode.
    pub(super) inline: bool,
}

/// Everything that the second pass needs.
pub(super) struct Layout {
    /// By inode number.
    pub(super) places: Vec<Place>,
    pub(super) xattrs: XattrPlan,
    /// Where the shared attributes begin, in bytes; a multiple of the block size.
    pub(super) shared_at: u64,
    pub(super) space: Space,
}

impl Layout {
    pub(super) fn measure(tree: &Tree, options: &WriterOptions) -> Result<Self, ErofsError> {
        let block = options.block_size.bytes();
        let xattrs = XattrPlan::new(tree);
        let mut places = vec![Place::default(); tree.inode_count()];
        let mut packer = Packer::new(block);
        let mut region_blocks = 0_u64;
        let mut names: Vec<Entry<'_>> = Vec::new();
        for node in tree.inodes() {
            let contents = match node.kind() {
                NodeKind::Dir => {
                    dirs::entries(&node, &mut names);
                    dirs::size_bytes(&names, block)
                }
                NodeKind::Symlink => node.size_bytes(),
                _ => 0,
            };
            let header = INODE_BYTES + u64_from_usize(xattrs.body(node.xattr_set()).len());
            // Only what fits into one block together with the inode follows it: such a tail can be placed so that it
            // does not cross a block, and a walk finds it where it has just read the inode.
            let tail = match contents % block {
                // The kernel reads a link's target from behind its inode only if all of it is there.
                tail if tail > 0 && header + tail <= block && (tail == contents || node.kind() == NodeKind::Dir) => {
                    tail
                }
                _ => 0,
            };
            let blocks = (contents - tail).div_ceil(block);
            let place = &mut places[node.id().index()];
            place.nid = packer.place(header, tail) / NID_BYTES;
            place.inline = tail > 0;
            if blocks > 0 {
                place.start_block = fits(region_blocks, options.block_size)?;
                region_blocks += blocks;
            }
        }
        let region_at = packer.end().div_ceil(block);
        let shared_at = (region_at + region_blocks) * block;
        let metadata_bytes = (shared_at + u64_from_usize(xattrs.shared.len())).next_multiple_of(METADATA_ALIGN);
        for node in tree.inodes().filter(|n| matches!(n.kind(), NodeKind::Dir | NodeKind::Symlink)) {
            let place = &mut places[node.id().index()];
            place.start_block = fits(region_at + u64::from(place.start_block), options.block_size)?;
        }
        let files = files_in_tar_order(tree, options)?;
        let space = match options.block_size {
            BlockSize::B4096 => place_aligned(&files, metadata_bytes, &mut places)?,
            BlockSize::B512 => place_in_tar(&files, metadata_bytes, options, &mut places)?,
        };
        let blocks = space.device_size().get() / block;
        fits(blocks, options.block_size)?;
        Ok(Self { places, xattrs, shared_at, space })
    }
}

/// A block number or count in 32 bits; the highest one means "a hole" to the kernel.
fn fits(blocks: u64, block_size: BlockSize) -> Result<u32, ErofsError> {
    u32::try_from(blocks).ok().filter(|&b| b < u32::MAX).ok_or(ErofsError::TooManyBlocks { blocks, block_size })
}

/// Places inodes one behind the other.
struct Packer {
    block: u64,
    at: u64,
    /// What was left free because a tail would have crossed a block: later, smaller inodes go there.
    gap: (u64, u64),
}

impl Packer {
    fn new(block: u64) -> Self {
        Self { block, at: SUPERBLOCK_AT + u64_from_usize(size_of::<SuperBlock>()), gap: (0, 0) }
    }

    fn end(&self) -> u64 {
        self.at
    }

    /// Place for an inode with its attributes (`header`) and a `tail` that must lie in one block.
    fn place(&mut self, header: u64, tail: u64) -> u64 {
        let len = (header + tail).next_multiple_of(NID_BYTES);
        if len <= self.gap.1 - self.gap.0 {
            let at = self.gap.0;
            self.gap.0 += len;
            return at;
        }
        let left = self.block - self.at % self.block;
        // The inode itself may cross a block as far as the kernel is concerned, but would then cost two reads.
        if left < INODE_BYTES || tail > 0 && left < header + tail {
            if left > self.gap.1 - self.gap.0 {
                self.gap = (self.at, self.at + left);
            }
            self.at += left;
        }
        let at = self.at;
        self.at += len;
        at
    }
}

/// Non-empty regular files, sorted by where their data lie.
fn files_in_tar_order<'a>(
    tree: &'a Tree,
    options: &WriterOptions,
) -> Result<Vec<(LayerRange, NodeView<'a>)>, ErofsError> {
    let mut files: Vec<(LayerRange, NodeView<'a>)> =
        tree.inodes().filter_map(|node| Some((node.data()?, node))).filter(|(data, _)| !data.is_empty()).collect();
    files.sort_unstable_by_key(|(data, node)| (data.start(), node.id()));
    for pair in files.windows(2) {
        if let [(first, _), (second, _)] = *pair
            && first.end() > second.start()
        {
            return Err(ErofsError::Overlap { first, second });
        }
    }
    let layer_size = options.layer_size;
    if let Some(&(data, _)) = files.last()
        && data.end() > layer_size
    {
        return Err(ErofsError::BeyondLayer { data, layer_size_bytes: layer_size.get() });
    }
    Ok(files)
}

/// The device: each file at the next block.
fn place_aligned(
    files: &[(LayerRange, NodeView<'_>)],
    metadata_bytes: u64,
    places: &mut [Place],
) -> Result<Space, ErofsError> {
    let block_size = BlockSize::B4096;
    let mut at = metadata_bytes / block_size.bytes();
    let mut rows = Vec::with_capacity(files.len());
    for (data, node) in files {
        let start = fits(at, block_size)?;
        places[node.id().index()].start_block = start;
        at += data.len_bytes().div_ceil(block_size.bytes());
        fits(at, block_size)?;
        Row::push_all(&mut rows, start, *data);
    }
    let size = DeviceOffset::new(at * block_size.bytes() + TAIL_ZEROS);
    Ok(Space::aligned(metadata_bytes, size, rows))
}

/// The file: metadata, then the tar.
fn place_in_tar(
    files: &[(LayerRange, NodeView<'_>)],
    metadata_bytes: u64,
    options: &WriterOptions,
    places: &mut [Place],
) -> Result<Space, ErofsError> {
    let block_size = BlockSize::B512;
    let too_many = || ErofsError::TooManyBlocks { blocks: u64::MAX / block_size.bytes(), block_size };
    for (data, node) in files {
        if !data.start().get().is_multiple_of(block_size.bytes()) {
            return Err(ErofsError::Unaligned { data: *data });
        }
        let at = data.start().checked_add(metadata_bytes).ok_or_else(too_many)?;
        places[node.id().index()].start_block = fits(at.get() / block_size.bytes(), block_size)?;
    }
    let end = options.layer_size.checked_add(metadata_bytes).ok_or_else(too_many)?;
    let size = end.get().checked_next_multiple_of(block_size.bytes()).ok_or_else(too_many)?;
    Ok(Space::with_tar(metadata_bytes, DeviceOffset::new(size), options.layer_size))
}

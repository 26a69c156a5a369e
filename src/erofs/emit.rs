//! Second pass: the bytes.

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::WriterOptions;
use super::dirs::{self, Entry};
use super::format::{
    COMPAT_MTIME, COMPAT_SB_CHKSUM, COMPAT_XATTR_FILTER, DIRENT_BYTES, Dirent, FORMAT_EXTENDED, INODE_BYTES, Inode,
    LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, MAGIC, NID_BYTES, SUPERBLOCK_AT, SuperBlock, encode_dev,
};
use super::layout::{Layout, Place};
use super::xattrs::XattrPlan;
use crate::tree::{InodeId, NodeKind, NodeView, Tree};
use crate::units::{u64_from_usize, usize_from_u64};

/// Bytes that stand at places known beforehand.
struct Out(Vec<u8>);

impl Out {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        // The first pass reserved every place that the second one writes to.
        let at = usize_from_u64(at).unwrap_or(usize::MAX);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

pub(super) fn emit(tree: &Tree, options: &WriterOptions, layout: &Layout) -> Vec<u8> {
    let len = usize_from_u64(layout.space.metadata_len()).unwrap_or(usize::MAX);
    let mut out = Out(vec![0; len]);
    let block = options.block_size.bytes();
    let mut names: Vec<Entry<'_>> = Vec::new();
    let mut contents = Vec::new();
    for node in tree.inodes() {
        contents.clear();
        match node.kind() {
            NodeKind::Dir => {
                dirs::entries(&node, &mut names);
                dir_contents(&names, &layout.places, block, &mut contents);
            }
            NodeKind::Symlink => contents.extend_from_slice(node.target().unwrap_or_default()),
            _ => {}
        }
        put_inode(&mut out, &node, layout, block, &contents);
    }
    out.put(layout.shared_at, &layout.xattrs.shared);
    put_superblock(&mut out, tree, options, layout);
    out.0
}

fn put_inode(out: &mut Out, node: &NodeView<'_>, layout: &Layout, block: u64, contents: &[u8]) {
    let place = layout.places[node.id().index()];
    let at = place.nid * NID_BYTES;
    let xattrs = layout.xattrs.body(node.xattr_set());
    let data_layout = if place.inline { LAYOUT_FLAT_INLINE } else { LAYOUT_FLAT_PLAIN };
    let size = match node.kind() {
        NodeKind::File => node.size_bytes(),
        _ => u64_from_usize(contents.len()),
    };
    let inode = Inode {
        format: U16::new(FORMAT_EXTENDED | data_layout << 1),
        xattr_icount: U16::new(XattrPlan::icount(xattrs)),
        mode: U16::new(node.mode() | type_bits(node.kind())),
        size: U64::new(size),
        u: U32::new(node.device().map_or(place.start_block, |(major, minor)| encode_dev(major, minor))),
        ino: U32::new(node.id().number() + 1),
        uid: U32::new(node.uid()),
        gid: U32::new(node.gid()),
        // Two's complement: the kernel reads the field as signed.
        mtime: U64::new(node.mtime().secs.cast_unsigned()),
        mtime_nsec: U32::new(node.mtime().nanos),
        nlink: U32::new(node.nlink()),
        ..Inode::default()
    };
    out.put(at, inode.as_bytes());
    out.put(at + INODE_BYTES, xattrs);
    if contents.is_empty() {
        return;
    }
    let tail_bytes = if place.inline { u64_from_usize(contents.len()) % block } else { 0 };
    let cut = contents.len() - usize_from_u64(tail_bytes).unwrap_or(0);
    let (blocks, tail) = contents.split_at(cut);
    out.put(u64::from(place.start_block) * block, blocks);
    out.put(at + INODE_BYTES + u64_from_usize(xattrs.len()), tail);
}

/// The file type as `st_mode` has it.
fn type_bits(kind: NodeKind) -> u16 {
    match kind {
        NodeKind::Fifo => 0o010_000,
        NodeKind::Char | NodeKind::Whiteout => 0o020_000,
        NodeKind::Dir => 0o040_000,
        NodeKind::Block => 0o060_000,
        NodeKind::File => 0o100_000,
        NodeKind::Symlink => 0o120_000,
    }
}

/// A directory's contents: per block all entries, then all names; zeros between the last name and the next block.
fn dir_contents(names: &[Entry<'_>], places: &[Place], block: u64, out: &mut Vec<u8>) {
    for (entries, _) in dirs::blocks(names, block) {
        out.resize(out.len().next_multiple_of(usize_from_u64(block).unwrap_or(usize::MAX)), 0);
        let mut name_at = entries.len() * DIRENT_BYTES;
        for entry in entries {
            let dirent = Dirent {
                nid: U64::new(places[entry.inode.index()].nid),
                // Names end within a block of 4096 bytes at most.
                nameoff: U16::new(u16::try_from(name_at).unwrap_or(u16::MAX)),
                file_type: entry.file_type,
                reserved: 0,
            };
            out.extend_from_slice(dirent.as_bytes());
            name_at += entry.name.len();
        }
        for entry in entries {
            out.extend_from_slice(entry.name);
        }
    }
}

fn put_superblock(out: &mut Out, tree: &Tree, options: &WriterOptions, layout: &Layout) {
    let block = options.block_size.bytes();
    let root = layout.places[InodeId::ROOT.index()].nid;
    let mut superblock = SuperBlock {
        magic: U32::new(MAGIC),
        feature_compat: U32::new(COMPAT_SB_CHKSUM | COMPAT_MTIME | COMPAT_XATTR_FILTER),
        blkszbits: options.block_size.bits(),
        // The root is placed first, hence within the first blocks.
        root_nid: U16::new(u16::try_from(root).unwrap_or(u16::MAX)),
        inos: U64::new(u64_from_usize(tree.inode_count())),
        // The first pass checked that block numbers fit.
        blocks: U32::new(u32::try_from(layout.space.device_size().get() / block).unwrap_or(u32::MAX)),
        xattr_blkaddr: U32::new(u32::try_from(layout.shared_at / block).unwrap_or(u32::MAX)),
        uuid: options.uuid,
        ..SuperBlock::default()
    };
    out.put(SUPERBLOCK_AT, superblock.as_bytes());
    // From the superblock to the end of its block, with the checksum's own field zero and without the final
    // complement of CRC-32C.
    let end = if block > SUPERBLOCK_AT { block } else { SUPERBLOCK_AT + block };
    let (from, to) = (usize_from_u64(SUPERBLOCK_AT), usize_from_u64(end));
    let covered = from.zip(to).and_then(|(from, to)| out.0.get(from..to)).unwrap_or_default();
    superblock.checksum = U32::new(!crc32c::crc32c(covered));
    out.put(SUPERBLOCK_AT, superblock.as_bytes());
}

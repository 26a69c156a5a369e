//! Directory contents: names sorted by bytes, cut into blocks.

use super::format::{DIRENT_BYTES, file_type};
use crate::tree::{InodeId, NodeKind, NodeView};
use crate::units::u64_from_usize;

/// One name of a directory.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: InodeId,
    pub(super) file_type: u8,
}

/// All names of a directory, `.` and `..` in their sorted places: the kernel searches by halves, and names such as
/// `!` or `+x` sort before them. `out` is filled anew; it is kept by the caller to save allocations.
pub(super) fn entries<'a>(dir: &NodeView<'a>, out: &mut Vec<Entry<'a>>) {
    out.clear();
    out.extend(dir.children().map(|(name, node)| Entry { name, inode: node.id(), file_type: type_of(node.kind()) }));
    let parent = dir.parent().unwrap_or(InodeId::ROOT);
    for (name, inode) in [(&b"."[..], dir.id()), (b"..", parent)] {
        let at = out.partition_point(|e| e.name < name);
        out.insert(at, Entry { name, inode, file_type: file_type::DIR });
    }
}

fn type_of(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::File => file_type::REG,
        NodeKind::Dir => file_type::DIR,
        NodeKind::Symlink => file_type::SYMLINK,
        NodeKind::Char | NodeKind::Whiteout => file_type::CHR,
        NodeKind::Block => file_type::BLK,
        NodeKind::Fifo => file_type::FIFO,
    }
}

/// Cuts sorted names into blocks: each item is the names of one block and the bytes that they use.
pub(super) fn blocks<'e, 'a>(
    mut entries: &'e [Entry<'a>],
    block_bytes: u64,
) -> impl Iterator<Item = (&'e [Entry<'a>], u64)> {
    std::iter::from_fn(move || {
        let mut used = 0;
        let mut count = 0;
        for entry in entries {
            // A name of 255 bytes and its dirent fit into the smallest block.
            let more = u64_from_usize(DIRENT_BYTES + entry.name.len());
            if used + more > block_bytes {
                break;
            }
            used += more;
            count += 1;
        }
        let (block, rest) = entries.split_at(count);
        entries = rest;
        (count > 0).then_some((block, used))
    })
}

/// Size of a directory in bytes: full blocks, then what the last one uses.
pub(super) fn size_bytes(entries: &[Entry<'_>], block_bytes: u64) -> u64 {
    let (mut count, mut last) = (0_u64, 0);
    for (_, used) in blocks(entries, block_bytes) {
        count += 1;
        last = used;
    }
    count.saturating_sub(1) * block_bytes + last
}

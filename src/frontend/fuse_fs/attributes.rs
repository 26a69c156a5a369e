//! What the tree says, in the kernel's structs.

use zerocopy::FromZeros;

use super::{FileFacts, FileTree, Totals};
use crate::frontend::fuse::{FILE_NUMBER_BITS, VALID_S};
use crate::sys::fuse::{Attr, AttrOut, EntryOut, StatfsOut};

/// EROFS has blocks of this size on the device; `st_blksize` and `st_blocks` are the same in both frontends.
const BLOCK_BYTES: u32 = 4096;

/// The attributes of an inode whose number in this connection is `node`.
pub(super) fn attributes(facts: &FileFacts, node: u64) -> Attr {
    let mut attr = Attr::new_zeroed();
    // What stat(2) shows: without the random place at which the connection's numbers begin, so that overlayfs finds
    // room for bits of its own.
    attr.inode = node & ((1 << FILE_NUMBER_BITS) - 1);
    (attr.mode, attr.nlink, attr.uid, attr.gid) = (facts.mode, facts.nlink, facts.uid, facts.gid);
    (attr.size_bytes, attr.rdev, attr.block_bytes) = (facts.size_bytes, facts.device, BLOCK_BYTES);
    attr.blocks = facts.size_bytes.div_ceil(BLOCK_BYTES.into()).saturating_mul(u64::from(BLOCK_BYTES) / 512);
    attr.times = [facts.mtime.0.cast_unsigned(); 3];
    attr.times_nsec = [facts.mtime.1; 3];
    attr
}

/// The answer to GETATTR.
pub(super) fn attr_out(facts: &FileFacts, node: u64) -> AttrOut {
    let mut out = AttrOut::new_zeroed();
    (out.attr_valid_s, out.attr) = (VALID_S, attributes(facts, node));
    out
}

/// The answer to a look-up that found `inode`.
pub(super) fn entry(tree: &dyn FileTree, first: u64, inode: u64) -> Option<EntryOut> {
    let facts = tree.facts(inode)?;
    let mut out = no_entry();
    out.node = first.checked_add(inode)?;
    (out.attr_valid_s, out.attr) = (VALID_S, attributes(&facts, out.node));
    Some(out)
}

/// The answer to a look-up that found nothing, which the kernel may remember.
pub(super) fn no_entry() -> EntryOut {
    let mut out = EntryOut::new_zeroed();
    out.entry_valid_s = VALID_S;
    out
}

/// The answer to STATFS, as EROFS gives it.
pub(super) fn statfs(totals: &Totals) -> StatfsOut {
    let mut out = StatfsOut::new_zeroed();
    out.counts = [totals.blocks, 0, 0, u64::MAX, u64::MAX - totals.inodes];
    (out.block_bytes, out.fragment_bytes, out.name_bytes) = (totals.block_bytes, totals.block_bytes, 255);
    out
}

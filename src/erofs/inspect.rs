//! Reading back what this module wrote.

use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use super::format::{Inode, NID_BYTES, SUPERBLOCK_AT, SuperBlock};

/// User and group of the root directory of an image of ours, whose metadata `read_at` reads.
///
/// # Errors
/// Those of `read_at`.
pub fn root_owner<E>(read_at: impl Fn(u64, &mut [u8]) -> Result<(), E>) -> Result<(u32, u32), E> {
    let mut superblock = SuperBlock::new_zeroed();
    read_at(SUPERBLOCK_AT, superblock.as_mut_bytes())?;
    let mut root = Inode::new_zeroed();
    // The metadata area begins with the device; all inodes are extended.
    read_at(u64::from(superblock.root_nid.get()) * NID_BYTES, root.as_mut_bytes())?;
    Ok((root.uid.get(), root.gid.get()))
}

//! On-disk structures, as `fs/erofs/erofs_fs.h` of Linux defines them. Everything is little endian.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the superblock lies; the bytes before belong to boot loaders and stay zero, so that nothing takes the
/// device for partitioned.
pub(super) const SUPERBLOCK_AT: u64 = 1024;

/// `EROFS_SUPER_MAGIC_V1`.
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;

/// The superblock carries a checksum.
pub(super) const COMPAT_SB_CHKSUM: u32 = 0x1;
/// Inodes carry their own modification time.
pub(super) const COMPAT_MTIME: u32 = 0x2;
/// `name_filter` of inodes is a valid bloom filter.
pub(super) const COMPAT_XATTR_FILTER: u32 = 0x4;

/// Inodes are addressed in units of 32 bytes from the start of the metadata.
pub(super) const NID_BYTES: u64 = 32;

/// `i_format` of extended inodes: bit 0.
pub(super) const FORMAT_EXTENDED: u16 = 1;
/// All data in one run of blocks.
pub(super) const LAYOUT_FLAT_PLAIN: u16 = 0;
/// The last, partial block follows the inode.
pub(super) const LAYOUT_FLAT_INLINE: u16 = 2;

/// File types of directory entries (`include/uapi/linux/fs_types`: FT_*).
pub(super) mod file_type {
    pub(in super::super) const REG: u8 = 1;
    pub(in super::super) const DIR: u8 = 2;
    pub(in super::super) const CHR: u8 = 3;
    pub(in super::super) const BLK: u8 = 4;
    pub(in super::super) const FIFO: u8 = 5;
    pub(in super::super) const SYMLINK: u8 = 7;
}

/// `struct erofs_super_block`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub(super) magic: U32,
    pub(super) checksum: U32,
    pub(super) feature_compat: U32,
    pub(super) blkszbits: u8,
    pub(super) sb_extslots: u8,
    pub(super) root_nid: U16,
    pub(super) inos: U64,
    pub(super) epoch: U64,
    pub(super) fixed_nsec: U32,
    pub(super) blocks: U32,
    pub(super) meta_blkaddr: U32,
    pub(super) xattr_blkaddr: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) feature_incompat: U32,
    pub(super) available_compr_algs: U16,
    pub(super) extra_devices: U16,
    pub(super) devt_slotoff: U16,
    pub(super) dirblkbits: u8,
    pub(super) xattr_prefix_count: u8,
    pub(super) xattr_prefix_start: U32,
    pub(super) packed_nid: U64,
    pub(super) xattr_filter_reserved: u8,
    pub(super) reserved: [u8; 23],
}

/// `struct erofs_inode_extended`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Inode {
    pub(super) format: U16,
    pub(super) xattr_icount: U16,
    pub(super) mode: U16,
    pub(super) reserved: U16,
    pub(super) size: U64,
    /// First block of the data, or the device number.
    pub(super) u: U32,
    pub(super) ino: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) mtime: U64,
    pub(super) mtime_nsec: U32,
    pub(super) nlink: U32,
    pub(super) reserved2: [u8; 16],
}

/// `struct erofs_dirent`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) nid: U64,
    pub(super) nameoff: U16,
    pub(super) file_type: u8,
    pub(super) reserved: u8,
}

/// `struct erofs_xattr_ibody_header`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct XattrHeader {
    pub(super) name_filter: U32,
    pub(super) shared_count: u8,
    pub(super) reserved: [u8; 7],
}

/// `struct erofs_xattr_entry`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct XattrEntry {
    pub(super) name_len: u8,
    pub(super) name_index: u8,
    pub(super) value_size: U16,
}

const _: () = assert!(size_of::<SuperBlock>() == 128);
const _: () = assert!(size_of::<Inode>() == 64);
const _: () = assert!(size_of::<Dirent>() == 12);
const _: () = assert!(size_of::<XattrHeader>() == 12);
const _: () = assert!(size_of::<XattrEntry>() == 4);

pub(super) const INODE_BYTES: u64 = 64;
pub(super) const DIRENT_BYTES: usize = 12;

/// The form in which Linux keeps a device number in 32 bits (`new_encode_dev`).
pub(super) fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    #[test]
    fn device_numbers_take_the_kernels_form() {
        for (major, minor, want) in [(5, 1, 0x501), (8, 0, 0x800), (511, 1_048_575, 0xfff1_ffff), (0, 0, 0)] {
            assert_eq!(super::encode_dev(major, minor), want);
        }
    }
}

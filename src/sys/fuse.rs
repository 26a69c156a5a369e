//! The FUSE protocol as far as read-only file systems need it (Linux `include/uapi/linux/fuse.h`, 7.31 to 7.45). Structs only; all numbers are in the machine's byte order.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Major version of the protocol.
pub const MAJOR: u32 = 7;
/// Minor version that we speak: the one that has [`HAS_RESEND`] (Linux 6.9).
pub const MINOR: u32 = 40;
/// Oldest minor version that is served (Linux 5.4): from there on no struct below has a shorter form.
pub const MIN_MINOR: u32 = 31;

/// Inode number of the root directory.
pub const ROOT_ID: u64 = 1;

/// Shortest buffer with which the kernel lets requests be read (`FUSE_MIN_READ_BUFFER`), and longer than any request
/// to a server that takes at most one page of a write.
pub const READ_BUFFER_BYTES: usize = 8192;

/// Requests that are known here. Any other one is answered ENOSYS.
pub mod opcode {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const READLINK: u32 = 5;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const READDIRPLUS: u32 = 44;
}

/// Messages from us that answer no request: `unique` is 0 and the error field holds one of these.
pub mod notify {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    /// Linux 6.9.
    pub const RESEND: i32 = 7;
}

/// INIT: reads of one file may be outstanding side by side.
pub const ASYNC_READ: u64 = 1 << 0;
/// INIT: a directory's names may come with their attributes ([`opcode::READDIRPLUS`]).
pub const DO_READDIRPLUS: u64 = 1 << 13;
/// INIT: the kernel chooses between the two ways to read a directory.
pub const READDIRPLUS_AUTO: u64 = 1 << 14;
/// INIT: direct reads are cut into requests that are outstanding side by side.
pub const ASYNC_DIO: u64 = 1 << 15;
/// INIT: look-ups in one directory may be outstanding side by side.
pub const PARALLEL_DIROPS: u64 = 1 << 18;
/// INIT: access control lists are read as extended attributes, and heeded (implies `default_permissions`).
pub const POSIX_ACL: u64 = 1 << 20;
/// INIT: `max_pages` is meant.
pub const MAX_PAGES: u64 = 1 << 22;
/// INIT: targets of symbolic links may be cached.
pub const CACHE_SYMLINKS: u64 = 1 << 23;
/// INIT: the flags go on in `flags2`.
pub const INIT_EXT: u64 = 1 << 30;
/// INIT: the kernel knows [`notify::RESEND`], and marks what it sends again by the highest bit of `unique`.
pub const HAS_RESEND: u64 = 1 << 39;
/// INIT: requests may come over io_uring ([`super::fuse_ring`]). Linux 6.14, where somebody has switched it on.
pub const OVER_IO_URING: u64 = 1 << 41;

/// OPEN: reads go past the kernel's page cache.
pub const FOPEN_DIRECT_IO: u32 = 1 << 0;

/// `struct fuse_in_header`: how every request begins.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct InHeader {
    /// Length of the request with this header.
    pub len_bytes: u32,
    /// One of [`opcode`].
    pub opcode: u32,
    /// To be repeated in the answer, bit for bit.
    pub unique: u64,
    /// Inode number.
    pub node: u64,
    uid: u32,
    gid: u32,
    /// The thread that asks, in the PID namespace of the mount; 0: outside of it, or the kernel itself.
    pub thread: u32,
    total_extlen: u16,
    padding: u16,
}

/// `struct fuse_out_header`: how every answer begins.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct OutHeader {
    /// Length of the answer with this header.
    pub len_bytes: u32,
    /// 0, a negative errno, or one of [`notify`].
    pub error: i32,
    /// Of the request; 0 for notifications.
    pub unique: u64,
}

/// `struct fuse_init_in`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct InitIn {
    /// The kernel's version.
    pub major: u32,
    /// The kernel's version.
    pub minor: u32,
    /// What the kernel would read ahead.
    pub max_readahead: u32,
    /// What it can do, the lower half.
    pub flags: u32,
    /// The upper half; 0 from kernels that do not have it.
    pub flags2: u32,
    unused: [u32; 11],
}

/// `struct fuse_init_out`.
#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct InitOut {
    /// Our version.
    pub major: u32,
    /// Our version.
    pub minor: u32,
    /// Readahead in bytes.
    pub max_readahead: u32,
    /// What is wanted of the kernel's offer, the lower half.
    pub flags: u32,
    /// Asynchronous requests in flight.
    pub max_background: u16,
    /// From how many on the kernel calls the device congested.
    pub congestion_threshold: u16,
    /// Longest write.
    pub max_write: u32,
    /// Granularity of times in nanoseconds.
    pub time_gran: u32,
    /// Pages in one request.
    pub max_pages: u16,
    map_alignment: u16,
    /// The upper half of the flags.
    pub flags2: u32,
    max_stack_depth: u32,
    unused: [u32; 6],
}

/// `struct fuse_attr`.
#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct Attr {
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    /// Access, modification, change; seconds, two's complement.
    pub times: [u64; 3],
    /// The same, nanoseconds.
    pub times_nsec: [u32; 3],
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Preferred length of reads.
    pub block_bytes: u32,
    flags: u32,
}

/// `struct fuse_entry_out`: the answer to LOOKUP.
#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct EntryOut {
    /// Inode number.
    pub node: u64,
    generation: u64,
    /// Seconds for which the name may be cached.
    pub entry_valid_s: u64,
    /// Seconds for which the attributes may be cached.
    pub attr_valid_s: u64,
    valid_nsec: [u32; 2],
    /// The attributes.
    pub attr: Attr,
}

/// `struct fuse_attr_out`: the answer to GETATTR.
#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct AttrOut {
    /// Seconds for which they may be cached.
    pub attr_valid_s: u64,
    attr_valid_nsec: u32,
    dummy: u32,
    /// The attributes.
    pub attr: Attr,
}

/// `struct fuse_open_out`: the answer to OPEN and OPENDIR.
#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct OpenOut {
    handle: u64,
    /// `FOPEN_*`.
    pub flags: u32,
    backing_id: i32,
}

/// `struct fuse_interrupt_in`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct InterruptIn {
    /// The request whose thread was sent a signal.
    pub unique: u64,
}

/// `struct fuse_read_in`: READ and READDIR.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct ReadIn {
    handle: u64,
    /// Where from.
    pub offset: u64,
    /// How much.
    pub size_bytes: u32,
    read_flags: u32,
    lock_owner: u64,
    flags: u32,
    padding: u32,
}

/// `struct fuse_getxattr_in`: GETXATTR (the name follows, and a NUL) and LISTXATTR.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct GetxattrIn {
    /// Room for the answer; 0 asks for its length.
    pub size_bytes: u32,
    padding: u32,
}

/// `struct fuse_getxattr_out`: the answer to [`GetxattrIn`] with size 0.
#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct GetxattrOut {
    /// Length of the value or the list.
    pub size_bytes: u32,
    padding: u32,
}

/// `struct fuse_statfs_out`: the answer to STATFS.
#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct StatfsOut {
    /// Blocks, free ones, ones free to users, files, free ones.
    pub counts: [u64; 5],
    /// Block size.
    pub block_bytes: u32,
    /// Longest name.
    pub name_bytes: u32,
    /// Unit of the counts.
    pub fragment_bytes: u32,
    padding: u32,
    spare: [u32; 6],
}

/// `struct fuse_dirent`; the name follows, then zeros up to the next multiple of 8.
#[repr(C)]
#[derive(IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct Dirent {
    /// Inode number.
    pub inode: u64,
    /// Offset of the next entry.
    pub next_offset: u64,
    /// Length of the name.
    pub name_bytes: u32,
    /// `DT_*`.
    pub kind: u32,
}

/// `struct fuse_notify_inval_inode_out`.
#[repr(C)]
#[derive(IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct InvalInode {
    /// Inode number.
    pub inode: u64,
    /// From where on pages are dropped; negative: attributes only.
    pub offset: i64,
    /// How many bytes of pages.
    pub len_bytes: i64,
}

/// `struct fuse_notify_inval_entry_out`; the name follows, and a NUL.
#[repr(C)]
#[derive(IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
pub struct InvalEntry {
    /// Inode number of the directory.
    pub parent: u64,
    /// Length of the name without the NUL.
    pub name_bytes: u32,
    /// 0.
    pub flags: u32,
}

const _: () = {
    assert!(size_of::<InHeader>() == 40 && size_of::<OutHeader>() == 16);
    assert!(size_of::<InitIn>() == 64 && size_of::<InitOut>() == 64);
    assert!(size_of::<Attr>() == 88 && size_of::<EntryOut>() == 128 && size_of::<AttrOut>() == 104);
    assert!(size_of::<OpenOut>() == 16 && size_of::<ReadIn>() == 40 && size_of::<StatfsOut>() == 80);
    assert!(size_of::<GetxattrIn>() == 8 && size_of::<GetxattrOut>() == 8);
    assert!(size_of::<Dirent>() == 24 && size_of::<InvalInode>() == 24 && size_of::<InvalEntry>() == 16);
};

/// Takes an INIT request apart. Kernels before 5.17 send its first 16 bytes only.
#[must_use]
pub fn init_in(body: &[u8]) -> Option<InitIn> {
    const SHORT_BYTES: usize = 16;
    let mut init = InitIn::new_zeroed();
    let given = body.len().min(size_of::<InitIn>());
    if given < SHORT_BYTES {
        return None;
    }
    init.as_mut_bytes().get_mut(..given)?.copy_from_slice(body.get(..given)?);
    Some(init)
}

//! The `fuse-fs` frontend: every file of a layer is a file of one FUSE file system, as SOCI's own snapshotter serves
//! them. For comparison, and for kernels without EROFS; never chosen unless somebody asks for it.
//!
//! What a layer's files are like, a [`FileTree`] says; their bytes come from the same [`Backend`] that serves the layer
//! as a device. `docs/decisions/fuse-fs.md` says what the kernel keeps of it all, and how it compares.

mod answers;
mod attributes;

#[cfg(test)]
mod tests;

pub use answers::{Answer, answer};

use std::sync::Arc;

use super::fuse::{Content, Listing, Request, Served};
use super::{Backend, fuse};
use crate::units::DeviceOffset;

/// What one inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileFacts {
    /// Type and permissions, as `st_mode` has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Bytes of a file, a directory or a link's target.
    pub size_bytes: u64,
    /// Device number in the kernel's 32-bit form, 0 for what is no device.
    pub device: u32,
    /// Seconds and nanoseconds of the only time that layers know.
    pub mtime: (i64, u32),
    /// Where a regular file's bytes begin on the device; they lie there in one piece.
    pub data_start: Option<DeviceOffset>,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct FileName<'a> {
    /// The name; `.` and `..` are among them.
    pub name: &'a [u8],
    /// What it names.
    pub inode: u64,
    /// Its type (`DT_*`).
    pub kind: u8,
    /// Position of the next name; never 0.
    pub next: u64,
}

/// What a file system as a whole has, for statfs(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Size of a block in bytes.
    pub block_bytes: u32,
    /// Blocks; none is free.
    pub blocks: u64,
    /// Inodes; what is left of 2^64 is free, as EROFS has it.
    pub inodes: u64,
}

/// The files of one layer. Inodes have numbers below a limit, the same ones whenever the layer is served: the kernel goes
/// on asking by them when another process serves. Shared by all threads; no call may wait for the network.
pub trait FileTree: Send + Sync + 'static {
    /// The root directory.
    fn root(&self) -> u64;

    /// All numbers are lower.
    fn number_limit(&self) -> u64;

    /// What an inode is; `None` when there is none of this number.
    fn facts(&self, inode: u64) -> Option<FileFacts>;

    /// What `name` names in a directory.
    fn child(&self, dir: u64, name: &[u8]) -> Option<u64>;

    /// Calls `each` for the names of a directory from a position on (0: the start), until it returns false.
    fn list(&self, dir: u64, from: u64, each: &mut dyn FnMut(&FileName<'_>) -> bool);

    /// Where a symbolic link points.
    fn target(&self, inode: u64) -> Option<&[u8]>;

    /// The value of an extended attribute.
    fn xattr(&self, inode: u64, name: &[u8]) -> Option<&[u8]>;

    /// Calls `each` with both halves of the name of every extended attribute.
    fn xattr_names(&self, inode: u64, each: &mut dyn FnMut(&[u8], &[u8]));

    /// For statfs(2).
    fn totals(&self) -> Totals;
}

/// The files of `tree`, with bytes from `backend`.
#[must_use]
pub fn files(tree: Box<dyn FileTree>, backend: Arc<dyn Backend>) -> Content {
    Content::new(Arc::new(Files { tree, backend }))
}

struct Files {
    tree: Box<dyn FileTree>,
    backend: Arc<dyn Backend>,
}

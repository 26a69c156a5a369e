//! By what a connection and its files are known, also to the next server.

use std::path::PathBuf;

use crate::sys::fuse::OVER_IO_URING;

/// A served name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FuseNode {
    /// Where it can be opened, in the mount namespace of this process.
    pub path: PathBuf,
    /// The first of its inode numbers: by these the kernel asks, of whoever serves the connection.
    pub inode: u64,
}

/// What the next server of a connection must know of it, beside the images and their inode numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct FuseSession {
    /// Minor version of the protocol that was agreed on.
    pub minor: u32,
    /// Flags of INIT that were agreed on.
    pub flags: u64,
    /// Device number of the file system: another connection has another one.
    pub device: u32,
    /// The highest inode number ever given.
    pub last_inode: u64,
}

impl FuseSession {
    /// Its requests came over io_uring, so that it ended with its server.
    #[must_use]
    pub fn is_over_io_uring(&self) -> bool {
        self.flags & OVER_IO_URING != 0
    }
}

//! How inodes and names are held.

use super::TreeError;
use super::xattr::XattrSetId;
use crate::spans::ModTime;
use crate::units::{LayerRange, u64_from_usize};

/// The number of an inode within its tree; the root is 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InodeId(pub(super) u32);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// As an index into per-inode tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The plain number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// A deletion: shown as character device 0/0 with no permissions.
    Whiteout,
}

/// A run of bytes in [`Names`].
#[derive(Clone, Copy, Debug)]
pub(super) struct NameRef {
    pub(super) at: u32,
    pub(super) len: u16,
}

/// Names and link targets, back to back.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Vec<u8>);

impl Names {
    pub(super) fn add(&mut self, name: &[u8]) -> Result<NameRef, TreeError> {
        let at = u32::try_from(self.0.len()).map_err(|_| TreeError::NamesTooLong)?;
        let len = u16::try_from(name.len()).map_err(|_| TreeError::NamesTooLong)?;
        self.0.extend_from_slice(name);
        Ok(NameRef { at, len })
    }

    pub(super) fn get(&self, r: NameRef) -> &[u8] {
        let at = r.at as usize;
        &self.0[at..at + usize::from(r.len)]
    }
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dentry {
    pub(super) name: NameRef,
    pub(super) parent: InodeId,
    pub(super) inode: InodeId,
}

/// What only this kind of inode has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    File {
        data: LayerRange,
    },
    /// `first` and `count`: its names in the finished tree's list, sorted by bytes.
    Dir {
        parent: InodeId,
        first: u32,
        count: u32,
    },
    Symlink {
        target: NameRef,
    },
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
    Whiteout,
    /// While building: a hard link whose target has not come yet; the number of the waiting link.
    Waiting {
        link: u32,
    },
}

impl Body {
    pub(super) const EMPTY_DIR: Self = Self::Dir { parent: InodeId::ROOT, first: 0, count: 0 };
}

/// One inode. 64 bytes or less: a million of them must fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) body: Body,
    pub(super) mtime: ModTime,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) xattrs: XattrSetId,
    pub(super) nlink: u32,
    /// Permission bits only: 0 to 0o7777.
    pub(super) mode: u16,
    pub(super) opaque: bool,
    pub(super) implied: bool,
    pub(super) holds_whiteout: bool,
}

const _: () = assert!(size_of::<Inode>() <= 64);

impl Inode {
    /// A directory that the layer does not list.
    pub(super) const IMPLIED_DIR: Self = Self {
        body: Body::EMPTY_DIR,
        mtime: ModTime { secs: 0, nanos: 0 },
        uid: 0,
        gid: 0,
        xattrs: XattrSetId::EMPTY,
        nlink: 0,
        mode: 0o755,
        opaque: false,
        implied: true,
        holds_whiteout: false,
    };

    /// What stands for a deleted name.
    pub(super) const WHITEOUT: Self = Self { body: Body::Whiteout, mode: 0, implied: false, ..Self::IMPLIED_DIR };

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir { .. })
    }

    pub(super) fn kind(&self) -> NodeKind {
        match self.body {
            Body::File { .. } => NodeKind::File,
            Body::Dir { .. } => NodeKind::Dir,
            Body::Symlink { .. } => NodeKind::Symlink,
            Body::Char { .. } => NodeKind::Char,
            Body::Block { .. } => NodeKind::Block,
            Body::Fifo => NodeKind::Fifo,
            // A finished tree holds no waiting links; shown as what they would hide.
            Body::Whiteout | Body::Waiting { .. } => NodeKind::Whiteout,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match self.body {
            Body::File { data } => data.len_bytes(),
            Body::Symlink { target } => u64_from_usize(usize::from(target.len)),
            _ => 0,
        }
    }
}

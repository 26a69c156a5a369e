//! What the tar headers say: table-of-contents entries to inodes. Pure.
//!
//! A tar is a log: a name may come twice, parents may be missing, hard links are names of names, and deletions are
//! ordinary entries with odd names (`.wh.X`, `.wh..wh..opq`). [`Tree::build`](crate::tree::Tree::build) plays the log
//! and leaves what a mount of this one layer must show; `docs/SEMANTICS.md` states the rules for users.
//!
//! The tree is made for millions of files: names lie in one byte arena, nodes refer to each other by 32-bit numbers,
//! and children are found through one hash table while building, by binary search afterwards.

mod build;
mod error;
mod finish;
mod inherit;
mod node;
mod path;
mod table;
mod view;
mod walk;
mod xattr;

#[cfg(test)]
mod tests;

pub use error::TreeError;
pub use inherit::{Attributes, attributes_below};
pub use node::{InodeId, NodeKind};
pub use path::{MAX_DEPTH, MAX_NAME_BYTES, MAX_TARGET_BYTES};
pub use view::{Children, NodeView, Walk};
pub use xattr::{Xattr, XattrSetId};

use crate::units::LayerOffset;

/// What bounds a tree while it is built from foreign entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeOptions {
    /// Size of the layer in bytes; no file may reach beyond it.
    pub layer_size: LayerOffset,
    /// Most inodes that a layer may have, implied directories included.
    pub max_inodes: u32,
}

impl TreeOptions {
    /// Sixteen times the largest layer that the project is tested with; at about 100 bytes an inode, what bounds the
    /// memory that a hostile table of contents can claim.
    pub const DEFAULT_MAX_INODES: u32 = 1 << 24;

    /// Options for a layer of this size.
    #[must_use]
    pub fn new(layer_size: LayerOffset) -> Self {
        Self { layer_size, max_inodes: Self::DEFAULT_MAX_INODES }
    }
}

/// What was left out of a tree, for the log and for people who wonder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Omissions {
    /// Extended attributes `trusted.overlay.*` and `user.overlay.*` that the image brought: they would steer overlayfs.
    pub overlay_xattrs: u64,
    /// Extended attributes that EROFS cannot express: another prefix, too long, or a malformed access control list.
    pub inexpressible_xattrs: u64,
    /// Entries without a meaning: `.wh.` without a name, `.wh..wh.*` of aufs, a root that is not a directory.
    pub ignored_entries: u64,
    /// Whiteouts that hide nothing: their name exists in this layer, or their directory is opaque.
    pub idle_whiteouts: u64,
    /// Character devices 0/0 that are not written as `.wh.X`: kept, but overlayfs takes them for whiteouts.
    pub bare_whiteouts: u64,
}

/// All inodes and names of one layer. Inodes are numbered in the order of the paths: a directory, its files, then its
/// subdirectories; the root is 0.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<node::Inode>,
    dentries: Vec<node::Dentry>,
    names: node::Names,
    xattrs: xattr::XattrStore,
    omissions: Omissions,
}

impl Tree {
    /// Number of inodes, the root included.
    #[must_use]
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// What was left out.
    #[must_use]
    pub fn omissions(&self) -> Omissions {
        self.omissions
    }
}

//! Directories that a layer needs but does not list show what they are like in the layers below, as when containerd
//! unpacks: overlayfs would else show 0755 root of the upper layer over whatever lies below.

use super::node::{InodeId, NodeKind};
use super::path::clean;
use super::xattr::{Xattr, is_overlay};
use super::{NodeView, Tree};
use crate::spans::ModTime;
use crate::units::{Digest, DigestHasher, u64_from_usize};

/// What a directory is like, apart from what it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Permission bits with suid, sgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: ModTime,
    /// Extended attributes, sorted by name, without those that are orders to overlayfs.
    pub xattrs: Vec<Xattr>,
}

impl Attributes {
    /// The attributes of an inode.
    #[must_use]
    pub fn of(node: &NodeView<'_>) -> Self {
        Self {
            mode: node.mode(),
            uid: node.uid(),
            gid: node.gid(),
            mtime: node.mtime(),
            xattrs: node.xattrs().filter(|x| !is_overlay(&x.name)).cloned().collect(),
        }
    }

    fn hash_into(&self, hasher: &mut DigestHasher) {
        hasher.update(&self.mode.to_le_bytes());
        hasher.update(&self.uid.to_le_bytes());
        hasher.update(&self.gid.to_le_bytes());
        hasher.update(&self.mtime.secs.to_le_bytes());
        hasher.update(&self.mtime.nanos.to_le_bytes());
        hasher.update(&u64_from_usize(self.xattrs.len()).to_le_bytes());
        for x in &self.xattrs {
            hash_bytes(hasher, &x.name);
            hash_bytes(hasher, &x.value);
        }
    }
}

fn hash_bytes(hasher: &mut DigestHasher, bytes: &[u8]) {
    hasher.update(&u64_from_usize(bytes.len()).to_le_bytes());
    hasher.update(bytes);
}

/// What the directory `path` is like in the layers below a layer, `below` beginning with the nearest; `None` when none
/// of them has it or the nearest that speaks of it has hidden or replaced it.
///
/// Trees in `below` should have inherited themselves, the lowest first.
#[must_use]
pub fn attributes_below<'a>(below: impl IntoIterator<Item = &'a Tree>, path: &[u8]) -> Option<Attributes> {
    let parts = clean(path).ok()?;
    for tree in below {
        let mut node = tree.root();
        let mut is_last = node.is_opaque();
        let mut present = true;
        for name in &parts {
            match node.child(name) {
                Some(child) if child.kind() == NodeKind::Dir => node = child,
                Some(_) => return None,
                None => {
                    present = false;
                    break;
                }
            }
            is_last |= node.is_opaque();
        }
        if present {
            return Some(Attributes::of(&node));
        }
        if is_last {
            return None;
        }
    }
    None
}

impl Tree {
    /// Paths of the directories that the layer needs but does not list, parents first. Empty for layers that
    /// BuildKit, docker or buildah made.
    #[must_use]
    pub fn implied_dirs(&self) -> Vec<Vec<u8>> {
        if !self.inodes.iter().any(|inode| inode.implied) {
            return Vec::new();
        }
        self.walk().filter(|(_, node)| node.is_implied()).map(|(path, _)| path).collect()
    }

    /// Gives implied directories the attributes that `from_below` knows for their paths, and says what was inherited:
    /// a digest that is the same exactly for the same attributes of the same directories, `None` when nothing was.
    /// A layer has one metadata variant per digest.
    pub fn inherit(&mut self, mut from_below: impl FnMut(&[u8]) -> Option<Attributes>) -> Option<Digest> {
        let mut found: Vec<(InodeId, Attributes)> = Vec::new();
        let mut hasher = DigestHasher::new();
        if self.inodes.iter().any(|inode| inode.implied) {
            for (path, node) in self.walk().filter(|(_, node)| node.is_implied()) {
                let Some(attributes) = from_below(&path) else { continue };
                hash_bytes(&mut hasher, &path);
                attributes.hash_into(&mut hasher);
                found.push((node.id(), attributes));
            }
        }
        if found.is_empty() {
            return None;
        }
        self.xattrs.rebuild_lookup();
        for (id, attributes) in found {
            let own: Vec<Xattr> = self.xattrs.set(self.inodes[id.index()].xattrs).cloned().collect();
            let inherited = attributes.xattrs.into_iter().filter(|x| !is_overlay(&x.name));
            let xattrs = self.xattrs.intern(inherited.chain(own).collect());
            let inode = &mut self.inodes[id.index()];
            inode.mode = attributes.mode & 0o7777;
            (inode.uid, inode.gid, inode.mtime, inode.xattrs) =
                (attributes.uid, attributes.gid, attributes.mtime, xattrs);
        }
        self.xattrs = std::mem::take(&mut self.xattrs).without_lookup();
        Some(hasher.finish())
    }
}

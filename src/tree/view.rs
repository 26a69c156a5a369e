//! Looking into a finished tree.

use super::Tree;
use super::node::{Body, Dentry, Inode, InodeId, NodeKind};
use super::path::clean;
use super::xattr::{Xattr, XattrSetId};
use crate::spans::ModTime;
use crate::units::LayerRange;

/// One inode of a tree.
#[derive(Clone, Copy)]
pub struct NodeView<'a> {
    tree: &'a Tree,
    id: InodeId,
}

impl std::fmt::Debug for NodeView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeView").field("id", &self.id).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl Tree {
    /// The root directory.
    #[must_use]
    pub fn root(&self) -> NodeView<'_> {
        NodeView { tree: self, id: InodeId::ROOT }
    }

    /// The inode of a path: cleaned like names in a tar, hence relative to the root whether or not it begins with a
    /// slash. Symbolic links are not followed.
    #[must_use]
    pub fn lookup(&self, path: &[u8]) -> Option<NodeView<'_>> {
        clean(path).ok()?.iter().try_fold(self.root(), |dir, name| dir.child(name))
    }

    /// All inodes in the order of their numbers.
    pub fn inodes(&self) -> impl ExactSizeIterator<Item = NodeView<'_>> {
        // Numbers of a tree fit into 32 bits.
        (0..u32::try_from(self.inodes.len()).unwrap_or(u32::MAX)).map(|id| NodeView { tree: self, id: InodeId(id) })
    }

    /// All paths with what they name, directories before what they hold; a hard link comes once per name.
    #[must_use]
    pub fn walk(&self) -> Walk<'_> {
        Walk { path: Vec::new(), stack: Vec::new(), start: Some(self.root()) }
    }

    /// All distinct extended attributes, numbered from 0.
    pub fn xattr_items(&self) -> impl ExactSizeIterator<Item = &Xattr> {
        self.xattrs.items()
    }

    /// All sets of extended attributes in the order of their [`XattrSetId`], each as numbers of
    /// [`Tree::xattr_items`], sorted by name.
    pub fn xattr_sets(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.xattrs.sets()
    }
}

impl<'a> NodeView<'a> {
    fn inode(&self) -> &'a Inode {
        &self.tree.inodes[self.id.index()]
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> InodeId {
        self.id
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> NodeKind {
        self.inode().kind()
    }

    /// Permission bits with suid, sgid and sticky, without the file type.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.inode().mode
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.inode().uid
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.inode().gid
    }

    /// Modification time.
    #[must_use]
    pub fn mtime(&self) -> ModTime {
        self.inode().mtime
    }

    /// Number of names; for a directory 2 and one for each subdirectory.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        self.inode().nlink
    }

    /// Bytes of a file or of a symbolic link's target, else 0.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.inode().size_bytes()
    }

    /// Where a regular file's data lie in the layer.
    #[must_use]
    pub fn data(&self) -> Option<LayerRange> {
        match self.inode().body {
            Body::File { data } => Some(data),
            _ => None,
        }
    }

    /// Where a symbolic link points.
    #[must_use]
    pub fn target(&self) -> Option<&'a [u8]> {
        match self.inode().body {
            Body::Symlink { target } => Some(self.tree.names.get(target)),
            _ => None,
        }
    }

    /// Major and minor number of a device.
    #[must_use]
    pub fn device(&self) -> Option<(u32, u32)> {
        match self.inode().body {
            Body::Char { major, minor } | Body::Block { major, minor } => Some((major, minor)),
            Body::Whiteout => Some((0, 0)),
            _ => None,
        }
    }

    /// The set of its extended attributes; for directories with what overlayfs needs to know.
    #[must_use]
    pub fn xattr_set(&self) -> XattrSetId {
        self.inode().xattrs
    }

    /// Its extended attributes, sorted by name.
    pub fn xattrs(&self) -> impl ExactSizeIterator<Item = &'a Xattr> + Clone {
        self.tree.xattrs.set(self.inode().xattrs)
    }

    /// Whether the layer needs this directory but does not list it. Never true for the root.
    #[must_use]
    pub fn is_implied(&self) -> bool {
        self.inode().implied
    }

    /// Whether nothing of the layers below shows through this directory.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.inode().opaque
    }

    /// The directory that holds this directory; the root holds itself. `None` for anything else.
    #[must_use]
    pub fn parent(&self) -> Option<InodeId> {
        match self.inode().body {
            Body::Dir { parent, .. } => Some(parent),
            _ => None,
        }
    }

    /// The names in a directory, sorted by bytes; none for anything else.
    #[must_use]
    pub fn children(&self) -> Children<'a> {
        let dentries: &'a [Dentry] = match self.inode().body {
            Body::Dir { first, count, .. } => &self.tree.dentries[first as usize..][..count as usize],
            _ => &[],
        };
        Children { tree: self.tree, dentries: dentries.iter() }
    }

    /// What a name in this directory means.
    #[must_use]
    pub fn child(&self, name: &[u8]) -> Option<NodeView<'a>> {
        let dentries = self.children().dentries.as_slice();
        let at = dentries.binary_search_by(|d| self.tree.names.get(d.name).cmp(name)).ok()?;
        Some(NodeView { tree: self.tree, id: dentries[at].inode })
    }
}

/// Names in a directory; see [`NodeView::children`].
#[derive(Clone)]
pub struct Children<'a> {
    tree: &'a Tree,
    dentries: std::slice::Iter<'a, Dentry>,
}

impl<'a> Iterator for Children<'a> {
    type Item = (&'a [u8], NodeView<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let dentry = self.dentries.next()?;
        Some((self.tree.names.get(dentry.name), NodeView { tree: self.tree, id: dentry.inode }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.dentries.size_hint()
    }
}

impl ExactSizeIterator for Children<'_> {}

/// All paths of a tree; see [`Tree::walk`]. Paths begin with a slash; the root is `/`.
pub struct Walk<'a> {
    path: Vec<u8>,
    /// Open directories: what is left of each, and the length of its path.
    stack: Vec<(Children<'a>, usize)>,
    start: Option<NodeView<'a>>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Vec<u8>, NodeView<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.start.take() {
            self.stack.push((root.children(), 0));
            return Some((b"/".to_vec(), root));
        }
        loop {
            let (children, len) = self.stack.last_mut()?;
            self.path.truncate(*len);
            let Some((name, node)) = children.next() else {
                self.stack.pop();
                continue;
            };
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            if node.kind() == NodeKind::Dir {
                self.stack.push((node.children(), self.path.len()));
            }
            return Some((self.path.clone(), node));
        }
    }
}

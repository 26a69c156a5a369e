//! Plays the log that a tar is.

use super::error::shown;
use super::node::{Body, Dentry, Inode, InodeId, NameRef, Names};
use super::path::{self, MAX_NAME_BYTES, MAX_TARGET_BYTES, Mark};
use super::table::Table;
use super::walk::LastDir;
use super::xattr::{self, XattrSetId, XattrStore};
use super::{Omissions, Tree, TreeError, TreeOptions};
use crate::spans::{EntryKind, ModTime, TocEntry};

/// A hard link that came before its target.
pub(super) struct WaitingLink {
    pub(super) inode: InodeId,
    pub(super) path: Box<[u8]>,
    pub(super) target: Box<[u8]>,
}

/// A whiteout, kept aside until it is known what else the layer has.
pub(super) struct Whiteout {
    pub(super) parent: InodeId,
    pub(super) name: NameRef,
}

/// A tree that grows.
pub(super) struct Builder {
    pub(super) options: TreeOptions,
    pub(super) inodes: Vec<Inode>,
    pub(super) dentries: Vec<Dentry>,
    pub(super) names: Names,
    pub(super) table: Table,
    pub(super) xattrs: XattrStore,
    pub(super) whiteouts: Vec<Whiteout>,
    pub(super) waiting: Vec<WaitingLink>,
    pub(super) omissions: Omissions,
    pub(super) last_dir: Option<LastDir>,
    pub(super) symlink_steps: u64,
}

impl Tree {
    /// Plays `entries` in their order.
    ///
    /// # Errors
    /// [`TreeError::Entries`] when reading an entry fails; else what makes the layer impossible to show.
    pub fn build<'a, E>(
        entries: impl IntoIterator<Item = Result<TocEntry<'a>, E>>,
        options: TreeOptions,
    ) -> Result<Self, TreeError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut builder = Builder::new(options);
        for entry in entries {
            builder.add(&entry.map_err(|e| TreeError::Entries { source: e.into() })?)?;
        }
        builder.finish()
    }
}

impl Builder {
    fn new(options: TreeOptions) -> Self {
        Self {
            options,
            // The root is never among the implied directories: nearly no upper layer lists it, and whoever unpacks
            // leaves it alone.
            inodes: vec![Inode { implied: false, ..Inode::IMPLIED_DIR }],
            dentries: Vec::new(),
            names: Names::default(),
            table: Table::default(),
            xattrs: XattrStore::default(),
            whiteouts: Vec::new(),
            waiting: Vec::new(),
            omissions: Omissions::default(),
            last_dir: None,
            symlink_steps: 0,
        }
    }

    fn add(&mut self, entry: &TocEntry<'_>) -> Result<(), TreeError> {
        let Some((parent, name)) = self.locate(&entry.name)? else {
            return self.add_root(entry);
        };
        match path::mark(name) {
            Mark::None => {}
            Mark::Opaque => {
                self.inodes[parent.index()].opaque = true;
                return Ok(());
            }
            Mark::Whiteout(hidden) => {
                let name = self.names.add(hidden)?;
                self.whiteouts.push(Whiteout { parent, name });
                return Ok(());
            }
            Mark::Meaningless => {
                self.omissions.ignored_entries += 1;
                return Ok(());
            }
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(TreeError::NameTooLong { path: shown(&entry.name), len_bytes: name.len() });
        }
        if entry.kind == EntryKind::Hardlink {
            return self.add_link(parent, name, entry);
        }
        let inode = self.inode_of(entry)?;
        if inode.is_dir()
            && let Some(old) = self.child(parent, name)
            && self.inodes[old.index()].is_dir()
        {
            // The same directory again: what it holds stays, what it is like changes.
            let opaque = self.inodes[old.index()].opaque;
            self.inodes[old.index()] = Inode { opaque, ..inode };
            return Ok(());
        }
        let id = self.new_inode(inode)?;
        self.enter(parent, name, id)
    }

    /// An entry whose name is the root itself: attributes of the root, when it is a directory.
    fn add_root(&mut self, entry: &TocEntry<'_>) -> Result<(), TreeError> {
        if entry.kind == EntryKind::Dir {
            let inode = self.inode_of(entry)?;
            let root = &mut self.inodes[InodeId::ROOT.index()];
            *root = Inode { opaque: root.opaque, ..inode };
        } else {
            self.omissions.ignored_entries += 1;
        }
        Ok(())
    }

    fn inode_of(&mut self, entry: &TocEntry<'_>) -> Result<Inode, TreeError> {
        let path = || shown(&entry.name);
        let (major, minor) = (entry.devmajor, entry.devminor);
        if matches!(entry.kind, EntryKind::Char | EntryKind::Block) && (major >= 1 << 12 || minor >= 1 << 20) {
            return Err(TreeError::DeviceNumber { path: path(), major, minor });
        }
        let body = match entry.kind {
            EntryKind::Reg => {
                if entry.data.end() > self.options.layer_size {
                    let layer_size_bytes = self.options.layer_size.get();
                    return Err(TreeError::BeyondLayer { path: path(), data: entry.data, layer_size_bytes });
                }
                Body::File { data: entry.data }
            }
            EntryKind::Dir => Body::EMPTY_DIR,
            EntryKind::Symlink => {
                let target = &*entry.linkname;
                if target.is_empty() || target.len() > MAX_TARGET_BYTES || target.contains(&0) {
                    return Err(TreeError::BadSymlink { path: path(), len_bytes: target.len() });
                }
                Body::Symlink { target: self.names.add(target)? }
            }
            EntryKind::Char => {
                self.omissions.bare_whiteouts += u64::from(major == 0 && minor == 0);
                Body::Char { major, minor }
            }
            EntryKind::Block => Body::Block { major, minor },
            EntryKind::Fifo => Body::Fifo,
            // The caller has taken hard links aside.
            EntryKind::Hardlink => Body::Waiting { link: u32::MAX },
        };
        let xattrs = if entry.pax.is_empty() {
            XattrSetId::EMPTY
        } else {
            let found = xattr::from_pax(entry.pax.iter().map(|(k, v)| (&**k, &**v)), &mut self.omissions);
            self.xattrs.intern(found)
        };
        Ok(Inode {
            body,
            mtime: ModTime { secs: entry.mtime.secs, nanos: entry.mtime.nanos.min(999_999_999) },
            uid: entry.uid,
            gid: entry.gid,
            xattrs,
            // The mask leaves 12 bits.
            mode: (entry.mode & 0o7777) as u16,
            implied: false,
            ..Inode::IMPLIED_DIR
        })
    }

    fn add_link(&mut self, parent: InodeId, name: &[u8], entry: &TocEntry<'_>) -> Result<(), TreeError> {
        let names = || (shown(&entry.name), shown(&entry.linkname));
        match self.find(&entry.linkname)? {
            Some(target) if self.inodes[target.index()].is_dir() => {
                let (path, target) = names();
                Err(TreeError::LinkToDirectory { path, target })
            }
            // A link to itself changes nothing: entering the same inode again is no change.
            Some(target) => self.enter(parent, name, target),
            None => {
                // Archivers write targets first, but a table of contents may be in another order: wait for the end.
                let link = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
                let inode = self.new_inode(Inode { body: Body::Waiting { link }, ..Inode::IMPLIED_DIR })?;
                let (path, target) = (Box::from(&*entry.name), Box::from(&*entry.linkname));
                self.waiting.push(WaitingLink { inode, path, target });
                self.enter(parent, name, inode)
            }
        }
    }

    pub(super) fn child(&self, dir: InodeId, name: &[u8]) -> Option<InodeId> {
        let number = self.table.find(&self.dentries, &self.names, dir, name)?;
        Some(self.dentries[number].inode)
    }

    pub(super) fn new_inode(&mut self, inode: Inode) -> Result<InodeId, TreeError> {
        let limit = self.options.max_inodes;
        let id = u32::try_from(self.inodes.len()).ok().filter(|&id| id < limit);
        let id = InodeId(id.ok_or(TreeError::TooManyInodes { limit })?);
        self.inodes.push(inode);
        Ok(id)
    }

    /// Makes `name` mean `inode`, whatever it meant before.
    pub(super) fn enter(&mut self, parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), TreeError> {
        if let Some(number) = self.table.find(&self.dentries, &self.names, parent, name) {
            let old = std::mem::replace(&mut self.dentries[number].inode, inode);
            if matches!(self.inodes[old.index()].body, Body::Dir { .. } | Body::Symlink { .. }) {
                self.last_dir = None;
            }
            return Ok(());
        }
        if self.dentries.len() >= self.options.max_inodes as usize {
            return Err(TreeError::TooManyInodes { limit: self.options.max_inodes });
        }
        let name = self.names.add(name)?;
        self.dentries.push(Dentry { name, parent, inode });
        self.table.enter_last(&self.dentries, &self.names);
        Ok(())
    }
}

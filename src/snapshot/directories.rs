//! Directories of snapshots: `SNAPSHOTS/ID/fs`, with `SNAPSHOTS/ID/work` beside it for what is written to.
//!
//! Of a snapshot that is a shown layer, `fs` is a symbolic link to where the node shows it: containerd shortens the
//! lower directories of an overlay to what follows their common part, and with `ID/fs` each, hundreds fit in the page
//! that mount(2) takes.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::info::{SnapshotId, Usage};

/// Prefix of what is being made or removed.
const UNFINISHED: &str = "tmp-";

/// The directory that holds all of them.
#[derive(Debug, Clone)]
pub struct Directories {
    root: PathBuf,
}

impl Directories {
    /// Makes `root` where it is not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        // Container runtimes of other users pass through; what is listed here is nobody's business.
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o711))?;
        Ok(Self { root })
    }

    /// Root of a snapshot's files.
    #[must_use]
    pub fn fs(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.to_string()).join("fs")
    }

    /// Work directory of overlayfs.
    #[must_use]
    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.to_string()).join("work")
    }

    /// Makes the directories of a snapshot that is written to or viewed. Its root belongs to `owner` (user and group):
    /// the root of a container belongs to whom the image's does. Its mode is 0755, as containerd's is.
    ///
    /// # Errors
    /// What the system says; nothing is left.
    pub fn make(&self, id: SnapshotId, writable: bool, owner: Option<(u32, u32)>) -> io::Result<()> {
        self.put(id, |dir| {
            let fs = dir.join("fs");
            std::fs::DirBuilder::new().mode(0o755).create(&fs)?;
            std::fs::set_permissions(&fs, std::fs::Permissions::from_mode(0o755))?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::chown(&fs, Some(user), Some(group))?;
            }
            if writable {
                std::fs::DirBuilder::new().mode(0o711).create(dir.join("work"))?;
            }
            Ok(())
        })
    }

    /// Makes the directory of a snapshot that is shown at `target`.
    ///
    /// # Errors
    /// What the system says; nothing is left.
    pub fn link(&self, id: SnapshotId, target: &Path) -> io::Result<()> {
        if std::fs::read_link(self.fs(id)).is_ok_and(|now| now == target) {
            return Ok(());
        }
        self.discard(id)?;
        self.put(id, |dir| std::os::unix::fs::symlink(target, dir.join("fs")))
    }

    /// Makes a directory under another name first: what is there is whole.
    fn put(&self, id: SnapshotId, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let unfinished = self.root.join(format!("{UNFINISHED}new-{id}"));
        remove_tree(&unfinished)?;
        let made = (|| {
            std::fs::DirBuilder::new().mode(0o711).create(&unfinished)?;
            fill(&unfinished)?;
            std::fs::rename(&unfinished, self.root.join(id.to_string()))
        })();
        if made.is_err() {
            let _ = remove_tree(&unfinished);
        }
        made
    }

    /// Takes a snapshot's directory out of sight and removes it.
    ///
    /// # Errors
    /// What the system says; [`Self::sweep`] removes what stays.
    pub fn discard(&self, id: SnapshotId) -> io::Result<()> {
        let unfinished = self.root.join(format!("{UNFINISHED}rm-{id}"));
        match std::fs::rename(self.root.join(id.to_string()), &unfinished) {
            Ok(()) => remove_tree(&unfinished),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes directories that belong to no snapshot.
    ///
    /// # Errors
    /// The first that could not be removed; the others are gone.
    pub fn sweep(&self, belongs: impl Fn(&str) -> bool) -> io::Result<()> {
        let mut first_error = None;
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(&belongs) {
                continue;
            }
            if let Err(error) = remove_tree(&entry.path()) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// User and group of a snapshot's own root directory.
    ///
    /// # Errors
    /// What the system says.
    pub fn owner(&self, id: SnapshotId) -> io::Result<(u32, u32)> {
        let meta = std::fs::symlink_metadata(self.fs(id))?;
        Ok((meta.uid(), meta.gid()))
    }

    /// What a snapshot's own files take. A file with several names counts once.
    ///
    /// # Errors
    /// What the system says.
    pub fn usage(&self, id: SnapshotId) -> io::Result<Usage> {
        let mut usage = Usage::default();
        let mut seen = std::collections::HashSet::new();
        let mut todo = vec![self.fs(id)];
        while let Some(path) = todo.pop() {
            let meta = match std::fs::symlink_metadata(&path) {
                // Somebody writes there meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            usage.inodes += 1;
            // stat(2): st_blocks counts 512-byte units.
            usage.bytes += meta.blocks() * 512;
            if meta.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    todo.push(entry?.path());
                }
            }
        }
        Ok(usage)
    }
}

/// Removes a directory and all below; one that is not there is as good.
fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

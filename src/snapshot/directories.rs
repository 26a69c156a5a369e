//! Directories of snapshots: `SNAPSHOTS/ID/fs`, with `SNAPSHOTS/ID/work` beside it for what is written to.
//!
//! Of a snapshot that is a shown layer, `fs` is a symbolic link to where the node shows it: containerd shortens the
//! lower directories of an overlay to what follows their common part, and with `ID/fs` each, hundreds fit in the page
//! that mount(2) takes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::info::{SnapshotId, Usage};

/// Prefix of what is being made or removed.
const UNFINISHED: &str = "tmp-";

/// The directory that holds all of them.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    /// Held while entries of `root` come and go: several requests may need the same link at once.
    changing: Mutex<()>,
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
        Ok(Self { root, changing: Mutex::default() })
    }

    /// Root of a snapshot's files.
    #[must_use]
    pub fn fs(&self, id: SnapshotId) -> PathBuf {
        self.of(id).join("fs")
    }

    /// Work directory of overlayfs.
    #[must_use]
    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.of(id).join("work")
    }

    fn of(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// Makes the directories of a snapshot that is written to or viewed. Its root belongs to `owner` (user and group):
    /// the root of a container belongs to whom the image's does. Its mode is 0755, as containerd's is.
    ///
    /// # Errors
    /// What the system says; nothing is left.
    pub fn make(&self, id: SnapshotId, writable: bool, owner: Option<(u32, u32)>) -> io::Result<()> {
        let _changing = self.changing();
        self.put(id, |dir| {
            let fs = dir.join("fs");
            make_dir(&fs, 0o755)?;
            if let Some((user, group)) = owner {
                std::os::unix::fs::chown(&fs, Some(user), Some(group))?;
            }
            if writable { make_dir(&dir.join("work"), 0o711) } else { Ok(()) }
        })
    }

    /// Makes the directory of a snapshot that is shown at `target`, or lets the one that is there lead to it. `fs` is
    /// there all the time: somebody may mount it just now.
    ///
    /// # Errors
    /// What the system says; nothing is left.
    pub fn link(&self, id: SnapshotId, target: &Path) -> io::Result<()> {
        let fs = self.fs(id);
        if std::fs::read_link(&fs).is_ok_and(|now| now == target) {
            return Ok(());
        }
        let _changing = self.changing();
        if !std::fs::symlink_metadata(&fs).is_ok_and(|meta| meta.is_symlink()) {
            return self.put(id, |dir| symlink(target, dir.join("fs")));
        }
        let unfinished = self.unfinished("new", OsStr::new(&id.to_string()));
        remove_tree(&unfinished)?;
        symlink(target, &unfinished)?;
        std::fs::rename(&unfinished, &fs).inspect_err(|_| {
            let _ = remove_tree(&unfinished);
        })
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unfinished(&self, what: &str, name: &OsStr) -> PathBuf {
        let mut file = OsString::from(format!("{UNFINISHED}{what}-"));
        file.push(name);
        self.root.join(file)
    }

    /// Makes a directory under another name first: what is there is whole. One that is in the way belongs to a snapshot
    /// that never came to be.
    fn put(&self, id: SnapshotId, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let name = id.to_string();
        let unfinished = self.unfinished("new", OsStr::new(&name));
        remove_tree(&unfinished)?;
        let made = (|| {
            make_dir(&unfinished, 0o711)?;
            fill(&unfinished)?;
            if let Some(stray) = self.take_out(OsStr::new(&name))? {
                remove_tree(&stray)?;
            }
            std::fs::rename(&unfinished, self.of(id))
        })();
        if made.is_err() {
            let _ = remove_tree(&unfinished);
        }
        made
    }

    /// Takes an entry out of sight and says where it is now; `None` when it is not there.
    fn take_out(&self, name: &OsStr) -> io::Result<Option<PathBuf>> {
        let unfinished = self.unfinished("rm", name);
        remove_tree(&unfinished)?;
        match std::fs::rename(self.root.join(name), &unfinished) {
            Ok(()) => Ok(Some(unfinished)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a snapshot's directory out of sight and removes it.
    ///
    /// # Errors
    /// What the system says; [`Self::strays`] finds what stays.
    pub fn discard(&self, id: SnapshotId) -> io::Result<()> {
        let taken = {
            let _changing = self.changing();
            self.take_out(OsStr::new(&id.to_string()))?
        };
        taken.map_or(Ok(()), |path| remove_tree(&path))
    }

    /// Takes what belongs to none of `ids` out of sight, for [`remove_tree`]. No snapshot may be made meanwhile.
    ///
    /// # Errors
    /// What the system says.
    pub fn strays(&self, ids: &HashSet<SnapshotId>) -> io::Result<Vec<PathBuf>> {
        let _changing = self.changing();
        let names: HashSet<String> = ids.iter().map(ToString::to_string).collect();
        let removing = format!("{UNFINISHED}rm-");
        let mut strays = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            match name.to_str() {
                Some(name) if names.contains(name) => {}
                Some(name) if name.starts_with(&removing) => strays.push(self.root.join(name)),
                // What cannot be renamed is nothing of ours, and is removed where it is.
                _ => strays.extend(self.take_out(&name).unwrap_or_else(|_| Some(self.root.join(&name)))),
            }
        }
        Ok(strays)
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
        let mut seen = HashSet::new();
        let mut todo = vec![self.fs(id)];
        std::fs::symlink_metadata(self.fs(id))?;
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
                match std::fs::read_dir(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    entries => {
                        for entry in entries? {
                            todo.push(entry?.path());
                        }
                    }
                }
            }
        }
        Ok(usage)
    }
}

/// Makes a directory with exactly this mode, whatever the process's umask is.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(mode).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Removes a file, or a directory and all below; what is not there is as good.
///
/// # Errors
/// What the system says.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

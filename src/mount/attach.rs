//! The kernel's mount API in steps: configure a file system (fsopen, fsconfig), make a mount of it that nobody sees
//! (fsmount), and put it into place (move_mount). Only the last step shows, and it never waits for I/O.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::{MountError, MountPath};

/// Longest value of one fsconfig string (Linux `fs/fsopen.c`: `strndup_user(_value, 256)`).
pub(super) const FSCONFIG_VALUE_BYTES: usize = 255;

/// A file system being configured.
pub(super) struct FsContext(OwnedFd);

impl FsContext {
    /// Starts; the kernel loads the file system's module when it can.
    pub(super) fn open(fs_type: &CStr) -> Result<Self, Errno> {
        fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map(Self)
    }

    pub(super) fn set(&self, key: &CStr, value: impl rustix::path::Arg) -> Result<(), Errno> {
        fsconfig_set_string(&self.0, key, value)
    }

    pub(super) fn set_flag(&self, key: &CStr) -> Result<(), Errno> {
        fsconfig_set_flag(&self.0, key)
    }

    /// Makes the file system: for EROFS this reads the super block, so it may wait for whoever serves the image.
    pub(super) fn create(&self) -> Result<(), Errno> {
        fsconfig_create(&self.0)
    }

    /// A mount that no path leads to yet; it vanishes with its descriptor.
    pub(super) fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
        fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// What the kernel said about the last failures, in one line; empty when it said nothing.
    pub(super) fn messages(&self) -> String {
        let mut lines = Vec::new();
        let mut buffer = [0_u8; 512];
        while let Ok(count) = rustix::io::read(&self.0, &mut buffer) {
            let Some(text) = buffer.get(..count).filter(|text| !text.is_empty()) else { break };
            // Each message starts with its level and a space: "e overlay: ...".
            lines.push(String::from_utf8_lossy(text.get(2..).unwrap_or(text)).trim_end().to_owned());
        }
        lines.join("; ")
    }
}

/// Puts a mount into place.
pub(super) fn attach(mount: BorrowedFd<'_>, target: &Path) -> Result<(), MountError> {
    move_mount(mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| MountError::system("mount on", target, errno))
}

/// One more mount of a directory, with the flags of the mount that it lies in. It vanishes with its descriptor.
pub(super) fn copy_of(dir: &MountPath) -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, dir.as_os_str(), flags).map_err(|errno| match errno {
        Errno::NOENT => MountError::SourceMissing { path: dir.clone() },
        _ => MountError::system("show once more", dir.clone(), errno),
    })
}

/// Checks that something can be mounted on `target`, and frees the path of symbolic links.
pub(super) fn resolve_target(target: &MountPath) -> Result<PathBuf, MountError> {
    let unusable = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => MountError::TargetMissing { target: target.clone() },
        Some(Errno::NOTDIR) => MountError::TargetNotDirectory { target: target.clone() },
        // A file system lies there whose server is gone.
        Some(Errno::NOTCONN | Errno::CONNREFUSED | Errno::STALE) => MountError::TargetBusy { target: target.clone() },
        _ => MountError::system("look at", target.clone(), error),
    };
    let resolved = std::fs::canonicalize(target).map_err(unusable)?;
    let facts = statx(CWD, &resolved, AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE).map_err(|e| unusable(e.into()))?;
    if FileType::from_raw_mode(facts.stx_mode.into()) != FileType::Directory {
        return Err(MountError::TargetNotDirectory { target: target.clone() });
    }
    if facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(MountError::TargetBusy { target: target.clone() });
    }
    Ok(resolved)
}

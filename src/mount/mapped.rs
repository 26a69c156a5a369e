//! Mounts whose files belong to others than the file system says: what containers with a user namespace of their own stand
//! on, so that no file has to be copied to change its owner.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{MountError, MountPath};
use crate::sys::id_map::{map_owners, user_namespace};
use crate::units::IdMap;

/// Makes a mount of `source` with its owners mapped, that no path leads to yet.
pub(super) fn prepare(source: &MountPath, map: &IdMap) -> Result<OwnedFd, MountError> {
    let namespace = user_namespace(map).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOSPC) => MountError::system_with(
            "make a user namespace for",
            source.clone(),
            error,
            "user.max_user_namespaces forbids it".to_owned(),
        ),
        _ => MountError::system("make a user namespace for", source.clone(), error),
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, source.as_os_str(), flags).map_err(|errno| match errno {
        Errno::NOENT => MountError::SourceMissing { path: source.clone() },
        _ => MountError::system("show once more", source.clone(), errno),
    })?;
    map_owners(mount.as_fd(), namespace.as_fd()).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL | Errno::NOSYS) => MountError::system_with(
            "map the owners of",
            source.clone(),
            error,
            "this kernel cannot on this file system; EROFS needs Linux 5.19".to_owned(),
        ),
        _ => MountError::system("map the owners of", source.clone(), error),
    })?;
    Ok(mount)
}

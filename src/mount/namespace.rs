//! The daemon's own mount namespace.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

use super::{MountError, mounts};
use crate::sys::namespace::detach_own;

/// Moves the daemon into a mount namespace of its own and returns the one it came from, for
/// [`MountHelper`](super::MountHelper). Call it before the first thread is started.
///
/// The new namespace is a copy that follows the original. EROFS, overlay and our own FUSE mounts in it, which may lie on devices that
/// this daemon is about to serve again, are dropped from the copy (the originals stay): the end of the daemon must not be
/// the last use of a file system that waits for the daemon. Copies of later mounts go when the originals go, so they are
/// never the last. What the paths in `keep` lie on stays.
///
/// # Errors
/// [`MountError::NotPermitted`] without CAP_SYS_ADMIN; [`MountError::System`].
pub fn leave_host_namespace(keep: &[&Path]) -> Result<OwnedFd, MountError> {
    let original =
        detach_own().map_err(|error| MountError::system("leave the mount namespace of", "this process", error))?;
    let copies = mounts().map_err(|error| MountError::Helper { reason: error.to_string() })?;
    for copy in copies.iter().rev() {
        let ours_to_drop = ["erofs", "overlay", "fuse.sociblk"].iter().any(|ours| copy.fs_type == *ours)
            && copy.mount_point != Path::new("/")
            && !keep.iter().any(|path| path.starts_with(&copy.mount_point));
        if ours_to_drop {
            // Not there any more, or shadowed by another mount: in both cases nothing is lost.
            let _ = unmount(&copy.mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    Ok(original)
}

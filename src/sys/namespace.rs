//! Mount namespaces: leaving the one that containers share, and entering it again from a helper process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The mount namespace of the calling thread.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/mnt")?.into())
}

/// Moves the process into a mount namespace of its own, a copy of the one it was in, and returns the original.
///
/// Call it before any other thread exists: namespaces belong to threads, and only threads started afterwards follow.
/// The copy is downstream (`MS_SLAVE`): what is unmounted in the original goes here, too, where it is shared there. A
/// private copy would hold on to every disk that the host had mounted when this process started. Nothing that is done
/// here shows in the original.
///
/// # Errors
/// Needs CAP_SYS_ADMIN.
pub fn detach_own() -> io::Result<OwnedFd> {
    let original = current()?;
    // SAFETY: unsafe because UnshareFlags::FILES could take descriptors away from other threads. Only the mount
    // namespace (and with it, by kernel rule, the thread's root and working directory) is unshared here.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(original)
}

/// Moves the calling thread into the mount namespace `namespace`. Its root and working directory become the root of
/// that namespace; other threads stay where they are.
///
/// # Errors
/// Needs CAP_SYS_ADMIN and CAP_SYS_CHROOT; EINVAL when `namespace` is no mount namespace.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: as above: root and working directory stop being shared with other threads, which setns(2) demands;
    // descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

//! Mounts whose files belong to others than the file system says (mount_setattr(2), "ID-mapped mounts"; Linux 5.12, EROFS
//! and overlayfs above them since 5.19).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::units::IdMap;

/// A user namespace with this mapping, in which nobody is.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOSPC where user namespaces are switched off (`user.max_user_namespaces`).
pub fn user_namespace(map: &IdMap) -> io::Result<OwnedFd> {
    let member = Member::new()?;
    let proc = format!("/proc/{}", member.0.as_raw_nonzero());
    std::fs::write(format!("{proc}/uid_map"), map.users.proc_text())?;
    std::fs::write(format!("{proc}/gid_map"), map.groups.proc_text())?;
    // The descriptor keeps the namespace when its only member is gone.
    Ok(File::open(format!("{proc}/ns/user"))?.into())
}

/// A process that is in a new user namespace and does nothing; it ends with this value.
struct Member(Pid);

impl Member {
    fn new() -> io::Result<Self> {
        // SAFETY: clone(2) with no stack and only CLONE_NEWUSER is fork(2): parent and child have memory of their own.
        // In the child, of which other threads are missing, nothing but system calls follows: no allocation, no lock.
        let id = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) };
        if id == 0 {
            // SAFETY: prctl, pause and _exit take no memory of ours, and are safe after fork (signal-safety(7)).
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
                libc::_exit(0);
            }
        }
        let id = i32::try_from(id).map_err(|_| io::Error::other("a process number beyond all"))?;
        Pid::from_raw(id).filter(|_| id > 0).map(Self).ok_or_else(io::Error::last_os_error)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A child of ours that has not been waited for: the number is nobody else's.
        let _ = kill_process(self.0, Signal::KILL);
        while waitpid(Some(self.0), WaitOptions::empty()).is_err_and(|e| e == rustix::io::Errno::INTR) {}
    }
}

/// Maps the owners of all files of a mount that no path leads to yet, and makes it read-only.
///
/// # Errors
/// EINVAL when its file system cannot have them mapped; EPERM when they are mapped already.
pub fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let namespace = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace,
    };
    // SAFETY: the path is a NUL-terminated literal, and the size is that of the structure that is passed, which the
    // kernel only reads. Both descriptors live as long as the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

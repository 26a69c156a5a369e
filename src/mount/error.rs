//! Why a mount could not be made or removed, in a form that crosses the pipe to the helper process.

use std::io;

use serde::{Deserialize, Serialize};

use super::MountPath;

/// An errno as the kernel returned it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(transparent)]
#[error("{}", io::Error::from_raw_os_error(*.0))]
pub struct OsError(
    /// The errno.
    pub i32,
);

impl From<rustix::io::Errno> for OsError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<io::Error> for OsError {
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()))
    }
}

/// Why an operation failed. Whatever the operations before it did has been undone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MountError {
    /// CAP_SYS_ADMIN is missing.
    #[error("not permitted to {action}: mounting needs root (CAP_SYS_ADMIN in the initial user namespace)")]
    NotPermitted {
        /// What was tried.
        action: String,
    },
    /// There is no such mount point.
    #[error("{target} does not exist: create the directory first")]
    TargetMissing {
        /// The mount point.
        target: MountPath,
    },
    /// The mount point is no directory.
    #[error("{target} is not a directory")]
    TargetNotDirectory {
        /// The mount point.
        target: MountPath,
    },
    /// Something is mounted there already.
    #[error("{target} is already a mount point: unmount it first, or choose another directory")]
    TargetBusy {
        /// The mount point.
        target: MountPath,
    },
    /// The image or a directory to stack is not there.
    #[error("{path} does not exist")]
    SourceMissing {
        /// The image file, block device, or directory.
        path: MountPath,
    },
    /// The image is neither file nor block device.
    #[error("{image} is neither a regular file nor a block device")]
    ImageKind {
        /// The image.
        image: MountPath,
    },
    /// The image holds no EROFS.
    #[error("{image} holds no EROFS file system")]
    NotErofs {
        /// The image.
        image: MountPath,
    },
    /// The kernel has no EROFS.
    #[error("this kernel has no EROFS: load it with `modprobe erofs`, or use a kernel with CONFIG_EROFS_FS")]
    NoErofs,
    /// The kernel has no overlayfs.
    #[error("this kernel has no overlayfs: load it with `modprobe overlay`, or use a kernel with CONFIG_OVERLAY_FS")]
    NoOverlay,
    /// The kernel mounts EROFS from block devices only, and no loop device is to be had.
    #[error(
        "cannot mount {image}: this kernel mounts EROFS from block devices only, and no loop device is available \
         ({source}): use Linux 6.12 or later, or `modprobe loop`"
    )]
    NoLoop {
        /// The image.
        image: MountPath,
        /// Why there is no loop device.
        source: OsError,
    },
    /// Nothing to stack.
    #[error("an overlay on {target} needs at least one lower directory")]
    NoLowers {
        /// The mount point.
        target: MountPath,
    },
    /// A read-only overlay needs two directories, and the second was not given.
    #[error("a read-only overlay of one layer on {target} needs an empty directory below it")]
    EmptyLowerNeeded {
        /// The mount point.
        target: MountPath,
    },
    /// The directory that should be empty is not.
    #[error("{path} must be an empty directory: it lies below a single layer and would show through")]
    EmptyLowerFilled {
        /// The directory.
        path: MountPath,
    },
    /// More layers than the kernel stacks.
    #[error("the image has {count} layers, and this kernel stacks at most {limit}{remedy}")]
    TooManyLowers {
        /// Layers asked for.
        count: usize,
        /// The limit that was met.
        limit: usize,
        /// What would raise the limit; starts with a separator or is empty.
        remedy: String,
    },
    /// Unmounting something in use.
    #[error("{target} is in use: end the processes that use it (`fuser -vm {target}`), or unmount it lazily")]
    InUse {
        /// The mount point.
        target: MountPath,
    },
    /// Unmounting what is not mounted.
    #[error("{target} is not mounted")]
    NotMounted {
        /// The path.
        target: MountPath,
    },
    /// Any other refusal.
    #[error("cannot {action} {path}: {source}{detail}")]
    System {
        /// What was tried.
        action: String,
        /// On what.
        path: MountPath,
        /// What the kernel returned.
        source: OsError,
        /// What it said besides; starts with a separator or is empty.
        detail: String,
    },
    /// The helper process took too long.
    #[error(
        "mounting took longer than {limit_ms} ms and was given up{}; what lies below may not answer: see the daemon's log",
        if *.undone { " and undone" } else { ", but could not be undone yet: the helper process is stuck in the kernel" }
    )]
    TimedOut {
        /// The limit in milliseconds.
        limit_ms: u64,
        /// Whether everything that was done has been undone.
        undone: bool,
    },
    /// The helper process did not do its part.
    #[error("the mount helper failed: {reason}")]
    Helper {
        /// What happened.
        reason: String,
    },
}

impl MountError {
    /// Turns a refused system call into an error, knowing the errnos that mean the same everywhere.
    pub(super) fn system(action: &str, path: impl Into<MountPath>, source: impl Into<OsError>) -> Self {
        Self::system_with(action, path, source, String::new())
    }

    /// As [`system`](Self::system), with what the kernel said besides.
    pub(super) fn system_with(
        action: &str,
        path: impl Into<MountPath>,
        source: impl Into<OsError>,
        detail: String,
    ) -> Self {
        let (path, source) = (path.into(), source.into());
        if source == rustix::io::Errno::PERM.into() {
            return Self::NotPermitted { action: format!("{action} {path}") };
        }
        let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
        Self::System { action: action.to_owned(), path, source, detail }
    }
}

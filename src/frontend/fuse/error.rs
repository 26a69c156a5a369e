//! Why the session cannot do what was asked.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

/// An error of [`FuseServer`](super::FuseServer).
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The directory for the mount cannot be made or looked at.
    #[error("cannot use {} as a mount point: {source}", dir.display())]
    Directory {
        /// The mount point.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something is mounted there already.
    #[error("{} is already a mount point: another daemon may serve this root; stop it or unmount it", dir.display())]
    AlreadyMounted {
        /// The mount point.
        dir: PathBuf,
    },
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse: {source}; load the module with `modprobe fuse`, and run as root")]
    Device {
        /// What the kernel said.
        source: io::Error,
    },
    /// mount(2) refused.
    #[error("cannot mount FUSE on {}: {source}", dir.display())]
    Mount {
        /// The mount point.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel and this program could not agree on a protocol.
    #[error("the FUSE handshake failed: {source}")]
    Handshake {
        /// What went wrong.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a FUSE thread: {source}")]
    Thread {
        /// What the kernel said.
        source: io::Error,
    },
    /// The name cannot be a file name.
    #[error("{name:?} cannot be an image name: 1 to 255 bytes, no '/', neither \".\" nor \"..\"")]
    BadName {
        /// The name as given.
        name: OsString,
    },
    /// The name is taken.
    #[error("image {name:?} is already served")]
    Exists {
        /// The name as given.
        name: OsString,
    },
    /// No image has the name.
    #[error("image {name:?} is not served")]
    NotFound {
        /// The name as given.
        name: OsString,
    },
    /// Somebody, usually a mount, holds the image open.
    #[error("image {name:?} is open: unmount what lies on it first")]
    Busy {
        /// The name of the image.
        name: OsString,
    },
    /// The connection that was to be taken over has ended.
    #[error("nobody has an image of the last daemon open any more")]
    Gone,
    /// The connection that was to be taken over is not the one that was written down.
    #[error("the FUSE connection that was kept is not the one that the last daemon wrote down")]
    OtherConnection,
    /// The session has ended.
    #[error("the FUSE session has ended")]
    Closed,
    /// The FUSE mount cannot be removed.
    #[error("cannot unmount {}: {source}", dir.display())]
    Unmount {
        /// The mount point.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

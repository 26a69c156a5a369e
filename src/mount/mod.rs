//! Mounts and unmounts EROFS and overlayfs: paths and flags, nothing of images.
//!
//! mount(2) reads from what it mounts, and what it mounts is served by this very program. So the daemon never calls it:
//! it describes what to do as [`MountOp`]s and has a short-lived helper process do it ([`MountHelper`]), in the mount
//! namespace where containers look for it. A list of operations is done as a whole or not at all.
//!
//! `kernel-notes/overlay-mount-api.md` and `kernel-notes/erofs-file-backed.md` hold the kernel facts.

mod attach;
mod client;
mod erofs;
mod error;
pub mod helper;
mod mapped;
mod mountinfo;
mod namespace;
mod ops;
mod overlay;
mod path;
mod probe;

#[cfg(test)]
mod tests;

pub use client::MountHelper;
pub use error::{MountError, OsError};
pub use mountinfo::{MountEntry, MountInfoError, is_mountpoint, mounts, mounts_in, mounts_under, parse_mountinfo};
pub use namespace::leave_host_namespace;
pub use ops::{MountOp, UpperDirs, execute};
pub use path::MountPath;
pub use probe::{Probe, ProbeState, probe_all};

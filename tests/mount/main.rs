//! `sociblk mount` end to end: the real binary, its daemon, the kernel's EROFS and overlayfs over the fuse-image
//! frontend, and a registry on loopback that misbehaves. Needs root, /dev/fuse, EROFS and overlayfs.
//!
//! Every test has a root directory, a mount namespace and a registry of its own and ends its daemon whatever happens.

mod corpus;
mod crashes;
mod faults;
mod hostile;
mod hosts;
mod images;
mod layers;
mod order;
mod read_ahead;
mod scale;
mod secrets;
mod support;
mod survival;
mod usage;

/// What shows layers; `tests/fuse_fs` runs the same tests over another one.
pub const FRONTEND: &str = "fuse-image";
/// The socket of the process that keeps its connection, in the folder `run` of the root directory.
pub const HOLDER_SOCKET: &str = "holder.sock";

//! `sociblk mount --frontend fuse-fs` end to end: the tests of `tests/mount`, with every file served by itself instead of
//! EROFS on an image; and what the two frontends show, side by side. Needs root, /dev/fuse, EROFS and overlayfs.

#[path = "../mount/corpus.rs"]
mod corpus;
#[path = "../mount/crashes.rs"]
mod crashes;
#[path = "../mount/faults.rs"]
mod faults;
#[path = "../mount/hostile.rs"]
mod hostile;
#[path = "../mount/images.rs"]
mod images;
#[path = "../mount/layers.rs"]
mod layers;
mod rings;
mod same;
#[path = "../mount/support.rs"]
mod support;
#[path = "../mount/survival.rs"]
mod survival;

/// What shows layers.
pub const FRONTEND: &str = "fuse-fs";
/// The socket of the process that keeps its connection, in the folder `run` of the root directory.
pub const HOLDER_SOCKET: &str = "files-holder.sock";

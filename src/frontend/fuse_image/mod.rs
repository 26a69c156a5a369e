//! The `fuse-image` frontend: every layer is one read-only file of a single FUSE file system, and EROFS is mounted on
//! that file (directly from Linux 6.12 on, else through a loop device). For hosts without ublk.
//!
//! One FUSE mount serves the whole daemon; layers come and go as files in it. Session threads answer what is present
//! from the local files at once; a read that has to wait leaves its thread, and a small pool answers it when its
//! [`Backend`] says so. No session thread waits for the network, so a slow registry holds up its own readers only.
//!
//! `kernel-notes/fuse-image.md` says which kernel behaviour this leans on and what was measured.

mod channel;
mod config;
mod counters;
mod error;
mod filesystem;
pub mod holder;
mod mount;
mod pool;
mod read;
mod session;
mod table;

pub use config::FuseConfig;
pub use counters::FuseCounters;
pub use error::FuseError;
pub use session::{FuseImage, FuseImages, FuseSession};

use super::{Backend, ReadError, Readiness, Segments, SourceFile};

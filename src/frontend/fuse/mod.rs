//! A FUSE server in this process, spoken to over `/dev/fuse` without a library: what `fuse_image` and `fuse_fs` have in
//! common.
//!
//! One mount serves all layers of a frontend. Its root directory holds a name for each; what lies behind a name is a
//! [`Content`] with inode numbers of its own: a single file (`fuse_image`) or a tree of files (`fuse_fs`). Session
//! threads answer what is present from the local files at once; a read that has to wait leaves its thread, and a small
//! pool answers it when its [`Backend`] says so. No session thread waits for the network, so a slow registry holds up its
//! own readers only.
//!
//! The server keeps no account of the kernel's references, so that another one can take over ([`holder`]).

mod channel;
mod config;
mod content;
mod counters;
mod error;
pub mod holder;
mod identity;
mod interrupt;
mod listing;
mod live;
mod mount;
mod pool;
mod postbox;
mod read;
mod rings;
mod server;
mod session;
mod table;

pub use config::{FuseConfig, FuseKind};
pub use content::Content;
pub use counters::FuseCounters;
pub use error::FuseError;
pub use identity::{FuseNode, FuseSession};
pub use session::FuseServer;

pub(super) use config::{FILE_NUMBER_BITS, VALID_S};
pub(super) use content::{Request, Served};
pub(super) use listing::Listing;

use super::{Backend, ReadError, Readiness, Segments, SourceFile};

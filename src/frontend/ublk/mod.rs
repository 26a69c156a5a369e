//! Layers as block devices: one process, a few ring threads, hundreds of ublk devices.
//!
//! The way of a request: the driver completes a tag's command on the **ring thread** that owns the device
//! ([`ring_thread`]); the [`engine`] asks the [`Backend`] where the bytes lie and whether they are here; local files
//! are read through the same io_uring, straight into the request's pages where the kernel can ([`DataMode`]); the answer
//! is committed, which waits for the tag's next request. A miss leaves the thread once, as a completion that comes back
//! through the thread's [`mailbox`]. Nothing else ever waits on a ring thread, and no byte of data passes through Rust code.
//!
//! Control commands run one after the other on a **control thread** ([`control`]), each with a time limit: known-bad
//! kernels hang in ADD_DEV, and START_DEV waits for the ring thread's fetches. `docs/decisions/ublk-ring.md` tells why
//! this is not libublk; `kernel-notes/ublk-*.md` hold the kernel facts.

mod config;
mod control;
mod engine;
mod error;
mod mailbox;
mod manager;
mod own;
mod request;
mod ring_thread;
mod slots;
mod stats;
mod ticket;
mod token;

pub use config::{DataMode, UblkConfig};
pub use error::UblkError;
pub use manager::{UblkDevice, UblkFrontend};
pub use own::{DeviceState, Features, OwnDevice};
pub use stats::DeviceCounters;

#[cfg(doc)]
use super::Backend;

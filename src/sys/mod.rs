//! System calls, ABI structs and the inner loop of inflate: the only home of `unsafe` (the crate denies it elsewhere).
//!
//! Each block says why it is unsafe at all and which preconditions hold. Nothing of ours but `units` is known here.
#![allow(unsafe_code)]

pub mod bdi;
pub mod fuse;
mod fuse_entry;
pub mod fuse_ring;
pub mod id_map;
pub mod inflate;
pub mod loop_device;
pub mod mapping;
pub mod memory;
pub mod namespace;
pub mod process;
pub mod ring;
pub mod thread;
pub mod ublk;
pub mod ublk_control;
mod uring;

//! System calls and ABI structs: the only home of `unsafe` (the crate denies it elsewhere).
//!
//! Each block says why it is unsafe at all and which preconditions hold. Nothing of ours but `units` is known here.
#![allow(unsafe_code)]

pub mod loop_device;
pub mod namespace;
/// A gzip decoder that stops at deflate block boundaries.
pub mod zlib;

//! What the `soci` command does, under the same names: one file for each command, with its arguments.

pub mod convert;
pub mod create;
pub mod push;

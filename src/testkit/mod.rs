//! Test doubles for the crate's own tests and for those that embed it; never part of a release build.

pub mod registry;

//! (facade to come)

pub mod build;

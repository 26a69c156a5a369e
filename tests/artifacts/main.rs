//! `create`, `convert` and `push` against a registry on loopback (our own conformance server, with and without the
//! referrers endpoint), layouts and archives; and what becomes of bad input.

mod bad;
mod convert;
mod create;
mod support;

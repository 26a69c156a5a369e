//! `create`, `convert` and `push` against a registry on loopback (our own conformance server, with and without the
//! referrers endpoint), layouts and archives; and what becomes of bad input. `index why` and `index verify` with them.

mod bad;
mod convert;
mod create;
mod support;
mod verify;
mod zstd;

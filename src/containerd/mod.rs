//! containerd by its own interface (gRPC over a unix socket): content, images, leases, namespaces,
//! snapshots, diffs. One file for each service.
//!
//! Knows what containerd keeps and how it collects garbage, never what an image, a SOCI index or a registry is.
//!
//! Facts that are relied on (containerd 1.6 to 2.x, `api/services/*`, `docs/garbage-collection.md`):
//!
//! - every request names its namespace; content, images and leases of one namespace are not seen in another;
//! - content stays while something refers to it: an image record by its target or by labels, other content by labels
//!   ([`labels`]), or a lease;
//! - what is written in a request that names a lease belongs to the lease, also when it was there before;
//! - content has its digest: containerd checks it when it is written.

mod address;
mod client;
mod containers;
mod content;
mod diff;
mod error;
mod images;
pub mod labels;
mod leases;
mod namespaces;
mod snapshots;
#[cfg(test)]
mod tests;
mod write;

pub use address::{Address, DEFAULT_NAMESPACE, DEFAULT_SOCKET};
pub use client::Client;
pub use containers::Container;
pub use content::{ByteStream, Info};
pub use error::{BoxError, ContainerdError};
pub use images::{Image, Target};
pub use leases::{LEASE_LIFE, Lease};
pub use snapshots::{Mounts, PreparedLayer, Snapshot};
pub use write::{NewContent, Written};

//! sociblk starts containers from unmodified OCI images before their bytes have arrived.
//!
//! The modules stand in the order in which a byte travels; `tests/architecture` holds the table of who may name whom.

/// Words shared by all: digests, offsets, ranges. No I/O.
pub mod units;

/// containerd's own interface: content, images, leases, namespaces.
pub mod containerd;

/// Far bytes: (reference | digest, byte range) to bytes; auth, mirrors, retries.
pub mod registry;

/// SQLite files of our own: whose they are, and whether they can be used.
pub mod database;

/// CRI's image service, passed on to containerd; the credentials of its pulls.
pub mod cri;

/// Image pull secrets of a Kubernetes cluster.
pub mod kubernetes;

/// SOCI's documents: index manifests, artifacts, discovery, zTOC building, the local store.
pub mod soci;

/// Where a layer can be entered: zTOC and zinfo, layer ranges to blob ranges. Pure.
pub mod spans;

/// From a restart point and blob bytes to layer bytes. Pure.
pub mod inflate;

/// What the tar headers say: inodes, hard links, whiteouts, opaque directories. Pure.
pub mod tree;

/// The device's address space: EROFS metadata bytes and the extent table. Pure.
pub mod erofs;

/// What an image's command needs to be loaded. Pure.
pub mod program;

/// Load orders: which spans of an image are read first.
pub mod order;

/// Layer files: which spans are here, proven or not. Local disk only.
pub mod cache;

/// "Make this layer range present", once per span: the one crossing from block threads to async.
pub mod fill;

/// Kernel requests in, bytes out: ublk, fuse-image and fuse-fs over one `Backend` trait.
pub mod frontend;

/// Mounts and unmounts EROFS and overlayfs.
pub mod mount;

/// containerd's snapshots service: its database, its rules, its mounts.
pub mod snapshot;

/// Wires all of it: the daemon, start, stop, recovery.
pub mod node;

/// The index builder: notifications of registries in, indexes out; a durable queue between.
pub mod builder;

/// System calls and ABI structs: the only home of `unsafe`.
pub mod sys;

/// Typed settings.
pub mod config;

/// Metric names, log set-up.
pub mod observe;

/// Flags to settings, output for people and machines.
pub mod cli;

/// Test doubles: registries, faults, layer maker.
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;

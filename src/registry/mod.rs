//! Far bytes: (reference | digest, byte range) to bytes, with auth, mirrors and retries. Knows HTTP, local layouts and
//! containerd's content store, never gzip, tar or blocks.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::units::{BlobOffset, BlobRange, Digest};

mod archive;
mod auth;
mod backoff;
mod challenge;
mod client;
mod config;
mod credentials;
mod docker_auths;
pub mod document;
mod error;
mod file;
mod hosts;
mod http;
mod image;
mod keychain;
mod layout;
mod layout_writer;
mod platform;
mod push;
mod reference;
mod referrers;
mod remote;
mod resolve;
mod root;
mod sources;
mod stored;
mod tls;
mod transport;

pub use backoff::{Backoff, BackoffConfig, retry};
pub use client::Client;
pub use config::{ClientConfig, Http2};
pub use credentials::{Login, Secret};
pub use docker_auths::DockerAuths;
pub use document::{Descriptor, DocumentError};
pub use error::{Phase, RegistryError};
pub use hosts::{HostsError, Mirror};
pub use image::{Document, Image, LayerCompression, LayerDescriptor};
pub use keychain::{Keychain, Keychains, Wanted};
pub use layout_writer::LayoutWriter;
pub use platform::Platform;
pub use push::{PushedManifest, Sent, Upload};
pub use reference::{ImageRef, ImageSource, LayoutName};
pub use referrers::{ReferrersBy, fallback_tag};
pub use root::Root;
pub use sources::Sources;
pub use stored::{CONTAINERD_SCHEME, OWN_INDEX_REFERENCE, SOCI_INDEX_REFERENCE, StoredImage};
pub use tls::{ClientPair, TlsSettings};

/// Bytes on their way, beginning at `starts_at`.
pub struct BlobStream {
    /// Blob position of the first byte that `bytes` yields. It is 0 when the server ignored the range and sends the
    /// whole blob; else the start of the range that was asked for.
    pub starts_at: BlobOffset,
    /// The bytes, in order. Ends early only with an error item.
    pub bytes: BoxStream<'static, Result<Bytes, RegistryError>>,
}

/// A layer blob somewhere: a registry, an OCI layout, a file.
pub trait BlobSource: Send + Sync + 'static {
    /// The blob's digest, as the image manifest has it.
    fn digest(&self) -> Digest;
    /// The blob's size, as the image manifest has it.
    fn size(&self) -> BlobOffset;
    /// For people: `registry.example/repo@sha256:...`, or a path.
    fn describe(&self) -> String;
    /// Opens one range. One attempt: the caller decides about retries by [`RegistryError`]'s predicates.
    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>>;
    /// Tells that the bytes of `range`, as they were last sent, are not the blob's: whoever sent them is asked last from
    /// now on. Whether there is now somebody else to ask; says so at most once for each place that has the blob.
    fn reject(&self, _range: BlobRange) -> bool {
        false
    }
}

#[cfg(test)]
#[path = "tests/foreign.rs"]
mod foreign;

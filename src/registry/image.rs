//! What resolving gives: an image, its documents, its layers.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{ImageSource, Platform};
use crate::units::{BlobOffset, Digest};

/// A document with its digest, bytes kept as they came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// sha256 of `bytes`.
    pub digest: Digest,
    /// Its media type; empty when nothing says it.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// How a layer is compressed, by its media type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayerCompression {
    /// A plain tar.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// Encrypted, or of a kind that is not known here.
    Other,
}

/// One layer of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerDescriptor {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob.
    pub size: BlobOffset,
    /// Media type of the blob.
    pub media_type: String,
    /// Annotations of the descriptor.
    pub annotations: BTreeMap<String, String>,
    /// Digest of the uncompressed tar, from the image config; `None` for a bare layer file, which has no config.
    pub diff_id: Option<Digest>,
}

impl LayerDescriptor {
    /// How the blob is compressed.
    #[must_use]
    pub fn compression(&self) -> LayerCompression {
        match self.media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => LayerCompression::None,
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => LayerCompression::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => LayerCompression::Zstd,
            _ => LayerCompression::Other,
        }
    }
}

/// A resolved image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Where it comes from; blobs and referrers are asked for there.
    pub source: ImageSource,
    /// The platform manifest; `None` for a bare layer file.
    pub manifest: Option<Document>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The image config; `None` for a bare layer file.
    pub config: Option<Document>,
    /// For which machine; `None` when nothing says it.
    pub platform: Option<Platform>,
    /// Layers, lowest first.
    pub layers: Vec<LayerDescriptor>,
}

//! SOCI index documents, v1 and v2, and our own for zstd layers: OCI image manifests whose "layers" are zTOCs. Pure.
//!
//! Format: awslabs/soci-snapshotter, `soci/soci_index.go`. The kind stands in `config.mediaType` alone. Bytes are kept
//! as they came: whoever serializes a parsed index again may lose the digest.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{SociError, go_json};
use crate::registry::document::{Descriptor, ManifestDocument, media_type, parse_manifest};
use crate::units::{BlobOffset, Digest};

/// Config media type, which is also the artifact type, of a v1 index.
pub const V1_TYPE: &str = "application/vnd.amazon.soci.index.v1+json";
/// Config media type, which is also the artifact type, of a v2 index.
pub const V2_TYPE: &str = "application/vnd.amazon.soci.index.v2+json";
/// Config media type, which is also the artifact type, of our own index of zstd layers. SOCI has no zTOCs for them, and must
/// not be offered ours: it asks for its own types alone.
pub const OWN_TYPE: &str = "application/vnd.sociblk.index.v1+json";
/// Media type of the zTOC of a zstd layer.
pub const OWN_ZTOC_TYPE: &str = "application/vnd.sociblk.ztoc.zstd.v1";
/// Media type of a zTOC blob.
pub const ZTOC_TYPE: &str = "application/octet-stream";
/// Media type of a prefetch blob.
pub const PREFETCH_TYPE: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// Annotation of an image manifest: digest of its v2 index.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

const BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
const SPAN_SIZE: &str = "com.amazon.soci.span-size";
const DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";

/// The config blob of every SOCI index: an empty JSON object.
pub const CONFIG: &[u8] = b"{}";

/// Longest zTOC that is fetched, whatever an index says: 1 GiB, the checkpoints of a 128 GiB layer.
pub const MAX_ZTOC_BYTES: u64 = 1 << 30;

/// How an index belongs to its image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// By its subject, the platform manifest; found through referrers.
    V1 {
        /// Digest, media type and size of the platform manifest. Absent in documents that lost it.
        subject: Option<Subject>,
    },
    /// By an annotation of the platform manifest.
    V2,
    /// Ours, of zstd layers: by its subject, the platform manifest; found through referrers.
    Own {
        /// Digest, media type and size of the platform manifest.
        subject: Option<Subject>,
    },
}

impl Kind {
    /// Config media type and artifact type.
    #[must_use]
    pub fn artifact_type(&self) -> &'static str {
        match self {
            Self::V1 { .. } => V1_TYPE,
            Self::V2 => V2_TYPE,
            Self::Own { .. } => OWN_TYPE,
        }
    }

    /// Media type of the zTOCs that it lists.
    #[must_use]
    pub fn ztoc_type(&self) -> &'static str {
        match self {
            Self::V1 { .. } | Self::V2 => ZTOC_TYPE,
            Self::Own { .. } => OWN_ZTOC_TYPE,
        }
    }

    /// The manifest that it names.
    #[must_use]
    pub fn subject(&self) -> Option<&Subject> {
        match self {
            Self::V1 { subject } | Self::Own { subject } => subject.as_ref(),
            Self::V2 => None,
        }
    }
}

/// The image manifest that a v1 index, or one of ours, belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// Media type of the manifest.
    pub media_type: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Size of the manifest.
    pub size: BlobOffset,
}

/// A zTOC that an index lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZtocEntry {
    /// Digest of the zTOC.
    pub digest: Digest,
    /// Size of the zTOC, at most [`MAX_ZTOC_BYTES`].
    pub size: BlobOffset,
    /// The layer it describes.
    pub layer_digest: Digest,
    /// Media type of that layer; empty if the index does not say.
    pub layer_media_type: String,
    /// Span size that it was built with, in bytes; `None` if the index does not say.
    pub span_size_bytes: Option<u64>,
    /// The builder found neither extended attributes nor opaque directories.
    pub disable_xattrs: bool,
}

/// A recorded load order that an index lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefetchEntry {
    /// Digest of the document.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
    /// The layer it describes.
    pub layer_digest: Digest,
}

/// A SOCI index. Layers that it does not list are read without one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SociIndex {
    /// Version, and what goes with it.
    pub kind: Kind,
    /// zTOCs in the order of the image's layers.
    pub ztocs: Vec<ZtocEntry>,
    /// Load orders in the order of the image's layers.
    pub prefetch: Vec<PrefetchEntry>,
    /// Who built it.
    pub build_tool: String,
}

impl SociIndex {
    /// Reads a foreign index.
    ///
    /// # Errors
    /// [`SociError::Index`] for what is no SOCI index, for blobs without a layer digest, for two zTOCs of one layer,
    /// and for zTOCs beyond [`MAX_ZTOC_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SociError> {
        let bad = |reason: String| SociError::Index { reason };
        let document = parse_manifest(bytes, Some(media_type::OCI_MANIFEST)).map_err(|e| bad(e.to_string()))?;
        let ManifestDocument::Manifest(manifest) = document else {
            return Err(bad("an image index, not a SOCI index".to_owned()));
        };
        let subject = manifest.subject.map(|s| Subject { media_type: s.media_type, digest: s.digest, size: s.size });
        let kind = match manifest.config.media_type.as_str() {
            V1_TYPE => Kind::V1 { subject },
            V2_TYPE => Kind::V2,
            OWN_TYPE => Kind::Own { subject },
            other => return Err(bad(format!("unknown index version: {other}"))),
        };
        let (mut ztocs, mut prefetch) = (Vec::<ZtocEntry>::new(), Vec::new());
        for blob in manifest.layers {
            let layer = blob.annotations.get(LAYER_DIGEST);
            let layer = layer.ok_or_else(|| bad(format!("blob {} names no layer", blob.digest)))?;
            let layer_digest: Digest = layer.parse().map_err(|e| bad(format!("blob {}: {e}", blob.digest)))?;
            match blob.media_type.as_str() {
                of_kind if of_kind == kind.ztoc_type() => {
                    match ztocs.iter().find(|ztoc| ztoc.layer_digest == layer_digest) {
                        None => ztocs.push(ztoc_entry(&blob, layer_digest)?),
                        // An image may hold the same layer twice; its zTOC is then listed twice.
                        Some(ztoc) if ztoc.digest == blob.digest => {}
                        Some(_) => return Err(bad(format!("two zTOCs for layer {layer_digest}"))),
                    }
                }
                PREFETCH_TYPE => {
                    prefetch.push(PrefetchEntry { digest: blob.digest, size: blob.size, layer_digest });
                }
                // Later versions may list other kinds; what we know stays usable.
                _ => {}
            }
        }
        let build_tool = manifest.annotations.get(BUILD_TOOL).cloned().unwrap_or_default();
        Ok(Self { kind, ztocs, prefetch, build_tool })
    }

    /// The zTOC of a layer.
    #[must_use]
    pub fn ztoc_for(&self, layer: &Digest) -> Option<&ZtocEntry> {
        self.ztocs.iter().find(|ztoc| ztoc.layer_digest == *layer)
    }

    /// The document as SOCI itself writes it, byte for byte: Go's field order, compact, map keys sorted, `<>&` and the
    /// two line separators escaped.
    ///
    /// # Errors
    /// [`SociError::Empty`] when there is no zTOC: SOCI has no empty indexes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SociError> {
        if self.ztocs.is_empty() {
            return Err(SociError::Empty);
        }
        let ztoc_type = self.kind.ztoc_type();
        let ztocs = self.ztocs.iter().map(|ztoc| {
            let mut annotations = BTreeMap::from([
                (LAYER_DIGEST, ztoc.layer_digest.to_string()),
                (LAYER_MEDIA_TYPE, ztoc.layer_media_type.clone()),
            ]);
            annotations.extend(ztoc.span_size_bytes.map(|bytes| (SPAN_SIZE, bytes.to_string())));
            annotations.extend(ztoc.disable_xattrs.then(|| (DISABLE_XATTRS, "true".to_owned())));
            GoDescriptor { media_type: ztoc_type, digest: ztoc.digest, size: ztoc.size, annotations }
        });
        let prefetch = self.prefetch.iter().map(|entry| GoDescriptor {
            media_type: PREFETCH_TYPE,
            digest: entry.digest,
            size: entry.size,
            annotations: BTreeMap::from([(LAYER_DIGEST, entry.layer_digest.to_string())]),
        });
        let document = GoManifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST,
            config: GoDescriptor {
                media_type: self.kind.artifact_type(),
                digest: Digest::of(CONFIG),
                size: BlobOffset::new(CONFIG.len() as u64),
                annotations: BTreeMap::new(),
            },
            layers: ztocs.chain(prefetch).collect(),
            subject: self.kind.subject(),
            annotations: BTreeMap::from([(BUILD_TOOL, self.build_tool.clone())]),
        };
        let text = serde_json::to_string(&document).map_err(|e| SociError::Index { reason: e.to_string() })?;
        Ok(go_json::escape(&text).into_bytes())
    }
}

fn ztoc_entry(blob: &Descriptor, layer_digest: Digest) -> Result<ZtocEntry, SociError> {
    if blob.size.get() == 0 || blob.size.get() > MAX_ZTOC_BYTES {
        let reason = format!("zTOC {} claims {} bytes; 1 to {MAX_ZTOC_BYTES} are accepted", blob.digest, blob.size);
        return Err(SociError::Index { reason });
    }
    Ok(ZtocEntry {
        digest: blob.digest,
        size: blob.size,
        layer_digest,
        layer_media_type: blob.annotations.get(LAYER_MEDIA_TYPE).cloned().unwrap_or_default(),
        span_size_bytes: blob.annotations.get(SPAN_SIZE).and_then(|text| text.parse().ok()),
        disable_xattrs: blob.annotations.get(DISABLE_XATTRS).is_some_and(|text| text == "true"),
    })
}

/// Field order of Go's `ocispec.Manifest` as SOCI fills it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GoManifest<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: GoDescriptor,
    layers: Vec<GoDescriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a Subject>,
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GoDescriptor {
    media_type: &'static str,
    digest: Digest,
    size: BlobOffset,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[cfg(test)]
#[path = "tests/index.rs"]
mod tests;

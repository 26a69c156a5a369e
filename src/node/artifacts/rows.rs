//! What the lists of the local store show; as JSON for machines.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::soci::{IndexRecord, SetBy};
use crate::units::Digest;

/// An index and one of its images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexRow {
    /// Digest of the index.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Under which reference the image was named; empty if under none.
    pub image_ref: String,
    /// Digest of the image's platform manifest.
    pub image_digest: Option<Digest>,
    /// `OS/ARCH[/VARIANT]`; empty if unknown.
    pub platform: String,
    /// Media type of the document.
    pub media_type: String,
    /// `v1` or `v2`.
    pub manifest_version: &'static str,
    /// Who said that the index belongs to the image.
    pub set_by: Option<SetBy>,
    /// Where it came from; empty for what was made here.
    pub location: String,
    /// When it came into the store (RFC 3339).
    pub created_at: String,
    /// The same, to count from.
    #[serde(skip)]
    pub created: SystemTime,
}

/// A zTOC and one of its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ZtocRow {
    /// Digest of the zTOC.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Digest of the layer.
    pub layer_digest: Digest,
    /// Span size in bytes, where it is known.
    pub span_size: Option<u64>,
    /// Whether it was built here, of the layer's own bytes.
    pub built_here: bool,
}

/// A load order and one of its layers, with the keys that SOCI prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PrefetchRow {
    /// Digest of the document.
    pub digest: Digest,
    /// Digest of the layer.
    pub layer_digest: Digest,
    /// Number of spans to prefetch; -1 when the document cannot be read.
    pub total_spans: i64,
    /// When it came into the store (RFC 3339).
    pub created_at: String,
    /// The same, to count from.
    #[serde(skip)]
    pub created: SystemTime,
}

/// A load order in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrefetchInfo {
    /// Digest of the document.
    pub digest: Digest,
    /// Digests of its layers.
    pub layer_digests: Vec<Digest>,
    /// Its size in bytes.
    pub size: u64,
    /// When it came into the store (RFC 3339).
    pub created_at: String,
    /// Number of spans to prefetch.
    pub total_spans: u64,
    /// The document.
    pub document: PrefetchDocument,
}

/// What a load order says (awslabs/soci-snapshotter, `soci/prefetch.go`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchDocument {
    /// Version of the format.
    pub version: String,
    /// What to prefetch.
    #[serde(default)]
    pub prefetch_spans: Vec<PrefetchRange>,
}

/// Spans to prefetch, the last one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchRange {
    /// First span.
    pub start_span: u32,
    /// Last span.
    pub end_span: u32,
    /// Lower ones come sooner.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl PrefetchRange {
    /// How many spans it covers; none when it ends before it starts.
    #[must_use]
    pub fn len(&self) -> u64 {
        (u64::from(self.end_span) + 1).saturating_sub(u64::from(self.start_span))
    }

    /// Whether it covers none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub(super) fn index_row(record: IndexRecord) -> IndexRow {
    let image = record.image.as_ref();
    IndexRow {
        digest: record.digest,
        size: record.size.get(),
        image_ref: image.and_then(|image| image.image_ref.clone()).unwrap_or_default(),
        image_digest: image.map(|image| image.manifest),
        platform: image.and_then(|image| image.platform.as_ref()).map(ToString::to_string).unwrap_or_default(),
        media_type: record.media_type,
        manifest_version: record.kind.version(),
        set_by: image.map(|image| image.set_by),
        location: record.location,
        created_at: rfc3339(record.created_at),
        created: record.created_at,
    }
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

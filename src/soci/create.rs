//! From zTOCs of layers to an index document.

use bytes::Bytes;

use super::{Kind, PrefetchEntry, SociError, SociIndex, Subject, ZtocEntry};
use crate::registry::Document;
use crate::registry::document::media_type;
use crate::units::{BlobOffset, Digest};

/// A layer that has a zTOC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexedLayer {
    /// The zTOC.
    pub ztoc: ZtocEntry,
    /// Its load order, if it has one.
    pub prefetch: Option<PrefetchEntry>,
    /// Whether the zTOC is one that SOCI does not know, so that only our own index may list it.
    pub own: bool,
}

/// An index document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatedIndex {
    /// Digest of the document.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
    /// What it says.
    pub index: SociIndex,
}

impl CreatedIndex {
    /// A document that was stored.
    ///
    /// # Errors
    /// [`SociError::Index`] for what is no index.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, SociError> {
        let bytes = bytes.into();
        Ok(Self { digest: Digest::of(&bytes), index: SociIndex::parse(&bytes)?, bytes })
    }

    /// The blobs that it lists, each once: zTOCs, then load orders.
    #[must_use]
    pub fn parts(&self) -> Vec<(Digest, BlobOffset)> {
        let ztocs = self.index.ztocs.iter().map(|ztoc| (ztoc.digest, ztoc.size));
        let prefetch = self.index.prefetch.iter().map(|entry| (entry.digest, entry.size));
        let mut parts: Vec<(Digest, BlobOffset)> = Vec::new();
        for part in ztocs.chain(prefetch) {
            if !parts.iter().any(|(known, _)| *known == part.0) {
                parts.push(part);
            }
        }
        parts
    }
}

/// What a v1 index, or one of ours, of the image with this manifest says it belongs to.
#[must_use]
pub fn subject_of(manifest: &Document) -> Subject {
    let said = manifest.media_type.as_str();
    Subject {
        media_type: if said.is_empty() { media_type::OCI_MANIFEST } else { said }.to_owned(),
        digest: manifest.digest,
        size: BlobOffset::new(manifest.bytes.len() as u64),
    }
}

/// The layers of SOCI's index, and those of our own.
#[must_use]
pub fn split(layers: Vec<IndexedLayer>) -> (Vec<IndexedLayer>, Vec<IndexedLayer>) {
    layers.into_iter().partition(|layer| !layer.own)
}

/// Makes the index of an image from its layers, in the image's order; layers without a zTOC are left out. The same input
/// gives the same bytes.
///
/// # Errors
/// [`SociError::Empty`] without layers.
pub fn compose(kind: Kind, layers: Vec<IndexedLayer>, build_tool: &str) -> Result<CreatedIndex, SociError> {
    let (ztocs, prefetch): (Vec<_>, Vec<_>) = layers.into_iter().map(|layer| (layer.ztoc, layer.prefetch)).unzip();
    let prefetch = prefetch.into_iter().flatten().collect();
    let index = SociIndex { kind, ztocs, prefetch, build_tool: build_tool.to_owned() };
    let bytes = Bytes::from(index.to_bytes()?);
    Ok(CreatedIndex { digest: Digest::of(&bytes), bytes, index })
}

//! From zTOCs to a v1 index in the local store, and from there to the registry.

use bytes::Bytes;
use serde_json::json;

use super::index::CONFIG;
use super::{Kind, RecordedZtoc, SociError, SociIndex, Store, Subject, V1_TYPE, ZtocEntry};
use crate::registry::document::media_type;
use crate::registry::{Client, Image, ImageRef, LayerDescriptor, PushedManifest, Upload};
use crate::units::{BlobOffset, Digest};

/// A layer and the zTOC that was built of it.
#[derive(Clone, Copy, Debug)]
pub struct LayerZtoc<'a> {
    /// The layer.
    pub layer: &'a LayerDescriptor,
    /// The zTOC document.
    pub ztoc: &'a [u8],
    /// Span size that it was built with, in bytes.
    pub span_size_bytes: u64,
}

/// An index in the local store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatedIndex {
    /// Digest of the document.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
    /// What it says.
    pub index: SociIndex,
}

/// Makes the v1 index of an image from the zTOCs of its layers, in the image's order; layers without one are left out.
/// The same input gives the same bytes. Blocks on local disk.
///
/// # Errors
/// [`SociError::NoManifest`] for a bare layer file, [`SociError::Empty`] without zTOCs, [`SociError::Store`].
pub fn create(
    store: &Store,
    image: &Image,
    ztocs: &[LayerZtoc<'_>],
    build_tool: &str,
) -> Result<CreatedIndex, SociError> {
    let no_manifest = || SociError::NoManifest { what: image.source.to_string() };
    let manifest = image.manifest.as_ref().ok_or_else(no_manifest)?;
    let mut entries = Vec::new();
    for layer in &image.layers {
        let Some(built) = ztocs.iter().find(|z| z.layer.digest == layer.digest) else { continue };
        let digest = store.put(built.ztoc)?;
        let size = BlobOffset::new(built.ztoc.len() as u64);
        let span_size_bytes = Some(built.span_size_bytes);
        store.record_ztoc(&layer.digest, &RecordedZtoc { digest, size, span_size_bytes })?;
        entries.push(ZtocEntry {
            digest,
            size,
            layer_digest: layer.digest,
            layer_media_type: layer.media_type.clone(),
            span_size_bytes,
            disable_xattrs: false,
        });
    }
    let subject = Subject {
        media_type: if manifest.media_type.is_empty() { media_type::OCI_MANIFEST } else { &manifest.media_type }.into(),
        digest: manifest.digest,
        size: BlobOffset::new(manifest.bytes.len() as u64),
    };
    let kind = Kind::V1 { subject: Some(subject) };
    let index = SociIndex { kind, ztocs: entries, prefetch: Vec::new(), build_tool: build_tool.to_owned() };
    let bytes = Bytes::from(index.to_bytes()?);
    store.put(CONFIG)?;
    let digest = store.put_index(V1_TYPE, &bytes)?;
    Ok(CreatedIndex { digest, bytes, index })
}

/// Uploads an index beside its image: zTOCs, config, then the manifest, so that the registry never lists an index that
/// lacks a part. Registries without the referrers endpoint get the fallback tag.
///
/// # Errors
/// [`SociError::Registry`], [`SociError::Store`].
pub async fn push(client: &Client, target: &ImageRef, store: &Store, created: &CreatedIndex) -> Result<(), SociError> {
    for ztoc in &created.index.ztocs {
        client.push_blob(target, ztoc.digest, &Upload::File(store.blob_path(&ztoc.digest))).await?;
    }
    client.push_blob(target, Digest::of(CONFIG), &Upload::Bytes(Bytes::from_static(CONFIG))).await?;
    let PushedManifest { lists_referrer, .. } =
        client.push_manifest(target, None, media_type::OCI_MANIFEST, &created.bytes).await?;
    let Kind::V1 { subject: Some(subject) } = &created.index.kind else { return Ok(()) };
    if lists_referrer {
        return Ok(());
    }
    let descriptor = json!({
        "mediaType": media_type::OCI_MANIFEST,
        "digest": created.digest.to_string(),
        "size": created.bytes.len(),
        "annotations": {"com.amazon.soci.build-tool-identifier": created.index.build_tool},
        "artifactType": V1_TYPE,
    });
    Ok(client.add_to_fallback_tag(target, subject.digest, descriptor).await?)
}

//! Uploads an index beside its image.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;

use super::index::CONFIG;
use super::{CreatedIndex, SociError, Subject};
use crate::registry::document::media_type;
use crate::registry::{Client, ImageRef, ImageSource, PushedManifest, RegistryError, Sent, Upload};
use crate::units::{BlobOffset, Digest};

/// SOCI's default of uploads at the same time.
pub const DEFAULT_UPLOADS: usize = 3;

/// What happens to an artifact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushStep {
    /// Its upload begins.
    Begins(Digest),
    /// It was uploaded, or the registry took it from another repository.
    Done(Digest),
    /// The registry has it already.
    Present(Digest),
}

/// Uploads the blobs of an index (zTOCs, load orders, config) from where they are, some at the same time; afterwards the
/// registry can take its manifest.
///
/// # Errors
/// The first error.
pub async fn push_blobs(
    client: &Client,
    target: &ImageRef,
    from: &ImageSource,
    created: &CreatedIndex,
    uploads: usize,
    hear: &(dyn Fn(PushStep) + Sync),
) -> Result<(), SociError> {
    let config = (Digest::of(CONFIG), None);
    let jobs: Vec<_> = created
        .parts()
        .into_iter()
        .map(|(digest, size)| (digest, Some(size)))
        .chain([config])
        .map(|(digest, size)| async move {
            let upload = match size {
                Some(size) => Upload::Source(client.blob(from, digest, size).await?),
                None => Upload::Bytes(Bytes::from_static(CONFIG)),
            };
            hear(PushStep::Begins(digest));
            let sent = client.push_blob(target, digest, &upload).await?;
            hear(if sent == Sent::Present { PushStep::Present(digest) } else { PushStep::Done(digest) });
            Ok::<(), SociError>(())
        })
        .collect();
    stream::iter(jobs).buffer_unordered(uploads.max(1)).try_collect::<Vec<()>>().await.map(drop)
}

/// Uploads a v1 index, or one of ours, beside its image: blobs first, then the manifest, so that the registry never lists an index that
/// lacks a part; for registries without the referrers endpoint the fallback tag at last.
///
/// # Errors
/// [`SociError::Refused`] when the registry takes no such manifests; [`SociError::Registry`].
pub async fn push(
    client: &Client,
    target: &ImageRef,
    from: &ImageSource,
    created: &CreatedIndex,
    uploads: usize,
    hear: &(dyn Fn(PushStep) + Sync),
) -> Result<(), SociError> {
    push_blobs(client, target, from, created, uploads, hear).await?;
    hear(PushStep::Begins(created.digest));
    let PushedManifest { lists_referrer, .. } = push_index(client, target, created).await?;
    if let (Some(subject), false) = (created.index.kind.subject(), lists_referrer) {
        let descriptor = json!({
            "mediaType": media_type::OCI_MANIFEST,
            "digest": created.digest.to_string(),
            "size": created.bytes.len(),
            "annotations": {"com.amazon.soci.build-tool-identifier": created.index.build_tool},
            "artifactType": created.index.kind.artifact_type(),
        });
        let listed = client.add_to_fallback_tag(target, subject.digest, descriptor).await;
        listed.map_err(|error| refused(error, target))?;
    }
    hear(PushStep::Done(created.digest));
    Ok(())
}

/// Uploads the manifest of an index whose blobs are there.
///
/// # Errors
/// As [`push`].
pub async fn push_index(
    client: &Client,
    target: &ImageRef,
    created: &CreatedIndex,
) -> Result<PushedManifest, SociError> {
    let pushed = client.push_manifest(target, None, media_type::OCI_MANIFEST, &created.bytes).await;
    pushed.map_err(|error| refused(error, target))
}

/// A document that is to stand beside an image, among its referrers.
#[derive(Clone, Debug)]
pub struct Attachment<'a> {
    /// The image's manifest.
    pub subject: &'a Subject,
    /// Artifact type, which is also the media type of the document and of the artifact's config: registries that look at
    /// the config alone list it as well.
    pub artifact_type: &'a str,
    /// Annotations of the artifact; those listed with the referrers let clients choose before they fetch.
    pub annotations: BTreeMap<&'a str, String>,
    /// The document.
    pub document: Bytes,
    /// A blob that the document speaks of: media type and file, digest, size in bytes.
    pub blob: Option<(&'a str, &'a Path, Digest, u64)>,
}

/// Uploads a document beside its image: blobs, the artifact's manifest, for registries without the referrers endpoint the
/// fallback tag. The same attachment gives the same digest, which is returned.
///
/// # Errors
/// As [`push`].
pub async fn attach(client: &Client, target: &ImageRef, attachment: &Attachment<'_>) -> Result<Digest, SociError> {
    let Attachment { subject, artifact_type, annotations, document, blob } = attachment;
    let digest = Digest::of(document);
    let mut layers = vec![json!({"mediaType": artifact_type, "digest": digest.to_string(), "size": document.len()})];
    if let Some((media_type, path, digest, size)) = blob {
        let source = client.blob(&ImageSource::LayerFile((*path).to_owned()), *digest, BlobOffset::new(*size)).await?;
        client.push_blob(target, *digest, &Upload::Source(source)).await?;
        layers.push(json!({"mediaType": media_type, "digest": digest.to_string(), "size": size}));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": {"mediaType": artifact_type, "digest": Digest::of(CONFIG).to_string(), "size": CONFIG.len()},
        "layers": layers,
        "subject": {
            "mediaType": subject.media_type,
            "digest": subject.digest.to_string(),
            "size": subject.size.get(),
        },
        "annotations": annotations,
    });
    let bytes = Bytes::from(manifest.to_string());
    for part in [Bytes::from_static(CONFIG), document.clone()] {
        client.push_blob(target, Digest::of(&part), &Upload::Bytes(part)).await?;
    }
    let pushed = client.push_manifest(target, None, media_type::OCI_MANIFEST, &bytes).await;
    let PushedManifest { lists_referrer, digest } = pushed.map_err(|error| refused(error, target))?;
    if !lists_referrer {
        let descriptor = json!({
            "mediaType": media_type::OCI_MANIFEST,
            "digest": digest.to_string(),
            "size": bytes.len(),
            "annotations": annotations,
            "artifactType": artifact_type,
        });
        let listed = client.add_to_fallback_tag(target, subject.digest, descriptor).await;
        listed.map_err(|error| refused(error, target))?;
    }
    Ok(digest)
}

/// Registries that know no artifacts say so in many ways.
fn refused(error: RegistryError, target: &ImageRef) -> SociError {
    match error {
        error @ RegistryError::Status { status: 400 | 404 | 405 | 406 | 415 | 422 | 501, .. }
        | error @ RegistryError::NotFound { .. } => {
            SociError::Refused { registry: target.registry().to_owned(), source: Box::new(error) }
        }
        error => error.into(),
    }
}

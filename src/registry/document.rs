//! Manifests, indexes and configs: foreign JSON into types that cannot be wrong afterwards. Pure.
//!
//! Formats: OCI image-spec 1.1 (manifest.md, image-index.md, config.md) and Docker's manifest schema 2, which differ
//! only in media types.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Platform;
use crate::units::{BlobOffset, Digest};

/// Media types that are named in more than one place.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// What manifests are asked for as.
    pub const ANY_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
}

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or members of the wrong type.
    #[error("not a valid document: {0}")]
    Json(String),
    /// JSON that says another kind of thing.
    #[error("{0}")]
    Kind(String),
    /// A descriptor names no sha256 digest.
    #[error(transparent)]
    Digest(#[from] crate::units::DigestError),
    /// A descriptor's size is negative.
    #[error("the descriptor of {digest} has the size {size}")]
    Size {
        /// Whose size.
        digest: Digest,
        /// The number as it came.
        size: i64,
    },
    /// The config lists another number of layers than the manifest.
    #[error("the manifest has {layers} layers, the config {diff_ids} diff_ids")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// diffIDs of the config.
        diff_ids: usize,
    },
}

/// A checked OCI descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// For which machine, in an index.
    pub platform: Option<Platform>,
    /// What an artifact is, in an index.
    pub artifact_type: Option<String>,
}

/// An image manifest, or an artifact in the form of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// The image config; for artifacts its media type says the kind.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// What the artifact belongs to.
    pub subject: Option<Descriptor>,
    /// Kind of an artifact.
    pub artifact_type: Option<String>,
}

/// An image index or manifest list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Index {
    /// Its manifests, in order.
    pub manifests: Vec<Descriptor>,
}

/// What a manifests endpoint answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ManifestDocument {
    /// One image or artifact.
    Manifest(Box<Manifest>),
    /// A list.
    Index(Index),
}

/// The parts of an image config that mounting needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageConfig {
    /// For which machine; `None` when the config leaves it out.
    pub platform: Option<Platform>,
    /// Digest of each layer's uncompressed tar, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<RawPlatform>,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    #[serde(default)]
    schema_version: i64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
    fs_layers: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: Option<RawRootFs>,
}

#[derive(Deserialize)]
struct RawRootFs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<String>>,
}

impl TryFrom<RawDescriptor> for Descriptor {
    type Error = DocumentError;

    fn try_from(raw: RawDescriptor) -> Result<Self, DocumentError> {
        let digest: Digest = raw.digest.parse()?;
        let size = u64::try_from(raw.size).map_err(|_| DocumentError::Size { digest, size: raw.size })?;
        let platform = raw.platform.filter(|p| !p.os.is_empty() || !p.architecture.is_empty());
        Ok(Self {
            media_type: raw.media_type,
            digest,
            size: BlobOffset::new(size),
            annotations: raw.annotations.unwrap_or_default(),
            platform: platform.map(|p| Platform::new(&p.os, &p.architecture, p.variant.as_deref().unwrap_or_default())),
            artifact_type: raw.artifact_type.filter(|t| !t.is_empty()),
        })
    }
}

fn json(error: &serde_json::Error) -> DocumentError {
    DocumentError::Json(error.to_string())
}

fn descriptors(raw: Vec<RawDescriptor>) -> Result<Vec<Descriptor>, DocumentError> {
    raw.into_iter().map(Descriptor::try_from).collect()
}

/// Reads a manifest or index; `content_type` is what the server said it is, which decides where the document itself
/// says nothing.
///
/// # Errors
/// [`DocumentError`] for what is no manifest, for Docker's schema 1, and for documents that could be read in two ways
/// (members of both kinds, or a media type that its members contradict: CVE-2021-41190).
pub fn parse_manifest(bytes: &[u8], content_type: Option<&str>) -> Result<ManifestDocument, DocumentError> {
    use media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

    let raw: RawManifest = serde_json::from_slice(bytes).map_err(|e| json(&e))?;
    let kind = |text: &str| DocumentError::Kind(text.to_owned());
    if raw.schema_version == 1 || raw.fs_layers.is_some() {
        return Err(kind("a manifest of Docker's schema 1 (before 2016) is not supported; push the image again"));
    }
    if raw.schema_version != 2 {
        return Err(DocumentError::Kind(format!("schemaVersion is {}, expected 2", raw.schema_version)));
    }
    let (is_manifest, is_index) = (raw.config.is_some() || raw.layers.is_some(), raw.manifests.is_some());
    if is_manifest && is_index {
        return Err(kind("the document is both a manifest and an index"));
    }
    let said = raw.media_type.as_deref().filter(|t| !t.is_empty());
    let said_index = match said.or(content_type) {
        Some(OCI_INDEX | DOCKER_LIST) => Some(true),
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => Some(false),
        Some(other) if said.is_some() => {
            return Err(DocumentError::Kind(format!("media type {other} is neither a manifest nor an index")));
        }
        _ => None,
    };
    if (said_index == Some(true) && is_manifest) || (said_index == Some(false) && is_index) {
        return Err(kind("the document's media type contradicts its members"));
    }
    // Go writes an empty list of manifests as null.
    if is_index || said_index == Some(true) {
        return Ok(ManifestDocument::Index(Index { manifests: descriptors(raw.manifests.unwrap_or_default())? }));
    }
    let config = raw.config.ok_or_else(|| kind("neither \"config\" nor \"manifests\": no image manifest"))?;
    Ok(ManifestDocument::Manifest(Box::new(Manifest {
        config: config.try_into()?,
        layers: descriptors(raw.layers.unwrap_or_default())?,
        annotations: raw.annotations.unwrap_or_default(),
        subject: raw.subject.map(Descriptor::try_from).transpose()?,
        artifact_type: raw.artifact_type.filter(|t| !t.is_empty()),
    })))
}

/// Reads an image config.
///
/// # Errors
/// [`DocumentError`] for what is no image config.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfig, DocumentError> {
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(|e| json(&e))?;
    let rootfs = raw.rootfs.ok_or_else(|| DocumentError::Kind("the config has no rootfs: no image".to_owned()))?;
    if let Some(kind) = rootfs.kind.filter(|kind| kind != "layers") {
        return Err(DocumentError::Kind(format!("rootfs type {kind:?}, expected \"layers\"")));
    }
    let diff_ids = rootfs.diff_ids.unwrap_or_default().iter().map(|d| d.parse()).collect::<Result<_, _>>()?;
    let platform = match (raw.os.as_deref(), raw.architecture.as_deref()) {
        (Some(os), Some(arch)) if !os.is_empty() && !arch.is_empty() => {
            Some(Platform::new(os, arch, raw.variant.as_deref().unwrap_or_default()))
        }
        _ => None,
    };
    Ok(ImageConfig { platform, diff_ids })
}

#[cfg(test)]
#[path = "tests/document.rs"]
mod tests;

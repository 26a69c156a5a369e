//! What a user names, before a platform is chosen: a single image, or an index of images and artifacts.

use serde_json::{Value, json};

use super::document::{Descriptor, ManifestDocument, media_type, parse_config, parse_manifest};
use super::layout::{self, REF_NAME};
use super::{Client, Document, ImageSource, LayoutName, Platform, RegistryError};
use crate::units::Digest;

/// The document behind a name. Its digest is fixed: a tag that moves later changes nothing.
#[derive(Clone, Debug)]
pub struct Root {
    /// The name that was looked up, in full.
    pub name: String,
    /// The source, by digest where that is possible.
    pub source: ImageSource,
    /// The document. For a layout that lists the images of several platforms side by side it is an index of them, which is
    /// stored nowhere.
    pub document: Document,
    /// What it says.
    pub parsed: ManifestDocument,
}

impl Root {
    /// Whether it is a single image and no index.
    #[must_use]
    pub fn is_single(&self) -> bool {
        matches!(self.parsed, ManifestDocument::Manifest(_))
    }
}

impl Client {
    /// Finds the document behind a name.
    ///
    /// # Errors
    /// [`RegistryError`]; a bare layer file has none.
    pub async fn root(&self, source: &ImageSource) -> Result<Root, RegistryError> {
        let (at, name) = match source {
            ImageSource::Registry(image) => {
                let document = self.named_manifest(image).await?;
                let parsed = parse(source, &document)?;
                let (name, source) = (image.to_string(), ImageSource::Registry(image.with_digest(document.digest)));
                return Ok(Root { name, source, document, parsed });
            }
            ImageSource::Containerd(image) => {
                let (pinned, document) = self.stored_root(image).await?;
                let parsed = parse(source, &document)?;
                let (name, source) = (pinned.name.clone(), ImageSource::Containerd(pinned));
                return Ok(Root { name, source, document, parsed });
            }
            ImageSource::Layout { dir, name } => (layout::At::Dir(dir), name),
            ImageSource::Archive { file, name } => (layout::At::Archive(file), name),
            ImageSource::LayerFile(_) => {
                let reason = "a bare layer file has no manifest".to_owned();
                return Err(RegistryError::Document { what: source.to_string(), reason });
            }
        };
        if let LayoutName::Digest(digest) = name {
            let (document, parsed) = self.manifest(source, *digest).await?;
            return Ok(Root { name: source.to_string(), source: source.clone(), document, parsed });
        }
        let bytes = layout::index_bytes(at, self.config().manifest_limit_bytes).await?;
        let index = layout::index(at, self.config().manifest_limit_bytes).await?;
        let listed = index.manifests.len();
        let chosen = layout::select(at, index, name)?;
        // One entry, or one image beside artifacts that belong to it by their subjects.
        let is_index =
            |entry: &Descriptor| matches!(&*entry.media_type, media_type::OCI_INDEX | media_type::DOCKER_LIST);
        let alone = listed == 1 || matches!(name, LayoutName::Tag(_)) || chosen.iter().all(is_index);
        if let ([entry], true) = (chosen.as_slice(), alone) {
            let pinned = with_name(source, LayoutName::Digest(entry.digest));
            let (mut document, parsed) = self.manifest(&pinned, entry.digest).await?;
            if document.media_type.is_empty() {
                document.media_type.clone_from(&entry.media_type);
            }
            return Ok(Root { name: source.to_string(), source: pinned, document, parsed });
        }
        let entries: Value = serde_json::from_slice(&bytes).map_err(|e| layout::bad_index(at, e.to_string()))?;
        let mut entries = entries.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
        if let LayoutName::Tag(tag) = name {
            let tag_of = |entry: &Value| {
                entry.pointer("/annotations").and_then(|a| a.get(REF_NAME)?.as_str().map(str::to_owned))
            };
            entries.retain(|entry| tag_of(entry).as_ref() == Some(tag));
        }
        let text = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries}).to_string();
        let document = Document {
            digest: Digest::of(text.as_bytes()),
            media_type: media_type::OCI_INDEX.to_owned(),
            bytes: text.into(),
        };
        let parsed = parse(source, &document)?;
        Ok(Root { name: source.to_string(), source: source.clone(), document, parsed })
    }

    /// The platforms that there are images for, in order; those of entries that do not say it are read from their configs.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn platforms(&self, root: &Root) -> Result<Vec<Platform>, RegistryError> {
        let mut found = Vec::new();
        match &root.parsed {
            ManifestDocument::Manifest(manifest) => {
                let bytes = self.config_bytes(&root.source, manifest.config.digest, manifest.config.size).await?;
                let bad = |e: super::DocumentError| RegistryError::Document {
                    what: format!("{}: config {}", root.source, manifest.config.digest),
                    reason: e.to_string(),
                };
                found.extend(parse_config(&bytes).map_err(bad)?.platform);
            }
            ManifestDocument::Index(index) => {
                let unknown = Platform::new("unknown", "unknown", "");
                for entry in index.manifests.iter().filter(|entry| entry.artifact_type.is_none()) {
                    found.extend(entry.platform.clone().filter(|platform| *platform != unknown));
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        found.retain(|platform| seen.insert(platform.clone()));
        Ok(found)
    }
}

fn with_name(source: &ImageSource, name: LayoutName) -> ImageSource {
    match source {
        ImageSource::Layout { dir, .. } => ImageSource::Layout { dir: dir.clone(), name },
        ImageSource::Archive { file, .. } => ImageSource::Archive { file: file.clone(), name },
        other => other.clone(),
    }
}

fn parse(source: &ImageSource, document: &Document) -> Result<ManifestDocument, RegistryError> {
    let content_type = Some(document.media_type.as_str()).filter(|t| !t.is_empty());
    parse_manifest(&document.bytes, content_type)
        .map_err(|e| RegistryError::Document { what: source.to_string(), reason: e.to_string() })
}

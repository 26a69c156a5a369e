//! From what a user names to an image: manifest, config, layers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::document::{Descriptor, Index, Manifest, ManifestDocument, media_type, parse_config, parse_manifest};
use super::file::{FileBlob, measure};
use super::hosts::Capabilities;
use super::remote::RemoteBlob;
use super::transport::Traffic;
use super::{
    BlobSource, Client, Document, Image, ImageRef, ImageSource, LayerDescriptor, LayoutName, Platform, RegistryError,
    StoredImage, layout,
};
use crate::units::{BlobOffset, Digest};

/// Most indexes within indexes.
const MAX_DEPTH: usize = 4;
/// Most entries without a platform whose config is looked into.
const MAX_UNLABELLED: usize = 8;

/// A place that has documents by digest.
#[derive(Clone, Copy)]
enum Place<'a> {
    Registry(&'a ImageRef),
    Layout(layout::At<'a>),
    Containerd(&'a StoredImage),
}

impl Client {
    /// Finds the image for `platform`: reads its index if there is one, its manifest and its config, and checks that
    /// they agree.
    ///
    /// # Errors
    /// [`RegistryError`]; for an image of another platform it lists those that exist.
    pub async fn resolve(&self, source: &ImageSource, platform: &Platform) -> Result<Image, RegistryError> {
        match source {
            ImageSource::LayerFile(path) => self.resolve_layer_file(source, path).await,
            ImageSource::Registry(image) => {
                let document = self.named_manifest(image).await?;
                let what = image.to_string();
                let content_type = Some(document.media_type.as_str()).filter(|t| !t.is_empty());
                let parsed = parse(&what, &document.bytes, content_type)?;
                self.descend(source, Place::Registry(image), &what, document, parsed, platform).await
            }
            ImageSource::Containerd(image) => {
                let (pinned, document) = self.stored_root(image).await?;
                let (what, source) = (source.to_string(), ImageSource::Containerd(pinned.clone()));
                let content_type = Some(document.media_type.as_str()).filter(|t| !t.is_empty());
                let parsed = parse(&what, &document.bytes, content_type)?;
                self.descend(&source, Place::Containerd(&pinned), &what, document, parsed, platform).await
            }
            ImageSource::Layout { name, .. } | ImageSource::Archive { name, .. } => {
                let what = source.to_string();
                let place = place(source)?;
                let Place::Layout(at) = place else { return Err(no_layout(source)) };
                if let LayoutName::Digest(digest) = name {
                    // Any manifest of the layout may be named, not only those that index.json lists.
                    let (document, parsed) = self.manifest_at(place, &what, *digest, None).await?;
                    return self.descend(source, place, &what, document, parsed, platform).await;
                }
                let index = layout::index(at, self.config().manifest_limit_bytes).await?;
                let manifests = layout::select(at, index, name)?;
                self.choose(source, place, &what, Index { manifests }, platform, 0).await
            }
        }
    }

    /// The manifest or index that a reference names.
    pub(super) async fn named_manifest(&self, image: &ImageRef) -> Result<Document, RegistryError> {
        // What a tag means is a matter of trust; bytes with a given digest are not.
        let wanted = match image.digest() {
            Some(_) => Capabilities::PULL,
            None => Capabilities::PULL.with(Capabilities::RESOLVE),
        };
        let (name, limit) = (image.manifest_name(), self.config().manifest_limit_bytes);
        let (tail, accept) = (["manifests", &name], media_type::ANY_MANIFEST);
        let raw = self.document_of_any(image, wanted, tail, accept, image.digest(), limit).await?;
        let media_type = media_type_of(&raw.bytes).or(raw.content_type).unwrap_or_default();
        Ok(Document { digest: raw.digest, media_type, bytes: raw.bytes })
    }

    /// The image config with this digest.
    pub(super) async fn config_bytes(
        &self,
        source: &ImageSource,
        digest: Digest,
        size: BlobOffset,
    ) -> Result<bytes::Bytes, RegistryError> {
        let limit_bytes = self.config().config_limit_bytes;
        if size.get() > limit_bytes {
            return Err(RegistryError::TooLong { what: format!("{source}: config {digest}"), limit_bytes });
        }
        match place(source)? {
            Place::Layout(at) => layout::document(at, digest, limit_bytes).await,
            Place::Containerd(image) => self.stored_document(image, digest, limit_bytes).await,
            Place::Registry(image) => {
                let name = digest.to_string();
                let (tail, accept) = (["blobs", &name], "*/*");
                Ok(self
                    .document_of_any(image, Capabilities::PULL, tail, accept, Some(digest), limit_bytes)
                    .await?
                    .bytes)
            }
        }
    }

    /// A manifest or index by its digest, from where the image comes from.
    ///
    /// # Errors
    /// [`RegistryError`]; a bare layer file has no manifests.
    pub async fn manifest(
        &self,
        source: &ImageSource,
        digest: Digest,
    ) -> Result<(Document, ManifestDocument), RegistryError> {
        let place = place(source)?;
        self.manifest_at(place, &format!("{source}: manifest {digest}"), digest, None).await
    }

    /// The blob with this digest and size, from where the image comes from. For registries nothing is asked yet; files
    /// are opened, and containerd is asked whether it has it.
    ///
    /// # Errors
    /// [`RegistryError::Io`] or [`RegistryError::FileChanged`] for files.
    pub async fn blob(
        &self,
        source: &ImageSource,
        digest: Digest,
        size: BlobOffset,
    ) -> Result<Arc<dyn BlobSource>, RegistryError> {
        Ok(match source {
            ImageSource::Registry(image) => Arc::new(RemoteBlob::new(self, image, digest, size, Traffic::Bulk)),
            ImageSource::Layout { dir, .. } => {
                Arc::new(FileBlob::open(dir.join(layout::blob_name(&digest)), digest, size).await?)
            }
            ImageSource::Archive { file, .. } => {
                let (path, start, length) = layout::At::Archive(file).locate(&layout::blob_name(&digest)).await?;
                Arc::new(FileBlob::open_part(path, start, length.unwrap_or(0), digest, size).await?)
            }
            ImageSource::Containerd(image) => Arc::new(self.stored_blob(image, digest, size).await?),
            ImageSource::LayerFile(path) => Arc::new(FileBlob::open(path.clone(), digest, size).await?),
        })
    }

    /// As [`Client::blob`], of what is small and read as a whole by somebody who waits for it, as zTOCs are.
    ///
    /// # Errors
    /// As [`Client::blob`].
    pub async fn artifact(
        &self,
        source: &ImageSource,
        digest: Digest,
        size: BlobOffset,
    ) -> Result<Arc<dyn BlobSource>, RegistryError> {
        match source {
            ImageSource::Registry(image) => Ok(Arc::new(RemoteBlob::new(self, image, digest, size, Traffic::Document))),
            _ => self.blob(source, digest, size).await,
        }
    }

    async fn resolve_layer_file(&self, source: &ImageSource, path: &Path) -> Result<Image, RegistryError> {
        let (digest, size, head) = measure(path).await?;
        // Magic numbers: RFC 1952 section 2.3.1, RFC 8878 section 3.1.1.
        let suffix = match head.as_slice() {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "+zstd",
            _ => "",
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        let layer = LayerDescriptor { digest, size, media_type, annotations: BTreeMap::new(), diff_id: None };
        Ok(Image {
            source: source.clone(),
            manifest: None,
            annotations: BTreeMap::new(),
            config: None,
            platform: None,
            layers: vec![layer],
        })
    }

    async fn manifest_at(
        &self,
        place: Place<'_>,
        what: &str,
        digest: Digest,
        media_type: Option<&str>,
    ) -> Result<(Document, ManifestDocument), RegistryError> {
        let limit = self.config().manifest_limit_bytes;
        let (bytes, content_type) = match place {
            Place::Layout(at) => (layout::document(at, digest, limit).await?, None),
            Place::Containerd(image) => (self.stored_document(image, digest, limit).await?, None),
            Place::Registry(image) => {
                let (name, accept) = (digest.to_string(), media_type::ANY_MANIFEST);
                let tail = ["manifests", &name];
                let raw = self.document_of_any(image, Capabilities::PULL, tail, accept, Some(digest), limit).await?;
                (raw.bytes, raw.content_type)
            }
        };
        let parsed = parse(what, &bytes, media_type.or(content_type.as_deref()))?;
        let media_type = media_type_of(&bytes).or(media_type.map(str::to_owned)).or(content_type).unwrap_or_default();
        Ok((Document { digest, media_type, bytes }, parsed))
    }

    async fn descend(
        &self,
        source: &ImageSource,
        place: Place<'_>,
        what: &str,
        document: Document,
        parsed: ManifestDocument,
        platform: &Platform,
    ) -> Result<Image, RegistryError> {
        match parsed {
            ManifestDocument::Index(index) => self.choose(source, place, what, index, platform, 1).await,
            ManifestDocument::Manifest(manifest) => {
                let image = self.finish(source, what, document, &manifest).await?;
                match &image.platform {
                    Some(made_for) if platform.rank(made_for).is_none() => {
                        Err(no_platform(what, platform, vec![made_for.to_string()]))
                    }
                    _ => Ok(image),
                }
            }
        }
    }

    /// Takes the entry that fits best, looks into nested indexes, and at last into entries that name no platform.
    async fn choose(
        &self,
        source: &ImageSource,
        place: Place<'_>,
        what: &str,
        index: Index,
        platform: &Platform,
        mut depth: usize,
    ) -> Result<Image, RegistryError> {
        let mut index = index;
        let mut offered = Vec::new();
        loop {
            let entries: Vec<Descriptor> =
                index.manifests.into_iter().filter(|entry| entry.artifact_type.is_none()).collect();
            offered.extend(entries.iter().filter_map(|entry| entry.platform.as_ref()).map(ToString::to_string));
            let ranked = entries.iter().filter_map(|e| Some((platform.rank(e.platform.as_ref()?)?, e)));
            let mut ranked: Vec<(u32, &Descriptor)> = ranked.collect();
            ranked.sort_by_key(|(rank, _)| *rank);
            // Artifacts whose type was lost on the way stand beside their image with its platform.
            let best = ranked.iter().take_while(|(rank, _)| ranked.first().is_some_and(|(first, _)| first == rank));
            let best: Vec<&Descriptor> = best.map(|(_, entry)| *entry).take(MAX_UNLABELLED).collect();
            let named = best.len();
            let unlabelled = entries.iter().filter(|entry| entry.platform.is_none()).take(MAX_UNLABELLED);
            let mut nested = None;
            for (number, entry) in best.into_iter().chain(unlabelled).enumerate() {
                let name = format!("{what}: manifest {}", entry.digest);
                let (document, parsed) =
                    self.manifest_at(place, &name, entry.digest, Some(entry.media_type.as_str())).await?;
                let manifest = match parsed {
                    ManifestDocument::Index(inner) => {
                        nested.get_or_insert(inner);
                        continue;
                    }
                    ManifestDocument::Manifest(manifest) => manifest,
                };
                let is_image = is_image_config(&manifest.config.media_type);
                if entry.platform.is_some() && (is_image || number + 1 == named) {
                    return self.finish(source, &name, document, &manifest).await;
                }
                if !is_image {
                    continue;
                }
                let image = self.finish(source, &name, document, &manifest).await?;
                match &image.platform {
                    Some(made_for) if platform.rank(made_for).is_none() => offered.push(made_for.to_string()),
                    _ => return Ok(image),
                }
            }
            depth += 1;
            match nested {
                Some(inner) if depth < MAX_DEPTH => index = inner,
                Some(_) => {
                    let reason = format!("indexes are nested deeper than {MAX_DEPTH}");
                    return Err(RegistryError::Document { what: what.to_owned(), reason });
                }
                None => return Err(no_platform(what, platform, offered)),
            }
        }
    }

    /// Reads the config and checks that it speaks of the manifest's layers.
    async fn finish(
        &self,
        source: &ImageSource,
        what: &str,
        document: Document,
        manifest: &Manifest,
    ) -> Result<Image, RegistryError> {
        let bad = |reason: String| RegistryError::Document { what: what.to_owned(), reason };
        let config = &manifest.config;
        if !is_image_config(&config.media_type) {
            return Err(bad(format!("this is no container image but an artifact of type {}", config.media_type)));
        }
        let bytes = self.config_bytes(source, config.digest, config.size).await?;
        let parsed = parse_config(&bytes).map_err(|e| bad(format!("config {}: {e}", config.digest)))?;
        if parsed.diff_ids.len() != manifest.layers.len() {
            let (layers, diff_ids) = (manifest.layers.len(), parsed.diff_ids.len());
            return Err(bad(super::DocumentError::LayerCount { layers, diff_ids }.to_string()));
        }
        let layers = manifest.layers.iter().zip(&parsed.diff_ids).map(|(layer, diff_id)| LayerDescriptor {
            digest: layer.digest,
            size: layer.size,
            media_type: layer.media_type.clone(),
            annotations: layer.annotations.clone(),
            diff_id: Some(*diff_id),
        });
        Ok(Image {
            source: source.clone(),
            manifest: Some(document),
            annotations: manifest.annotations.clone(),
            config: Some(Document { digest: config.digest, media_type: config.media_type.clone(), bytes }),
            platform: parsed.platform,
            layers: layers.collect(),
        })
    }
}

fn place(source: &ImageSource) -> Result<Place<'_>, RegistryError> {
    match source {
        ImageSource::Registry(image) => Ok(Place::Registry(image)),
        ImageSource::Layout { dir, .. } => Ok(Place::Layout(layout::At::Dir(dir))),
        ImageSource::Archive { file, .. } => Ok(Place::Layout(layout::At::Archive(file))),
        ImageSource::Containerd(image) => Ok(Place::Containerd(image)),
        ImageSource::LayerFile(_) => Err(no_layout(source)),
    }
}

fn no_layout(source: &ImageSource) -> RegistryError {
    let reason = "a bare layer file has no manifest".to_owned();
    RegistryError::Document { what: source.to_string(), reason }
}

/// Old builders leave the config's media type empty or generic.
fn is_image_config(kind: &str) -> bool {
    matches!(kind, media_type::OCI_CONFIG | media_type::DOCKER_CONFIG | "application/octet-stream" | "")
}

fn media_type_of(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Typed>(bytes).ok()?.media_type.filter(|t| !t.is_empty())
}

fn parse(what: &str, bytes: &[u8], content_type: Option<&str>) -> Result<ManifestDocument, RegistryError> {
    parse_manifest(bytes, content_type)
        .map_err(|e| RegistryError::Document { what: what.to_owned(), reason: e.to_string() })
}

fn no_platform(what: &str, wanted: &Platform, mut offered: Vec<String>) -> RegistryError {
    offered.retain(|platform| platform != "unknown/unknown");
    offered.sort();
    offered.dedup();
    if offered.is_empty() {
        offered.push("none that is named".to_owned());
    }
    RegistryError::NoPlatform { what: what.to_owned(), wanted: wanted.to_string(), offered }
}

#[cfg(test)]
#[path = "tests/resolve.rs"]
mod tests;

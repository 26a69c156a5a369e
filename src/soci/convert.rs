//! From an image to one with its SOCI indexes inside (v2): pure rewriting of documents.
//!
//! The image becomes an OCI index. The manifest of every platform that gets an index names it in an annotation, and the
//! index stands beside the manifests. Converting what was converted before gives the same bytes.
//!
//! SOCI rewrites everything that it finds in the index, other platforms' SOCI indexes and attestations included, which
//! destroys them. Here only what must change does: manifests that get an index, manifests of Docker's media types (some
//! registries take no mixture), and annotations that name a manifest whose digest changed.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::go_json::{self, INDEX, MANIFEST};
use super::{CreatedIndex, INDEX_DIGEST, SociError, V2_TYPE};
use crate::registry::document::media_type::{DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::registry::document::{ManifestDocument, parse_manifest};
use crate::registry::{Document, Platform};
use crate::units::Digest;

/// Annotation of a SOCI index's descriptor: digest of its image manifest.
pub const IMAGE_MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";
/// Annotation by which BuildKit's attestations name their image manifest.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// An image of the index that gets a SOCI index.
#[derive(Clone, Debug)]
pub struct IndexedImageManifest {
    /// Its manifest, as it came.
    pub manifest: Document,
    /// For which machine.
    pub platform: Platform,
    /// Its v2 index.
    pub index: CreatedIndex,
}

/// A manifest that conversion made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewManifest {
    /// Its digest.
    pub digest: Digest,
    /// The document, an OCI image manifest.
    pub bytes: Bytes,
}

/// A converted image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converted {
    /// Image manifests that are new.
    pub manifests: Vec<NewManifest>,
    /// The new digest of each image manifest that was rewritten, by its old one.
    pub renamed: HashMap<Digest, Digest>,
    /// Manifests of the index that are as they were, SOCI indexes that were made now excepted.
    pub kept: Vec<Digest>,
    /// The OCI index.
    pub bytes: Bytes,
    /// Its digest.
    pub digest: Digest,
}

/// Entries of an OCI index, as raw JSON, and the index around them.
#[derive(Clone, Debug)]
pub struct Entries {
    around: Map<String, Value>,
    /// Descriptors in order.
    pub entries: Vec<Value>,
}

impl Entries {
    /// Those of an index, or a single manifest as the only one.
    ///
    /// # Errors
    /// [`SociError::Index`] for what is no such document.
    pub fn of(root: &Document, only: Option<&Platform>) -> Result<Self, SociError> {
        let mut around = object(&root.bytes)?;
        let entries = match around.insert("manifests".to_owned(), Value::Null) {
            Some(Value::Array(entries)) => entries,
            Some(_) => Vec::new(),
            None => {
                let mut entry = json!({"digest": root.digest.to_string(), "size": root.bytes.len()});
                if let Some(entry) = entry.as_object_mut() {
                    entry.insert("mediaType".to_owned(), root.media_type.clone().into());
                    entry.extend(only.map(|platform| ("platform".to_owned(), platform_json(platform))));
                }
                around = Map::from_iter([("schemaVersion".to_owned(), json!(2))]);
                vec![entry]
            }
        };
        Ok(Self { around, entries })
    }
}

/// Digest that a descriptor names.
#[must_use]
pub fn digest_of(entry: &Value) -> Option<Digest> {
    entry.get("digest")?.as_str()?.parse().ok()
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Whether the descriptor is of a manifest that Docker's media types make unfit to stand beside artifacts.
#[must_use]
pub fn is_docker_manifest(entry: &Value) -> bool {
    text(entry, "mediaType") == DOCKER_MANIFEST && text(entry, "artifactType").is_empty()
}

/// Rewrites the documents. `docker` are the manifests of Docker's media types that get no index, as far as the source has
/// them.
///
/// # Errors
/// [`SociError::Index`] when an image is not in the index, or a document cannot be read.
pub fn convert(
    source: Entries,
    images: &[IndexedImageManifest],
    docker: &HashMap<Digest, Bytes>,
) -> Result<Converted, SociError> {
    let Entries { mut around, mut entries } = source;
    let mut renamed: HashMap<Digest, Digest> = HashMap::new();
    let mut manifests: Vec<NewManifest> = Vec::new();
    for entry in &mut entries {
        restore_type(entry);
        let Some(digest) = digest_of(entry) else { continue };
        let image = images.iter().find(|image| image.manifest.digest == digest);
        let bytes = match image {
            Some(image) => &image.manifest.bytes,
            None => match docker.get(&digest).filter(|_| is_docker_manifest(entry)) {
                Some(bytes) => bytes,
                None => continue,
            },
        };
        let (new, annotations) = rewrite(bytes, image.map(|image| image.index.digest))?;
        describe(entry, &new, annotations);
        renamed.insert(digest, new.digest);
        if !manifests.contains(&new) {
            manifests.push(new);
        }
    }
    for image in images {
        let Some(manifest) = renamed.get(&image.manifest.digest) else {
            let reason = format!("the image index does not list the manifest {}", image.manifest.digest);
            return Err(SociError::Index { reason });
        };
        let entry = json!({
            "mediaType": OCI_MANIFEST,
            "digest": image.index.digest.to_string(),
            "size": image.index.bytes.len(),
            "annotations": {IMAGE_MANIFEST_DIGEST: manifest.to_string()},
            "platform": platform_json(&image.platform),
            "artifactType": V2_TYPE,
        });
        let same = |old: &&mut Value| {
            text(old, "artifactType") == V2_TYPE && platform_of(old).as_ref() == Some(&image.platform)
        };
        match entries.iter_mut().find(same) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
    }
    for entry in &mut entries {
        follow(entry, &renamed);
    }
    let made = |digest: &Digest| {
        manifests.iter().any(|new| new.digest == *digest) || images.iter().any(|image| image.index.digest == *digest)
    };
    let kept = entries.iter().filter_map(digest_of).filter(|digest| !made(digest)).collect();
    around.insert("mediaType".to_owned(), OCI_INDEX.into());
    around.insert("manifests".to_owned(), Value::Array(entries));
    let bytes = Bytes::from(go_json::write(&Value::Object(around), INDEX)?);
    Ok(Converted { manifests, renamed, kept, digest: Digest::of(&bytes), bytes })
}

/// An image manifest with OCI media types and, if it gets one, its SOCI index; and its annotations.
fn rewrite(bytes: &[u8], index: Option<Digest>) -> Result<(NewManifest, Map<String, Value>), SociError> {
    let bad = |reason: String| SociError::Index { reason: format!("image manifest {}: {reason}", Digest::of(bytes)) };
    let ManifestDocument::Manifest(parsed) =
        parse_manifest(bytes, Some(OCI_MANIFEST)).map_err(|e| bad(e.to_string()))?
    else {
        return Err(bad("it is an index".to_owned()));
    };
    let mut manifest = object(bytes)?;
    manifest.insert("mediaType".to_owned(), OCI_MANIFEST.into());
    // Types that are neither Docker's nor absent were the image author's choice.
    if matches!(parsed.config.media_type.as_str(), DOCKER_CONFIG | "" | "application/octet-stream")
        && let Some(config) = manifest.get_mut("config").and_then(Value::as_object_mut)
    {
        config.insert("mediaType".to_owned(), OCI_CONFIG.into());
    }
    let mut annotations = manifest.remove("annotations").and_then(|a| a.as_object().cloned()).unwrap_or_default();
    annotations.extend(index.map(|digest| (INDEX_DIGEST.to_owned(), digest.to_string().into())));
    manifest.insert("annotations".to_owned(), annotations.clone().into());
    let bytes = Bytes::from(go_json::write(&Value::Object(manifest), MANIFEST)?);
    Ok((NewManifest { digest: Digest::of(&bytes), bytes }, annotations))
}

/// Tools that copy indexes (skopeo) lose the artifact type of descriptors; the annotation still tells a SOCI index.
fn restore_type(entry: &mut Value) {
    let names_image = entry.get("annotations").is_some_and(|all| all.get(IMAGE_MANIFEST_DIGEST).is_some());
    let lost = names_image && text(entry, "artifactType").is_empty();
    if let Some(entry) = entry.as_object_mut().filter(|_| lost) {
        entry.insert("artifactType".to_owned(), V2_TYPE.into());
    }
}

/// Lets a descriptor name the new manifest. What only the descriptor said stays.
fn describe(entry: &mut Value, new: &NewManifest, annotations: Map<String, Value>) {
    let Some(entry) = entry.as_object_mut() else { return };
    entry.insert("mediaType".to_owned(), OCI_MANIFEST.into());
    entry.insert("digest".to_owned(), new.digest.to_string().into());
    entry.insert("size".to_owned(), new.bytes.len().into());
    let mut all = entry.remove("annotations").and_then(|a| a.as_object().cloned()).unwrap_or_default();
    all.extend(annotations);
    entry.insert("annotations".to_owned(), all.into());
}

/// Annotations that name a manifest by its old digest.
fn follow(entry: &mut Value, renamed: &HashMap<Digest, Digest>) {
    let Some(annotations) = entry.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    for key in [ATTESTED, IMAGE_MANIFEST_DIGEST] {
        let old = annotations.get(key).and_then(|value| value.as_str()?.parse::<Digest>().ok());
        if let Some(new) = old.and_then(|old| renamed.get(&old)) {
            annotations.insert(key.to_owned(), new.to_string().into());
        }
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, SociError> {
    serde_json::from_slice(bytes).map_err(|e| SociError::Index { reason: e.to_string() })
}

fn platform_json(platform: &Platform) -> Value {
    let mut json = json!({"architecture": platform.architecture(), "os": platform.os()});
    if let (false, Some(json)) = (platform.variant().is_empty(), json.as_object_mut()) {
        json.insert("variant".to_owned(), platform.variant().into());
    }
    json
}

fn platform_of(entry: &Value) -> Option<Platform> {
    let platform = entry.get("platform")?;
    Some(Platform::new(text(platform, "os"), text(platform, "architecture"), text(platform, "variant")))
}

#[cfg(test)]
#[path = "tests/convert.rs"]
mod tests;

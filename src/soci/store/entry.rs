//! Entries of `index.json`: descriptors of SOCI indexes, with annotations that say to which image they belong.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::records::{IndexedImage, SetBy, to_ms};
use crate::registry::Platform;
use crate::registry::document::media_type;
use crate::units::Digest;

/// Annotation of an entry in `index.json`: the image manifest that the index belongs to (SOCI's own word).
const IMAGE_MANIFEST: &str = "com.amazon.soci.image-manifest-digest";
const IMAGE_REF: &str = "sociblk.image-ref";
const SET_BY: &str = "sociblk.set-by";
const LOCATION: &str = "sociblk.location";
const CREATED: &str = "sociblk.created-at-ms";

/// An entry of `index.json` about a SOCI index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub digest: Digest,
    pub size: u64,
    pub artifact_type: String,
    pub location: String,
    pub created_at_ms: i64,
    pub image: Option<IndexedImage>,
}

/// The digest of a descriptor.
pub(super) fn digest_of(descriptor: &Value) -> Option<Digest> {
    descriptor.get("digest")?.as_str()?.parse().ok()
}

impl Entry {
    pub fn to_json(&self) -> Value {
        let mut entry = json!({
            "mediaType": media_type::OCI_MANIFEST, "digest": self.digest, "size": self.size,
            "artifactType": self.artifact_type,
        });
        let mut annotations = json!({CREATED: self.created_at_ms.to_string()});
        if !self.location.is_empty() {
            annotations[LOCATION] = json!(self.location);
        }
        if let Some(image) = &self.image {
            annotations[IMAGE_MANIFEST] = json!(image.manifest);
            annotations[SET_BY] = json!(image.set_by.word());
            if let Some(image_ref) = &image.image_ref {
                annotations[IMAGE_REF] = json!(image_ref);
            }
            if let Some(platform) = &image.platform {
                entry["platform"] = platform_json(platform);
            }
        }
        entry["annotations"] = annotations;
        entry
    }

    /// Reads an entry; `None` for descriptors of other things. Absent annotations have defaults: other programs may
    /// have written the entry.
    pub fn from_json(entry: &Value) -> Option<Self> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let note = |name: &str| entry.get("annotations")?.get(name)?.as_str();
        let manifest = note(IMAGE_MANIFEST).and_then(|digest| digest.parse().ok());
        let image = manifest.map(|manifest| IndexedImage {
            manifest,
            image_ref: note(IMAGE_REF).map(str::to_owned),
            platform: entry.get("platform").and_then(platform_from),
            set_by: note(SET_BY).and_then(SetBy::from_word).unwrap_or(SetBy::Registry),
        });
        Some(Self {
            digest: digest_of(entry)?,
            size: entry.get("size")?.as_u64()?,
            artifact_type: text("artifactType")?.to_owned(),
            location: note(LOCATION).unwrap_or_default().to_owned(),
            created_at_ms: note(CREATED).and_then(|ms| ms.parse().ok()).unwrap_or_else(|| to_ms(SystemTime::now())),
            image,
        })
    }
}

fn platform_json(platform: &Platform) -> Value {
    let text = platform.to_string();
    let mut parts = text.splitn(3, '/');
    let mut json = json!({"architecture": "", "os": parts.next()});
    json["architecture"] = json!(parts.next());
    if let Some(variant) = parts.next() {
        json["variant"] = json!(variant);
    }
    json
}

fn platform_from(json: &Value) -> Option<Platform> {
    let part = |name: &str| json.get(name).and_then(Value::as_str);
    Some(Platform::new(part("os")?, part("architecture")?, part("variant").unwrap_or_default()))
}

//! The OCI image layout: a directory with `index.json` and `blobs/sha256/HEX` (image-spec 1.1, image-layout.md).

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::document::{Descriptor, Index, ManifestDocument, parse_manifest};
use super::file::blocking;
use super::{LayoutName, RegistryError};
use crate::units::Digest;

/// The annotation that holds a layout's tags.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where a layout keeps a blob.
pub(super) fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join("sha256").join(digest.hex())
}

async fn read(path: PathBuf, limit_bytes: u64) -> Result<Bytes, RegistryError> {
    blocking(&path.clone(), move || {
        let io = |source| RegistryError::Io { path: path.clone(), source };
        let mut bytes = Vec::new();
        std::fs::File::open(&path).map_err(io)?.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit_bytes {
            return Err(RegistryError::TooLong { what: path.display().to_string(), limit_bytes });
        }
        Ok(bytes.into())
    })
    .await
}

/// A document by its digest, checked against it.
pub(super) async fn document(dir: &Path, digest: Digest, limit_bytes: u64) -> Result<Bytes, RegistryError> {
    let path = blob_path(dir, &digest);
    let bytes = read(path.clone(), limit_bytes).await?;
    let actual = Digest::of(&bytes);
    if actual == digest {
        return Ok(bytes);
    }
    Err(RegistryError::WrongDigest { what: path.display().to_string(), expected: digest, actual })
}

/// `index.json`.
pub(super) async fn index(dir: &Path, limit_bytes: u64) -> Result<Index, RegistryError> {
    let path = dir.join("index.json");
    let bytes = read(path.clone(), limit_bytes).await?;
    let bad = |reason: String| RegistryError::Document { what: path.display().to_string(), reason };
    match parse_manifest(&bytes, None).map_err(|e| bad(e.to_string()))? {
        ManifestDocument::Index(index) => Ok(index),
        ManifestDocument::Manifest(_) => Err(bad("expected an index".to_owned())),
    }
}

/// The entries of `index.json` that `name` means.
pub(super) fn select(dir: &Path, index: Index, name: &LayoutName) -> Result<Vec<Descriptor>, RegistryError> {
    let tag_of = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
    let bad = |reason: String| RegistryError::Document { what: dir.join("index.json").display().to_string(), reason };
    let mut tags: Vec<String> = index.manifests.iter().filter_map(tag_of).collect();
    tags.sort();
    tags.dedup();
    let chosen: Vec<Descriptor> = match name {
        // An artifact beside the image is never what a user means by naming nothing.
        LayoutName::Only if tags.len() > 1 => {
            return Err(bad(format!("the layout has several images; add one of :{}", tags.join(", :"))));
        }
        LayoutName::Only => index.manifests.into_iter().filter(|entry| entry.artifact_type.is_none()).collect(),
        LayoutName::Tag(tag) => {
            index.manifests.into_iter().filter(|entry| tag_of(entry).as_ref() == Some(tag)).collect()
        }
        LayoutName::Digest(digest) => index.manifests.into_iter().filter(|entry| entry.digest == *digest).collect(),
    };
    match (name, chosen.is_empty()) {
        (_, false) => Ok(chosen),
        (LayoutName::Tag(tag), true) => Err(bad(format!("no image is tagged {tag}; there is: {}", tags.join(", ")))),
        (LayoutName::Digest(digest), true) => Err(bad(format!("no image with digest {digest}"))),
        (LayoutName::Only, true) => Err(bad("the layout holds no image".to_owned())),
    }
}

//! The OCI image layout: a directory, or a tar of one, with `index.json` and `blobs/sha256/HEX` (image-spec 1.1, image-layout.md).

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::document::{Descriptor, Index, ManifestDocument, parse_manifest};
use super::file::blocking;
use super::{LayoutName, RegistryError, archive};
use crate::units::Digest;

/// The annotation that holds a layout's tags.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The list of a layout's images.
pub(super) const INDEX: &str = "index.json";

/// Where a layout is.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    /// In a directory.
    Dir(&'a Path),
    /// In a tar file.
    Archive(&'a Path),
}

impl At<'_> {
    pub(super) fn path(self) -> PathBuf {
        match self {
            Self::Dir(path) | Self::Archive(path) => path.to_owned(),
        }
    }

    /// The file that holds a member, where in it the member begins, and how long it is: `None` for all of the file.
    pub(super) async fn locate(self, member: &str) -> Result<(PathBuf, u64, Option<u64>), RegistryError> {
        match self {
            Self::Dir(dir) => Ok((dir.join(member), 0, None)),
            Self::Archive(path) => {
                let (path, name) = (path.to_owned(), member.to_owned());
                blocking(&path.clone(), move || {
                    let found = archive::find(&path, &name)?;
                    Ok((path, found.at, Some(found.size_bytes)))
                })
                .await
            }
        }
    }
}

/// Name of a blob within a layout.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

async fn read(at: At<'_>, member: &str, limit_bytes: u64) -> Result<Bytes, RegistryError> {
    let (path, start, length) = at.locate(member).await?;
    blocking(&path.clone(), move || {
        let io = |source| RegistryError::Io { path: path.clone(), source };
        let mut bytes = Vec::new();
        let mut file = std::fs::File::open(&path).map_err(io)?;
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        let most = length.unwrap_or(u64::MAX).min(limit_bytes + 1);
        file.take(most).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit_bytes {
            return Err(RegistryError::TooLong { what: path.display().to_string(), limit_bytes });
        }
        Ok(bytes.into())
    })
    .await
}

/// A document by its digest, checked against it.
pub(super) async fn document(at: At<'_>, digest: Digest, limit_bytes: u64) -> Result<Bytes, RegistryError> {
    let name = blob_name(&digest);
    let bytes = read(at, &name, limit_bytes).await?;
    let actual = Digest::of(&bytes);
    if actual == digest {
        return Ok(bytes);
    }
    Err(RegistryError::WrongDigest { what: at.path().join(name).display().to_string(), expected: digest, actual })
}

/// `index.json`.
pub(super) async fn index(at: At<'_>, limit_bytes: u64) -> Result<Index, RegistryError> {
    let bytes = index_bytes(at, limit_bytes).await?;
    let bad = |reason: String| bad_index(at, reason);
    match parse_manifest(&bytes, None).map_err(|e| bad(e.to_string()))? {
        ManifestDocument::Index(index) => Ok(index),
        ManifestDocument::Manifest(_) => Err(bad("expected an index".to_owned())),
    }
}

/// `index.json` as it is.
pub(super) async fn index_bytes(at: At<'_>, limit_bytes: u64) -> Result<Bytes, RegistryError> {
    read(at, INDEX, limit_bytes).await
}

pub(super) fn bad_index(at: At<'_>, reason: String) -> RegistryError {
    RegistryError::Document { what: at.path().join(INDEX).display().to_string(), reason }
}

/// The entries of `index.json` that `name` means.
pub(super) fn select(at: At<'_>, index: Index, name: &LayoutName) -> Result<Vec<Descriptor>, RegistryError> {
    let tag_of = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
    let bad = |reason: String| bad_index(at, reason);
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

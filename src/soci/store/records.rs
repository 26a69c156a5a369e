//! What the store says about its artifacts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::registry::Platform;
use crate::soci::{OWN_TYPE, SociError, V1_TYPE, V2_TYPE};
use crate::units::{BlobOffset, Digest};

/// What an artifact is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ArtifactKind {
    /// A zTOC.
    Ztoc,
    /// A SOCI index of version 1.
    IndexV1,
    /// A SOCI index of version 2.
    IndexV2,
    /// An index of our own, of zstd layers.
    IndexOwn,
    /// A recorded load order.
    Prefetch,
}

impl ArtifactKind {
    /// The word of the database's column `kind`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ztoc => "ztoc",
            Self::IndexV1 => "index-v1",
            Self::IndexV2 => "index-v2",
            Self::IndexOwn => "index-own",
            Self::Prefetch => "prefetch",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Ztoc, Self::IndexV1, Self::IndexV2, Self::IndexOwn, Self::Prefetch]
            .into_iter()
            .find(|kind| kind.word() == word)
    }

    /// Whether it is an index, SOCI's or ours.
    #[must_use]
    pub fn is_index(self) -> bool {
        matches!(self, Self::IndexV1 | Self::IndexV2 | Self::IndexOwn)
    }

    /// `v1`, `v2` or `own`; empty for what is no index.
    #[must_use]
    pub fn version(self) -> &'static str {
        match self {
            Self::IndexV1 => "v1",
            Self::IndexV2 => "v2",
            Self::IndexOwn => "own",
            Self::Ztoc | Self::Prefetch => "",
        }
    }

    /// The artifact type of an index; empty for what is no index.
    #[must_use]
    pub fn artifact_type(self) -> &'static str {
        match self {
            Self::IndexV1 => V1_TYPE,
            Self::IndexV2 => V2_TYPE,
            Self::IndexOwn => OWN_TYPE,
            Self::Ztoc | Self::Prefetch => "",
        }
    }
}

/// Who said that an index belongs to an image. The later ones weigh less.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SetBy {
    /// The user (`index map`): counts before all else.
    User,
    /// `create` or `convert`, which built the index of the image's own layers.
    Create,
    /// A registry, when the image was mounted. The registry is asked again each time; when it does not answer, this
    /// serves.
    Registry,
}

impl SetBy {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Create => "create",
            Self::Registry => "registry",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::User, Self::Create, Self::Registry].into_iter().find(|by| by.word() == word)
    }
}

/// An image that an index belongs to. One index may serve several: a v2 index depends on the layers alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexedImage {
    /// Digest of the platform manifest.
    pub manifest: Digest,
    /// Under which reference the user named it.
    pub image_ref: Option<String>,
    /// For which machine.
    pub platform: Option<Platform>,
    /// Who said so.
    pub set_by: SetBy,
}

/// A SOCI index in the store, with one of its images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexRecord {
    /// Digest of the document.
    pub digest: Digest,
    /// v1, v2 or our own.
    pub kind: ArtifactKind,
    /// Size of the document.
    pub size: BlobOffset,
    /// Media type of the document.
    pub media_type: String,
    /// Where it came from: empty for what was built here, else the registry's repository.
    pub location: String,
    /// When it came into the store.
    pub created_at: SystemTime,
    /// The image; `None` when nothing says to which one it belongs.
    pub image: Option<IndexedImage>,
}

/// A zTOC in the store, for one of the layers that it is said to describe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZtocRecord {
    /// Digest of the document.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
    /// The layer.
    pub layer: Digest,
    /// Span size that it was built with, in bytes; `None` if unknown.
    pub span_size_bytes: Option<u64>,
    /// Whether it was built here, of the layer's own bytes.
    pub built_here: bool,
}

/// A load order in the store, for one of the layers that it is said to describe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefetchRecord {
    /// Digest of the document.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
    /// The layer.
    pub layer: Digest,
    /// When it came into the store.
    pub created_at: SystemTime,
}

/// The zTOC that the store knows for a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordedZtoc {
    /// Digest of the zTOC.
    pub digest: Digest,
    /// Size of the zTOC.
    pub size: BlobOffset,
    /// Span size that it was built with, in bytes; `None` if unknown.
    pub span_size_bytes: Option<u64>,
}

/// Which indexes to list; what is empty does not restrict.
#[derive(Clone, Debug, Default)]
pub struct IndexFilter {
    /// Indexes of the image that was named so.
    pub image_ref: Option<String>,
    /// Indexes of images for one of these machines, exactly.
    pub platforms: Vec<Platform>,
}

/// What was removed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Removed {
    /// Indexes.
    pub indexes: Vec<Digest>,
    /// zTOCs and load orders that nothing else needs, and other blobs that nothing refers to.
    pub blobs: Vec<Digest>,
    /// Disk space that came free, in bytes.
    pub freed_bytes: u64,
}

/// What is in a database that was rebuilt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Rebuilt {
    /// Indexes.
    pub indexes: usize,
    /// zTOCs, those included that indexes list and that are in the store.
    pub ztocs: usize,
    /// Load orders.
    pub prefetches: usize,
    /// Entries of the layout that were dropped because their blob is gone or damaged.
    pub dropped: usize,
}

/// A blob that a command needs is not in the store.
pub(super) fn missing(what: &'static str, digest: Digest) -> SociError {
    SociError::NotInStore { what, digest }
}

pub(super) fn to_ms(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn from_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

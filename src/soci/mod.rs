//! SOCI's documents: which zTOC belongs to which layer, where to find it, and how to say so to others.
//!
//! An image's zTOCs are found in this order ([`discover`]): the local [`Store`]; the v2 annotation of the image manifest;
//! a v1 index among the manifest's referrers. zstd layers, for which SOCI has no zTOCs, are found in an index of our own among
//! the referrers. A [`SociIndex`] may be sparse: layers that it leaves out are read without
//! a zTOC, once, and leave one behind in the store.
//!
//! Knows registry documents, never blocks. What is inside a zTOC is `spans`' business.

use std::path::PathBuf;

use crate::registry::RegistryError;
use crate::units::Digest;

pub mod build;
pub mod convert;
mod create;
mod discover;
mod go_json;
mod index;
pub mod load_order;
mod push;
mod report;
mod store;
pub mod toc;
pub mod verify;

pub use create::{CreatedIndex, IndexedLayer, compose, split, subject_of};
pub use discover::{
    Discovery, LocalPolicy, Missing, NamedIndex, Origin, Prefetch, ZtocRef, discover, discover_here, discover_named,
    fetch, read_blob, read_ztoc,
};
pub use index::{
    CONFIG, INDEX_DIGEST, Kind, MAX_ZTOC_BYTES, OWN_TYPE, OWN_ZTOC_TYPE, PREFETCH_TYPE, PrefetchEntry, SociIndex,
    Subject, V1_TYPE, V2_TYPE, ZTOC_TYPE, ZtocEntry,
};
pub use push::{Attachment, DEFAULT_UPLOADS, PushStep, attach, push, push_blobs, push_index};
pub use report::{Omitted, Place, Step, Verdict};
pub use store::{
    ArtifactKind, IndexFilter, IndexRecord, IndexedImage, NewIndex, PrefetchRecord, Rebuilt, RecordedZtoc, Removed,
    SetBy, Store, ZtocRecord,
};

/// Why SOCI documents cannot be read, stored or sent.
#[derive(Debug, thiserror::Error)]
pub enum SociError {
    /// A document is no usable SOCI index.
    #[error("SOCI index: {reason}")]
    Index {
        /// What is wrong with it.
        reason: String,
    },
    /// No layer has a zTOC.
    #[error("no ztocs created, all layers either skipped or produced errors")]
    Empty,
    /// A zTOC is out of proportion to its layer.
    #[error(
        "zTOC {ztoc} of layer {layer} claims {size_bytes} bytes; at most {limit_bytes} are accepted for that layer"
    )]
    TooLarge {
        /// The zTOC.
        ztoc: Digest,
        /// Its layer.
        layer: Digest,
        /// Size by the index.
        size_bytes: u64,
        /// Accepted size.
        limit_bytes: u64,
    },
    /// What is asked for needs an image manifest, and a bare layer file has none.
    #[error("{what} has no image manifest that an index could belong to; name an image in a registry or layout")]
    NoManifest {
        /// The source.
        what: String,
    },
    /// The local store cannot be read or written.
    #[error("{}: {source}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A stored or fetched blob does not have its digest.
    #[error("{what}: expected {expected}, the bytes are {actual}")]
    Corrupt {
        /// Path or source.
        what: String,
        /// Digest that it should have.
        expected: Digest,
        /// Digest that it has.
        actual: Digest,
    },
    /// A stored document is not what it should be.
    #[error("{}: {reason}", path.display())]
    StoreDocument {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What is asked for is not in the local store.
    #[error("{what} {digest} is not in the local store")]
    NotInStore {
        /// What it is.
        what: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// The database of the local store failed.
    #[error("database {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: Box<rusqlite::Error>,
    },
    /// The database of the local store is of a later version of this program.
    #[error(
        "{} was written by a later version of sociblk (schema {found}, this one knows {known}); use that version, or \
         remove the file: it is made again from what is in the store",
        path.display()
    )]
    LaterDatabase {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The schema version of this program.
        known: i64,
    },
    /// Somebody keeps the local store locked.
    #[error("{} is locked by {holder} for more than {waited_s} s; wait for it or end it, then try again", path.display())]
    Locked {
        /// The locked file.
        path: PathBuf,
        /// Who holds the lock, as far as it can be known.
        holder: String,
        /// How long was waited, in seconds.
        waited_s: u64,
    },
    /// The registry does not take what an index is made of.
    #[error(
        "{registry} does not take this kind of artifact ({source}); `sociblk convert` makes an image with its index inside (v2), which more registries take"
    )]
    Refused {
        /// The registry.
        registry: String,
        /// What it said.
        source: Box<RegistryError>,
    },
    /// The registry, layout or file failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl SociError {
    /// Whether trying again after a while can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Registry(error) if error.is_transient())
    }
}

//! What a discovery looked at, and why each place served or not: for people and for machines.

use std::fmt;

use serde::Serialize;

use crate::units::{BlobOffset, Digest};

/// A place where an image's zTOCs are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The user named the index.
    Named,
    /// An index that the local store maps the image to.
    LocalMapping,
    /// zTOCs of the local store that were built here.
    LocalStore,
    /// The annotation of the image manifest.
    V2Annotation,
    /// The referrers of the image manifest.
    V1Referrers,
    /// The referrers of the image manifest that are of our own kind, for zstd layers.
    OwnReferrers,
    /// The registry as such.
    Registry,
}

impl Place {
    fn words(self) -> &'static str {
        match self {
            Self::Named => "named index",
            Self::LocalMapping => "local mapping",
            Self::LocalStore => "local store",
            Self::V2Annotation => "v2 annotation",
            Self::V1Referrers => "v1 referrers",
            Self::OwnReferrers => "own referrers",
            Self::Registry => "registry",
        }
    }
}

/// What came of looking there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It serves layers.
    Used,
    /// There is something, which serves no layer.
    Unused,
    /// Nothing is there.
    Nothing,
    /// It was not asked.
    NotAsked,
    /// What is there cannot be had, or cannot be used.
    Failed,
}

/// One place that was looked at, or passed over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    /// The place.
    pub place: Place,
    /// The index that it names.
    pub index: Option<Digest>,
    /// What came of it.
    pub verdict: Verdict,
    /// Why.
    pub detail: String,
}

impl Step {
    /// A step without an index.
    pub fn new(place: Place, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { place, index: None, verdict, detail: detail.into() }
    }

    /// A step about an index.
    pub fn of(place: Place, index: Digest, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { index: Some(index), ..Self::new(place, verdict, detail) }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place.words())?;
        if let Some(index) = &self.index {
            write!(f, "index {index}: ")?;
        }
        f.write_str(&self.detail)
    }
}

/// Why an index that was read does not serve a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Omitted {
    /// It does not list the layer.
    NotListed {
        /// The index.
        index: Digest,
        /// Size of the image's smallest layer that it lists; `None` when it lists none of them.
        smallest_listed: Option<BlobOffset>,
    },
    /// It claims a zTOC that is out of proportion to the layer.
    TooLarge {
        /// The index.
        index: Digest,
        /// The zTOC.
        ztoc: Digest,
        /// Its size.
        size: BlobOffset,
        /// Most bytes that are accepted.
        limit_bytes: u64,
    },
    /// It lists a zTOC that cannot be had.
    Missing {
        /// The zTOC.
        ztoc: Digest,
        /// Why, for people.
        error: String,
    },
}

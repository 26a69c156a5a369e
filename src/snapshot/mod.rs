//! containerd's snapshots service: names, parents and labels of snapshots, and which mounts make up each.
//!
//! [`Snapshotter`] has the rules, [`store`] the database, [`service`] speaks gRPC. Image layers are shown by whoever
//! implements [`Layers`]; this module knows neither registries nor devices. Contract: containerd's
//! `api/services/snapshots/v1` and its behaviour suite (core/snapshots/testsuite), and the labels of SOCI's snapshotter.

mod counters;
mod directories;
mod filter;
mod info;
pub mod labels;
mod mounts;
pub mod service;
mod setaside;
mod snapshotter;
mod store;
#[cfg(test)]
mod tests;
pub mod words;

use std::future::Future;
use std::path::PathBuf;

pub use counters::{Counters, PREPARE_BOUNDS_MS};
pub use filter::{Filter, FilterError};
pub use info::{Content, Info, Kind, Labels, Snapshot, SnapshotId, Usage};
pub use labels::{LabelError, LayerWanted};
pub use mounts::Mount;
pub use snapshotter::{Options, Snapshotter};

use crate::units::IdMap;

/// What shows image layers.
pub trait Layers: Send + Sync + 'static {
    /// Shows a layer for `owner`, until it is released. Shown already for this owner, it stays as it is.
    ///
    /// The future may be dropped at any point, when a client hangs up: whatever it began, [`Self::release`] must end.
    /// It is called then, as it is after an error. `owner` is a text of ours: a chain ID, `/`, and a number.
    fn show(
        &self,
        owner: &str,
        wanted: &LayerWanted,
        way: Way,
    ) -> impl Future<Output = Result<Shown, ShowError>> + Send;

    /// Where a layer is shown for `owner`; `None` when it is not, or cannot be read any more.
    fn shown_at(&self, owner: &str) -> impl Future<Output = Option<PathBuf>> + Send;

    /// User and group of the root directory of the layer that `owner` has; `None` when the layer lists none, and the
    /// layer below it decides. The layer's own mount must not be asked: it is served by this process.
    fn root_owner(&self, owner: &str) -> impl Future<Output = Option<(u32, u32)>> + Send;

    /// Ends showing a layer for `owner`; unknown owners are none.
    fn release(&self, owner: &str) -> impl Future<Output = ()> + Send;

    /// All owners.
    fn owners(&self) -> impl Future<Output = Vec<String>> + Send;

    /// Shows directories once more, with the owners of their files mapped, for as long as `name` (of a container's
    /// snapshot: a number) is not released by [`Self::unmap`]. Shown already, they stay as they are. What is shown may
    /// be asked for again at any time. The future may be dropped at any point; then `unmap` follows.
    fn map(
        &self,
        name: &str,
        map: &IdMap,
        dirs: &[PathBuf],
    ) -> impl Future<Output = Result<Vec<PathBuf>, ShowError>> + Send;

    /// Ends what [`Self::map`] began; a name without any is none.
    fn unmap(&self, name: &str) -> impl Future<Output = ()> + Send;

    /// All names that directories are mapped for.
    fn mapped(&self) -> impl Future<Output = Vec<String>> + Send;

    /// What the layer that `owner` has takes on local disk, shared with others or not.
    fn usage(&self, owner: &str) -> impl Future<Output = Usage> + Send;

    /// A layer was left to containerd: for whoever asks why later.
    fn left(&self, _left: Left<'_>) {}
}

/// A layer that containerd is to unpack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left<'a> {
    /// Its chain ID.
    pub chain_id: &'a str,
    /// What containerd said of it.
    pub labels: &'a Labels,
    /// Why, in one word, as metrics and log lines have it: one of [`words`], or the word of a [`ShowError`].
    pub word: &'a str,
    /// The same for people.
    pub reason: &'a str,
}

/// How a layer is to be brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By its index if it has one, else whole.
    Lazy,
    /// Whole, before it is shown: for small layers one request beats many.
    Whole,
}

/// A layer that is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// Root of its files.
    pub dir: PathBuf,
    /// Whether bytes are still fetched as they are read.
    pub lazy: bool,
    /// Whether the image has an index.
    pub indexed: bool,
}

/// Why a layer is not shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The image has no index, and the settings leave such images to containerd.
    #[error("{reason}")]
    NoIndex {
        /// Why it has none, in one word.
        word: &'static str,
        /// How it was looked for.
        reason: String,
    },
    /// Anything else.
    #[error("{reason}")]
    Failed {
        /// The error and its causes.
        reason: String,
    },
}

/// Why something cannot be done. Texts follow containerd's, whose clients read some of them.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such snapshot.
    #[error("snapshot {name}: not found")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// The parent does not exist.
    #[error("missing parent {parent:?}: not found")]
    NoParent {
        /// What was asked for.
        parent: String,
    },
    /// The name or key is taken.
    #[error("snapshot {name}: already exists")]
    Exists {
        /// The name.
        name: String,
    },
    /// A name is needed.
    #[error("a snapshot needs a name")]
    NoName,
    /// Only committed snapshots can be parents.
    #[error("parent {parent:?} is not a committed snapshot")]
    ParentNotCommitted {
        /// The parent.
        parent: String,
    },
    /// Only active snapshots can be committed.
    #[error("snapshot {name} is not active")]
    NotActive {
        /// The snapshot.
        name: String,
    },
    /// Committed snapshots have no mounts of their own.
    #[error("requested snapshot {name} is not active or a view")]
    NotMountable {
        /// The snapshot.
        name: String,
    },
    /// Others stand on it.
    #[error("cannot remove snapshot {name} with children")]
    HasChildren {
        /// The snapshot.
        name: String,
    },
    /// Only labels can change.
    #[error("cannot update field {field:?} of snapshot {name}: only labels can change")]
    CannotUpdate {
        /// The snapshot.
        name: String,
        /// The field.
        field: String,
    },
    /// A label has no sense.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The owners of a container's files cannot be mapped.
    #[error("snapshot {name} needs the owners of its files mapped: {reason}")]
    NotMapped {
        /// The snapshot.
        name: String,
        /// Why.
        reason: String,
    },
    /// A filter cannot be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A layer cannot be shown again.
    #[error("layer {name:?} is unavailable: {reason}")]
    Unavailable {
        /// Name of its snapshot.
        name: String,
        /// Why.
        reason: String,
    },
    /// A directory of a snapshot failed.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database failed.
    #[error("{path}: {source}")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file is not ours, or of another version.
    #[error(
        "{path}: it was written by another program or version; move it away, and remove its images from containerd"
    )]
    ForeignDatabase {
        /// The file.
        path: PathBuf,
    },
    /// The daemon is ending.
    #[error("internal error: {reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
}

//! What is known of a snapshot: containerd's own terms (core/snapshots/snapshotter.go of containerd 2.x).

use std::collections::BTreeMap;
use std::time::SystemTime;

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Read-only, of a committed one.
    View,
    /// Writable; becomes committed, or goes.
    Active,
    /// Finished: may be a parent, cannot be mounted itself.
    Committed,
}

impl Kind {
    /// The word that containerd's filters know it by.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What containerd may ask of one snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Key of an active snapshot or view, name of a committed one.
    pub name: String,
    /// Name of the parent; empty without one.
    pub parent: String,
    /// What it is for.
    pub kind: Kind,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    pub created: SystemTime,
    /// When its labels changed last.
    pub updated: SystemTime,
}

/// What a snapshot takes on disk, without its parents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Files and directories.
    pub inodes: u64,
    /// Allocated bytes.
    pub bytes: u64,
}

/// Where a snapshot's own files are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// In a directory of ours, where containerd put or will put them.
    Directory,
    /// In a layer that the node shows.
    Layer {
        /// For whom: a text that is never used twice.
        owner: String,
        /// The labels it was asked for with, and so is brought back by. Those in [`Info`] are containerd's to change.
        origin: Labels,
    },
}

/// A snapshot as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Names its directory; never used twice.
    pub id: SnapshotId,
    /// What containerd may know.
    pub info: Info,
    /// Where its files are.
    pub content: Content,
}

/// Number of a snapshot, for as long as the database lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId(pub(super) i64);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

//! What `explain` tells.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Because, LayerStatus, LayerWay, MountReport};
use crate::units::Digest;

/// All that `explain` is made of.
#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Account {
    /// Mounts, with the names of their layers, bottom first.
    pub mounts: Vec<MountAccount>,
    /// Layers that are shown, by name.
    pub layers: BTreeMap<String, LayerAccount>,
    /// Layers that are held for containerd.
    pub held: Vec<HeldLayer>,
    /// Layers that were left to containerd, the latest last.
    pub left: Vec<LeftLayer>,
}

/// A mount.
#[derive(Serialize, Deserialize, Debug)]
pub struct MountAccount {
    /// What it is made of.
    pub report: MountReport,
    /// Names of its layers, bottom first.
    pub layers: Vec<String>,
}

/// A layer that is shown.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct LayerAccount {
    /// How it stands.
    #[serde(flatten)]
    pub status: LayerStatus,
    /// The zTOC that it is shown by.
    pub ztoc: Digest,
    /// The slowest reads that are over, the slowest first.
    pub slowest: Vec<SlowRead>,
    /// Reads that wait, the oldest first; not more than a few.
    pub waiting: Vec<WaitingRead>,
}

/// A read that had to wait, and is over. Times in milliseconds.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct SlowRead {
    /// How long it took.
    pub took_ms: u64,
    /// How long ago it ended.
    pub ago_ms: u64,
    /// Where on the device it began; `None` for what the device does not show.
    pub device_offset: Option<u64>,
    /// Where in the layer it began.
    pub layer_offset: u64,
    /// Its length.
    pub len_bytes: u64,
    /// What took the longest: `queue`, `retry`, `network`, `inflate`.
    pub waited_for: String,
    /// Until its request was made.
    pub queue_ms: u64,
    /// In attempts that failed, and pauses after them.
    pub retry_ms: u64,
    /// Until the registry had sent the last byte.
    pub network_ms: u64,
    /// Until the bytes were proven, inflated and written.
    pub inflate_ms: u64,
    /// It ended with an error.
    pub failed: bool,
    /// The file, where the zTOC is at hand.
    #[serde(default)]
    pub file: Option<String>,
}

/// A read that waits.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct WaitingRead {
    /// For how long, in milliseconds.
    pub waited_ms: u64,
    /// What for: `queue`, `retry`, `network`, `inflate`.
    pub waits_for: String,
    /// Where on the device it began; `None` for what the device does not show.
    pub device_offset: Option<u64>,
    /// Where in the layer it began.
    pub layer_offset: u64,
    /// Its length.
    pub len_bytes: u64,
    /// The file, where the zTOC is at hand.
    #[serde(default)]
    pub file: Option<String>,
}

/// A layer that is held for one of containerd's snapshots.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct HeldLayer {
    /// For whom: the layer's chain ID, `/`, and a number.
    pub owner: String,
    /// Name of the layer.
    pub layer: String,
    /// Blob digest.
    pub digest: Digest,
    /// The image, as whoever pulled it named it.
    pub image: String,
    /// The image, by its manifest.
    pub manifest: String,
    /// Which layer of the image, counted from the bottom.
    pub place: usize,
    /// By what it is shown, and why; layers of earlier versions have none.
    pub way: Option<LayerWay>,
}

/// A layer that was left to containerd.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct LeftLayer {
    /// Its chain ID.
    pub chain_id: String,
    /// Blob digest, where containerd told it.
    pub digest: Option<Digest>,
    /// The image, where containerd told it.
    pub image: Option<String>,
    /// Why.
    #[serde(flatten)]
    pub because: Because,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

//! What `ls` and `stats` tell.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::MountReport;
use crate::units::Digest;

/// All that the daemon serves.
#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Listing {
    /// Mounts.
    pub mounts: Vec<MountReport>,
    /// Layers.
    pub layers: Vec<LayerStatus>,
    /// Sums and process figures.
    pub totals: Totals,
}

/// State of one served layer.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct LayerStatus {
    /// Blob digest.
    pub digest: Digest,
    /// The block device or image file.
    pub device: PathBuf,
    /// `ublk`, `fuse-image` or `fuse-fs`, with the data mode.
    pub frontend: String,
    /// Mounts that use it.
    pub used_by: usize,
    /// Size of the blob.
    pub blob_bytes: u64,
    /// Size of the uncompressed layer.
    pub layer_bytes: u64,
    /// Layer bytes present on local disk.
    pub present_bytes: u64,
    /// Blob bytes that came over the network since the daemon started.
    pub fetched_bytes: u64,
    /// Range requests made.
    pub requests: u64,
    /// Attempts that failed and were tried again.
    pub retries: u64,
    /// Spans of the layer.
    pub spans: u64,
    /// Spans present on local disk.
    pub present_spans: u64,
    /// Slices of spans that are missing which an excerpt brought.
    #[serde(default)]
    pub slices: u64,
    /// A span came that had other bytes than the excerpt: what was read before may have been wrong.
    #[serde(default)]
    pub contradicted: bool,
    /// Spans that were fetched in the background.
    pub background_spans: u64,
    /// Reads that had to wait so far.
    pub waits: u64,
    /// How long they waited, all together.
    pub waited_ms: u64,
    /// Whether the whole layer's sha256 was seen to equal the image's diffID.
    pub proven: bool,
    /// Readers waiting for bytes now.
    pub waiting_readers: u64,
    /// How long the oldest of them has waited, in milliseconds.
    pub oldest_wait_ms: u64,
    /// Kernel requests answered with an error.
    pub failed_reads: u64,
    /// The last fetch error, if any.
    pub last_error: Option<String>,
    /// The load order that it follows since it was shown.
    #[serde(default)]
    pub load_order: Option<FollowedOrder>,
}

/// What a layer follows, and how much of it that names.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct FollowedOrder {
    /// Its label; prefetch artifacts have none.
    pub label: Option<String>,
    /// Where it was found: `file`, `kept`, `registry`, `artifacts`.
    pub from: String,
    /// The artifact of the registry that it came in, or the layer's prefetch artifact.
    pub digest: Option<Digest>,
    /// Why it was chosen, for people.
    pub why: String,
    /// Spans of the layer that are fetched for it.
    pub spans: u64,
    /// Their blob bytes.
    pub bytes: u64,
    /// Pieces that they are fetched in.
    pub pieces: u64,
    /// Slices of the layer that come with the order's excerpt in the place of spans.
    #[serde(default)]
    pub slices: u64,
    /// The excerpt.
    #[serde(default)]
    pub excerpt: Option<Digest>,
}

/// Sums over all layers, and what the daemon itself uses.
#[derive(Serialize, Deserialize, Debug, Default, Clone)]
pub struct Totals {
    /// Blob bytes fetched since the daemon started, those of excerpts included.
    pub fetched_bytes: u64,
    /// Bytes fetched of excerpts.
    #[serde(default)]
    pub excerpt_bytes: u64,
    /// Range requests made.
    pub requests: u64,
    /// Retried attempts.
    pub retries: u64,
    /// Bytes of layer files on disk.
    pub cache_bytes: u64,
    /// Resident memory of the daemon.
    pub resident_bytes: u64,
    /// Threads of the daemon.
    pub threads: u64,
    /// Open file descriptors of the daemon.
    pub descriptors: u64,
}

//! What the command line and the daemon say to each other: JSON lines over a unix socket under the root.
//!
//! One request a connection. The daemon answers with any number of [`Reply::Progress`] lines and then exactly one
//! [`Reply::Done`] or [`Reply::Failed`]. A client that closes the connection early cancels its request: what the
//! request had built until then is undone.
//!
//! A mount is the client's only when it has confirmed it by one more byte. When the connection ends (for writing, or
//! altogether) without that byte, the mount is undone and a second [`Reply::Done`] or [`Reply::Failed`] says how that
//! went: there is no moment at which a Ctrl-C leaves a mount that nobody knows of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::why::{Because, Reason};
pub use crate::containerd::{DEFAULT_NAMESPACE, DEFAULT_SOCKET};
use crate::order::LoadOrder;
pub use crate::registry::CONTAINERD_SCHEME;
use crate::units::Digest;

/// Version of this protocol; client and daemon of different versions refuse each other with a clear error.
pub const PROTOCOL_VERSION: u32 = 4;

/// The byte by which a client takes a mount over.
pub const CONFIRMATION: u8 = b'\n';

/// A request with the version that the client speaks.
#[derive(Serialize, Deserialize, Debug)]
pub struct Envelope<R = Request> {
    /// [`PROTOCOL_VERSION`] of the client.
    pub version: u32,
    /// What is asked.
    pub request: R,
}

/// What can be asked of the daemon.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// Mount an image.
    Mount(Box<MountOrder>),
    /// Undo a mount.
    Umount {
        /// The mount point, absolute.
        dir: PathBuf,
        /// Detach even when busy.
        lazy: bool,
    },
    /// All layers and mounts.
    List,
    /// The same, and why each layer is as it is.
    Explain,
    /// Record what a workload reads first.
    Record(RecordOrder),
    /// Undo all mounts and stop.
    Stop,
}

/// What `sociblk record` asks.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct RecordOrder {
    /// What to do.
    pub action: RecordAction,
    /// A mount point, or an image: its reference, or its manifest's digest.
    pub target: String,
    /// Label of the load order.
    pub label: Option<String>,
    /// The command that is recorded; absent: the image's own.
    pub entrypoint: Option<Vec<String>>,
    /// Make an excerpt, too.
    #[serde(default)]
    pub excerpt: bool,
}

/// What to do with a recording.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RecordAction {
    /// Begin anew.
    Start,
    /// Keep what was read, and go on.
    Save,
    /// Keep what was read, and forget the label.
    Stop,
}

/// A load order that was recorded, or begun.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct RecordReport {
    /// The image's manifest.
    pub image: Digest,
    /// How the image was named.
    pub reference: String,
    /// Its label.
    pub label: String,
    /// Spans that were read.
    pub spans: u64,
    /// Layers that were read.
    pub layers: usize,
    /// Blob bytes of these spans.
    pub bytes: u64,
    /// From the beginning to the last first read of a span, in milliseconds.
    pub duration_ms: u64,
    /// Where it is kept.
    pub path: Option<PathBuf>,
    /// Size of its excerpt, if it has one.
    #[serde(default)]
    pub excerpt_bytes: Option<u64>,
    /// Why it has none that was asked for.
    #[serde(default)]
    pub no_excerpt: Option<String>,
    /// The document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<Value>,
}

impl RecordReport {
    /// About an order.
    #[must_use]
    pub fn of(order: &LoadOrder, path: Option<PathBuf>, document: Option<Value>) -> Self {
        Self {
            image: order.image,
            reference: order.reference.clone().unwrap_or_default(),
            label: order.label.clone(),
            spans: order.spans(),
            layers: order.layers.len(),
            bytes: order.bytes,
            duration_ms: order.reads.last().map_or(0, |read| read.at_ms),
            path,
            excerpt_bytes: order.excerpt.as_ref().map(|excerpt| excerpt.bytes),
            no_excerpt: None,
            document,
        }
    }
}

/// Which kernel path shows layers.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendChoice {
    /// The first that works.
    Auto,
    /// ublk block devices.
    Ublk,
    /// Image files over FUSE.
    FuseImage,
    /// Every file by itself over FUSE.
    FuseFs,
}

/// A request to mount an image.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct MountRequest {
    /// Image reference as the user gave it; local paths are absolute.
    pub image: String,
    /// Mount point, absolute, existing.
    pub dir: PathBuf,
    /// Kernel path.
    pub frontend: FrontendChoice,
    /// `OS/ARCH[/VARIANT]`, or the daemon's own.
    pub platform: Option<String>,
    /// Upper directory for a writable mount, absolute.
    pub upper: Option<PathBuf>,
    /// Complete and prove layers in the background.
    pub background: bool,
    /// Which load order to follow: a label, `off`, or the absolute path of a file; absent: as the settings say.
    #[serde(default)]
    pub load_order: Option<String>,
    /// How to talk to its registry.
    #[serde(flatten)]
    pub access: RegistryAccess,
}

/// How registries are talked to for one request, besides what the settings say. It is written down with the mount, so
/// it holds no secrets, and its paths are absolute.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(default)]
pub struct RegistryAccess {
    /// Hosts to speak plain HTTP to.
    pub insecure: Vec<String>,
    /// Speak plain HTTP to the registry that the image names.
    pub plain_http: bool,
    /// Leave servers' certificates unchecked.
    pub skip_verify: bool,
    /// PEM file with certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with a certificate to show.
    pub certificate: Option<PathBuf>,
    /// PEM file with its key; absent: in the file of the certificate.
    pub key: Option<PathBuf>,
    /// Directory that describes registries' hosts, in place of those in the settings.
    pub hosts_dir: Option<PathBuf>,
    /// Directory of the caller's docker `config.json`; the daemon's own when absent.
    pub docker_config: Option<PathBuf>,
}

/// A mount request with what must not be written down.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct MountOrder {
    /// The request.
    #[serde(flatten)]
    pub request: MountRequest,
    /// Who to be at the registry; held in memory until the layers are gone.
    #[serde(default)]
    pub login: Option<LoginOrder>,
}

/// A user and password on their way to the daemon, over a socket that only root may open. Shows nothing.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
pub struct LoginOrder {
    /// The user; empty: the password is an OAuth2 refresh token.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for LoginOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(login)")
    }
}

/// One line of the daemon's answer.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Something a person may want to see while waiting.
    Progress(Progress),
    /// The request is done.
    Done(Box<Outcome>),
    /// The request failed; nothing of it is left.
    Failed {
        /// The error and its causes.
        message: String,
    },
}

/// How far a long step is.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is going on: `resolving`, `streaming sha256:…`.
    pub step: String,
    /// Bytes done, where the step counts bytes.
    pub done_bytes: u64,
    /// Bytes in all; 0 where unknown or not counted.
    pub total_bytes: u64,
}

/// What a request that worked gives back.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// To `Ping`.
    Pong {
        /// The daemon's process id.
        pid: u32,
        /// Version of the daemon.
        version: String,
        /// Number of mounts.
        mounts: usize,
    },
    /// To `Mount`.
    Mounted(MountReport),
    /// To `Umount` and `Stop`.
    Undone,
    /// To `List`.
    Listing(Listing),
    /// To `Explain`.
    Explained(Box<Account>),
    /// To `Record`.
    Recorded(RecordReport),
}

/// What a mount is made of.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct MountReport {
    /// Image as asked for.
    pub image: String,
    /// Manifest that it resolved to.
    pub manifest: Digest,
    /// Mount point.
    pub dir: PathBuf,
    /// `ublk`, `fuse-image` or `fuse-fs`.
    pub frontend: String,
    /// Why that one.
    pub frontend_reason: String,
    /// Whether writes are possible.
    pub writable: bool,
    /// Layers from the bottom up.
    pub layers: Vec<MountedLayer>,
    /// How the index was looked for, step by step.
    pub discovery: Vec<String>,
    /// Milliseconds from the request to the mount.
    pub elapsed_ms: u64,
    /// When it was made, in milliseconds since 1970. With the mount point it tells one mount from the next.
    #[serde(default)]
    pub mounted_at_ms: u64,
}

/// One layer of a mount.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct MountedLayer {
    /// The layer's blob digest.
    pub digest: Digest,
    /// Size of the blob.
    pub blob_bytes: u64,
    /// Where its zTOC came from: `local`, `v2`, `v1`, `streamed`.
    pub index: String,
    /// The same with its reason; mounts of earlier versions have none.
    #[serde(default)]
    pub way: Option<LayerWay>,
}

/// By what a layer is shown, and why.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct LayerWay {
    /// Where its zTOC came from: `local`, `mapped`, `v2`, `v1`, `own`, `named`, `streamed`.
    pub origin: String,
    /// The index that lists the zTOC.
    pub index: Option<Digest>,
    /// The zTOC.
    pub ztoc: Digest,
    /// Why the layer is lazy, or is not.
    #[serde(flatten)]
    pub because: Because,
}

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

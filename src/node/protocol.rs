//! What the command line and the daemon say to each other: JSON lines over a unix socket under the root.
//!
//! One request a connection. The daemon answers with any number of [`Reply::Progress`] lines and then exactly one
//! [`Reply::Done`] or [`Reply::Failed`]. A client that closes the connection early cancels its request: what the
//! request had built until then is undone.
//!
//! A mount is the client's only when it has confirmed it by one more byte. When the connection ends (for writing, or
//! altogether) without that byte, the mount is undone and a second [`Reply::Done`] or [`Reply::Failed`] says how that
//! went: there is no moment at which a Ctrl-C leaves a mount that nobody knows of.

mod account;
mod recording;
mod status;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::account::{Account, HeldLayer, LayerAccount, LeftLayer, MountAccount, SlowRead, WaitingRead};
pub use self::recording::{RecordAction, RecordOrder, RecordReport};
pub use self::status::{FollowedOrder, LayerStatus, Listing, Totals};
pub use super::why::{Because, Reason};
pub use crate::containerd::{DEFAULT_NAMESPACE, DEFAULT_SOCKET};
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

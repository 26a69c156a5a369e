//! Settings of the snapshotter.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Size;
use super::docs::documented;

documented! {
    /// Settings of `[snapshotter]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Snapshotter {
        /// Where containerd finds the service: a path, `unix://PATH`, or `fd://` for the socket that systemd hands over.
        pub address: String,
        /// What shows the layers to the kernel: "auto", the first that works of "ublk" and "fuse-image"; or "fuse-fs",
        /// which serves every file by itself as SOCI does, for comparison.
        pub frontend: Frontend,
        /// containerd's socket: SOCI indexes that its content store keeps with an image are used without asking the registry.
        /// Empty: they are not looked for.
        pub containerd_address: String,
        /// Where metrics are served over HTTP: `ADDRESS:PORT` or `unix:PATH`; empty: nowhere.
        pub metrics_address: String,
        /// What becomes of images without an index. "defer": containerd pulls and unpacks them as ever; "stream": their
        /// layers are streamed, which leaves an index behind for the next time.
        pub without_index: WithoutIndex,
        /// Layers smaller than this are fetched whole before they are shown, where the client told their size.
        pub min_layer_size: Size,
        /// Complete and prove every layer in the background.
        pub background: bool,
        /// SELinux label of all files of all layers, `USER:ROLE:TYPE` or `USER:ROLE:TYPE:LEVEL`; empty: what the policy
        /// says of EROFS. Containers see the label that their runtime gives to their root file system.
        pub selinux_context: String,
    }
}

/// What becomes of images without an index.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WithoutIndex {
    /// containerd pulls and unpacks them as ever.
    Defer,
    /// Their layers are streamed, which leaves an index behind for the next time.
    Stream,
}

/// What shows the layers to the kernel.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Frontend {
    /// The first that works: ublk, then fuse-image.
    Auto,
    /// A block device for each layer.
    Ublk,
    /// An image file for each layer, over FUSE.
    FuseImage,
    /// Every file by itself, over FUSE.
    FuseFs,
}

impl Default for Snapshotter {
    fn default() -> Self {
        Self {
            address: "/run/sociblk/snapshotter.sock".to_owned(),
            frontend: Frontend::Auto,
            containerd_address: "/run/containerd/containerd.sock".to_owned(),
            metrics_address: String::new(),
            without_index: WithoutIndex::Defer,
            min_layer_size: Size(0),
            // A container that runs for long must not need its registry for ever.
            background: true,
            selinux_context: String::new(),
        }
    }
}

impl Snapshotter {
    /// The setting that is wrong, and what it must be.
    pub(super) fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let path = self.address.strip_prefix("unix://").unwrap_or(&self.address);
        let containerd = self.containerd_address.strip_prefix("unix://").unwrap_or(&self.containerd_address);
        let metrics = &self.metrics_address;
        let unix = metrics.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path));
        Some(match self {
            _ if self.address != "fd://" && !path.starts_with('/') => {
                ("snapshotter.address", "must be an absolute path, unix://PATH or fd://")
            }
            _ if !self.containerd_address.is_empty() && (!containerd.starts_with('/') || containerd.contains(':')) => {
                ("snapshotter.containerd_address", "must be an absolute path without colons, or empty")
            }
            _ if !unix.map_or(metrics.is_empty() || metrics.parse::<SocketAddr>().is_ok(), |p| p.starts_with('/')) => {
                ("snapshotter.metrics_address", "must be ADDRESS:PORT with a number as address, or unix:PATH")
            }
            _ if !self.selinux_context.is_empty() && !is_selinux_context(&self.selinux_context) => {
                ("snapshotter.selinux_context", "must be USER:ROLE:TYPE or USER:ROLE:TYPE:LEVEL")
            }
            _ => return None,
        })
    }
}

/// Whether a text has the form of a label. Whether there is such a label only the policy knows.
fn is_selinux_context(text: &str) -> bool {
    let fields: Vec<&str> = text.splitn(4, ':').collect();
    let name =
        |field: &str| !field.is_empty() && field.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    let level =
        |field: &str| !field.is_empty() && field.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-:,".contains(&b));
    fields.len() >= 3 && fields.iter().take(3).all(|f| name(f)) && fields.get(3).is_none_or(|f| level(f))
}

//! Settings of the snapshotter.

use serde::{Deserialize, Serialize};

use super::Size;

/// Settings of `[snapshotter]`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshotter {
    /// Where containerd finds the service: a path, `unix://PATH`, or `fd://` for the socket that systemd hands over.
    pub address: String,
    /// Where metrics are served over HTTP: `ADDRESS:PORT` or `unix:PATH`; empty: nowhere.
    pub metrics_address: String,
    /// What becomes of images without an index.
    pub without_index: WithoutIndex,
    /// Layers smaller than this are fetched whole before they are shown, where the client told their size.
    pub min_layer_size: Size,
    /// Complete and prove every layer in the background.
    pub background: bool,
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

impl Default for Snapshotter {
    fn default() -> Self {
        Self {
            address: "/run/sociblk/snapshotter.sock".to_owned(),
            metrics_address: String::new(),
            without_index: WithoutIndex::Defer,
            min_layer_size: Size(0),
            // A container that runs for long must not need its registry for ever.
            background: true,
        }
    }
}

impl Snapshotter {
    /// The setting that is wrong, and what it must be.
    pub(super) fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let path = self.address.strip_prefix("unix://").unwrap_or(&self.address);
        (self.address != "fd://" && !path.starts_with('/'))
            .then_some(("snapshotter.address", "must be an absolute path, unix://PATH or fd://"))
    }
}

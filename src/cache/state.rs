//! `layers/<hex>/state.json`: the little that must outlive the daemon beside the record of present spans.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use super::CacheError;
use crate::units::{Digest, LayerOffset};

const FORMAT: u32 = 1;

/// What is known about a layer file.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerState {
    format: u32,
    /// Geometry of the span table that cut the layer; `None` when the layer came as one stream.
    pub geometry: Option<Digest>,
    /// The diffID that the whole file was found to have.
    pub proven: Option<Digest>,
    /// Length of the whole tar with its padding, known once proven.
    pub layer_bytes: Option<LayerOffset>,
}

impl LayerState {
    pub fn new(geometry: Option<Digest>) -> Self {
        Self { format: FORMAT, geometry, proven: None, layer_bytes: None }
    }

    /// The state in `folder`, or `None` when there is none that this version understands. Unreadable state costs a
    /// refetch, never an error: everything else in the folder can be made again.
    pub fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read(folder.join("state.json")).ok()?;
        let state: Self = serde_json::from_slice(&text).ok()?;
        (state.format == FORMAT).then_some(state)
    }

    /// Replaces the state durably: new file, `fsync`, rename, `fsync` of the folder.
    pub fn write(&self, folder: &Path) -> Result<(), CacheError> {
        let new = folder.join("state.json.new");
        let path = folder.join("state.json");
        let text =
            serde_json::to_vec_pretty(self).map_err(std::io::Error::from).map_err(CacheError::io("encode", &path))?;
        let mut file = File::create(&new).map_err(CacheError::io("create", &new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(CacheError::io("write", &new))?;
        std::fs::rename(&new, &path).map_err(CacheError::io("rename", &new))?;
        File::open(folder).and_then(|dir| dir.sync_all()).map_err(CacheError::io("sync", folder))
    }

    /// Marks the layer used now; the eviction order goes by this file's time.
    pub fn touch(folder: &Path) {
        let touched = File::options()
            .write(true)
            .open(folder.join("state.json"))
            .and_then(|file| file.set_modified(std::time::SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(folder = %folder.display(), %error, "cannot note the time of use of a layer");
        }
    }
}

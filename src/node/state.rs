//! What must survive the daemon: which devices serve which layers, and which mounts stand on them.
//!
//! The file is JSON, written whole to a temporary name, synced and renamed, so that a crash leaves the old or the new
//! state. It only says what should be there; the kernel's own lists decide what is.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::protocol::{LeftLayer, MountReport, MountRequest, RegistryAccess};
use super::snapshots::HoldRecord;
use crate::frontend::fuse::{FuseKind, FuseSession};
use crate::units::Digest;

/// Format version of the file.
const STATE_VERSION: u32 = 2;

/// Everything that is remembered.
#[derive(Serialize, Deserialize, Debug, Default, Clone)]
pub struct State {
    version: u32,
    /// Served layers.
    pub layers: Vec<LayerRecord>,
    /// Mounts.
    pub mounts: Vec<MountRecord>,
    /// Layers that are held for containerd's snapshots.
    #[serde(default)]
    pub holds: Vec<HoldRecord>,
    /// Layers that were left to containerd lately.
    #[serde(default)]
    pub left: Vec<LeftLayer>,
    /// The FUSE connection that serves the layers of the fuse-image frontend.
    #[serde(default)]
    pub fuse: Option<FuseSession>,
    /// The one of the fuse-fs frontend.
    #[serde(default)]
    pub fuse_fs: Option<FuseSession>,
}

/// A layer that is served on a device.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct LayerRecord {
    /// Name of the device: that of its image and the frontend.
    pub name: String,
    /// File-name form of digest and variant, under which the image's files lie.
    pub image: String,
    /// Under which digest it is kept.
    pub key: Digest,
    /// Blob digest.
    pub digest: Digest,
    /// The image's diffID of the layer.
    pub diff_id: Option<Digest>,
    /// Digest of the zTOC document in the local store.
    pub ztoc: Digest,
    /// sha256 of the metadata file: a recovered device must show the very same bytes, since the kernel holds pages.
    pub metadata: Digest,
    /// Where the blob comes from.
    pub source: SourceRecord,
    /// ublk device number, for the ublk frontend.
    pub ublk_id: Option<u32>,
    /// Inode number of its image in the FUSE connection, for the fuse-image frontend.
    #[serde(default)]
    pub fuse_inode: Option<u64>,
    /// The first inode number of its files in the FUSE connection, for the fuse-fs frontend.
    #[serde(default)]
    pub fuse_fs_inode: Option<u64>,
    /// Number of the kernel's backing device of its EROFS, for the fuse-image frontend where EROFS is mounted from a file.
    #[serde(default)]
    pub erofs_bdi: Option<u64>,
    /// Where it is mounted.
    pub target: PathBuf,
}

impl LayerRecord {
    /// Its (first) inode number in the FUSE connection of a frontend.
    #[must_use]
    pub fn fuse_inode(&self, kind: FuseKind) -> Option<u64> {
        match kind {
            FuseKind::Images => self.fuse_inode,
            FuseKind::Files => self.fuse_fs_inode,
        }
    }

    /// Sets it.
    pub fn set_fuse_inode(&mut self, kind: FuseKind, inode: Option<u64>) {
        match kind {
            FuseKind::Images => self.fuse_inode = inode,
            FuseKind::Files => self.fuse_fs_inode = inode,
        }
    }
}

/// Where a layer's blob comes from, in a form that outlives the daemon.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct SourceRecord {
    /// Image reference as the user gave it.
    pub image: String,
    /// Blob size in bytes.
    pub blob_bytes: u64,
    /// How to talk to its registry.
    #[serde(flatten)]
    pub access: RegistryAccess,
}

/// A mount and the layers below it.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct MountRecord {
    /// What was asked.
    pub request: MountRequest,
    /// What came of it.
    pub report: MountReport,
    /// Names of its layers, bottom first.
    pub layers: Vec<String>,
}

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there, but no state of ours.
    #[error(
        "{path} is damaged or of another version ({reason}); move it away to start afresh, then run `sociblk doctor`"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

impl State {
    /// A state to be saved.
    #[must_use]
    pub fn new(
        layers: Vec<LayerRecord>,
        mounts: Vec<MountRecord>,
        holds: Vec<HoldRecord>,
        fuse_session: impl Fn(FuseKind) -> Option<FuseSession>,
    ) -> Self {
        let (fuse, fuse_fs) = (fuse_session(FuseKind::Images), fuse_session(FuseKind::Files));
        Self { version: STATE_VERSION, layers, mounts, holds, left: Vec::new(), fuse, fuse_fs }
    }

    /// The same, with layers that were left to containerd.
    #[must_use]
    pub fn with_left(self, left: Vec<LeftLayer>) -> Self {
        Self { left, ..self }
    }

    /// The FUSE connection of a frontend.
    #[must_use]
    pub fn fuse_session(&self, kind: FuseKind) -> Option<FuseSession> {
        match kind {
            FuseKind::Images => self.fuse,
            FuseKind::Files => self.fuse_fs,
        }
    }

    /// Reads the state; an absent file is the empty state.
    ///
    /// # Errors
    /// [`StateError`] when the file cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, StateError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(StateError::Io { path: path.to_owned(), source }),
        };
        let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
        let state: Self = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if state.version != STATE_VERSION {
            return Err(damaged(format!("version {}, expected {STATE_VERSION}", state.version)));
        }
        Ok(state)
    }

    /// Writes the state so that a crash leaves the old one or this one.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| StateError::Io { path: path.to_owned(), source: io::Error::other(e) })?;
        write_atomically(path, &text).map_err(|source| StateError::Io { path: path.to_owned(), source })
    }
}

/// Writes `bytes` under a temporary name beside `path`, syncs, renames and syncs the directory.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("path without a directory"))?;
    let tmp = path.with_extension(format!("tmp{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::File::create(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&tmp, path)?;
        std::fs::File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_and_mounts_of_earlier_versions_are_read() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("node.json");
        let digest = Digest::of(b"layer");
        let text = serde_json::json!({
            "version": STATE_VERSION, "layers": [], "mounts": [],
            "holds": [{ "owner": "sha256:chain/1-0", "lazy": true, "layer": {
                "name": "l.ublk", "image": "l", "key": digest, "digest": digest, "diff_id": null, "ztoc": digest,
                "metadata": digest, "ublk_id": 3, "target": "/r/mnt/l",
                "source": { "image": "h/app", "blob_bytes": 7 },
            }}],
        });
        std::fs::write(&path, text.to_string()).expect("written");
        let state = State::load(&path).expect("read");
        let hold = &state.holds[0];
        assert!(hold.lazy && hold.indexed && hold.image.is_empty() && hold.way.is_none());
        assert!(state.left.is_empty());
        state.with_left(Vec::new()).save(&path).expect("saved");
        assert_eq!(State::load(&path).expect("read").holds[0].owner, "sha256:chain/1-0");
    }

    #[test]
    fn an_absent_file_is_the_empty_state_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("node.json");
        assert!(State::load(&path).expect("absent").mounts.is_empty());
        State::new(Vec::new(), Vec::new(), Vec::new(), |_| None).save(&path).expect("saved");
        assert!(State::load(&path).expect("loaded").layers.is_empty());
        for text in ["", "{", "[]", "{\"version\":99,\"layers\":[],\"mounts\":[]}"] {
            std::fs::write(&path, text).expect("written");
            assert!(matches!(State::load(&path), Err(StateError::Damaged { .. })), "{text:?}");
        }
    }
}

//! The snapshots service of one snapshotter: as whoever unpacks an image uses it.

use std::path::Path;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Kind, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types;
use tonic::Status;
use tonic::transport::Channel;

use super::client::MAX_MESSAGE_BYTES;
use super::labels::Labels;
use super::{Client, ContainerdError};

/// How long preparing a layer may take: a snapshotter may fetch all of it meanwhile.
const PREPARE_LIMIT: std::time::Duration = std::time::Duration::from_secs(3600);

/// What came of preparing an image layer.
#[derive(Clone, PartialEq, Debug)]
pub enum PreparedLayer {
    /// The snapshotter has the layer; nothing remains to be done.
    Done,
    /// The layer is to be unpacked into these mounts, and committed.
    Unpack(Mounts),
}

/// Mounts, as one service of containerd hands them to another.
#[derive(Clone, PartialEq, Debug)]
pub struct Mounts(pub(super) Vec<types::Mount>);

/// A snapshot and what it stands on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its key, or its name when it is committed.
    pub name: String,
    /// Name of its parent; empty without one.
    pub parent: String,
    /// Whether it is committed: an image's layer.
    pub committed: bool,
    /// Its labels.
    pub labels: Labels,
}

impl Mounts {
    /// Whether they are made of anything below `dir`: mounted from there, or with a layer there.
    #[must_use]
    pub fn use_dir(&self, dir: &Path) -> bool {
        let is_below = |path: &str| Path::new(path).starts_with(dir);
        self.0.iter().any(|mount| {
            let paths =
                mount.options.iter().filter_map(|option| option.split_once('=')).flat_map(|(_, v)| v.split(':'));
            is_below(&mount.source) || paths.into_iter().any(is_below)
        })
    }
}

impl Client {
    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Whether `snapshotter` has a snapshot of this name.
    ///
    /// # Errors
    /// [`ContainerdError`], also for a snapshotter that does not exist.
    pub async fn has_snapshot(&self, snapshotter: &str, name: &str) -> Result<bool, ContainerdError> {
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_owned() };
        match self.answer(&format!("snapshot {name}"), self.snapshots().stat(self.request(request))).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What `snapshotter` has under this name.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`], others.
    pub async fn snapshot(&self, snapshotter: &str, name: &str) -> Result<Snapshot, ContainerdError> {
        let what = format!("snapshot {name}");
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_owned() };
        let answer = self.ask(&what, request, |request| async move { self.snapshots().stat(request).await }).await?;
        let info = answer.info.ok_or_else(|| self.odd(&what, "the answer says nothing"))?;
        let committed = info.kind() == Kind::Committed;
        Ok(Snapshot { name: info.name, parent: info.parent, committed, labels: info.labels.into_iter().collect() })
    }

    /// How a snapshot that is written to, or viewed, is mounted.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`], others.
    pub async fn snapshot_mounts(&self, snapshotter: &str, key: &str) -> Result<Mounts, ContainerdError> {
        let what = format!("snapshot {key}");
        let request = MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        let answer = self.ask(&what, request, |request| async move { self.snapshots().mounts(request).await }).await?;
        Ok(Mounts(answer.mounts))
    }

    /// Prepares an image layer on `parent` (empty: none) under `key`. Its labels say which it is.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn prepare_layer(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<PreparedLayer, ContainerdError> {
        let request = self.request(PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        });
        let what = format!("snapshot {key}");
        let call = async { self.snapshots().prepare(request).await };
        let prepared = tokio::time::timeout(PREPARE_LIMIT, call)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the layer was not prepared within an hour")));
        match prepared.map_err(|status| ContainerdError::of(self.address(), &what, &status)) {
            Ok(answer) => Ok(PreparedLayer::Unpack(Mounts(answer.into_inner().mounts))),
            Err(ContainerdError::Exists { .. }) => Ok(PreparedLayer::Done),
            Err(error) => Err(error),
        }
    }

    /// Makes what was unpacked under `key` a snapshot of this name.
    ///
    /// # Errors
    /// [`ContainerdError`]; one that is there already is as good.
    pub async fn commit_snapshot(&self, snapshotter: &str, key: &str, name: &str) -> Result<(), ContainerdError> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            ..CommitSnapshotRequest::default()
        });
        match self.answer(&format!("snapshot {name}"), self.snapshots().commit(request)).await {
            Err(ContainerdError::Exists { .. }) => self.remove_snapshot(snapshotter, key).await,
            done => done,
        }
    }

    /// Removes a snapshot; one that is not there is as good.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), ContainerdError> {
        let request = self.request(RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() });
        match self.answer(&format!("snapshot {key}"), self.snapshots().remove(request)).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_tell_where_their_layers_are() {
        let mount = |source: &str, options: &[&str]| types::Mount {
            source: source.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..types::Mount::default()
        };
        let lower = "lowerdir=/var/lib/sociblk/mnt/b:/var/lib/sociblk/mnt/a";
        for (mounts, want) in [
            (vec![mount("overlay", &["index=off", "ro", lower])], true),
            (vec![mount("/var/lib/sociblk/mnt/a", &["rbind", "ro"])], true),
            (vec![mount("/a", &[]), mount("overlay", &["lowerdir=/other:/var/lib/sociblk"])], true),
            (vec![mount("overlay", &["lowerdir=/var/lib/sociblk2/mnt/a", "workdir=/var/lib"])], false),
            (vec![mount("/var/lib/native/snapshots/1", &["rbind", "rw"])], false),
            (Vec::new(), false),
        ] {
            let told = format!("{mounts:?}");
            assert_eq!(Mounts(mounts).use_dir(Path::new("/var/lib/sociblk")), want, "{told}");
        }
    }
}

//! Snapshots of containers that have a user namespace of their own: whom their files belong to.
//!
//! containerd's own way (mount options `uidmap=` and `gidmap=`) maps the owners of the one directory that all lower
//! directories lie in; ours are mounts of their own behind links, which that does not reach. So they are mapped here, and
//! any client that can mount an overlay can start such a container.

use std::path::PathBuf;

use super::Snapshotter;
use super::shared::owner;
use crate::snapshot::info::{Kind, Labels, Snapshot};
use crate::snapshot::labels::{self, LabelError, USER_MAP};
use crate::snapshot::{Layers, ShowError, SnapshotError};
use crate::units::IdMap;

/// Who the root directory of most images belongs to.
const ROOT: (u32, u32) = (0, 0);

impl<L: Layers> Snapshotter<L> {
    /// How the owners of what stands on `parent` are to be mapped; `None` when they are not, or are already: a client
    /// that was not told that we do it changes the owner of every file in a snapshot of its own, which it then names
    /// as the parent, with the same labels.
    pub(super) async fn mapping(&self, parent: &str, labels: &Labels) -> Result<Option<IdMap>, SnapshotError> {
        let Some(map) = labels::id_map(labels)? else { return Ok(None) };
        let Some(root) = map.outside(ROOT) else {
            let reason = "nobody on the host stands for root".to_owned();
            return Err(LabelError::Value { label: USER_MAP, value: map.users.to_string(), reason }.into());
        };
        let top = self.chain(parent).await?.into_iter().next();
        if let Some(top) = top.filter(|top| owner(top).is_none())
            && self.local(move |shared| shared.owner(top.id)).await? == root
        {
            return Ok(None);
        }
        Ok(Some(map))
    }

    /// Who owns the root directory of a snapshot that is made now on `parent`.
    pub(super) async fn new_root_owner(
        &self,
        parent: &str,
        labels: &Labels,
    ) -> Result<Option<(u32, u32)>, SnapshotError> {
        let inside = self.root_owner(parent).await?;
        let Some(map) = self.mapping(parent, labels).await? else { return Ok(inside) };
        // An owner that the container does not have: its root takes its place.
        Ok(map.outside(inside.unwrap_or(ROOT)).or_else(|| map.outside(ROOT)))
    }

    /// The lower directories of a snapshot as it is to see them.
    pub(super) async fn mapped_parents(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>, SnapshotError> {
        let parents = self.parents(&snapshot.info.parent).await?;
        if parents.is_empty() {
            return Ok(parents);
        }
        let Some(map) = self.mapping(&snapshot.info.parent, &snapshot.info.labels).await? else { return Ok(parents) };
        let mapped = self.shared.layers.map(&snapshot.id.to_string(), &map, &parents).await;
        mapped.map_err(|error| {
            let (ShowError::Failed { reason } | ShowError::NoIndex { reason, .. }) = error;
            SnapshotError::NotMapped { name: snapshot.info.name.clone(), reason }
        })
    }

    /// Ends what was mapped for a snapshot. Whoever has mounted it keeps it: an overlay has its own hold on what it stands on.
    pub(super) async fn unmap(&self, snapshot: &Snapshot) {
        if snapshot.info.kind != Kind::Committed {
            self.shared.layers.unmap(&snapshot.id.to_string()).await;
        }
    }
}

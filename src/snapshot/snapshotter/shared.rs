//! What all requests share, and the work that does not wait for the network.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tracing::Instrument;

use super::Options;
use crate::snapshot::counters::Counters;
use crate::snapshot::directories::Directories;
use crate::snapshot::info::{Content, Kind, Labels, Snapshot, SnapshotId, Usage};
use crate::snapshot::store::{New, Store};
use crate::snapshot::{Layers, SnapshotError};
use crate::units::Digest;

pub(super) struct Shared<L> {
    pub(super) store: Store,
    pub(super) directories: Directories,
    pub(super) layers: Arc<L>,
    pub(super) options: Options,
    /// Whether overlayfs knows the option `index`.
    pub(super) index_off: bool,
    /// Where earlier databases are, if there are any: see [`setaside`].
    pub(super) root: PathBuf,
    pub(super) counters: Counters,
    /// Layers that are being prepared: the same one is not fetched for two.
    pub(super) turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Owners of layers that no snapshot has yet.
    pub(super) pending: Mutex<HashSet<String>>,
    pub(super) owners: AtomicU64,
    /// How many tasks go on that no request waits for.
    pub(super) tasks: watch::Sender<usize>,
}

impl<L> Shared<L> {
    pub(super) fn add_layer(
        &self,
        chain_id: &str,
        parent: &str,
        content: &Content,
        labels: &Labels,
        dir: &Path,
    ) -> Result<Snapshot, SnapshotError> {
        let create = |name| {
            let new = New { name, parent, kind: Kind::Committed, content: content.clone(), labels };
            self.store.create(&new, |id| self.at(id, self.directories.link(id, dir)))
        };
        match (create(chain_id), content) {
            // The same layer on another parent: one that containerd unpacked for another namespace. It finds ours by
            // label and parent, whatever the name.
            (Err(SnapshotError::Exists { .. }), Content::Layer { owner, .. }) => create(owner),
            (made, _) => made,
        }
    }

    pub(super) fn make(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
        root_owner: Option<(u32, u32)>,
    ) -> Result<Snapshot, SnapshotError> {
        let new = New { name: key, parent, kind, content: Content::Directory, labels };
        self.store.create(&new, |id| self.at(id, self.directories.make(id, kind == Kind::Active, root_owner)))
    }

    pub(super) fn forget(&self, key: &str) -> Result<(), SnapshotError> {
        let snapshot = self.store.remove(key)?;
        self.at(snapshot.id, self.directories.discard(snapshot.id))
    }

    pub(super) fn measure(&self, snapshot: &Snapshot) -> Result<Usage, SnapshotError> {
        self.at(snapshot.id, self.directories.usage(snapshot.id))
    }

    pub(super) fn owner(&self, id: SnapshotId) -> Result<(u32, u32), SnapshotError> {
        self.at(id, self.directories.owner(id))
    }

    pub(super) fn at<T>(&self, id: SnapshotId, done: std::io::Result<T>) -> Result<T, SnapshotError> {
        done.map_err(|source| SnapshotError::Io { path: self.directories.fs(id), source })
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn owner(snapshot: &Snapshot) -> Option<&str> {
    match &snapshot.content {
        Content::Layer { owner, .. } => Some(owner),
        Content::Directory => None,
    }
}

/// An owner that never was before: a layer that is removed and prepared again at once must not lose its device to the
/// removal. A chain ID that is none is not in it: this is a name that others may put into a path.
pub(super) fn new_owner(count: &AtomicU64, chain_id: &str) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let chain_id = if chain_id.parse::<Digest>().is_ok() { chain_id } else { "layer" };
    format!("{chain_id}/{:x}-{}", since.as_nanos(), count.fetch_add(1, Ordering::Relaxed))
}

/// Runs `work` to its end, also when nobody waits for it any more: a client that hangs up drops its request.
pub(super) async fn finished<T: Send + 'static>(
    work: impl Future<Output = Result<T, SnapshotError>> + Send + 'static,
) -> Result<T, SnapshotError> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.unwrap_or_else(|join| Err(SnapshotError::Internal { reason: join.to_string() }))
}

/// One task that no request waits for, until it is dropped.
pub(super) struct Task(watch::Sender<usize>);

impl Task {
    pub(super) fn new(tasks: &watch::Sender<usize>) -> Self {
        tasks.send_modify(|tasks| *tasks += 1);
        Self(tasks.clone())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.send_modify(|tasks| *tasks -= 1);
    }
}

/// A layer that is shown for no snapshot yet. Dropped before it is stored, it is released: its request failed, or the
/// client hung up.
pub(super) struct Pending<L: Layers> {
    shared: Arc<Shared<L>>,
    pub(super) owner: String,
    stored: bool,
}

impl<L: Layers> Pending<L> {
    pub(super) fn new(shared: &Arc<Shared<L>>, owner: String) -> Self {
        shared.pending().insert(owner.clone());
        Self { shared: Arc::clone(shared), owner, stored: false }
    }

    pub(super) fn stored(mut self) {
        self.stored = true;
    }
}

impl<L: Layers> Drop for Pending<L> {
    fn drop(&mut self) {
        let (shared, owner) = (Arc::clone(&self.shared), std::mem::take(&mut self.owner));
        // Without a runtime the process ends, and the next one finds a stray.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.stored => {
                let task = Task::new(&shared.tasks);
                runtime.spawn(async move {
                    shared.layers.release(&owner).await;
                    shared.pending().remove(&owner);
                    drop(task);
                });
            }
            _ => {
                shared.pending().remove(&owner);
            }
        }
    }
}

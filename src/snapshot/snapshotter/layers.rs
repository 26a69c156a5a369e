//! Image layers: showing them, finding them again.

use std::path::PathBuf;
use std::time::Instant;

use super::Snapshotter;
use super::shared::{Pending, new_owner, owner};
use crate::snapshot::counters::Outcome;
use crate::snapshot::info::{Content, Labels, Snapshot};
use crate::snapshot::labels::{HAS_INDEX, REMOTE, REMOTE_NAMESPACE};
use crate::snapshot::{LayerWanted, Layers, Left, ShowError, Shown, SnapshotError, Way, words};

impl<L: Layers> Snapshotter<L> {
    /// Shows an image layer and commits it. `Ok` means that containerd has to unpack it itself.
    pub(super) async fn prepare_layer(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        chain_id: &str,
        labels: &Labels,
    ) -> Result<(), SnapshotError> {
        let began = Instant::now();
        let turn = self.turn(chain_id).await;
        let (asked_key, asked_parent, asked_id) = (key.to_owned(), parent.to_owned(), chain_id.to_owned());
        let there = self
            .local(move |shared| {
                shared.store.check_new(&asked_key, &asked_parent)?;
                shared.store.find_layer(&asked_id, &asked_parent)
            })
            .await?;
        let mut origin = labels.clone();
        if !namespace.is_empty() {
            origin.insert(REMOTE_NAMESPACE.to_owned(), namespace.to_owned());
        }
        if let Some(there) = there {
            return match self.still_there(&there, origin).await {
                Ok(()) => {
                    tracing::info!(key, parent, "remote-snapshot-prepared" = "true", reused = true, "layer is there");
                    Err(SnapshotError::Exists { name: chain_id.to_owned() })
                }
                Err(error) => {
                    let reason = error.to_string();
                    let left = Left { chain_id, labels, word: words::FAILED, reason: &reason };
                    self.left(key, parent, Outcome::Failed, left);
                    Ok(())
                }
            };
        }
        let pending = Pending::new(&self.shared, new_owner(&self.shared.owners, chain_id));
        let shown = match self.show(&pending.owner, &origin).await {
            Ok(shown) => shown,
            Err((outcome, word, reason)) => {
                self.left(key, parent, outcome, Left { chain_id, labels, word, reason: &reason });
                return Ok(());
            }
        };
        let mut labels = origin.clone();
        if shown.lazy {
            labels.insert(REMOTE.to_owned(), "remote snapshot".to_owned());
        }
        if shown.indexed {
            labels.insert(HAS_INDEX.to_owned(), "true".to_owned());
        }
        let (new_parent, id, dir) = (parent.to_owned(), chain_id.to_owned(), shown.dir);
        // Whoever waits for its turn must find the layer stored, also when this request ends before.
        self.local(move |shared| {
            let content = Content::Layer { owner: pending.owner.clone(), origin };
            shared.add_layer(&id, &new_parent, &content, &labels, &dir)?;
            pending.stored();
            drop(turn);
            Ok(())
        })
        .await?;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.shared.counters.took(ms);
        if shown.lazy {
            self.shared.counters.count(Outcome::Lazy);
            tracing::info!(key, parent, "remote-snapshot-prepared" = "true", ms, "layer is shown");
        } else {
            self.shared.counters.count(Outcome::Local);
            tracing::info!(key, parent, "local-snapshot-prepared" = "true", ms, "layer is here and shown");
        }
        Err(SnapshotError::Exists { name: chain_id.to_owned() })
    }

    /// Counts and logs a layer that containerd is to unpack.
    fn left(&self, key: &str, parent: &str, outcome: Outcome, left: Left<'_>) {
        let Left { word: reason, reason: detail, .. } = left;
        self.shared.counters.count(outcome);
        self.shared.layers.left(left);
        match outcome {
            Outcome::Failed => {
                tracing::warn!(key, parent, "remote-snapshot-prepared" = "false", reason, detail, "falling back");
            }
            _ => tracing::info!(key, parent, "remote-snapshot-prepared" = "false", reason, detail, "falling back"),
        }
        tracing::info!(key, parent, "defer-snapshot-runtime" = "true", reason, "left to containerd to unpack");
    }

    /// Sees to it that a layer that is stored can be read. One that is not shown any more is brought back as it is asked
    /// for now: the image that it came from then, or who could read it, may be gone.
    async fn still_there(&self, snapshot: &Snapshot, origin: Labels) -> Result<(), SnapshotError> {
        let Some(owner) = owner(snapshot) else { return Ok(()) };
        if self.shared.layers.shown_at(owner).await.is_some() {
            return Ok(());
        }
        let turn = self.turn(owner).await;
        if self.show(owner, &origin).await.is_ok() {
            let name = snapshot.info.name.clone();
            self.local(move |shared| shared.store.set_origin(&name, &origin)).await?;
        }
        drop(turn);
        self.available(snapshot).await.map(drop)
    }

    /// Shows the layer that `origin` describes, with the namespace among its labels.
    async fn show(&self, owner: &str, origin: &Labels) -> Result<Shown, (Outcome, &'static str, String)> {
        let namespace = origin.get(REMOTE_NAMESPACE).map(String::as_str).unwrap_or_default();
        let wanted = LayerWanted::from_labels(origin, namespace)
            .map_err(|e| (Outcome::Failed, words::NO_LABELS, e.to_string()))?;
        let small = wanted.layer_size.is_some_and(|size| size.get() < self.shared.options.min_layer_bytes);
        let way = if small { Way::Whole } else { Way::Lazy };
        self.shared.layers.show(owner, &wanted, way).await.map_err(|error| match error {
            ShowError::NoIndex { word, reason } => (Outcome::Deferred, word, reason),
            ShowError::Failed { reason } => (Outcome::Failed, words::FAILED, reason),
        })
    }

    /// Sees to it that a snapshot's files can be read, and says where its layer is shown if it is one.
    pub(super) async fn available(&self, snapshot: &Snapshot) -> Result<Option<PathBuf>, SnapshotError> {
        let Content::Layer { owner, origin } = &snapshot.content else { return Ok(None) };
        let dir = match self.shared.layers.shown_at(owner).await {
            Some(dir) => dir,
            None => self.show_again(snapshot, owner, origin).await?,
        };
        let (id, target) = (snapshot.id, dir.clone());
        self.local(move |shared| {
            shared.directories.link(id, &target).map_err(|source| SnapshotError::Io { path: target, source })
        })
        .await?;
        Ok(Some(dir))
    }

    async fn show_again(&self, snapshot: &Snapshot, owner: &str, origin: &Labels) -> Result<PathBuf, SnapshotError> {
        let _turn = self.turn(owner).await;
        if let Some(dir) = self.shared.layers.shown_at(owner).await {
            return Ok(dir);
        }
        let name = snapshot.info.name.clone();
        let shown = self.show(owner, origin).await;
        let unavailable = |(_, _, reason)| SnapshotError::Unavailable { name: name.clone(), reason };
        let dir = shown.map_err(unavailable)?.dir;
        // Its removal may have come and gone while it was brought.
        let (now, id) = (name.clone(), snapshot.id);
        match self.local(move |shared| shared.store.get(&now)).await {
            Ok(there) if there.id == id => Ok(dir),
            Ok(_) | Err(SnapshotError::NotFound { .. }) => {
                self.shared.layers.release(owner).await;
                Err(SnapshotError::NotFound { name })
            }
            Err(error) => Err(error),
        }
    }
}

//! The operations on snapshots.

mod layers;
mod mapped;
mod shared;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedMutexGuard, watch};

use self::shared::{Shared, Task, finished, owner};
use super::counters::Counters;
use super::directories::{Directories, remove_tree};
use super::filter::{Filter, any_matches};
use super::info::{Info, Kind, Labels, Snapshot, Usage};
use super::labels::SNAPSHOT_REF;
use super::mounts::{self, Mount, Parts};
use super::{Layers, SnapshotError, setaside};

/// How the snapshotter is to behave.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Layers below this size in bytes are fetched whole before they are shown, where the client told their size.
    pub min_layer_bytes: u64,
}

/// containerd's snapshots over layers that `L` shows.
pub struct Snapshotter<L> {
    shared: Arc<Shared<L>>,
}

impl<L> Clone for Snapshotter<L> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<L: Layers> Snapshotter<L> {
    /// Opens the database `ROOT/snapshots.db` and the directories `ROOT/snapshots`. A database that cannot be read is
    /// set aside with its directories, and an empty one is begun; the log says so.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn open(root: &Path, layers: Arc<L>, options: Options) -> Result<Self, SnapshotError> {
        let root = std::path::absolute(root).map_err(|source| SnapshotError::Io { path: root.to_owned(), source })?;
        let dir = root.join("snapshots");
        let io_error = |source| SnapshotError::Io { path: dir.clone(), source };
        let bad = match dir.to_str() {
            Some(name) => name.chars().find(|c| matches!(c, ':' | ',' | '\\' | '"')),
            None => Some(char::REPLACEMENT_CHARACTER),
        };
        if let Some(bad) = bad {
            let reason = format!("overlayfs cannot take a directory with {bad:?} in its name");
            return Err(io_error(std::io::Error::other(reason)));
        }
        std::fs::create_dir_all(&root).map_err(io_error)?;
        let store = setaside::open(&root)?;
        let shared = Shared {
            store,
            directories: Directories::open(dir.clone()).map_err(io_error)?,
            layers,
            options,
            index_off: Path::new("/sys/module/overlay/parameters/index").exists(),
            root,
            counters: Counters::default(),
            turns: Mutex::default(),
            pending: Mutex::default(),
            owners: AtomicU64::new(0),
            tasks: watch::Sender::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What became of layers so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Brings what is stored, what is shown and what lies in directories together, as far as local disk allows. Layers
    /// that are not shown any more are brought back when they are needed, or by [`Self::restore`].
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub async fn reconcile(&self) -> Result<(), SnapshotError> {
        // In this order: a layer that is being prepared is shown, then pending, then stored.
        let mapped = self.shared.layers.mapped().await;
        let shown = self.shared.layers.owners().await;
        let pending = self.shared.pending().clone();
        let all = self.local(|shared| shared.store.all()).await?;
        let numbers: HashSet<String> = all.iter().map(|snapshot| snapshot.id.to_string()).collect();
        for stray in mapped.into_iter().filter(|name| !numbers.contains(name)) {
            tracing::info!(snapshot = stray, "mapped layers of a snapshot that is no more are released");
            self.shared.layers.unmap(&stray).await;
        }
        let known: HashSet<&str> = all.iter().filter_map(owner).collect();
        let strays: Vec<_> =
            shown.into_iter().filter(|o| !known.contains(o.as_str()) && !pending.contains(o.as_str())).collect();
        if !strays.is_empty() && setaside::any(&self.shared.root) {
            let (root, layers) = (self.shared.root.display(), strays.len());
            tracing::warn!(%root, layers, "layers of a database that was set aside stay shown while it lies there");
        } else {
            for stray in strays {
                tracing::info!(owner = stray, "a layer that no snapshot has any more is released");
                self.shared.layers.release(&stray).await;
            }
        }
        self.local(|shared| {
            let strays = shared.store.with_ids(|ids| shared.directories.strays(ids))?;
            if let Err(error) =
                strays.and_then(|strays| strays.iter().map(|path| remove_tree(path)).fold(Ok(()), Result::and))
            {
                tracing::warn!(%error, "a directory of a removed snapshot stays");
            }
            Ok(())
        })
        .await
    }

    /// Shows again what is not shown, by the registry where local disk is not enough. Failures are left for later.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub async fn restore(&self) -> Result<(), SnapshotError> {
        for snapshot in self.local(|shared| shared.store.all()).await? {
            match self.available(&snapshot).await {
                // Removed meanwhile.
                Ok(_) | Err(SnapshotError::NotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(snapshot = snapshot.info.name, %error, "is brought back when it is needed");
                }
            }
        }
        Ok(())
    }

    /// Prepares a writable snapshot, or finishes an image layer at once.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`] with the layer's chain ID when the layer is there now and nothing remains to be done.
    pub async fn prepare(
        &self,
        namespace: Option<&str>,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        if let Some(chain_id) = labels.get(SNAPSHOT_REF) {
            // containerd 1.6 does not say it in a header.
            let namespace = namespace.or_else(|| namespace_in(key)).unwrap_or_default();
            self.prepare_layer(namespace, key, parent, chain_id, &labels).await?;
        }
        self.make(Kind::Active, key, parent, labels).await
    }

    /// Prepares a read-only view of a committed snapshot.
    ///
    /// # Errors
    /// As the rules of [`Store::create`] say.
    pub async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, SnapshotError> {
        self.make(Kind::View, key, parent, labels).await
    }

    async fn make(&self, kind: Kind, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, SnapshotError> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let (asked_key, asked_parent) = (key.clone(), parent.clone());
        self.local(move |shared| shared.store.check_new(&asked_key, &asked_parent)).await?;
        // The parents first: a container whose layers cannot be shown must not look as if it could start.
        self.parents(&parent).await?;
        let root_owner = self.new_root_owner(&parent, &labels).await?;
        let this = self.clone();
        finished(async move {
            let made = {
                let key = key.clone();
                this.local(move |shared| shared.make(kind, &key, &parent, &labels, root_owner)).await?
            };
            match this.mounts_of(&made).await {
                Ok(mounts) => Ok(mounts),
                Err(error) => {
                    this.unmap(&made).await;
                    this.local(move |shared| shared.forget(&key)).await?;
                    Err(error)
                }
            }
        })
        .await
    }

    /// Who owns the root directory of what stands on `parent`: that of the topmost layer which has one.
    async fn root_owner(&self, parent: &str) -> Result<Option<(u32, u32)>, SnapshotError> {
        for snapshot in self.chain(parent).await? {
            let found = match owner(&snapshot) {
                Some(owner) => self.shared.layers.root_owner(owner).await,
                None => Some(self.local(move |shared| shared.owner(snapshot.id)).await?),
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// `parent` and those below it, topmost first.
    async fn chain(&self, parent: &str) -> Result<Vec<Snapshot>, SnapshotError> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let name = parent.to_owned();
        self.local(move |shared| shared.store.chain(&name)).await.map_err(|error| match error {
            SnapshotError::NotFound { name: parent } => SnapshotError::NoParent { parent },
            error => error,
        })
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::NotMountable`], [`SnapshotError::Unavailable`].
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let key = key.to_owned();
        let snapshot = self.local(move |shared| shared.store.get(&key)).await?;
        if snapshot.info.kind == Kind::Committed {
            return Err(SnapshotError::NotMountable { name: snapshot.info.name });
        }
        self.mounts_of(&snapshot).await
    }

    async fn mounts_of(&self, snapshot: &Snapshot) -> Result<Vec<Mount>, SnapshotError> {
        let directories = &self.shared.directories;
        let own = directories.fs(snapshot.id);
        let parts = Parts {
            upper: (snapshot.info.kind == Kind::Active).then(|| own.clone()),
            work: directories.work(snapshot.id),
            own,
            lowers: self.mapped_parents(snapshot).await?,
        };
        Ok(vec![mounts::of(&parts, self.shared.index_off)])
    }

    /// Files of `parent` and those below it, topmost first. A layer that an image has twice hides nothing the second
    /// time; overlayfs refuses the same directory twice.
    async fn parents(&self, parent: &str) -> Result<Vec<PathBuf>, SnapshotError> {
        let (mut seen, mut lowers) = (HashSet::new(), Vec::new());
        for snapshot in &self.chain(parent).await? {
            let shown = self.available(snapshot).await?;
            if shown.is_none_or(|dir| seen.insert(dir)) {
                lowers.push(self.shared.directories.fs(snapshot.id));
            }
        }
        Ok(lowers)
    }

    /// Makes an active snapshot a committed one.
    ///
    /// # Errors
    /// As the rules of [`Store::commit`] say.
    pub async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), SnapshotError> {
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.to_owned());
        let before = self
            .local(move |shared| {
                let snapshot = shared.store.get(&key)?;
                let usage = shared.measure(&snapshot)?;
                shared.store.commit(&key, &name, &parent, &labels, usage)?;
                Ok(snapshot)
            })
            .await?;
        self.unmap(&before).await;
        Ok(())
    }

    /// Removes a snapshot. What it held is freed in the background; see [`Self::cleanup`].
    ///
    /// # Errors
    /// As the rules of [`Store::remove`] say.
    pub async fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let (this, key) = (self.clone(), key.to_owned());
        finished(async move {
            let task = Task::new(&this.shared.tasks);
            let snapshot = this.local(move |shared| shared.store.remove(&key)).await?;
            tokio::spawn(async move {
                this.unmap(&snapshot).await;
                if let Some(owner) = owner(&snapshot) {
                    this.shared.layers.release(owner).await;
                }
                let discarded = this.local(move |shared| Ok(shared.directories.discard(snapshot.id))).await;
                if let Ok(Err(error)) = discarded {
                    tracing::warn!(%error, "the directory of a removed snapshot stays until the next clean-up");
                }
                drop(task);
            });
            Ok(())
        })
        .await
    }

    /// Waits for removals, and removes directories that belong to no snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        // The sender is ours, so it is never gone.
        let _none = self.shared.tasks.subscribe().wait_for(|tasks| *tasks == 0).await.map(drop);
        self.reconcile().await
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub async fn stat(&self, key: &str) -> Result<Info, SnapshotError> {
        let key = key.to_owned();
        Ok(self.local(move |shared| shared.store.get(&key)).await?.info)
    }

    /// Changes labels; see [`Store::update`].
    ///
    /// # Errors
    /// As the rules of [`Store::update`] say.
    pub async fn update(&self, name: &str, labels: Labels, fields: Vec<String>) -> Result<Info, SnapshotError> {
        let name = name.to_owned();
        self.local(move |shared| shared.store.update(&name, &labels, &fields)).await
    }

    /// Snapshots that pass one of `filters`, or all, by name.
    ///
    /// # Errors
    /// [`SnapshotError::Filter`].
    pub async fn list(&self, filters: &[String]) -> Result<Vec<Info>, SnapshotError> {
        let filters = filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let all = self.local(|shared| shared.store.all()).await?;
        Ok(all.into_iter().map(|snapshot| snapshot.info).filter(|info| any_matches(&filters, info)).collect())
    }

    /// What a snapshot takes on disk, without its parents.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub async fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let name = key.to_owned();
        let snapshot = self.local(move |shared| shared.store.get(&name)).await?;
        if let Some(owner) = owner(&snapshot) {
            return Ok(self.shared.layers.usage(owner).await);
        }
        self.local(move |shared| match snapshot.info.kind {
            Kind::Committed => shared.store.usage(&snapshot.info.name),
            Kind::Active | Kind::View => shared.measure(&snapshot),
        })
        .await
    }

    /// Waits until nobody else prepares `what`.
    async fn turn(&self, what: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut turns = self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(turns.entry(what.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// Runs what waits for the local disk where it may.
    async fn local<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared<L>) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.unwrap_or_else(|join| Err(SnapshotError::Internal { reason: join.to_string() }))
    }
}

/// The namespace in a key of containerd's: `NAMESPACE/NUMBER/KEY` (core/metadata/snapshot.go, `createKey`).
fn namespace_in(key: &str) -> Option<&str> {
    let (namespace, rest) = key.split_once('/')?;
    let (number, _) = rest.split_once('/')?;
    (!namespace.is_empty() && number.parse::<u64>().is_ok()).then_some(namespace)
}

#[cfg(test)]
mod tests {
    use super::namespace_in;

    #[test]
    fn keys_of_containerd_begin_with_their_namespace() {
        for (key, want) in [
            ("k8s.io/12/extract-1 sha256:aa", Some("k8s.io")),
            ("default/1/a/b", Some("default")),
            ("extract-1 sha256:aa", None),
            ("default/x/a", None),
            ("default/1", None),
            ("/1/a", None),
        ] {
            assert_eq!(namespace_in(key), want, "{key}");
        }
    }
}

//! The operations on snapshots.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

use super::counters::{Counters, Outcome};
use super::directories::Directories;
use super::filter::{Filter, any_matches};
use super::info::{Content, Info, Kind, Labels, Snapshot, Usage};
use super::labels::{HAS_INDEX, REMOTE, REMOTE_NAMESPACE, SNAPSHOT_REF};
use super::mounts::{self, Mount, Parts};
use super::store::{New, Store};
use super::{LayerWanted, Layers, ShowError, Shown, SnapshotError, Way};

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

struct Shared<L> {
    store: Store,
    directories: Directories,
    layers: Arc<L>,
    options: Options,
    /// Whether overlayfs knows the option `index`.
    index_off: bool,
    counters: Counters,
    /// Layers that are being prepared: the same one is not fetched for two.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    owners: AtomicU64,
    /// Removals that go on.
    removals: tokio::sync::Mutex<JoinSet<()>>,
}

impl<L: Layers> Snapshotter<L> {
    /// Opens the database `ROOT/snapshots.db` and the directories `ROOT/snapshots`.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn open(root: &Path, layers: Arc<L>, options: Options) -> Result<Self, SnapshotError> {
        let dir = root.join("snapshots");
        if let Some(bad) = dir.to_string_lossy().chars().find(|c| matches!(c, ':' | ',' | '\\' | '"')) {
            let source = std::io::Error::other(format!("overlayfs cannot take a directory with {bad:?} in its name"));
            return Err(SnapshotError::Io { path: dir, source });
        }
        let directories = Directories::open(dir.clone()).map_err(|source| SnapshotError::Io { path: dir, source })?;
        let store = Store::open(&root.join("snapshots.db"))?;
        let shared = Shared {
            store,
            directories,
            layers,
            options,
            index_off: Path::new("/sys/module/overlay/parameters/index").exists(),
            counters: Counters::default(),
            turns: Mutex::default(),
            owners: AtomicU64::new(0),
            removals: tokio::sync::Mutex::default(),
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
        let all = self.local(|shared| shared.store.all()).await?;
        let known: HashSet<&str> = all.iter().filter_map(|snapshot| owner(snapshot)).collect();
        for stray in self.shared.layers.owners().await.into_iter().filter(|owner| !known.contains(owner.as_str())) {
            tracing::info!(owner = stray, "a layer that no snapshot has any more is released");
            self.shared.layers.release(&stray).await;
        }
        let ids: HashSet<String> = all.iter().map(|snapshot| snapshot.id.to_string()).collect();
        let swept = self.local(move |shared| Ok(shared.directories.sweep(|name| ids.contains(name)))).await?;
        if let Err(error) = swept {
            tracing::warn!(%error, "a directory of a removed snapshot stays");
        }
        Ok(())
    }

    /// Shows again what is not shown, by the registry where local disk is not enough. Failures are left for later.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub async fn restore(&self) -> Result<(), SnapshotError> {
        for snapshot in self.local(|shared| shared.store.all()).await? {
            if owner(&snapshot).is_some()
                && let Err(error) = self.available(&snapshot).await
            {
                tracing::warn!(snapshot = snapshot.info.name, %error, "is brought back when it is needed");
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
            // containerd 1.6 does not say it. Nothing but a label depends on it.
            self.prepare_layer(namespace.unwrap_or_default(), key, parent, chain_id, &labels).await?;
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

    /// Shows an image layer and commits it. `Ok` means that containerd has to unpack it itself.
    async fn prepare_layer(
        &self,
        namespace: &str,
        key: &str,
        parent: &str,
        chain_id: &str,
        labels: &Labels,
    ) -> Result<(), SnapshotError> {
        let began = Instant::now();
        let _turn = self.turn(chain_id).await;
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let (asked_key, asked_parent, asked_id) = (key.clone(), parent.clone(), chain_id.to_owned());
        let there = self
            .local(move |shared| {
                shared.store.check_new(&asked_key, &asked_parent)?;
                shared.store.find_layer(&asked_id, &asked_parent)
            })
            .await?;
        if there.is_some() {
            tracing::info!(key, parent, "remote-snapshot-prepared" = "true", reused = true, "layer is there already");
            return Err(SnapshotError::Exists { name: chain_id.to_owned() });
        }
        let owner = self.new_owner(chain_id);
        let shown = match self.show(&owner, namespace, labels).await {
            Ok(shown) => shown,
            Err((outcome, reason)) => {
                self.shared.counters.count(outcome);
                match outcome {
                    Outcome::Failed => {
                        tracing::warn!(key, parent, "remote-snapshot-prepared" = "false", reason, "falling back")
                    }
                    _ => tracing::info!(key, parent, "remote-snapshot-prepared" = "false", reason, "falling back"),
                }
                tracing::info!(key, parent, "defer-snapshot-runtime" = "true", "left to containerd to unpack");
                return Ok(());
            }
        };
        let mut labels = labels.clone();
        if !namespace.is_empty() {
            labels.insert(REMOTE_NAMESPACE.to_owned(), namespace.to_owned());
        }
        labels.insert(REMOTE.to_owned(), "remote snapshot".to_owned());
        if shown.indexed {
            labels.insert(HAS_INDEX.to_owned(), "true".to_owned());
        }
        let (new_parent, id, held) = (parent.clone(), chain_id.to_owned(), owner.clone());
        let stored = self.local(move |shared| shared.add_layer(&id, &new_parent, held, &labels, &shown.dir)).await;
        if let Err(error) = stored {
            self.shared.layers.release(&owner).await;
            return Err(error);
        }
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

    async fn show(&self, owner: &str, namespace: &str, labels: &Labels) -> Result<Shown, (Outcome, String)> {
        let wanted = LayerWanted::from_labels(labels, namespace).map_err(|e| (Outcome::Failed, e.to_string()))?;
        let small = wanted.layer_size.is_some_and(|size| size.get() < self.shared.options.min_layer_bytes);
        let way = if small { Way::Whole } else { Way::Lazy };
        self.shared.layers.show(owner, &wanted, way).await.map_err(|error| match error {
            ShowError::NoIndex { reason } => (Outcome::Deferred, reason),
            ShowError::Failed { reason } => (Outcome::Failed, reason),
        })
    }

    async fn make(&self, kind: Kind, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, SnapshotError> {
        let (new_key, new_parent) = (key.to_owned(), parent.to_owned());
        // The parents first: a container whose layers cannot be shown must not look as if it could start.
        self.parents(parent).await?;
        let root_owner = self.root_owner(parent).await?;
        let made = self.local(move |shared| shared.make(kind, &new_key, &new_parent, &labels, root_owner)).await?;
        match self.mounts_of(&made).await {
            Ok(mounts) => Ok(mounts),
            Err(error) => {
                let key = key.to_owned();
                self.local(move |shared| shared.forget(&key)).await?;
                Err(error)
            }
        }
    }

    /// Who owns the root directory of what stands on `parent`.
    async fn root_owner(&self, parent: &str) -> Result<Option<(u32, u32)>, SnapshotError> {
        if parent.is_empty() {
            return Ok(None);
        }
        let name = parent.to_owned();
        let snapshot = self.local(move |shared| shared.store.get(&name)).await?;
        if let Some(owner) = owner(&snapshot) {
            return Ok(self.shared.layers.root_owner(owner).await);
        }
        self.local(move |shared| {
            let owner = shared.directories.owner(snapshot.id);
            owner.map(Some).map_err(|source| SnapshotError::Io { path: shared.directories.fs(snapshot.id), source })
        })
        .await
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
            lowers: self.parents(&snapshot.info.parent).await?,
        };
        Ok(vec![mounts::of(&parts, self.shared.index_off)])
    }

    /// Files of `parent` and those below it, topmost first. A layer that an image has twice hides nothing the second
    /// time; overlayfs refuses the same directory twice.
    async fn parents(&self, parent: &str) -> Result<Vec<PathBuf>, SnapshotError> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let name = parent.to_owned();
        let chain = self.local(move |shared| shared.store.chain(&name)).await.map_err(|error| match error {
            SnapshotError::NotFound { .. } => SnapshotError::NoParent { parent: parent.to_owned() },
            error => error,
        })?;
        let (mut seen, mut lowers) = (HashSet::new(), Vec::new());
        for snapshot in &chain {
            let shown = self.available(snapshot).await?;
            if shown.is_none_or(|dir| seen.insert(dir)) {
                lowers.push(self.shared.directories.fs(snapshot.id));
            }
        }
        Ok(lowers)
    }

    /// Sees to it that a snapshot's files can be read, and says where its layer is shown if it is one.
    async fn available(&self, snapshot: &Snapshot) -> Result<Option<PathBuf>, SnapshotError> {
        let Some(owner) = owner(snapshot) else { return Ok(None) };
        let dir = match self.shared.layers.shown_at(owner).await {
            Some(dir) => dir,
            None => {
                let labels = &snapshot.info.labels;
                let namespace = labels.get(REMOTE_NAMESPACE).map(String::as_str).unwrap_or_default();
                let _turn = self.turn(owner).await;
                let shown = self.show(owner, namespace, labels).await;
                let unavailable = |(_, reason)| SnapshotError::Unavailable { name: snapshot.info.name.clone(), reason };
                shown.map_err(unavailable)?.dir
            }
        };
        let (id, target) = (snapshot.id, dir.clone());
        self.local(move |shared| {
            shared.directories.link(id, &target).map_err(|source| SnapshotError::Io { path: target, source })
        })
        .await?;
        Ok(Some(dir))
    }

    /// Makes an active snapshot a committed one.
    ///
    /// # Errors
    /// As the rules of [`Store::commit`] say.
    pub async fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), SnapshotError> {
        let (name, key) = (name.to_owned(), key.to_owned());
        self.local(move |shared| {
            let snapshot = shared.store.get(&key)?;
            let usage = shared.measure(&snapshot)?;
            shared.store.commit(&key, &name, &labels, usage)
        })
        .await
    }

    /// Removes a snapshot. What it held is freed in the background; see [`Self::cleanup`].
    ///
    /// # Errors
    /// As the rules of [`Store::remove`] say.
    pub async fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let key = key.to_owned();
        let snapshot = self.local(move |shared| shared.store.remove(&key)).await?;
        let this = self.clone();
        let mut removals = self.shared.removals.lock().await;
        while removals.try_join_next().is_some() {}
        removals.spawn(async move {
            if let Some(owner) = owner(&snapshot) {
                this.shared.layers.release(owner).await;
            }
            let discarded = this.local(move |shared| Ok(shared.directories.discard(snapshot.id))).await;
            if let Ok(Err(error)) = discarded {
                tracing::warn!(%error, "the directory of a removed snapshot stays until the next clean-up");
            }
        });
        Ok(())
    }

    /// Waits for removals, and removes directories that belong to no snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        let mut removals = self.shared.removals.lock().await;
        while removals.join_next().await.is_some() {}
        drop(removals);
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

    /// An owner that never was before: a layer that is removed and prepared again at once must not lose its device to
    /// the removal.
    fn new_owner(&self, chain_id: &str) -> String {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        format!("{chain_id}/{:x}-{}", since.as_nanos(), self.shared.owners.fetch_add(1, Ordering::Relaxed))
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

impl<L> Shared<L> {
    fn add_layer(
        &self,
        chain_id: &str,
        parent: &str,
        owner: String,
        labels: &Labels,
        dir: &Path,
    ) -> Result<(), SnapshotError> {
        let new = |name| New { name, parent, kind: Kind::Committed, content: Content::Layer(owner.clone()), labels };
        let made = match self.store.create(&new(chain_id)) {
            // The same layer on another parent: one that containerd unpacked for another namespace. It finds ours by
            // label and parent, whatever the name.
            Err(SnapshotError::Exists { .. }) => self.store.create(&new(&owner))?,
            made => made?,
        };
        self.directories.link(made.id, dir).or_else(|source| {
            self.store.remove(&made.info.name)?;
            Err(SnapshotError::Io { path: self.directories.fs(made.id), source })
        })
    }

    fn make(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
        root_owner: Option<(u32, u32)>,
    ) -> Result<Snapshot, SnapshotError> {
        let made = self.store.create(&New { name: key, parent, kind, content: Content::Directory, labels })?;
        self.directories.make(made.id, kind == Kind::Active, root_owner).or_else(|source| {
            self.store.remove(key)?;
            Err(SnapshotError::Io { path: self.directories.fs(made.id), source })
        })?;
        Ok(made)
    }

    fn forget(&self, key: &str) -> Result<(), SnapshotError> {
        let snapshot = self.store.remove(key)?;
        let discarded = self.directories.discard(snapshot.id);
        discarded.map_err(|source| SnapshotError::Io { path: self.directories.fs(snapshot.id), source })
    }

    fn measure(&self, snapshot: &Snapshot) -> Result<Usage, SnapshotError> {
        let measured = self.directories.usage(snapshot.id);
        measured.map_err(|source| SnapshotError::Io { path: self.directories.fs(snapshot.id), source })
    }
}

fn owner(snapshot: &Snapshot) -> Option<&str> {
    match &snapshot.content {
        Content::Layer(owner) => Some(owner),
        Content::Directory => None,
    }
}

//! The operations on snapshots.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::{OwnedMutexGuard, watch};
use tracing::Instrument;

use super::counters::{Counters, Outcome};
use super::directories::{Directories, remove_tree};
use super::filter::{Filter, any_matches};
use super::info::{Content, Info, Kind, Labels, Snapshot, SnapshotId, Usage};
use super::labels::{HAS_INDEX, REMOTE, REMOTE_NAMESPACE, SNAPSHOT_REF};
use super::mounts::{self, Mount, Parts};
use super::store::{New, Store};
use super::{LayerWanted, Layers, ShowError, Shown, SnapshotError, Way, setaside};
use crate::units::Digest;

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
    /// Where earlier databases are, if there are any: see [`setaside`].
    root: PathBuf,
    counters: Counters,
    /// Layers that are being prepared: the same one is not fetched for two.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Owners of layers that no snapshot has yet.
    pending: Mutex<HashSet<String>>,
    owners: AtomicU64,
    /// How many tasks go on that no request waits for.
    tasks: watch::Sender<usize>,
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
        let shown = self.shared.layers.owners().await;
        let pending = self.shared.pending().clone();
        let all = self.local(|shared| shared.store.all()).await?;
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
                    self.left(key, parent, Outcome::Failed, &error.to_string());
                    Ok(())
                }
            };
        }
        let pending = Pending::new(&self.shared, new_owner(&self.shared.owners, chain_id));
        let shown = match self.show(&pending.owner, &origin).await {
            Ok(shown) => shown,
            Err((outcome, reason)) => {
                self.left(key, parent, outcome, &reason);
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
    fn left(&self, key: &str, parent: &str, outcome: Outcome, reason: &str) {
        self.shared.counters.count(outcome);
        match outcome {
            Outcome::Failed => {
                tracing::warn!(key, parent, "remote-snapshot-prepared" = "false", reason, "falling back");
            }
            _ => tracing::info!(key, parent, "remote-snapshot-prepared" = "false", reason, "falling back"),
        }
        tracing::info!(key, parent, "defer-snapshot-runtime" = "true", "left to containerd to unpack");
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
    async fn show(&self, owner: &str, origin: &Labels) -> Result<Shown, (Outcome, String)> {
        let namespace = origin.get(REMOTE_NAMESPACE).map(String::as_str).unwrap_or_default();
        let wanted = LayerWanted::from_labels(origin, namespace).map_err(|e| (Outcome::Failed, e.to_string()))?;
        let small = wanted.layer_size.is_some_and(|size| size.get() < self.shared.options.min_layer_bytes);
        let way = if small { Way::Whole } else { Way::Lazy };
        self.shared.layers.show(owner, &wanted, way).await.map_err(|error| match error {
            ShowError::NoIndex { reason } => (Outcome::Deferred, reason),
            ShowError::Failed { reason } => (Outcome::Failed, reason),
        })
    }

    async fn make(&self, kind: Kind, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, SnapshotError> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let (asked_key, asked_parent) = (key.clone(), parent.clone());
        self.local(move |shared| shared.store.check_new(&asked_key, &asked_parent)).await?;
        // The parents first: a container whose layers cannot be shown must not look as if it could start.
        self.parents(&parent).await?;
        let root_owner = self.root_owner(&parent).await?;
        let this = self.clone();
        finished(async move {
            let made = {
                let key = key.clone();
                this.local(move |shared| shared.make(kind, &key, &parent, &labels, root_owner)).await?
            };
            match this.mounts_of(&made).await {
                Ok(mounts) => Ok(mounts),
                Err(error) => {
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
            lowers: self.parents(&snapshot.info.parent).await?,
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

    /// Sees to it that a snapshot's files can be read, and says where its layer is shown if it is one.
    async fn available(&self, snapshot: &Snapshot) -> Result<Option<PathBuf>, SnapshotError> {
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
        let unavailable = |(_, reason)| SnapshotError::Unavailable { name: name.clone(), reason };
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

    /// Makes an active snapshot a committed one.
    ///
    /// # Errors
    /// As the rules of [`Store::commit`] say.
    pub async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), SnapshotError> {
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.to_owned());
        self.local(move |shared| {
            let snapshot = shared.store.get(&key)?;
            let usage = shared.measure(&snapshot)?;
            shared.store.commit(&key, &name, &parent, &labels, usage)
        })
        .await
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

impl<L> Shared<L> {
    fn add_layer(
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

    fn make(
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

    fn forget(&self, key: &str) -> Result<(), SnapshotError> {
        let snapshot = self.store.remove(key)?;
        self.at(snapshot.id, self.directories.discard(snapshot.id))
    }

    fn measure(&self, snapshot: &Snapshot) -> Result<Usage, SnapshotError> {
        self.at(snapshot.id, self.directories.usage(snapshot.id))
    }

    fn owner(&self, id: SnapshotId) -> Result<(u32, u32), SnapshotError> {
        self.at(id, self.directories.owner(id))
    }

    fn at<T>(&self, id: SnapshotId, done: std::io::Result<T>) -> Result<T, SnapshotError> {
        done.map_err(|source| SnapshotError::Io { path: self.directories.fs(id), source })
    }

    fn pending(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owner(snapshot: &Snapshot) -> Option<&str> {
    match &snapshot.content {
        Content::Layer { owner, .. } => Some(owner),
        Content::Directory => None,
    }
}

/// An owner that never was before: a layer that is removed and prepared again at once must not lose its device to the
/// removal. A chain ID that is none is not in it: this is a name that others may put into a path.
fn new_owner(count: &AtomicU64, chain_id: &str) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let chain_id = if chain_id.parse::<Digest>().is_ok() { chain_id } else { "layer" };
    format!("{chain_id}/{:x}-{}", since.as_nanos(), count.fetch_add(1, Ordering::Relaxed))
}

/// Runs `work` to its end, also when nobody waits for it any more: a client that hangs up drops its request.
async fn finished<T: Send + 'static>(
    work: impl Future<Output = Result<T, SnapshotError>> + Send + 'static,
) -> Result<T, SnapshotError> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.unwrap_or_else(|join| Err(SnapshotError::Internal { reason: join.to_string() }))
}

/// One task that no request waits for, until it is dropped.
struct Task(watch::Sender<usize>);

impl Task {
    fn new(tasks: &watch::Sender<usize>) -> Self {
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
struct Pending<L: Layers> {
    shared: Arc<Shared<L>>,
    owner: String,
    stored: bool,
}

impl<L: Layers> Pending<L> {
    fn new(shared: &Arc<Shared<L>>, owner: String) -> Self {
        shared.pending().insert(owner.clone());
        Self { shared: Arc::clone(shared), owner, stored: false }
    }

    fn stored(mut self) {
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

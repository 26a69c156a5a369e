//! Tests of the service as a whole, over layers that are plain directories.

mod grpc;
mod mapped;
mod model;
mod prepare;
mod restart;
mod stage;
mod suite;
mod suite_mounts;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Semaphore;

use super::labels::{IMAGE_REF, LAYER_DIGEST, MANIFEST_DIGEST, SNAPSHOT_REF};
use super::*;
use crate::mount::{MountOp, execute};
use crate::units::Digest;

/// What the layers do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Behave {
    Lazy,
    Whole,
    NoIndex,
    Fail,
}

/// Layers as plain directories.
struct Fake {
    dir: PathBuf,
    state: Mutex<State>,
    /// A layer is shown when it gets one of these.
    gate: Semaphore,
}

struct State {
    behave: Behave,
    indexed: bool,
    /// What images no longer exist.
    gone: BTreeSet<String>,
    /// Whether layers list their root directory.
    roots: bool,
    /// Owners for whom showing began, and is not over.
    begun: BTreeSet<String>,
    shown: BTreeMap<String, PathBuf>,
    asked: Vec<(String, LayerWanted, Way)>,
    released: Vec<String>,
    /// Mapped directories by name.
    mapped: BTreeMap<String, Vec<PathBuf>>,
}

impl Fake {
    fn new(dir: PathBuf) -> Self {
        let state = State {
            behave: Behave::Lazy,
            indexed: true,
            gone: BTreeSet::new(),
            roots: true,
            begun: BTreeSet::new(),
            shown: BTreeMap::new(),
            asked: Vec::new(),
            released: Vec::new(),
            mapped: BTreeMap::new(),
        };
        Self { dir, state: Mutex::new(state), gate: Semaphore::new(Semaphore::MAX_PERMITS) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds it")
    }

    /// Shows nothing any more, as after a reboot with an empty cache.
    fn lose_all(&self) {
        self.state().shown.clear();
    }

    /// From now on, showing waits for permits.
    fn close_gate(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Files of the layer that [`image_labels`] of this number name.
    fn files(&self, layer: usize) -> PathBuf {
        self.dir.join(layer_digest(layer).to_string().replace(':', "-"))
    }
}

impl Layers for Fake {
    async fn show(&self, owner: &str, wanted: &LayerWanted, way: Way) -> Result<Shown, ShowError> {
        {
            let mut state = self.state();
            state.asked.push((owner.to_owned(), wanted.clone(), way));
            state.begun.insert(owner.to_owned());
        }
        self.gate.acquire().await.expect("never closed").forget();
        let dir = self.dir.join(wanted.layer.to_string().replace(':', "-"));
        let mut state = self.state();
        if state.gone.contains(&wanted.image_ref) {
            return Err(ShowError::Failed { reason: format!("{}: 404", wanted.image_ref) });
        }
        match state.behave {
            Behave::NoIndex => {
                return Err(ShowError::NoIndex { word: "no-index", reason: "no index anywhere".to_owned() });
            }
            Behave::Fail => return Err(ShowError::Failed { reason: "registry: 503".to_owned() }),
            Behave::Lazy | Behave::Whole => {}
        }
        std::fs::create_dir_all(&dir).expect("mkdir");
        state.begun.remove(owner);
        state.shown.insert(owner.to_owned(), dir.clone());
        let lazy = state.behave == Behave::Lazy && way == Way::Lazy;
        Ok(Shown { dir, lazy, indexed: state.indexed })
    }

    async fn shown_at(&self, owner: &str) -> Option<PathBuf> {
        self.state().shown.get(owner).cloned()
    }

    async fn root_owner(&self, owner: &str) -> Option<(u32, u32)> {
        use std::os::unix::fs::MetadataExt;
        let state = self.state();
        let dir = state.shown.get(owner).filter(|_| state.roots)?;
        let meta = std::fs::metadata(dir).expect("made above");
        Some((meta.uid(), meta.gid()))
    }

    async fn release(&self, owner: &str) {
        let mut state = self.state();
        state.begun.remove(owner);
        state.shown.remove(owner);
        state.released.push(owner.to_owned());
    }

    async fn owners(&self) -> Vec<String> {
        let state = self.state();
        state.begun.iter().chain(state.shown.keys()).cloned().collect()
    }

    async fn map(&self, name: &str, map: &IdMap, dirs: &[PathBuf]) -> Result<Vec<PathBuf>, ShowError> {
        let mut targets = Vec::new();
        for (number, dir) in dirs.iter().enumerate() {
            let target = self.dir.join(format!("ids-{name}-{number}"));
            if !target.exists() {
                let (path, source) = (target.clone().into(), dir.into());
                let target = target.clone().into();
                let ops =
                    [MountOp::MakeDir { path, mode: 0o700 }, MountOp::MapOwners { source, target, map: map.clone() }];
                execute(&ops).map_err(|error| ShowError::Failed { reason: error.to_string() })?;
            }
            targets.push(target);
        }
        self.state().mapped.insert(name.to_owned(), targets.clone());
        Ok(targets)
    }

    async fn unmap(&self, name: &str) {
        let targets = self.state().mapped.remove(name);
        for target in targets.into_iter().flatten() {
            let (path, target) = (target.clone().into(), target.into());
            execute(&[MountOp::Unmount { target, lazy: true }, MountOp::RemoveDir { path }]).expect("unmapped");
        }
    }

    async fn mapped(&self) -> Vec<String> {
        self.state().mapped.keys().cloned().collect()
    }

    async fn usage(&self, _: &str) -> Usage {
        Usage { inodes: 7, bytes: 4096 }
    }
}

/// A snapshotter in a directory of its own.
struct World {
    snapshotter: Snapshotter<Fake>,
    layers: Arc<Fake>,
    dir: tempfile::TempDir,
}

const NAMESPACE: &str = "testsuite";

impl World {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layers = Arc::new(Fake::new(dir.path().join("layers")));
        let snapshotter = Snapshotter::open(&dir.path().join("root"), Arc::clone(&layers), options).expect("opens");
        Self { snapshotter, layers, dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Another daemon on the same root, with what layers are left.
    fn restart(self) -> Self {
        let Self { snapshotter, layers, dir } = self;
        drop(snapshotter);
        let root = dir.path().join("root");
        let snapshotter = Snapshotter::open(&root, Arc::clone(&layers), Options::default()).expect("opens again");
        Self { snapshotter, layers, dir }
    }

    async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, SnapshotError> {
        self.snapshotter.prepare(Some(NAMESPACE), key, parent, gc_root()).await
    }

    async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, SnapshotError> {
        self.snapshotter.view(key, parent, gc_root()).await
    }

    async fn commit(&self, name: &str, key: &str) -> Result<(), SnapshotError> {
        self.snapshotter.commit(name, key, "", gc_root()).await
    }

    /// Prepares image layer `layer` as containerd does: `Ok` with its name when it is there now.
    async fn layer(&self, layer: usize, parent: &str) -> Result<String, Result<Vec<Mount>, SnapshotError>> {
        let key = format!("extract-{layer}-{}", self.layers.state().asked.len());
        let labels = image_labels("registry/app:1", layer);
        match self.snapshotter.prepare(Some(NAMESPACE), &key, parent, labels).await {
            Err(SnapshotError::Exists { name }) if name == chain_id(layer) => {
                // As containerd finds it (core/metadata/snapshot.go).
                let filter = format!("labels.{SNAPSHOT_REF:?}=={name},parent=={parent:?}");
                let found = self.snapshotter.list(&[filter]).await.map_err(Err)?;
                let found = found.into_iter().find(|info| info.kind == Kind::Committed);
                Ok(found.unwrap_or_else(|| panic!("containerd would not find {name} on {parent:?}")).name)
            }
            other => Err(other),
        }
    }

    /// Names of all snapshots.
    async fn names(&self) -> Vec<String> {
        let all = self.snapshotter.list(&[]).await.expect("lists");
        all.into_iter().map(|info| info.name).collect()
    }

    /// What lies in the directory of snapshots.
    fn entries(&self) -> Vec<String> {
        entries(&self.root().join("snapshots"))
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn gc_root() -> Labels {
    labels_of(&[("containerd.io/gc.root", "2026-01-01T00:00:00Z")])
}

fn labels_of(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn layer_digest(layer: usize) -> Digest {
    Digest::of(format!("layer {layer}").as_bytes())
}

fn chain_id(layer: usize) -> String {
    Digest::of(format!("chain {layer}").as_bytes()).to_string()
}

/// Labels with which containerd asks for layer number `layer` of an image.
fn image_labels(image: &str, layer: usize) -> Labels {
    labels_of(&[
        (SNAPSHOT_REF, &chain_id(layer)),
        (IMAGE_REF, image),
        (MANIFEST_DIGEST, &Digest::of(image.as_bytes()).to_string()),
        (LAYER_DIGEST, &layer_digest(layer).to_string()),
    ])
}

fn code(error: &SnapshotError) -> tonic::Code {
    service::status(error).code()
}

/// Says so on standard error, past the test runner's capture.
fn skipped(test: &str, missing: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {test}: {missing}").expect("stderr");
}

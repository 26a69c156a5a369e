//! Layers that are served, counted by the mounts that use them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use anyhow::{Context, bail};

use super::frontends::{Device, Frontend, device_tag};
use super::layer::Layer;
use super::load_order::Shown;
use super::prepare::{Prepared, PreparedLayer};
use super::protocol::MountRequest;
use super::read_ahead::{self, Census};
use super::snapshots::Holds;
use super::state::{LayerRecord, MountRecord, SourceRecord, State};
use super::synthesis::Synthesized;
use super::{LayerNames, MOUNT_LIMIT, Node};
use crate::fill::{FillLayer, LayerSpec, Priority};
use crate::frontend::fuse::FuseKind;
use crate::mount::{MountEntry, MountError, MountOp, UpperDirs};
use crate::registry::{BlobSource, Sources};
use crate::units::{Digest, LayerOffset, LayerRange};

/// What is served, and for which mounts.
#[derive(Default)]
pub(super) struct Served {
    /// By name: storage key, variant and frontend.
    pub layers: HashMap<String, ServedLayer>,
    /// One filler for each layer file, however many devices show it.
    pub fills: HashMap<Digest, Filled>,
    /// Mounts, oldest first.
    pub mounts: Vec<MountRecord>,
    /// Layers that are held for owners, shown or not.
    pub holds: Holds,
    /// Devices that lost their last mount while somebody still had them open.
    pub zombies: Vec<ServedLayer>,
    /// The daemon is on its way out: nothing new is mounted.
    pub closed: bool,
}

/// A layer that is being filled.
pub(super) struct Filled {
    pub fill: Weak<FillLayer>,
    /// Where its blob is: every mount that uses it knows a place.
    pub sources: Arc<Sources>,
}

/// One layer on one device.
pub(super) struct ServedLayer {
    pub layer: Arc<Layer>,
    pub frontend: Frontend,
    pub device: Device,
    pub record: LayerRecord,
    pub users: usize,
    /// Whether its EROFS is mounted, as far as we know.
    pub mounted: bool,
    /// Whether the kernel was told to read far ahead in it. `None`: an earlier daemon told it something.
    pub reads_far: Option<bool>,
}

/// What a layer needs that is not in its zTOC.
pub(super) struct LayerInput {
    pub record: LayerRecord,
    pub key: Digest,
    pub source: Arc<dyn BlobSource>,
}

impl Node {
    /// Serves and mounts all layers of a prepared image; those that are served already get one more user.
    pub(super) async fn attach(
        self: &Arc<Self>,
        served: &mut Served,
        prepared: Prepared,
        frontend: &Frontend,
        background: bool,
    ) -> anyhow::Result<LayerNames> {
        let mut names: LayerNames = Vec::new();
        let mut fresh: Vec<ServedLayer> = Vec::new();
        for (parts, layer) in prepared.parts.into_iter().zip(prepared.layers) {
            report_omissions(&parts, &layer);
            let name = format!("{}.{}", parts.name, frontend.name());
            names.push(name.clone());
            if let Some(filled) = served.fills.get(&layer.key) {
                filled.sources.add(Arc::clone(&layer.source));
            }
            if served.layers.contains_key(&name) || fresh.iter().any(|l| l.record.name == name) {
                continue;
            }
            if let Some(at) = served.zombies.iter().position(|z| z.record.name == name) {
                fresh.push(served.zombies.swap_remove(at));
                continue;
            }
            let source = SourceRecord {
                image: prepared.image.clone(),
                blob_bytes: layer.blob_size.get(),
                access: prepared.access.clone(),
            };
            let input = self.input(layer, &parts, name, source);
            match self.serve(served, parts, input, frontend).await {
                Ok(layer) => fresh.push(layer),
                Err(error) => {
                    self.release(served, fresh).await;
                    return Err(error);
                }
            }
        }
        let added: Vec<String> = fresh.iter().map(|layer| layer.record.name.clone()).collect();
        served.layers.extend(fresh.into_iter().map(|layer| (layer.record.name.clone(), layer)));
        if let Err(error) = self.mount_layers(served, &added).await {
            let added = added.iter().filter_map(|name| served.layers.remove(name)).collect();
            self.release(served, added).await;
            return Err(error);
        }
        for name in &names {
            if let Some(layer) = served.layers.get_mut(name) {
                layer.users += 1;
                let (digest, ztoc) = (layer.record.digest, layer.record.ztoc);
                let fill = Arc::downgrade(layer.layer.fill());
                // Nobody may follow a load order.
                let _ = prepared.followed.send(Shown { layer: digest, ztoc, fill });
                if background {
                    let whole = LayerRange::new(LayerOffset::ZERO, layer.layer.fill().file().table().layer_size());
                    whole.into_iter().for_each(|whole| layer.layer.fill().prefetch(whole, Priority::Background));
                }
            }
        }
        Ok(names)
    }

    fn input(&self, layer: PreparedLayer, parts: &Synthesized, name: String, source: SourceRecord) -> LayerInput {
        let target = self.paths.mnt_dir().join(&name);
        let record = LayerRecord {
            name,
            image: parts.name.clone(),
            key: layer.key,
            digest: layer.digest,
            diff_id: layer.diff_id,
            ztoc: layer.ztoc_digest,
            metadata: parts.metadata_digest,
            source,
            ublk_id: None,
            fuse_inode: None,
            fuse_fs_inode: None,
            erofs_bdi: None,
            target,
        };
        LayerInput { record, key: layer.key, source: layer.source }
    }

    /// Joins a synthesized layer with its layer file and filler.
    pub(super) fn join(
        &self,
        served: &mut Served,
        parts: Synthesized,
        input: &LayerInput,
    ) -> anyhow::Result<Arc<Layer>> {
        let running = served.fills.get(&input.key).and_then(|filled| filled.fill.upgrade());
        let fill = match running {
            Some(fill) => {
                if let Some(filled) = served.fills.get(&input.key) {
                    filled.sources.add(Arc::clone(&input.source));
                }
                fill
            }
            None => {
                // Opening syncs, and may wait for an eviction: other layers' bytes come over this thread.
                let file = tokio::task::block_in_place(|| self.cache.layer(input.key, Arc::clone(&parts.table)))?;
                if **file.table() != *parts.table {
                    bail!("layer {} is in use with another zTOC; try again when it is not", input.record.digest);
                }
                let windows = parts.ztoc.try_clone().context("one more descriptor of the zTOC")?;
                let sources = Sources::new(Arc::clone(&input.source));
                let fill = self.filler.add_layer(LayerSpec {
                    digest: input.record.digest,
                    table: Arc::clone(&parts.table),
                    windows,
                    source: Arc::clone(&sources) as Arc<dyn BlobSource>,
                    file,
                    diff_id: input.record.diff_id,
                });
                served.fills.retain(|_, filled| filled.fill.strong_count() > 0);
                served.fills.insert(input.key, Filled { fill: Arc::downgrade(&fill), sources });
                fill
            }
        };
        let file = Arc::clone(fill.file());
        Ok(Arc::new(Layer::new(input.record.name.clone(), parts, file, fill)))
    }

    pub(super) async fn serve(
        &self,
        served: &mut Served,
        parts: Synthesized,
        input: LayerInput,
        frontend: &Frontend,
    ) -> anyhow::Result<ServedLayer> {
        let layer = self.join(served, parts, &input)?;
        let (shown, by) = (Arc::clone(&layer), frontend.clone());
        let tag = device_tag(self.paths.root(), &input.record.name);
        let device = tokio::task::spawn_blocking(move || by.add(shown, tag)).await??;
        let mut record = input.record;
        match &device {
            Device::Ublk(device) => record.ublk_id = Some(device.id),
            Device::Fuse { kind, inode, .. } => record.set_fuse_inode(*kind, Some(*inode)),
        }
        Ok(ServedLayer {
            layer,
            frontend: frontend.clone(),
            device,
            record,
            users: 0,
            mounted: true,
            reads_far: Some(false),
        })
    }

    /// Mounts layers whose devices have just been made. They are written down first: should this process die in
    /// between, the next one knows whose devices they are.
    pub(super) async fn mount_layers(self: &Arc<Self>, served: &mut Served, names: &[String]) -> anyhow::Result<()> {
        self.save(served)?;
        let mut ops = Vec::new();
        for layer in names.iter().filter_map(|name| served.layers.get(name)) {
            let target = layer.record.target.clone();
            ops.push(MountOp::MakeDir { path: target.clone().into(), mode: 0o700 });
            let metadata_bytes = layer.layer.metadata_bytes();
            ops.push(layer.device.mount_op(target, metadata_bytes, self.layer_context.clone()));
        }
        let from_files = |layer: &ServedLayer| matches!(layer.device, Device::Fuse { kind: FuseKind::Images, .. });
        let count = names.iter().filter_map(|name| served.layers.get(name)).filter(|layer| from_files(layer)).count();
        let census = (count > 0).then(Census::begin);
        self.run_ops(ops).await?;
        let mut numbers = census.and_then(|census| census.end(count)).unwrap_or_default().into_iter();
        for name in names {
            let Some(layer) = served.layers.get_mut(name) else { continue };
            layer.record.erofs_bdi = from_files(layer).then(|| numbers.next()).flatten();
            layer.reads_far = Some(false);
            read_ahead::follow_one(layer);
        }
        Ok(())
    }

    /// Mounts the overlay of `names`, bottom first, where the request wants it.
    pub(super) async fn mount_overlay(
        self: &Arc<Self>,
        served: &Served,
        names: &LayerNames,
        request: &MountRequest,
    ) -> anyhow::Result<()> {
        let mut ops = Vec::new();
        let empty = self.paths.mnt_dir().join("empty");
        ops.push(MountOp::MakeDir { path: empty.clone().into(), mode: 0o755 });
        let upper = match &request.upper {
            None => None,
            Some(upper) => {
                let work = work_dir(upper);
                for dir in [upper, &work] {
                    ops.push(MountOp::MakeDir { path: dir.clone().into(), mode: 0o755 });
                }
                Some(UpperDirs { upper: upper.clone().into(), work: work.into() })
            }
        };
        let mut seen = HashSet::new();
        let lowers = names
            .iter()
            .rev()
            // A layer that an image has twice hides nothing the second time; overlayfs refuses the same directory twice.
            .filter(|name| seen.insert(name.as_str()))
            .filter_map(|name| served.layers.get(name))
            .map(|layer| layer.record.target.clone().into())
            .collect();
        ops.push(MountOp::Overlay {
            lowers,
            empty_lower: Some(empty.into()),
            read_only: upper.is_none(),
            upper,
            target: request.dir.clone().into(),
        });
        Ok(self.run_ops(ops).await?)
    }

    pub(super) async fn run_ops(self: &Arc<Self>, ops: Vec<MountOp>) -> Result<(), MountError> {
        let node = Arc::clone(self);
        let ran = tokio::task::spawn_blocking(move || node.helper.run(&ops, MOUNT_LIMIT)).await;
        ran.unwrap_or_else(|join| Err(MountError::Helper { reason: join.to_string() }))
    }

    /// Writes down what must survive this process.
    pub(super) fn save(&self, served: &Served) -> anyhow::Result<()> {
        let layers = served.layers.values().chain(&served.zombies).map(|l| l.record.clone()).collect();
        let holds = served.holds.values().cloned().collect();
        Ok(tokio::task::block_in_place(|| {
            let state = State::new(layers, served.mounts.clone(), holds, |kind| self.frontends.fuse_session(kind));
            state.with_left(self.fallbacks.left()).save(&self.paths.state_file())
        })?)
    }
}

/// Whether a mount is an image's root file system that sociblk stacked.
#[must_use]
pub(super) fn is_overlay_of_ours(mount: &MountEntry) -> bool {
    mount.fs_type == "overlay" && mount.source == "sociblk"
}

/// The work directory of overlayfs must lie beside the upper directory, on the same file system.
fn work_dir(upper: &Path) -> PathBuf {
    let mut name = upper.as_os_str().to_owned();
    name.push(".work");
    name.into()
}

fn report_omissions(parts: &Synthesized, layer: &PreparedLayer) {
    let left_out = parts.omissions;
    if left_out != crate::tree::Omissions::default() {
        tracing::info!(layer = %layer.digest.short(), ?left_out, "left out of the layer (docs/SEMANTICS.md)");
    }
}

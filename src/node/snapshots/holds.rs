//! Layers that are held for owners, beyond the life of the process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::node::load_order::Key;
use crate::node::prepare::{Prepared, PreparedLayer};
use crate::node::protocol::LayerWay;
use crate::node::served::{Served, ServedLayer};
use crate::node::state::LayerRecord;
use crate::node::{Node, one_line};
use crate::registry::ImageRef;
use crate::snapshot::{Shown, Usage};

/// A layer and whom it is held for. All that showing it again takes is on local disk.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct HoldRecord {
    /// The owner.
    pub owner: String,
    /// The layer as it was shown last.
    pub layer: LayerRecord,
    /// Whether the layer was shown before its bytes were here.
    pub lazy: bool,
    /// Whether its image has an index. Records of earlier versions do not say it; most images that were shown had one.
    #[serde(default = "indexed")]
    pub indexed: bool,
    /// The image, as whoever pulled it named it; empty in records of earlier versions.
    #[serde(default)]
    pub image: String,
    /// Which layer of the image, counted from the bottom.
    #[serde(default)]
    pub place: usize,
    /// By what the layer is shown, and why; absent in records of earlier versions.
    #[serde(default)]
    pub way: Option<LayerWay>,
}

fn indexed() -> bool {
    true
}

/// A layer as it is wanted, beyond what shows it.
pub(in crate::node) struct Wanted {
    /// Whether its image has an index.
    pub indexed: bool,
    /// The image, as whoever pulls it named it.
    pub image: String,
    /// Which layer of the image, counted from the bottom.
    pub place: usize,
}

/// Holds by owner.
pub(in crate::node) type Holds = BTreeMap<String, HoldRecord>;

impl Node {
    /// Shows a prepared layer for `owner` and says where.
    pub(super) async fn hold(
        self: &Arc<Self>,
        owner: &str,
        prepared: Prepared,
        wanted: Wanted,
        background: bool,
    ) -> anyhow::Result<PathBuf> {
        let choice = self.default_frontend;
        let node = Arc::clone(self);
        let (frontend, _) = tokio::task::spawn_blocking(move || node.frontends.get(choice)).await??;
        let (node, owner, lazy) = (Arc::clone(self), owner.to_owned(), prepared.is_lazy());
        let way = prepared.layers.first().map(PreparedLayer::way);
        // Local from here on; it runs to its end even when whoever asked is gone.
        tokio::spawn(async move {
            let mut served = node.served.lock().await;
            if served.closed {
                bail!("the daemon is stopping");
            }
            let recorded = prepared.recorded.clone();
            let names = node.attach(&mut served, prepared, &frontend, background).await?;
            let layer = names.first().and_then(|name| served.layers.get(name)).context("a layer that is served")?;
            let (record, dir) = (layer.record.clone(), layer.record.target.clone());
            let Wanted { indexed, image, place } = wanted;
            let hold = HoldRecord { owner: owner.clone(), layer: record, lazy, indexed, image, place, way };
            served.holds.insert(owner.clone(), hold);
            if let Err(error) = node.save(&served) {
                served.holds.remove(&owner);
                node.detach(&mut served, &names).await;
                return Err(error.context("the layer cannot be written down, so it is not shown"));
            }
            node.record(&served, &Key::Image(recorded.image), recorded, &names);
            Ok(dir)
        })
        .await?
    }

    /// What is shown for `owner`.
    pub(super) async fn held(&self, owner: &str) -> Option<Shown> {
        let served = self.served.lock().await;
        let hold = served.holds.get(owner)?;
        let layer = served.layers.get(&hold.layer.name).filter(|layer| layer.mounted)?;
        Some(Shown { dir: layer.record.target.clone(), lazy: hold.lazy, indexed: hold.indexed })
    }

    pub(super) async fn held_root_owner(&self, owner: &str) -> Option<(u32, u32)> {
        let served = self.served.lock().await;
        let layer = Arc::clone(&served.layers.get(&served.holds.get(owner)?.layer.name)?.layer);
        drop(served);
        tokio::task::spawn_blocking(move || layer.root_owner()).await.ok()?.ok()
    }

    pub(super) async fn held_usage(&self, owner: &str) -> Usage {
        let served = self.served.lock().await;
        let found = served.holds.get(owner).and_then(|hold| served.layers.get(&hold.layer.name));
        // A layer file, the record of its spans, and what is synthesized.
        let files = |layer: &ServedLayer| Usage { inodes: 3, bytes: layer.layer.file().present_bytes() };
        found.map(files).unwrap_or_default()
    }

    pub(super) async fn owners(&self) -> Vec<String> {
        self.served.lock().await.holds.keys().cloned().collect()
    }

    /// Ends a hold, and the layer with it when nothing else uses it.
    pub(super) async fn let_go(self: &Arc<Self>, owner: &str) {
        let (node, owner) = (Arc::clone(self), owner.to_owned());
        let done = tokio::spawn(async move {
            let mut served = node.served.lock().await;
            let Some(hold) = served.holds.remove(&owner) else { return };
            if served.layers.contains_key(&hold.layer.name) {
                node.detach(&mut served, &vec![hold.layer.name.clone()]).await;
            }
            if let Err(error) = node.save(&served) {
                tracing::warn!(error = one_line(&error), "cannot write down the state");
            }
            let image = hold.layer.source.image;
            let last = !served.holds.values().any(|other| other.layer.source.image == image);
            drop(served);
            if let (true, Some(digest)) = (last, image.parse::<ImageRef>().ok().and_then(|image| image.digest())) {
                node.end_recording(&Key::Image(digest)).await;
            }
            node.idle.notify_waiters();
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "letting go of a layer");
        }
    }

    /// Takes up holds of layers that were taken over.
    pub(in crate::node) fn take_over_holds(served: &mut Served, holds: &[HoldRecord]) {
        for hold in holds {
            if let Some(layer) = served.layers.get_mut(&hold.layer.name) {
                layer.users += 1;
                served.holds.insert(hold.owner.clone(), hold.clone());
            }
        }
    }

    /// Takes up the other holds of the last daemon, whose layers must be shown anew, as after a restart of the machine.
    /// What cannot be shown stays held, and is shown when it is asked for.
    pub(in crate::node) async fn take_up_holds(self: &Arc<Self>, served: &mut Served, holds: &[HoldRecord]) {
        for hold in holds {
            let name = &hold.layer.name;
            if served.holds.contains_key(&hold.owner) {
                continue;
            }
            if !served.layers.contains_key(name)
                && let Err(error) = self.show_again(served, &hold.layer).await
            {
                tracing::error!(layer = %name, error = one_line(&error), "a layer is not shown again for now");
            }
            if let Some(layer) = served.layers.get_mut(name) {
                layer.users += 1;
            }
            served.holds.insert(hold.owner.clone(), hold.clone());
        }
    }

    /// Ends showing all held layers, and keeps the holds: the next daemon shows them again.
    pub(in crate::node) async fn rest_holds(self: &Arc<Self>) {
        let mut served = self.served.lock().await;
        self.unmap_all_owners().await;
        let names: Vec<String> = served.holds.values().map(|hold| hold.layer.name.clone()).collect();
        self.detach(&mut served, &names).await;
        if let Err(error) = self.save(&served) {
            tracing::warn!(error = one_line(&error), "cannot write down the state");
        }
    }

    /// Shows a layer as an earlier daemon did, from what it left on local disk.
    async fn show_again(self: &Arc<Self>, served: &mut Served, record: &LayerRecord) -> anyhow::Result<()> {
        let node = Arc::clone(self);
        let choice = self.default_frontend;
        let (frontend, _) = tokio::task::spawn_blocking(move || node.frontends.get(choice)).await??;
        let mut record = record.clone();
        record.ublk_id = None;
        if !record.name.ends_with(&format!(".{}", frontend.name())) {
            bail!("it was shown over another frontend than {}", frontend.name());
        }
        let (parts, input) = self.restored(&record).await?;
        let layer = self.serve(served, parts, input, &frontend).await?;
        let name = layer.record.name.clone();
        served.layers.insert(name.clone(), layer);
        if let Err(error) = self.mount_layers(served, std::slice::from_ref(&name)).await {
            let layer: Vec<ServedLayer> = served.layers.remove(&name).into_iter().collect();
            self.release(served, layer).await;
            return Err(error);
        }
        tracing::info!(layer = %name, "shown again");
        Ok(())
    }
}

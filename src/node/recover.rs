//! Taking over from a daemon that is gone: its ublk devices wait, quiesced, and its FUSE connections lie with holders,
//! all with readers that hang until somebody serves them again. Needs local disk only.

use std::sync::Arc;

use anyhow::{Context, bail};

use super::frontends::{Device, Frontend, device_tag, fuse_content};
use super::layer::Layer;
use super::protocol::FrontendChoice;
use super::served::{LayerInput, Served, ServedLayer};
use super::state::{LayerRecord, MountRecord, State};
use super::synthesis::{ChainLayer, Synthesized, restore, sweep};
use super::{Node, one_line};
use crate::frontend::fuse::{FuseKind, FuseServer};
use crate::frontend::ublk::{DeviceState, OwnDevice, UblkFrontend};
use crate::mount::MountOp;
use crate::registry::ImageSource;
use crate::units::BlobOffset;

impl Node {
    /// Recovers what the state file speaks of; what cannot be recovered is taken away, with the reason in the log.
    pub(super) async fn recover(self: &Arc<Self>) -> anyhow::Result<()> {
        let state = State::load(&self.paths.state_file())?;
        self.fallbacks.take_over(&state.left);
        if state.layers.is_empty() && state.mounts.is_empty() && state.holds.is_empty() {
            for kind in FuseKind::ALL {
                self.end_left_holder(kind).await;
            }
        } else {
            self.take_over(&state).await?;
        }
        let served = self.served.lock().await;
        let shown = served.layers.values().chain(&served.zombies).map(|l| &l.record);
        let shown = shown.chain(served.holds.values().map(|hold| &hold.layer)).map(|l| (l.image.as_str(), l.metadata));
        if let Err(error) = tokio::task::block_in_place(|| sweep(&self.paths, shown)) {
            tracing::warn!(%error, dir = %self.paths.meta_dir().display(), "old images stay on disk");
        }
        Ok(())
    }

    async fn take_over(self: &Arc<Self>, state: &State) -> anyhow::Result<()> {
        let mut served = self.served.lock().await;
        let on_ublk = state.layers.iter().any(|l| l.ublk_id.is_some());
        let devices = if on_ublk { self.own_devices().await } else { None };
        if let Some((ublk, devices)) = &devices {
            self.recover_devices(&mut served, state, ublk, devices).await;
        }
        for kind in FuseKind::ALL {
            self.recover_fuse(&mut served, state, kind).await;
        }
        Self::take_over_holds(&mut served, &state.holds);
        for mount in &state.mounts {
            if mount.layers.iter().all(|name| served.layers.contains_key(name)) {
                for name in &mount.layers {
                    if let Some(layer) = served.layers.get_mut(name) {
                        layer.users += 1;
                    }
                }
                tracing::info!(dir = %mount.report.dir.display(), image = %mount.report.image, "mount taken over");
                served.mounts.push(mount.clone());
            } else {
                self.drop_mount(mount).await;
            }
        }
        self.drop_unused(&mut served, state).await;
        self.take_up_holds(&mut served, &state.holds).await;
        self.save(&served)
    }

    /// The ublk frontend and the devices of ours. One that looks served still may not be: before 6.15 or so the driver
    /// learns of a killed server a moment later, which the takeover waits for. No other daemon serves this root.
    async fn own_devices(self: &Arc<Self>) -> Option<(Arc<UblkFrontend>, Vec<OwnDevice>)> {
        let node = Arc::clone(self);
        let found = tokio::task::spawn_blocking(move || {
            let (frontend, _) = node.frontends.get(FrontendChoice::Ublk)?;
            let Frontend::Ublk(ublk) = frontend else { bail!("not the ublk frontend") };
            let own = ublk.list_own()?;
            Ok((ublk, own.into_iter().filter(|d| d.state != DeviceState::Dead).collect()))
        });
        match found.await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::error!(error = one_line(&error), "ublk devices of the last daemon cannot be taken over");
                None
            }
            Err(error) => {
                tracing::error!(%error, "ublk devices of the last daemon cannot be taken over");
                None
            }
        }
    }

    async fn recover_devices(
        self: &Arc<Self>,
        served: &mut Served,
        state: &State,
        ublk: &Arc<UblkFrontend>,
        devices: &[OwnDevice],
    ) {
        for record in state.layers.iter().filter(|l| l.ublk_id.is_some()) {
            match self.recover_one(served, record, ublk, devices).await {
                Ok(layer) => {
                    served.layers.insert(record.name.clone(), layer);
                }
                Err(error) => tracing::error!(layer = %record.name, error = one_line(&error), "device not taken over"),
            }
        }
    }

    async fn recover_one(
        &self,
        served: &mut Served,
        record: &LayerRecord,
        ublk: &Arc<UblkFrontend>,
        devices: &[OwnDevice],
    ) -> anyhow::Result<ServedLayer> {
        let id = record.ublk_id.context("it was on no ublk device")?;
        let tag = device_tag(self.paths.root(), &record.name);
        if !devices.iter().any(|d| d.id == id && d.carries(tag)) {
            bail!("device {id} is not there any more; was the machine restarted?");
        }
        let (parts, input) = self.restored(record).await?;
        let layer = self.join(served, parts, &input)?;
        let (shown, by) = (Arc::clone(&layer), Arc::clone(ublk));
        let device = tokio::task::spawn_blocking(move || by.recover(id, shown, tag)).await??;
        tracing::info!(layer = %record.name, device = %device.block_path.display(), "device taken over");
        Ok(taken_over(layer, Frontend::Ublk(Arc::clone(ublk)), Device::Ublk(device), record))
    }

    /// What serving a layer again takes, from what an earlier daemon left on local disk.
    pub(super) async fn restored(&self, record: &LayerRecord) -> anyhow::Result<(Synthesized, LayerInput)> {
        let blob_size = BlobOffset::new(record.source.blob_bytes);
        let on_disk = ChainLayer {
            key: record.key,
            digest: record.digest,
            blob_size,
            ztoc_digest: record.ztoc,
            ztoc: self.store.blob_path(&record.ztoc),
        };
        let (paths, image, metadata) = (self.paths.clone(), record.image.clone(), record.metadata);
        let parts = tokio::task::spawn_blocking(move || restore(&paths, &image, metadata, &on_disk)).await??;
        let source: ImageSource = record.source.image.parse()?;
        // A password that came with the mount is gone with the last daemon; docker's configuration is asked.
        let client = self.clients.get(&source, &record.source.access, None);
        let source = client.blob(&source, record.digest, blob_size).await?;
        Ok((parts, LayerInput { record: record.clone(), key: record.key, source }))
    }

    /// Takes a FUSE connection over and serves its layers again. Their readers wait from the death of the last daemon
    /// to the end of this.
    async fn recover_fuse(self: &Arc<Self>, served: &mut Served, state: &State, kind: FuseKind) {
        let layers: Vec<(&LayerRecord, u64)> =
            state.layers.iter().filter_map(|l| l.fuse_inode(kind).map(|inode| (l, inode))).collect();
        let Some(session) = state.fuse_session(kind).filter(|_| !layers.is_empty()) else {
            return self.end_left_holder(kind).await;
        };
        let node = Arc::clone(self);
        let adopted = tokio::task::spawn_blocking(move || anyhow::Ok(node.frontends.adopt_fuse(kind, &session)?));
        let fuse = match adopted.await.unwrap_or_else(|join| Err(join.into())) {
            Ok(fuse) => fuse,
            Err(error) => {
                tracing::error!(
                    error = one_line(&error),
                    "images of the last daemon cannot be taken over; mounts on them are undone"
                );
                return self.end_left_holder(kind).await;
            }
        };
        for (record, inode) in layers {
            match self.recover_on_fuse(served, record, kind, inode, &fuse).await {
                Ok(layer) => {
                    served.layers.insert(record.name.clone(), layer);
                }
                Err(error) => tracing::error!(layer = %record.name, error = one_line(&error), "image not taken over"),
            }
        }
        let started = tokio::task::spawn_blocking(move || anyhow::Ok(fuse.start()?));
        if let Err(error) = started.await.unwrap_or_else(|join| Err(join.into())) {
            tracing::error!(error = one_line(&error), "images are not served");
        }
    }

    async fn recover_on_fuse(
        &self,
        served: &mut Served,
        record: &LayerRecord,
        kind: FuseKind,
        inode: u64,
        fuse: &Arc<FuseServer>,
    ) -> anyhow::Result<ServedLayer> {
        let (parts, input) = self.restored(record).await?;
        let layer = self.join(served, parts, &input)?;
        let node = fuse.restore(&record.name, inode, fuse_content(kind, Arc::clone(&layer))?)?;
        tracing::info!(layer = %record.name, inode, "image taken over");
        let device = Device::Fuse { kind, name: record.name.clone(), path: node.path, inode };
        Ok(taken_over(layer, Frontend::of(kind, Arc::clone(fuse)), device, record))
    }

    async fn end_left_holder(self: &Arc<Self>, kind: FuseKind) {
        let node = Arc::clone(self);
        let ended = tokio::task::spawn_blocking(move || node.frontends.end_left_holder(kind));
        if let Err(error) = ended.await {
            tracing::warn!(%error, "ending a process of the last daemon");
        }
    }

    /// A mount that lost a layer shows I/O errors for ever: better none.
    async fn drop_mount(self: &Arc<Self>, mount: &MountRecord) {
        let dir = &mount.report.dir;
        tracing::warn!(dir = %dir.display(), image = %mount.report.image,
            "this mount did not outlive its daemon; it is undone. Mount the image again");
        if let Err(error) = self.unmount_dir(dir, true).await {
            tracing::warn!(dir = %dir.display(), error = one_line(&error), "cannot undo it");
        }
    }

    /// Unmounts layers that no mount uses, and removes devices that are nobody's.
    async fn drop_unused(self: &Arc<Self>, served: &mut Served, state: &State) {
        let unused: Vec<String> =
            served.layers.iter().filter(|(_, l)| l.users == 0).map(|(name, _)| name.clone()).collect();
        let unused: Vec<ServedLayer> = unused.iter().filter_map(|name| served.layers.remove(name)).collect();
        self.release(served, unused).await;
        for record in &state.layers {
            if served.layers.contains_key(&record.name) || served.zombies.iter().any(|z| z.record.name == record.name) {
                continue;
            }
            let target = record.target.clone();
            // What is not mounted needs no unmounting; whatever else stays is for `sociblk doctor`.
            let _ = self.run_ops(vec![MountOp::Unmount { target: target.clone().into(), lazy: true }]).await;
            let _ = self.run_ops(vec![MountOp::RemoveDir { path: target.into() }]).await;
            self.remove_stray_device(record).await;
        }
    }

    async fn remove_stray_device(self: &Arc<Self>, record: &LayerRecord) {
        let (Some(id), tag) = (record.ublk_id, device_tag(self.paths.root(), &record.name)) else { return };
        let node = Arc::clone(self);
        let removed = tokio::task::spawn_blocking(move || {
            let (Frontend::Ublk(ublk), _) = node.frontends.get(FrontendChoice::Ublk)? else { return Ok(()) };
            // Numbers are reused, and another root may show the same layer: what somebody serves is not ours.
            let stray = |d: &OwnDevice| d.id == id && d.carries(tag) && d.state != DeviceState::Live;
            // Nobody will ever serve it again: who still reads it gets an error instead of waiting for good.
            if ublk.list_own()?.iter().any(stray) {
                ublk.remove_in_use(id).map_err(anyhow::Error::from)
            } else {
                Ok(())
            }
        });
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(device = id, error = one_line(&error), "a device of the last daemon stays");
            }
            Err(error) => tracing::warn!(device = id, %error, "a device of the last daemon stays"),
        }
    }
}

fn taken_over(layer: Arc<Layer>, frontend: Frontend, device: Device, record: &LayerRecord) -> ServedLayer {
    ServedLayer { layer, frontend, device, record: record.clone(), users: 0, mounted: true, reads_far: None }
}

//! Unmounting what nobody uses any more, and waiting for those who still have it open.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::served::{Served, ServedLayer, is_overlay_of_ours};
use super::{LayerNames, Node, one_line, read_ahead, uses};
use crate::mount::{MountError, MountOp};

/// How often is looked at what changes by itself: devices that were still in use at their unmount above all.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// An unmounted device may be held for a moment by the kernel's own clean-up, or by udev looking at it. All layers of a
/// mount wait together: a lazy unmount of a busy image leaves all of them in use, and others wait meanwhile.
const RELEASE_PATIENCE: Duration = Duration::from_millis(500);
const RELEASE_PAUSE: Duration = Duration::from_millis(20);

impl Node {
    /// Unmounts the overlay on `dir`; one that somebody else has unmounted is as good. What somebody else has mounted
    /// there since is left alone.
    pub(super) async fn unmount_dir(self: &Arc<Self>, dir: &Path, lazy: bool) -> anyhow::Result<()> {
        if !self.mounted_on(dir).await?.is_some_and(|mount| is_overlay_of_ours(&mount)) {
            tracing::warn!(dir = %dir.display(), "no mount of ours there any more");
            return Ok(());
        }
        match self.run_ops(vec![MountOp::Unmount { target: dir.into(), lazy }]).await {
            Ok(()) | Err(MountError::NotMounted { .. } | MountError::TargetMissing { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one user from each layer, and frees those without any.
    pub(super) async fn detach(self: &Arc<Self>, served: &mut Served, names: &LayerNames) {
        let mut free = Vec::new();
        for (name, count) in uses(names) {
            let Some(layer) = served.layers.get_mut(name) else { continue };
            layer.users = layer.users.saturating_sub(count);
            if layer.users == 0 {
                // What its readers came to is forgotten with it.
                self.orders.recordings.collect(layer.layer.fill());
                free.extend(served.layers.remove(name));
            }
        }
        self.release(served, free).await;
    }

    /// Unmounts layers without users and removes their devices. What somebody still has open becomes a zombie: served
    /// on, and tried again from time to time.
    pub(super) async fn release(self: &Arc<Self>, served: &mut Served, layers: Vec<ServedLayer>) {
        let deadline = Instant::now() + RELEASE_PATIENCE;
        for mut layer in layers {
            let target = layer.record.target.clone();
            layer.mounted = !self.unmount_layer(&target).await;
            if let Some(busy) = give_back(layer, deadline).await {
                tracing::info!(layer = %busy.record.name, "still in use; its device stays until it is not");
                served.zombies.push(busy);
            }
        }
    }

    /// Unmounts a layer's EROFS and takes its mount point away; false when it is still mounted.
    pub(super) async fn unmount_layer(self: &Arc<Self>, target: &Path) -> bool {
        match self.run_ops(vec![MountOp::Unmount { target: target.into(), lazy: true }]).await {
            Ok(()) | Err(MountError::NotMounted { .. } | MountError::TargetMissing { .. }) => {
                if let Err(error) = self.run_ops(vec![MountOp::RemoveDir { path: target.into() }]).await {
                    tracing::debug!(%error, "an empty mount point stays");
                }
                true
            }
            Err(error) => {
                tracing::warn!(target = %target.display(), %error, "cannot unmount a layer; it is tried again");
                false
            }
        }
    }

    /// Ends devices that somebody still has open although their mounts are gone: no daemon will come for them.
    pub(super) async fn remove_zombies(self: &Arc<Self>) {
        let mut served = self.served.lock().await;
        for zombie in std::mem::take(&mut served.zombies) {
            tracing::warn!(layer = %zombie.record.name, "still in use at the end; its readers get I/O errors");
            let removed = tokio::task::spawn_blocking(move || zombie.frontend.remove_in_use(&zombie.device)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(%error, "cannot remove a device; `sociblk doctor` finds it");
            }
        }
        if let Err(error) = self.save(&served) {
            tracing::warn!(error = format!("{error:#}"), "cannot write down the state");
        }
    }
}

/// Removes a device; gives the layer back when it is still in use at `deadline`. Tries at least once.
async fn give_back(layer: ServedLayer, deadline: Instant) -> Option<ServedLayer> {
    let job = tokio::task::spawn_blocking(move || {
        loop {
            match layer.frontend.remove(&layer.device) {
                Ok(true) => return None,
                Ok(false) if Instant::now() >= deadline => return Some(layer),
                Ok(false) => std::thread::sleep(RELEASE_PAUSE),
                Err(error) => {
                    tracing::warn!(layer = %layer.record.name, %error, "cannot remove a device; it is tried again");
                    return Some(layer);
                }
            }
        }
    });
    job.await.ok().flatten()
}

/// What has to be looked at again and again: devices that were in use at their unmount, holders, the kernel's readahead.
pub(super) async fn look_after(node: Weak<Node>) {
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        let Some(node) = node.upgrade() else { return };
        // Blocking costs a thread that stays until the next look: only where there is something to do.
        if node.frontends.has_dead_holder() {
            let node = Arc::clone(&node);
            if let Err(error) = tokio::task::spawn_blocking(move || node.frontends.mend_holders()).await {
                tracing::error!(%error, "a holder that has ended was not replaced");
            }
        }
        let mut served = node.served.lock().await;
        read_ahead::follow(&mut served);
        if served.zombies.is_empty() {
            continue;
        }
        for mut zombie in std::mem::take(&mut served.zombies) {
            if zombie.mounted {
                zombie.mounted = !node.unmount_layer(&zombie.record.target).await;
            }
            if let Some(recall) = zombie.device.recall_op()
                && let Err(error) = node.run_ops(vec![recall]).await
            {
                tracing::debug!(%error, "a name was not looked up");
            }
            served.zombies.extend(give_back(zombie, Instant::now()).await);
        }
        if let Err(error) = node.save(&served) {
            tracing::warn!(error = one_line(&error), "cannot write down the state");
        }
        node.idle.notify_waiters();
    }
}

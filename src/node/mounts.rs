//! The life of a mount: made, undone, handed over; and whether the daemon still has anything to do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;
use tokio::sync::{mpsc, watch};

use super::frontends::fuse_name;
use super::load_order::Key;
use super::protocol::{FrontendChoice, LoginOrder, MountReport, MountRequest, MountedLayer, Progress};
use super::served::Served;
use super::state::MountRecord;
use super::{Node, one_line, prepare};
use crate::frontend::fuse::FuseKind;
use crate::mount::{MountEntry, MountError};

impl Node {
    /// Mounts an image. When `cancelled` turns true, what was built is undone.
    ///
    /// # Errors
    /// What went wrong; nothing of the mount is left.
    pub async fn mount(
        self: &Arc<Self>,
        request: MountRequest,
        login: Option<LoginOrder>,
        progress: mpsc::UnboundedSender<Progress>,
        mut cancelled: watch::Receiver<bool>,
    ) -> anyhow::Result<MountReport> {
        let started = Instant::now();
        let _busy = Busy::new(self);
        self.refuse_taken(&request).await?;
        let prepared = tokio::select! {
            prepared = self.prepare(&request, login, &progress) => prepared?,
            () = turned_true(&mut cancelled) => bail!("cancelled"),
        };
        let choice = match request.frontend {
            FrontendChoice::Auto => self.default_frontend,
            chosen => chosen,
        };
        let node = Arc::clone(self);
        let (frontend, frontend_reason) = tokio::task::spawn_blocking(move || node.frontends.get(choice)).await??;
        let mut report = MountReport {
            image: request.image.clone(),
            manifest: prepared.manifest,
            dir: request.dir.clone(),
            frontend: frontend.name().to_owned(),
            frontend_reason,
            writable: request.upper.is_some(),
            layers: prepared.layers.iter().map(mounted_layer).collect(),
            discovery: prepared.trace.clone(),
            elapsed_ms: 0,
            mounted_at_ms: 0,
        };
        // From here on all is local; it runs to its end, in a task of its own, even when the client goes.
        let node = Arc::clone(self);
        let work = tokio::spawn(async move {
            let mut served = node.served.lock().await;
            if served.closed {
                bail!("the daemon is stopping");
            }
            Self::refuse_served(&served, &request)?;
            let recorded = prepared.recorded.clone();
            let names = node.attach(&mut served, prepared, &frontend, request.background).await?;
            let mounted = node.mount_overlay(&served, &names, &request).await;
            if let Err(error) = mounted {
                node.detach(&mut served, &names).await;
                return Err(error);
            }
            report.elapsed_ms = millis(started.elapsed());
            report.mounted_at_ms = millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
            served.mounts.push(MountRecord { request, report: report.clone(), layers: names.clone() });
            if let Err(error) = node.save(&served) {
                // A mount that the next daemon would not know of must not stay.
                served.mounts.pop();
                node.unmount_dir(&report.dir, true).await?;
                node.detach(&mut served, &names).await;
                return Err(error.context("the mount cannot be written down, so it was undone"));
            }
            node.record(&served, &Key::Mount(report.dir.clone()), recorded, &names);
            tracing::info!(image = %report.image, dir = %report.dir.display(), frontend = %report.frontend,
                reason = %report.frontend_reason, ms = report.elapsed_ms, "mounted");
            anyhow::Ok(report)
        });
        let report = work.await??;
        if *cancelled.borrow() {
            self.umount_this(&report).await?;
            bail!("cancelled");
        }
        Ok(report)
    }

    /// Undoes this very mount, lazily; one that is gone already, or gave way to another, needs nothing.
    ///
    /// # Errors
    /// When it cannot be undone.
    pub async fn umount_this(self: &Arc<Self>, report: &MountReport) -> anyhow::Result<()> {
        let same = {
            let served = self.served.lock().await;
            served.mounts.iter().any(|m| m.report.dir == report.dir && m.report.mounted_at_ms == report.mounted_at_ms)
        };
        if same { self.umount(&report.dir, true).await } else { Ok(()) }
    }

    /// Undoes the mount on `dir` and frees what only it used.
    ///
    /// # Errors
    /// When there is none, or it is in use and `lazy` was not asked for; the mount stays then.
    pub async fn umount(self: &Arc<Self>, dir: &Path, lazy: bool) -> anyhow::Result<()> {
        let node = Arc::clone(self);
        let dir = dir.to_owned();
        tokio::spawn(async move {
            let mut served = node.served.lock().await;
            let Some(at) = served.mounts.iter().position(|m| m.report.dir == dir) else {
                bail!("{}: sociblk has mounted nothing there; `sociblk ls` shows what it has", dir.display());
            };
            node.unmount_dir(&dir, lazy).await?;
            let record = served.mounts.remove(at);
            node.detach(&mut served, &record.layers).await;
            // Undone is undone: on a full disk the record stays, and the next daemon finds nothing there to take over.
            if let Err(error) = node.save(&served) {
                tracing::warn!(error = one_line(&error), "cannot write down the state");
            }
            drop(served);
            node.end_recording(&Key::Mount(dir.clone())).await;
            node.idle.notify_waiters();
            tracing::info!(dir = %dir.display(), "unmounted");
            Ok(())
        })
        .await?
    }

    /// Undoes all mounts, lazily where they are in use, and ends the frontends.
    ///
    /// # Errors
    /// The first error; the other mounts are undone all the same.
    pub async fn umount_all(self: &Arc<Self>) -> anyhow::Result<()> {
        let dirs: Vec<_> = {
            let mut served = self.served.lock().await;
            served.closed = true;
            served.mounts.iter().map(|m| m.report.dir.clone()).collect()
        };
        let mut first_error = None;
        for dir in dirs.into_iter().rev() {
            if let Err(error) = self.umount(&dir, true).await {
                tracing::error!(dir = %dir.display(), error = one_line(&error), "cannot undo a mount");
                first_error.get_or_insert(error);
            }
        }
        self.keep_all_orders().await;
        self.rest_holds().await;
        self.remove_zombies().await;
        self.stop_frontends(Vec::new()).await;
        first_error.map_or(Ok(()), Err)
    }

    /// Ends without undoing what the next daemon can take over: devices, images, and the mounts on them. Where nobody
    /// keeps the FUSE connection, mounts over it would be dead without this process and are undone.
    ///
    /// # Errors
    /// When a FUSE mount cannot be undone.
    pub async fn hand_over(self: &Arc<Self>) -> anyhow::Result<()> {
        self.keep_all_orders().await;
        let kept = tokio::task::block_in_place(|| self.frontends.kept_fuse());
        let (dirs, keep): (Vec<_>, Vec<_>) = {
            let mut served = self.served.lock().await;
            served.closed = true;
            let lost: Vec<&str> =
                FuseKind::ALL.into_iter().filter(|kind| !kept.contains(kind)).map(fuse_name).collect();
            let over_lost = served.mounts.iter().filter(|m| lost.contains(&m.report.frontend.as_str()));
            let dirs = over_lost.map(|m| m.report.dir.clone()).collect();
            let used = |kind: &FuseKind| {
                served.layers.values().chain(&served.zombies).any(|l| l.record.fuse_inode(*kind).is_some())
            };
            (dirs, kept.into_iter().filter(used).collect())
        };
        for dir in dirs {
            self.umount(&dir, true).await?;
        }
        self.stop_frontends(keep).await;
        Ok(())
    }

    async fn stop_frontends(self: &Arc<Self>, keep: Vec<FuseKind>) {
        let node = Arc::clone(self);
        let stopped = tokio::task::spawn_blocking(move || {
            node.frontends.stop(&keep);
            node.cache.flush();
        });
        if let Err(error) = stopped.await {
            tracing::error!(%error, "stopping the frontends");
        }
    }

    /// Number of mounts.
    pub async fn mount_count(&self) -> usize {
        self.served.lock().await.mounts.len()
    }

    /// Whether nothing is mounted, being mounted, or still read by somebody after its unmount.
    async fn is_idle(&self) -> bool {
        let served = self.served.lock().await;
        served.mounts.is_empty()
            && served.holds.is_empty()
            && served.zombies.is_empty()
            && self.busy.load(Ordering::SeqCst) == 0
    }

    /// Returns when there has been nothing to do for `limit`.
    pub async fn idle_for(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let changed = self.idle.notified();
            if self.is_idle().await {
                tokio::select! {
                    () = tokio::time::sleep(limit) => if self.is_idle().await { return },
                    () = changed => {}
                }
            } else {
                // Nothing tells of new mounts: they do not matter until the last one goes.
                changed.await;
            }
        }
    }

    /// Refuses, before the network is asked, what the kernel would refuse in the end.
    async fn refuse_taken(self: &Arc<Self>, request: &MountRequest) -> anyhow::Result<()> {
        let dir = &request.dir;
        Self::refuse_served(&*self.served.lock().await, request)?;
        if self.mounted_on(dir).await?.is_some() {
            return Err(MountError::TargetBusy { target: dir.as_path().into() }.into());
        }
        Ok(())
    }

    fn refuse_served(served: &Served, request: &MountRequest) -> anyhow::Result<()> {
        let dir = &request.dir;
        if let Some(taken) = served.mounts.iter().find(|m| m.report.dir == *dir) {
            bail!(
                "{} already shows {}; undo that with `sociblk umount {}`",
                dir.display(),
                taken.report.image,
                dir.display()
            );
        }
        let Some(upper) = &request.upper else { return Ok(()) };
        // overlayfs itself only warns, and then loses files.
        if let Some(taken) = served.mounts.iter().find(|m| m.request.upper.as_ref() == Some(upper)) {
            bail!(
                "{} takes the changes of the mount on {}; each writable mount needs an upper directory of its own",
                upper.display(),
                taken.report.dir.display()
            );
        }
        Ok(())
    }

    /// What is mounted on `dir` in the namespace of the mounts, the last one of several.
    pub(super) async fn mounted_on(self: &Arc<Self>, dir: &Path) -> anyhow::Result<Option<MountEntry>> {
        let (node, dir) = (Arc::clone(self), dir.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let mounts = node.helper.mounts()?;
            anyhow::Ok(mounts.into_iter().rfind(|m| m.mount_point == dir))
        });
        found.await?
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn mounted_layer(layer: &prepare::PreparedLayer) -> MountedLayer {
    MountedLayer {
        digest: layer.digest,
        blob_bytes: layer.blob_size.get(),
        index: layer.origin.to_owned(),
        way: Some(layer.way()),
    }
}

async fn turned_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Counts as work under way while it lives.
struct Busy<'a>(&'a Node);

impl<'a> Busy<'a> {
    fn new(node: &'a Node) -> Self {
        node.busy.fetch_add(1, Ordering::SeqCst);
        Self(node)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
        self.0.idle.notify_waiters();
    }
}

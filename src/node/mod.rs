//! Wires all of it: what the daemon owns, how a mount is made and undone, how a new daemon takes over.
//!
//! The one module that may know all others. [`Node`] is the daemon's state; [`client`] is how the command line reaches
//! it; [`daemon`] is its life.

pub mod client;
mod clients;
pub mod create;
pub mod daemon;
pub mod doctor;
mod frontends;
mod ingest;
mod layer;
mod listing;
pub mod paths;
mod prepare;
pub mod protocol;
mod recover;
mod served;
mod server;
mod state;
mod synthesis;
pub mod tools;
mod trim;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::{Mutex, Notify, mpsc, watch};

use crate::cache::{Cache, CacheConfig};
use crate::config::Config;
use crate::fill::{FillConfig, Filler};
use crate::frontend::ublk::UblkConfig;
use crate::mount::MountHelper;
use crate::soci::Store;
use frontends::Frontends;
use paths::Paths;
use prepare::Ingests;
use protocol::{FrontendChoice, MountReport, MountRequest, MountedLayer, Progress};
use served::Served;
use state::MountRecord;

/// How long a helper process may take for one mount or unmount: the kernel reads a few blocks that are all local, but a
/// machine may be ten times slower than ours.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// All that the daemon owns.
pub struct Node {
    paths: Paths,
    cache: Arc<Cache>,
    store: Store,
    filler: Arc<Filler>,
    frontends: Frontends,
    default_frontend: FrontendChoice,
    helper: MountHelper,
    clients: clients::Clients,
    ingests: Ingests,
    /// Held for local work only, never over the network.
    served: Mutex<Served>,
    /// Mounts that are being made: a daemon with work is not idle.
    busy: AtomicUsize,
    idle: Notify,
}

impl Node {
    /// Opens cache and store, starts the filler, and takes over what an earlier daemon left.
    ///
    /// # Errors
    /// When another daemon has the root, or the root cannot be used.
    pub async fn start(
        paths: Paths,
        config: Config,
        default_frontend: FrontendChoice,
        host_namespace: OwnedFd,
    ) -> anyhow::Result<Arc<Self>> {
        let limit = config.cache.max_bytes.0;
        let cache_config =
            CacheConfig { max_bytes: if limit == 0 { u64::MAX } else { limit }, ..CacheConfig::default() };
        let cache = Cache::open(paths.root(), cache_config).context("opening the cache")?;
        let store = Store::open(paths.root()).context("opening the local index store")?;
        let filler = Filler::new(fill_config(&config), tokio::runtime::Handle::current())
            .context("starting the inflate threads")?;
        let exe = std::env::current_exe().context("finding the sociblk binary")?;
        let ublk_config = match config.ublk.rings {
            0 => UblkConfig::default(),
            ring_threads => UblkConfig { ring_threads, ..UblkConfig::default() },
        };
        let node = Arc::new(Self {
            frontends: Frontends::new(paths.clone(), ublk_config),
            helper: MountHelper::new(exe, &["__mount"], Some(host_namespace)),
            clients: clients::Clients::new(config.registry.clone()),
            ingests: Ingests::default(),
            served: Mutex::new(Served::default()),
            busy: AtomicUsize::new(0),
            idle: Notify::new(),
            cache: Arc::new(cache),
            paths,
            store,
            filler,
            default_frontend,
        });
        node.recover().await.context("taking over from the last daemon")?;
        tokio::spawn(served::sweep_zombies(Arc::downgrade(&node)));
        tokio::spawn(trim::trim_when_quiet());
        Ok(node)
    }

    /// Mounts an image. When `cancelled` turns true, what was built is undone.
    ///
    /// # Errors
    /// What went wrong; nothing of the mount is left.
    pub async fn mount(
        self: &Arc<Self>,
        request: MountRequest,
        progress: mpsc::UnboundedSender<Progress>,
        mut cancelled: watch::Receiver<bool>,
    ) -> anyhow::Result<MountReport> {
        let started = Instant::now();
        let _busy = Busy::new(self);
        self.refuse_taken(&request.dir).await?;
        let prepared = tokio::select! {
            prepared = self.prepare(&request, &progress) => prepared?,
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
        };
        // From here on all is local; it runs to its end, in a task of its own, even when the client goes.
        let node = Arc::clone(self);
        let work = tokio::spawn(async move {
            let mut served = node.served.lock().await;
            if served.mounts.iter().any(|m| m.report.dir == request.dir) {
                bail!("{} is already mounted by sociblk", request.dir.display());
            }
            let names = node.attach(&mut served, prepared, &frontend, request.background).await?;
            let mounted = node.mount_overlay(&served, &names, &request).await;
            if let Err(error) = mounted {
                node.detach(&mut served, &names).await;
                return Err(error);
            }
            report.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            served.mounts.push(MountRecord { request, report: report.clone(), layers: names });
            node.save(&served)?;
            tracing::info!(image = %report.image, dir = %report.dir.display(), frontend = %report.frontend,
                reason = %report.frontend_reason, ms = report.elapsed_ms, "mounted");
            anyhow::Ok(report)
        });
        let report = work.await??;
        if *cancelled.borrow() {
            self.umount(&report.dir, true).await?;
            bail!("cancelled");
        }
        Ok(report)
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
            node.save(&served)?;
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
        let dirs: Vec<_> = self.served.lock().await.mounts.iter().map(|m| m.report.dir.clone()).collect();
        let mut first_error = None;
        for dir in dirs.into_iter().rev() {
            if let Err(error) = self.umount(&dir, true).await {
                tracing::error!(dir = %dir.display(), error = format!("{error:#}"), "cannot undo a mount");
                first_error.get_or_insert(error);
            }
        }
        self.stop_frontends().await;
        first_error.map_or(Ok(()), Err)
    }

    /// Ends without undoing what the next daemon can take over: ublk devices and their mounts. Mounts over FUSE would be
    /// dead without this process and are undone.
    ///
    /// # Errors
    /// When a FUSE mount cannot be undone.
    pub async fn hand_over(self: &Arc<Self>) -> anyhow::Result<()> {
        let dirs: Vec<_> = {
            let served = self.served.lock().await;
            let over_fuse = served.mounts.iter().filter(|m| m.report.frontend == "fuse-image");
            over_fuse.map(|m| m.report.dir.clone()).collect()
        };
        for dir in dirs {
            self.umount(&dir, true).await?;
        }
        self.stop_frontends().await;
        Ok(())
    }

    async fn stop_frontends(self: &Arc<Self>) {
        let node = Arc::clone(self);
        let stopped = tokio::task::spawn_blocking(move || {
            node.frontends.stop();
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

    /// Returns when there has been no mount for `limit`.
    pub async fn idle_for(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let changed = self.idle.notified();
            if self.mount_count().await == 0 {
                tokio::select! {
                    () = tokio::time::sleep(limit) => if self.mount_count().await == 0 && self.busy.load(Ordering::SeqCst) == 0 { return },
                    () = changed => {}
                }
            } else {
                // Nothing tells of new mounts: they do not matter until the last one goes.
                changed.await;
            }
        }
    }

    async fn refuse_taken(&self, dir: &Path) -> anyhow::Result<()> {
        let served = self.served.lock().await;
        if let Some(taken) = served.mounts.iter().find(|m| m.report.dir == dir) {
            bail!(
                "{} already shows {}; undo that with `sociblk umount {}`",
                dir.display(),
                taken.report.image,
                dir.display()
            );
        }
        Ok(())
    }
}

fn mounted_layer(layer: &prepare::PreparedLayer) -> MountedLayer {
    MountedLayer { digest: layer.digest, blob_bytes: layer.blob_size.get(), index: layer.origin.to_owned() }
}

async fn turned_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn fill_config(config: &Config) -> FillConfig {
    let fill = &config.fill;
    FillConfig {
        cpu_threads: fill.threads,
        max_requests: fill.max_requests,
        memory_bytes: fill.memory_bytes.0,
        background: fill.background,
        background_bytes_per_sec: fill.background_bytes_per_s.0,
        hold_limit: config.hold_limit(),
        stall_limit: Duration::from_secs(config.registry.idle_timeout_s),
        ..FillConfig::default()
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

/// Names of layers, each once for each use.
type LayerNames = Vec<String>;

/// Counts of uses by layer name.
fn uses(names: &LayerNames) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_insert(0) += 1;
    }
    counts
}

/// Runs the helper process that makes mounts for the daemon: one request on standard input, events on standard output.
///
/// # Errors
/// When the pipes to the daemon break.
pub fn mount_helper() -> std::io::Result<()> {
    crate::mount::helper::run(std::io::stdin().lock(), std::io::stdout().lock())
}

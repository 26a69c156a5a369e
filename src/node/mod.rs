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

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use tokio::sync::{Mutex, Notify, mpsc, watch};

use crate::cache::{Cache, CacheConfig};
use crate::config::Config;
use crate::fill::{FillConfig, Filler, IngestConfig};
use crate::frontend::ublk::UblkConfig;
use crate::mount::{MountEntry, MountError, MountHelper};
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
    ingest_config: IngestConfig,
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
            ingest_config: ingest_config(&config),
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
        self.refuse_taken(&request).await?;
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
            mounted_at_ms: 0,
        };
        // From here on all is local; it runs to its end, in a task of its own, even when the client goes.
        let node = Arc::clone(self);
        let work = tokio::spawn(async move {
            let mut served = node.served.lock().await;
            if served.closed {
                bail!("the daemon is stopping");
            }
            node.refuse_served(&served, &request)?;
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
        self.remove_zombies().await;
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
            let mut served = self.served.lock().await;
            served.closed = true;
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

    /// Whether nothing is mounted, being mounted, or still read by somebody after its unmount.
    async fn is_idle(&self) -> bool {
        let served = self.served.lock().await;
        served.mounts.is_empty() && served.zombies.is_empty() && self.busy.load(Ordering::SeqCst) == 0
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
        self.refuse_served(&*self.served.lock().await, request)?;
        if self.mounted_on(dir).await?.is_some() {
            return Err(MountError::TargetBusy { target: dir.as_path().into() }.into());
        }
        Ok(())
    }

    fn refuse_served(&self, served: &Served, request: &MountRequest) -> anyhow::Result<()> {
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
    async fn mounted_on(self: &Arc<Self>, dir: &Path) -> anyhow::Result<Option<MountEntry>> {
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

/// A stream of a whole layer obeys the limits that reads do.
fn ingest_config(config: &Config) -> IngestConfig {
    IngestConfig {
        hold_limit: config.hold_limit(),
        stall_limit: Duration::from_secs(config.registry.idle_timeout_s),
        ..IngestConfig::default()
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

/// An error and its causes in one line, each thing said once: some errors name their cause themselves.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line.replace('\n', " ")
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

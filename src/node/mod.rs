//! Wires all of it: what the daemon owns, how a mount is made and undone, how a new daemon takes over.
//!
//! The one module that may know all others. [`Node`] is the daemon's state; [`client`] is how the command line reaches
//! it; [`daemon`] is its life.

pub mod artifacts;
pub mod client;
mod clients;
pub mod convert;
pub mod create;
pub mod daemon;
pub mod doctor;
pub mod explain;
mod fallbacks;
mod frontends;
pub mod indexing;
mod ingest;
mod layer;
mod layer_reader;
mod leaving;
mod listing;
mod load_order;
mod metrics;
mod mounts;
pub mod paths;
pub mod prefetch;
mod prepare;
mod program;
mod progress;
pub mod protocol;
pub mod push;
mod read_ahead;
mod recover;
pub mod rpull;
pub mod serve;
mod served;
mod server;
pub mod snapshots;
mod state;
mod stored;
pub mod survey;
mod synthesis;
pub mod tools;
mod transfer;
mod trim;
pub mod verify;
pub mod why;

/// What bench/micro measures of a served layer.
#[cfg(feature = "testkit")]
pub use {
    layer::Layer,
    synthesis::{ChainLayer, Synthesized, synthesize},
};

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{Mutex, Notify};

use crate::cache::{Cache, CacheConfig};
use crate::config::Config;
use crate::fill::{FillConfig, Filler, IngestConfig};
use crate::frontend::ublk::UblkConfig;
use crate::mount::MountHelper;
use crate::soci::{LocalPolicy, Store};
use crate::sys::process::OWN_PROGRAM;
use frontends::Frontends;
use paths::Paths;
use prepare::Ingests;
use protocol::FrontendChoice;
use served::Served;

/// How long a helper process may take for one mount or unmount: the kernel reads a few blocks that are all local, but a
/// machine may be ten times slower than ours.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// All that the daemon owns.
pub struct Node {
    paths: Paths,
    cache: Arc<Cache>,
    store: Store,
    local_policy: LocalPolicy,
    filler: Arc<Filler>,
    frontends: Frontends,
    default_frontend: FrontendChoice,
    helper: MountHelper,
    clients: clients::Clients,
    ingests: Ingests,
    pulls: snapshots::Pulls,
    fallbacks: fallbacks::Fallbacks,
    ingest_config: IngestConfig,
    /// SELinux label of layers.
    layer_context: Option<String>,
    orders: load_order::Orders,
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
        let ublk_config = match config.ublk.rings {
            0 => UblkConfig::default(),
            ring_threads => UblkConfig { ring_threads, ..UblkConfig::default() },
        };
        let node = Arc::new(Self {
            frontends: Frontends::new(paths.clone(), ublk_config, config.fuse.io_uring, host_namespace.try_clone()?),
            helper: MountHelper::new(OWN_PROGRAM, &["__mount"], Some(host_namespace)),
            clients: clients::Clients::new(&config),
            ingests: Ingests::default(),
            pulls: snapshots::Pulls::default(),
            fallbacks: fallbacks::Fallbacks::default(),
            ingest_config: ingest_config(&config),
            layer_context: Some(config.snapshotter.selinux_context.clone()).filter(|label| !label.is_empty()),
            orders: load_order::Orders::new(&paths, &config.load_order),
            served: Mutex::new(Served::default()),
            busy: AtomicUsize::new(0),
            idle: Notify::new(),
            cache: Arc::new(cache),
            paths,
            store,
            local_policy: LocalPolicy {
                prefer_local: config.index.prefer_local,
                mappings: config.index.local_mappings,
            },
            filler,
            default_frontend,
        });
        node.recover().await.context("taking over from the last daemon")?;
        tokio::spawn(leaving::look_after(Arc::downgrade(&node)));
        tokio::spawn(trim::trim_when_quiet());
        Ok(node)
    }
}

/// A load order is found within this time, unless the link is slow; the other layers of an image are shown within it, too.
const BACKGROUND_BEGIN: Duration = Duration::from_millis(300);

fn fill_config(config: &Config) -> FillConfig {
    let fill = &config.fill;
    let defaults = FillConfig::default();
    FillConfig {
        // Whoever is held sees a few attempts: with a short limit a long pause would make every read fail for a while
        // after the registry is back.
        longest_pause: defaults.longest_pause.min(config.hold_limit() / 4).max(defaults.first_pause),
        cpu_threads: fill.threads,
        max_requests: fill.max_requests,
        memory_bytes: fill.memory_bytes.0,
        background: fill.background,
        background_bytes_per_sec: fill.background_bytes_per_s.0,
        background_begin: BACKGROUND_BEGIN,
        background_settle: Duration::from_secs(config.load_order.settle_s),
        hold_limit: config.hold_limit(),
        stall_limit: Duration::from_secs(config.registry.idle_timeout_s),
        ..defaults
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

/// Runs the process that keeps the FUSE connection while no daemon does (see [`crate::frontend::fuse::holder`]).
///
/// # Errors
/// When it cannot start.
pub fn hold_fuse_connection(socket: &Path, namespace: Option<&Path>) -> std::io::Result<()> {
    crate::frontend::fuse::holder::hold(socket, namespace)
}

/// Runs the helper process that makes mounts for the daemon: one request on standard input, events on standard output.
///
/// # Errors
/// When the pipes to the daemon break.
pub fn mount_helper() -> std::io::Result<()> {
    crate::mount::helper::run(std::io::stdin().lock(), std::io::stdout().lock())
}

//! The service's life: lock, queue, listener, signals.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::filter::Filter;
use super::job::{JobState, Status};
use super::metrics::Metrics;
use super::queue::Queue;
use super::server::{Listener, Server};
use super::worker::Worker;
use super::{BuilderError, TOKEN_VARIABLE};
use crate::config::{Builder, Config};
use crate::node::paths::Paths;
use crate::node::protocol::{LoginOrder, RegistryAccess};
use crate::observe::manager;
use crate::registry::Platform;
use crate::units::Digest;

/// How often old jobs are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// Longest file with a token.
const MAX_TOKEN_BYTES: u64 = 4096;

/// How the service runs, besides its settings.
#[derive(Debug, Clone)]
pub struct BuilderOptions {
    /// How to talk to registries.
    pub access: RegistryAccess,
    /// Who to be there; `None`: docker's configuration.
    pub login: Option<LoginOrder>,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> BuilderError {
    let path = path.to_owned();
    move |source| BuilderError::Io { path, source }
}

/// Runs the service until SIGTERM or SIGINT. `ready` hears the address that is listened on, once requests are answered.
///
/// # Errors
/// When it cannot start: settings, lock, queue, address.
pub fn run(
    paths: &Paths,
    config: Config,
    options: BuilderOptions,
    ready: &mut dyn FnMut(&str),
) -> Result<(), BuilderError> {
    std::fs::create_dir_all(paths.root()).map_err(io(paths.root()))?;
    let _lock = lock(&paths.builder_lock())?;
    let token = token(&config.builder)?;
    let platforms = platforms(&config.builder)?;
    let queue = Queue::open(&paths.builder_database())?;
    let now = SystemTime::now();
    let (queued, failed) = queue.recover(config.builder.max_attempts, now)?;
    if queued + failed > 0 {
        tracing::warn!(queued, failed, "the last process died while it worked; these images were under way");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("sociblk-build")
        .enable_all()
        .build()
        .map_err(|source| BuilderError::Runtime { source })?;
    let served = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).map_err(|source| BuilderError::Runtime { source })?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|source| BuilderError::Runtime { source })?;
        let (listener, address, is_local) = listen(&config.builder.listen).await?;
        if token.is_none() && !is_local {
            tracing::warn!(address, "anybody who can reach this address can have images built: set builder.token_file");
        }
        let filter = Filter::new(&config.builder);
        let worker = Arc::new(Worker {
            paths: paths.clone(),
            config,
            platforms,
            access: options.access,
            login: options.login,
            queue,
            metrics: Metrics::default(),
            wake: Notify::new(),
        });
        let server = Arc::new(Server { worker: Arc::clone(&worker), filter, token, stopped: stopped.clone() });
        let serving = tokio::spawn(server.run(listener));
        let working = tokio::spawn(Arc::clone(&worker).run(stopped));
        let forgetting = tokio::spawn(forget(Arc::clone(&worker)));
        tracing::info!(address, "the index builder listens");
        ready(&address);
        manager::tell(manager::READY);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        manager::tell(manager::STOPPING);
        tracing::info!("stopping: running jobs may end, or are put back");
        stop.send_replace(true);
        forgetting.abort();
        let (_, worked) = tokio::join!(serving, working);
        worked.map_err(|e| BuilderError::Runtime { source: std::io::Error::other(e) })?
    });
    // What was put back may have left something behind on other threads, which is not waited for.
    runtime.shutdown_background();
    served
}

/// What is in the queue, whether or not a service runs.
///
/// # Errors
/// When there is no queue, or it cannot be read.
pub fn status(paths: &Paths, state: Option<JobState>, limit: u64) -> Result<Status, BuilderError> {
    let path = paths.builder_database();
    std::fs::metadata(&path).map_err(io(&path))?;
    Queue::open_to_read(&path)?.status(state, limit)
}

fn lock(path: &Path) -> Result<File, BuilderError> {
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(io(path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BuilderError::Taken { path: path.to_owned() }),
        Err(errno) => Err(io(path)(errno.into())),
    }
}

/// sha256 of the token.
fn token(settings: &Builder) -> Result<Option<Digest>, BuilderError> {
    let text = match &settings.token_file {
        Some(file) => {
            let length = std::fs::metadata(file).map_err(io(file))?.len();
            if length > MAX_TOKEN_BYTES {
                let reason = format!("{}: longer than {MAX_TOKEN_BYTES} bytes", file.display());
                return Err(BuilderError::Setting { key: "builder.token_file", reason });
            }
            Some(std::fs::read_to_string(file).map_err(io(file))?)
        }
        None => std::env::var(TOKEN_VARIABLE).ok(),
    };
    let Some(text) = text else { return Ok(None) };
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() {
        let reason =
            format!("the token is empty; write one into the file, or leave out the setting and {TOKEN_VARIABLE}");
        return Err(BuilderError::Setting { key: "builder.token_file", reason });
    }
    Ok(Some(Digest::of(token.as_bytes())))
}

fn platforms(settings: &Builder) -> Result<Vec<Platform>, BuilderError> {
    let parsed = settings.platforms.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    parsed.map_err(|error: crate::registry::RegistryError| BuilderError::Setting {
        key: "builder.platforms",
        reason: error.to_string(),
    })
}

/// Listens, and says where, and whether only this machine can reach it.
async fn listen(address: &str) -> Result<(Listener, String, bool), BuilderError> {
    let failed = |source| BuilderError::Listen { address: address.to_owned(), source };
    if let Some(path) = address.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        // A socket that a dead process left; who holds the lock is the only one that may have made it.
        if std::fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket()) {
            std::fs::remove_file(&path).map_err(failed)?;
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        return Ok((Listener::Unix(listener), address.to_owned(), true));
    }
    let parsed: SocketAddr = address.parse().map_err(|_| BuilderError::Setting {
        key: "builder.listen",
        reason: format!("{address:?} is neither ADDRESS:PORT nor unix:PATH"),
    })?;
    let listener = TcpListener::bind(parsed).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let is_local = match bound.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    Ok((Listener::Tcp(listener), bound.to_string(), is_local))
}

async fn forget(worker: Arc<Worker>) {
    let settings = &worker.config.builder;
    let keep = Duration::from_secs(settings.keep_days.saturating_mul(86_400));
    let keep_finished = settings.keep_finished;
    loop {
        let gone = worker.queue.blocking(move |queue| queue.forget(keep, keep_finished, SystemTime::now())).await;
        match gone {
            Ok(0) => {}
            Ok(images) => tracing::info!(images, "forgot images that were finished long ago"),
            Err(error) => tracing::warn!(%error, "old images cannot be forgotten"),
        }
        tokio::time::sleep(FORGET_EVERY).await;
    }
}

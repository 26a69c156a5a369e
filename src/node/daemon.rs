//! The daemon's life: one process for each root, from its lock to its last device.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::paths::Paths;
use super::protocol::FrontendChoice;
use super::serve::{self, ServeOptions};
use super::{Node, server};
use crate::config::Config;
use crate::observe::manager;

/// What a daemon writes to its standard output, once, when it can be asked.
pub const READY_LINE: &str = "ready";

/// How long containerd's requests may go on when the daemon is told to end.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How the daemon is to run.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// Kernel path for mounts that do not name one.
    pub frontend: FrontendChoice,
    /// End after this time without a mount; `None`: run until told.
    pub idle_exit: Option<Duration>,
    /// Answer containerd, too.
    pub serve: Option<ServeOptions>,
}

/// Runs the daemon until it is told to stop. SIGINT and `daemon stop` undo all mounts. SIGTERM leaves devices,
/// images and their mounts in place for the next daemon to take back; what a frontend cannot hand over is undone.
///
/// # Errors
/// When it cannot start: another daemon runs, the root is unusable, no frontend works.
pub fn run(paths: &Paths, config: Config, options: DaemonOptions) -> anyhow::Result<()> {
    // A daemon that was started on demand must not die with the terminal. It fails harmlessly for a group leader.
    let _ = rustix::process::setsid();
    for dir in [paths.root().to_owned(), paths.run_dir(), paths.meta_dir(), paths.mnt_dir()] {
        std::fs::create_dir_all(&dir).with_context(|| {
            format!("{}: cannot be made; is --root on a writable disk, are you root?", dir.display())
        })?;
    }
    crate::sys::memory::share_one_heap();
    allow_many_descriptors();
    // Before any thread exists: threads started later share the new namespace.
    let host_namespace = crate::mount::leave_host_namespace(&[paths.root()])
        .context("a mount namespace of the daemon's own (needs CAP_SYS_ADMIN: run as root)")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("sociblk-net")
        // Threads for what blocks: a burst of mounts takes some, and nobody needs them afterwards.
        .thread_keep_alive(Duration::from_secs(2))
        .on_thread_start(crate::sys::thread::become_io_flusher)
        .enable_all()
        .build()
        .context("starting the network threads")?;
    runtime.block_on(async {
        let _root = server::take_root(paths).await?;
        let listener = server::bind(&paths.control_socket())?;
        // Bound before anything that takes time: containerd waits instead of failing.
        let snapshots = options.serve.as_ref().map(|options| serve::listen(&options.address)).transpose()?;
        let node = Node::start(paths.clone(), config, options.frontend, host_namespace).await?;
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(server::serve(listener, Arc::clone(&node), stop.clone()));
        let answering = match (snapshots, &options.serve) {
            (Some(snapshots), Some(options)) => Some(snapshots.serve(&node, options, stop.subscribe()).await?),
            _ => None,
        };
        announce();
        stay_alive();
        let undo = wait(&node, stopped, options.idle_exit).await?;
        manager::tell(manager::STOPPING);
        // First out of sight, then closed: who finds no socket starts a new daemon, which waits until we are gone.
        let _ = std::fs::remove_file(paths.control_socket());
        stop.send_replace(true);
        let _ = serving.await;
        if let Some(mut answering) = answering
            && tokio::time::timeout(ANSWER_LIMIT, &mut answering).await.is_err()
        {
            // A pull that is under way: containerd asks again.
            answering.abort();
        }
        if undo { node.umount_all().await } else { node.hand_over().await }
    })
}

/// Each layer takes four descriptors, and shells allow 1024 unless asked for more (getrlimit(2), RLIMIT_NOFILE).
fn allow_many_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the number of open files stays limited");
    }
}

/// Tells whoever started us that requests are answered from now on.
fn announce() {
    manager::tell(manager::READY);
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{READY_LINE}").and_then(|()| out.flush());
    // The starter reads one line and goes; what libraries might print later must not hit a closed pipe.
    let _ = rustix::fs::open("/dev/null", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())
        .and_then(|null| rustix::stdio::dup2_stdout(&null));
    tracing::info!(pid = std::process::id(), "daemon ready");
}

/// Tells a service manager that waits for it that the network threads still run.
fn stay_alive() {
    let Some(every) = manager::alive_every() else { return };
    tokio::spawn(async move {
        let mut clock = tokio::time::interval(every);
        loop {
            clock.tick().await;
            manager::tell(manager::ALIVE);
        }
    });
}

/// Waits for a reason to end; true when all mounts are to be undone.
async fn wait(node: &Node, mut stopped: watch::Receiver<bool>, idle: Option<Duration>) -> anyhow::Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A closed terminal is no reason to take containers' disks away; nor does it pass in silence, for whoever expects
    // that settings are read again.
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = stopped.wait_for(|s| *s) => return Ok(true),
            _ = interrupt.recv() => return Ok(true),
            _ = terminate.recv() => return Ok(false),
            _ = hangup.recv() => tracing::warn!(
                "SIGHUP: nothing was read again; settings are read at the start, and a restart leaves what is mounted"
            ),
            () = node.idle_for(idle), if idle.is_some() => {
                tracing::info!("no mount left: the daemon ends");
                return Ok(true);
            }
        }
    }
}

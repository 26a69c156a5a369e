//! One function for each command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use super::args::{Cli, Command, DaemonCommand, FrontendArg, GlobalArgs, MountArgs};
use super::progress::shown;
use super::{args, output, soci, ztoc};
use crate::node::client::{self, ClientError, StartOptions, ask};
use crate::node::daemon::DaemonOptions;
use crate::node::paths::Paths;
use crate::node::protocol::{
    CONTAINERD_SCHEME, FrontendChoice, Listing, MountOrder, MountReport, MountRequest, Outcome, Request,
};
use crate::node::{daemon, doctor, mount_helper};
use crate::sys::process::ignore_termination;

/// Runs the command and says with which status to exit.
pub fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Mount(args) => mount(global, args)?,
        Command::Umount { dir, lazy } => umount(global, &dir, lazy)?,
        Command::Ls { json } => ls(global, json)?,
        Command::Stats { json } => stats(global, json)?,
        Command::Explain(args) => super::explain::run(global, &args)?,
        Command::Doctor { json, clean } => return run_doctor(global, json, clean),
        Command::Create(args) => soci::create::run(global, &args)?,
        Command::Convert(args) => soci::convert::run(global, &args)?,
        Command::Push(args) => soci::push::run(global, &args)?,
        Command::Rpull(args) => super::rpull::run(global, &args)?,
        Command::Serve(args) => super::serve::run(global, &args)?,
        Command::Config(command) => return super::config::run(global, &command),
        Command::ServeIndex(args) => soci::serve_index::run(global, &args)?,
        Command::Index(command) => return soci::index::run(global, command),
        Command::Ztoc(command) => ztoc::run(&paths(global)?, command)?,
        Command::Prefetch(command) => soci::prefetch::run(global, &command)?,
        Command::Record(command) => return super::record::run(global, &command),
        Command::RebuildDb { json } => soci::rebuild_db(&paths(global)?, json)?,
        Command::Image(args) => ztoc::image(&args)?,
        Command::Daemon(command) => return run_daemon(global, &command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut args::command(), "sociblk", &mut std::io::stdout());
        }
        Command::Man { output } => man(output.as_deref())?,
        Command::MountHelper => mount_helper()?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn paths(global: &GlobalArgs) -> anyhow::Result<Paths> {
    let root = absolute(&global.root)?;
    text_only(&root)?;
    Ok(Paths::new(root))
}

pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// Paths go through JSON, which knows text only.
pub(super) fn text_only(path: &Path) -> anyhow::Result<()> {
    if path.to_str().is_none() {
        bail!("{}: the path is not valid UTF-8; use one that is", path.display());
    }
    Ok(())
}

pub(super) fn frontend(arg: FrontendArg) -> FrontendChoice {
    match arg {
        FrontendArg::Auto => FrontendChoice::Auto,
        FrontendArg::Ublk => FrontendChoice::Ublk,
        FrontendArg::FuseImage => FrontendChoice::FuseImage,
        FrontendArg::FuseFs => FrontendChoice::FuseFs,
    }
}

pub(super) fn require_root(what: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("{what} needs root: it makes devices and mounts; try `sudo sociblk ...`");
    }
    Ok(())
}

/// Local image names are made absolute: the daemon has another working directory.
pub(super) fn absolute_image(image: &str) -> anyhow::Result<String> {
    if image.starts_with(CONTAINERD_SCHEME) {
        bail!("{image}: this command takes no images from containerd's content store; name it in its registry");
    }
    for scheme in ["oci:", "oci-archive:", "layer:"] {
        if let Some(path) = image.strip_prefix(scheme) {
            return Ok(format!("{scheme}{}", absolute(Path::new(path))?.display()));
        }
    }
    Ok(image.to_owned())
}

fn start_options(global: &GlobalArgs) -> anyhow::Result<StartOptions> {
    let mut global_args = Vec::new();
    if let Some(config) = &global.config {
        global_args.extend(["--config".to_owned(), absolute(config)?.display().to_string()]);
    }
    // The daemon's log says at least what it mounts.
    global_args.push(if global.verbose > 1 { "-vv" } else { "-v" }.to_owned());
    Ok(StartOptions { global_args })
}

fn mount(global: &GlobalArgs, args: MountArgs) -> anyhow::Result<()> {
    require_root("mount")?;
    let paths = paths(global)?;
    let dir = args.dir.canonicalize().with_context(|| format!("{}: the mount point", args.dir.display()))?;
    // One that cannot be looked at may be what a dead daemon left, which the next one takes away first.
    if dir.metadata().is_ok_and(|facts| !facts.is_dir()) {
        bail!("{} is not a directory; a mount point must be one", dir.display());
    }
    text_only(&dir)?;
    args.upper.iter().try_for_each(|upper| text_only(upper))?;
    let request = MountRequest {
        image: absolute_image(&args.image)?,
        dir: dir.clone(),
        frontend: frontend(args.frontend),
        platform: args.platform,
        upper: args.upper.as_deref().map(absolute).transpose()?,
        background: args.background,
        load_order: args.load_order.map(|word| load_order(&word)).transpose()?,
        access: global.registry.access()?,
    };
    let request = MountOrder { request, login: global.registry.login()? };
    let start = start_options(global)?;
    let mounted = shown(|progress| client::mount(&paths, &start, request, progress))?;
    let say = |report: &MountReport| match args.json {
        true => output::json(report),
        false => {
            say_mounted(report);
            Ok(())
        }
    };
    if args.foreground {
        // Never confirmed: however this process ends, the mount ends with it.
        say(&mounted.report)?;
        wait_for_signal()?;
        mounted.undo()?;
        return Ok(());
    }
    // Whoever interrupts now would be told that it was undone, while the daemon keeps it.
    ignore_termination();
    say(&mounted.confirm()?)
}

/// A file is told apart from a label by a `/`, or by being there; its name is made absolute for the daemon.
fn load_order(word: &str) -> anyhow::Result<String> {
    if !word.contains('/') && !Path::new(word).is_file() {
        return Ok(word.to_owned());
    }
    let path = absolute(Path::new(word))?;
    text_only(&path)?;
    Ok(path.display().to_string())
}

fn say_mounted(report: &MountReport) {
    let from_index = report.layers.iter().filter(|l| l.index != "streamed").count();
    output::line(&format!(
        "{} on {} in {} ms by {} ({}): {} layers, {} of them lazily, {} in all",
        report.image,
        report.dir.display(),
        report.elapsed_ms,
        report.frontend,
        report.frontend_reason,
        report.layers.len(),
        from_index,
        output::size(report.layers.iter().map(|l| l.blob_bytes).sum())
    ));
}

/// Waits for Ctrl-C or SIGTERM.
fn wait_for_signal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

fn umount(global: &GlobalArgs, dir: &Path, lazy: bool) -> anyhow::Result<()> {
    let dir = mount_point(&absolute(dir)?);
    ask(&paths(global)?, Request::Umount { dir, lazy }, &mut |_| {})?;
    Ok(())
}

/// The mount point that a path means. A mount whose devices hang must still be named: the directory itself is not
/// looked at, only what leads to it.
pub(super) fn mount_point(path: &Path) -> PathBuf {
    const MAX_LINKS: usize = 40;
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else { break };
        let Ok(parent) = parent.canonicalize() else { break };
        let last = parent.join(name);
        match std::fs::read_link(&last) {
            Ok(target) => at = parent.join(target),
            Err(_) => return last,
        }
    }
    at
}

fn listing(global: &GlobalArgs) -> anyhow::Result<Listing> {
    match ask(&paths(global)?, Request::List, &mut |_| {}) {
        Ok(Outcome::Listing(listing)) => Ok(listing),
        Ok(_) => bail!("the daemon answered something else than was asked"),
        // No daemon is no error: nothing is mounted.
        Err(ClientError::NotRunning { .. }) => Ok(Listing::default()),
        Err(error) => Err(error.into()),
    }
}

fn ls(global: &GlobalArgs, json: bool) -> anyhow::Result<()> {
    let listing = listing(global)?;
    if json {
        return output::json(&listing);
    }
    let percent = |part: u64, whole: u64| part.saturating_mul(100).checked_div(whole).unwrap_or(100);
    let rows: Vec<_> = listing
        .layers
        .iter()
        .map(|l| {
            vec![
                l.digest.short(),
                l.device.display().to_string(),
                l.frontend.clone(),
                output::size(l.layer_bytes),
                format!("{} ({} %)", output::size(l.present_bytes), percent(l.present_bytes, l.layer_bytes)),
                if l.proven { "yes" } else { "no" }.to_owned(),
                l.waiting_readers.to_string(),
                l.used_by.to_string(),
                l.load_order
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |o| o.label.clone().unwrap_or_else(|| o.from.clone())),
            ]
        })
        .collect();
    output::table(&["LAYER", "DEVICE", "FRONTEND", "SIZE", "FETCHED", "PROVEN", "WAITING", "MOUNTS", "ORDER"], &rows);
    for layer in listing.layers.iter().filter(|l| l.waiting_readers > 0 || l.failed_reads > 0) {
        if let Some(error) = &layer.last_error {
            let waited = Duration::from_millis(layer.oldest_wait_ms).as_secs();
            let held = if layer.waiting_readers > 0 {
                format!("readers held for {waited} s")
            } else {
                "reads failed".to_owned()
            };
            output::line(&format!("{}: {held}; last error: {error}", layer.digest.short()));
        }
    }
    Ok(())
}

fn stats(global: &GlobalArgs, json: bool) -> anyhow::Result<()> {
    let listing = listing(global)?;
    if json {
        return output::json(&listing);
    }
    let t = &listing.totals;
    for (name, value) in [
        ("mounts", listing.mounts.len().to_string()),
        ("layers", listing.layers.len().to_string()),
        ("blob bytes fetched", output::size(t.fetched_bytes)),
        ("range requests", t.requests.to_string()),
        ("retries", t.retries.to_string()),
        ("layer files on disk", output::size(t.cache_bytes)),
        ("daemon memory", output::size(t.resident_bytes)),
        ("daemon threads", t.threads.to_string()),
        ("daemon descriptors", t.descriptors.to_string()),
    ] {
        output::line(&format!("{name:<22}{value}"));
    }
    let rows: Vec<_> = listing
        .layers
        .iter()
        .map(|l| {
            vec![
                l.digest.short(),
                output::size(l.fetched_bytes),
                output::size(l.blob_bytes),
                l.requests.to_string(),
                l.retries.to_string(),
                l.failed_reads.to_string(),
                l.last_error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["LAYER", "FETCHED", "OF", "REQUESTS", "RETRIES", "FAILED READS", "LAST ERROR"], &rows);
    }
    Ok(())
}

fn run_doctor(global: &GlobalArgs, json: bool, clean: bool) -> anyhow::Result<ExitCode> {
    let paths = paths(global)?;
    let findings = doctor::examine(&paths, clean);
    if json {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            output::line(&format!("{:<9}{:<24}{}", finding.state.word(), finding.name, finding.detail));
            if !finding.remedy.is_empty() {
                output::line(&format!("{:<33}-> {}", "", finding.remedy));
            }
        }
    }
    let bad = findings.iter().any(|f| f.state == doctor::State::Bad);
    Ok(if bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn run_daemon(global: &GlobalArgs, command: &DaemonCommand) -> anyhow::Result<ExitCode> {
    let paths = paths(global)?;
    match command {
        DaemonCommand::Run { frontend: choice, idle_exit } => {
            require_root("the daemon")?;
            let config = super::config::for_daemon(global)?;
            let idle_exit = (*idle_exit > 0).then(|| Duration::from_secs(*idle_exit));
            daemon::run(&paths, config, DaemonOptions { frontend: frontend(*choice), idle_exit, serve: None })?;
        }
        DaemonCommand::Stop => {
            client::stop(&paths)?;
        }
        DaemonCommand::Status => match ask(&paths, Request::Ping, &mut |_| {}) {
            Ok(Outcome::Pong { pid, version, mounts }) => {
                output::line(&format!("running: pid {pid}, version {version}, {mounts} mounts"));
            }
            Ok(_) => bail!("the daemon answered something else than was asked"),
            Err(error) => {
                output::line(&error.to_string());
                return Ok(ExitCode::from(1));
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn man(output: Option<&Path>) -> anyhow::Result<()> {
    match output {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            clap_mangen::generate_to(args::command(), dir).with_context(|| dir.display().to_string())
        }
        None => Ok(clap_mangen::Man::new(args::command()).render(&mut std::io::stdout())?),
    }
}

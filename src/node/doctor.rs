//! What this machine can do, what is missing, and what an earlier daemon left over.

use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::client::{ClientError, ask};
use super::frontends::device_tag;
use super::paths::Paths;
use super::protocol::{Outcome, Request};
use super::served::is_overlay_of_ours;
use super::state::State as NodeState;
use crate::frontend::fuse::FuseKind;
use crate::frontend::fuse::holder::Holder;
use crate::frontend::ublk::{DeviceState, UblkConfig, UblkError, UblkFrontend};
use crate::mount::{ProbeState, mounts_under, probe_all};

/// How a finding is to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Fine.
    Ok,
    /// Not there, but something else takes its place.
    Fallback,
    /// Could not be found out.
    Unknown,
    /// Must be mended.
    Bad,
}

impl State {
    /// One word for a table.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fallback => "fallback",
            Self::Unknown => "unknown",
            Self::Bad => "BAD",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Finding {
    /// Short name, stable over versions.
    pub name: String,
    /// How it is to be taken.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do; empty when nothing need be done.
    pub remedy: String,
}

fn finding(name: &str, state: State, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { name: name.to_owned(), state, detail: detail.into(), remedy: remedy.into() }
}

/// Looks at everything. With `clean`, what a dead daemon left over is taken away first; a living daemon's things are
/// never touched.
#[must_use]
pub fn examine(paths: &Paths, clean: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(permissions());
    findings.push(root_dir(paths));
    let scratch = if paths.root().is_dir() { paths.root().to_owned() } else { std::env::temp_dir() };
    for probe in probe_all(&scratch) {
        let state = match probe.state {
            ProbeState::Ok => State::Ok,
            ProbeState::Fallback => State::Fallback,
            ProbeState::Unknown => State::Unknown,
            ProbeState::Missing => State::Bad,
        };
        findings.push(finding(probe.name, state, probe.detail, probe.remedy));
    }
    findings.push(ublk());
    let (running, daemon) = daemon(paths);
    findings.push(daemon);
    if !running {
        if clean {
            clean_up(paths);
        }
        findings.push(left_mounts(paths));
        findings.push(left_devices());
        findings.push(left_holders(paths));
    }
    findings
}

fn permissions() -> Finding {
    if rustix::process::geteuid().is_root() {
        finding("root", State::Ok, "running as root", "")
    } else {
        finding("root", State::Bad, "not root: devices and mounts cannot be made", "run sociblk with sudo")
    }
}

fn root_dir(paths: &Paths) -> Finding {
    let root = paths.root();
    let at = root.ancestors().find(|a| a.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(at) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let detail = format!("{}: {} MiB free", root.display(), free >> 20);
            if free < 1 << 30 {
                finding("state directory", State::Bad, detail, "free at least 1 GiB, or choose another --root")
            } else {
                finding("state directory", State::Ok, detail, "")
            }
        }
        Err(error) => finding(
            "state directory",
            State::Bad,
            format!("{}: {error}", root.display()),
            "choose another --root, on a local disk",
        ),
    }
}

fn ublk() -> Finding {
    match UblkFrontend::probe() {
        Ok(features) if !features.survives_kills() => finding(
            "ublk",
            State::Fallback,
            UblkError::CannotBeKilled.to_string(),
            "mounts use fuse-image; for ublk use Linux 6.16 or later",
        ),
        Ok(features) => {
            let mode = if features.auto_buf_reg() {
                "auto-buf-reg (no copies)"
            } else if features.user_copy() {
                "user-copy"
            } else {
                "copy"
            };
            finding("ublk", State::Ok, format!("works; data mode {mode}"), "")
        }
        Err(error) => finding(
            "ublk",
            State::Fallback,
            error.to_string(),
            "mounts use fuse-image; for ublk use Linux 6.16 or later with the module ublk_drv",
        ),
    }
}

fn daemon(paths: &Paths) -> (bool, Finding) {
    match ask(paths, Request::Ping, &mut |_| {}) {
        Ok(Outcome::Pong { pid, mounts, .. }) => {
            (true, finding("daemon", State::Ok, format!("running, pid {pid}, {mounts} mounts"), ""))
        }
        Err(ClientError::NotRunning { .. }) => {
            (false, finding("daemon", State::Ok, "not running; `sociblk mount` starts it", ""))
        }
        other => {
            let detail = match other {
                Err(error) => error.to_string(),
                Ok(_) => "answers strangely".to_owned(),
            };
            (true, finding("daemon", State::Bad, detail, "stop it: `sociblk daemon stop`, or end its process"))
        }
    }
}

/// What the last daemon wrote down; nothing where that cannot be read.
fn remembered(paths: &Paths) -> NodeState {
    NodeState::load(&paths.state_file()).unwrap_or_default()
}

/// Mount points that the state file or the kernel ascribe to us, innermost last.
fn our_mounts(paths: &Paths) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        mounts_under(paths.root()).unwrap_or_default().into_iter().map(|m| m.mount_point).collect();
    found.retain(|m| m != paths.root());
    let all = crate::mount::mounts().unwrap_or_default();
    for dir in remembered(paths).mounts.into_iter().map(|m| m.report.dir) {
        // Somebody may have mounted something else there since.
        let last = all.iter().rfind(|m| m.mount_point == dir);
        if last.is_some_and(is_overlay_of_ours) && !found.contains(&dir) {
            found.push(dir);
        }
    }
    found
}

fn left_mounts(paths: &Paths) -> Finding {
    let left = our_mounts(paths);
    if left.is_empty() {
        return finding("leftover mounts", State::Ok, "none", "");
    }
    let list: Vec<String> = left.iter().map(|m| m.display().to_string()).collect();
    finding(
        "leftover mounts",
        State::Bad,
        list.join(", "),
        "a new daemon takes over what it can; `sociblk doctor --clean` unmounts them",
    )
}

fn left_devices() -> Finding {
    let own = UblkFrontend::start(UblkConfig::default()).and_then(|ublk| ublk.list_own());
    match own {
        Err(_) => finding("leftover devices", State::Ok, "none (no ublk)", ""),
        Ok(own) => {
            let left: Vec<String> =
                own.iter().filter(|d| d.state != DeviceState::Live).map(|d| format!("/dev/ublkb{}", d.id)).collect();
            if left.is_empty() {
                finding("leftover devices", State::Ok, "none", "")
            } else {
                finding(
                    "leftover devices",
                    State::Bad,
                    left.join(", "),
                    "start a daemon for their root to take them over, or `sociblk doctor --clean`",
                )
            }
        }
    }
}

/// The processes that keep FUSE connections go by themselves when those are unused.
fn left_holders(paths: &Paths) -> Finding {
    let name = "leftover FUSE connection";
    let mut left = Vec::new();
    for kind in FuseKind::ALL {
        match Holder::connect(&paths.holder_socket(kind)) {
            Ok(None) => {}
            Ok(Some(holder)) => left.push(match holder.process() {
                Some(pid) => format!("kept by process {pid}; readers of its images wait for a daemon"),
                None => "readers of its images wait for a daemon".to_owned(),
            }),
            Err(error) => return finding(name, State::Unknown, error.to_string(), "run it as root"),
        }
    }
    if left.is_empty() {
        return finding(name, State::Ok, "none", "");
    }
    let remedy = "start a daemon, which takes it over, or `sociblk doctor --clean`: the readers get errors then";
    finding(name, State::Bad, left.join("; "), remedy)
}

/// Ends what keeps readers waiting, unmounts what is ours, newest first, and removes devices without a server.
fn clean_up(paths: &Paths) {
    for kind in FuseKind::ALL {
        let socket = paths.holder_socket(kind);
        match Holder::connect(&socket) {
            // One that was killed leaves its socket.
            Ok(None) => drop(std::fs::remove_file(&socket)),
            Ok(Some(holder)) => {
                if let Err(error) = holder.end() {
                    tracing::warn!(%error, "the FUSE connection stays");
                }
            }
            Err(error) => tracing::warn!(%error, "the FUSE connection stays"),
        }
    }
    for mount in our_mounts(paths).iter().rev() {
        if let Err(error) = unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            tracing::warn!(mount = %mount.display(), %error, "cannot unmount");
        }
    }
    if let Ok(entries) = std::fs::read_dir(paths.mnt_dir()) {
        for entry in entries.flatten() {
            // Fails for what is not empty, which is right.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    // Devices of other roots wait for their own daemon.
    let tags: Vec<u64> = remembered(paths).layers.iter().map(|l| device_tag(paths.root(), &l.name)).collect();
    if let Ok(ublk) = UblkFrontend::start(UblkConfig::default()) {
        for device in ublk.list_own().unwrap_or_default() {
            if device.state != DeviceState::Live
                && tags.iter().any(|tag| device.carries(*tag))
                && let Err(error) = ublk.remove(device.id)
            {
                tracing::warn!(device = device.id, %error, "cannot remove a device");
            }
        }
    }
    if let Err(error) = std::fs::remove_file(paths.state_file())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "the state file stays");
    }
}

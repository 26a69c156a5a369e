//! `explain`: of which layers a container, an image or a mount is made, which of them are lazy and why, and what their
//! readers wait for. Asks the daemon, and containerd for the layers of a container.

mod container;
mod files;

use std::collections::HashSet;
use std::path::Path;

use anyhow::bail;
use serde::Serialize;

pub use self::container::{Recordable, recordable};
use self::container::{Stack, find};
use super::client;
use super::one_line;
use super::paths::Paths;
use super::protocol::{Account, Because, HeldLayer, LayerAccount, LayerWay, Outcome, Request};
use crate::containerd::{Address, Snapshot};
use crate::registry::ImageRef;
use crate::snapshot::labels;
use crate::units::Digest;

/// What is asked about.
#[derive(Debug, Clone)]
pub struct ExplainOptions {
    /// Container, image or mount point, as the user named it.
    pub target: String,
    /// Which containerd, and which of its namespaces.
    pub containerd: Address,
}

/// What something is made of.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// `mount`, `image` or `container`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The image, where it is known.
    pub image: Option<String>,
    /// containerd's snapshotter, for containers.
    pub snapshotter: Option<String>,
    /// Layers, bottom first.
    pub layers: Vec<ExplainedLayer>,
}

/// Who has the files of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// sociblk, which fetches what is read.
    Lazy,
    /// sociblk, which had fetched all of it before it was shown.
    Whole,
    /// containerd, which has unpacked it.
    Containerd,
    /// sociblk, which does not show it at the moment.
    Away,
}

impl State {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Whole => "whole",
            Self::Containerd => "containerd",
            Self::Away => "away",
        }
    }
}

/// One layer of it.
#[derive(Debug, Serialize)]
pub struct ExplainedLayer {
    /// Blob digest, where it is known.
    pub digest: Option<Digest>,
    /// Name of its snapshot in containerd.
    pub snapshot: Option<String>,
    /// Who has its files.
    pub state: State,
    /// Why; `None` when nobody remembers.
    #[serde(flatten)]
    pub because: Option<Because>,
    /// Where its zTOC came from.
    pub origin: Option<String>,
    /// The index that lists its zTOC.
    pub index: Option<Digest>,
    /// How it is served.
    pub served: Option<LayerAccount>,
}

/// Explains.
///
/// # Errors
/// When no daemon runs, and when neither it nor containerd knows anything by that name.
pub fn run(paths: &Paths, options: &ExplainOptions) -> anyhow::Result<Explained> {
    let account = account(paths)?;
    let mut explained = match here(&account, &options.target) {
        Some(explained) => explained,
        None => waited_for(container(&account, paths, options))?,
    };
    for served in explained.layers.iter_mut().filter_map(|layer| layer.served.as_mut()) {
        if let Err(error) = files::name_files(paths, served) {
            tracing::debug!(error = one_line(&error), "files of a layer are not named");
        }
    }
    Ok(explained)
}

fn account(paths: &Paths) -> anyhow::Result<Account> {
    match client::ask(paths, Request::Explain, &mut |_| {})? {
        Outcome::Explained(account) => Ok(*account),
        _ => bail!("the daemon answered something else than was asked"),
    }
}

fn waited_for<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// A mount or an image that the daemon knows.
fn here(account: &Account, target: &str) -> Option<Explained> {
    if let Some(mount) = account.mounts.iter().find(|mount| is_dir(target, &mount.report.dir)) {
        return Some(of_mount(account, mount, "mount", mount.report.dir.display().to_string()));
    }
    let full = target.parse::<ImageRef>().map_or_else(|_| target.to_owned(), |image| image.to_string());
    let is_named = |name: &str| !name.is_empty() && (name == target || name == full);
    let of_image = |name: &str, manifest: &str| {
        let digest = manifest.rsplit_once('@').map_or(manifest, |(_, digest)| digest);
        is_named(name) || is_named(manifest) || is_named(digest)
    };
    let mounted = account.mounts.iter().find(|mount| of_image(&mount.report.image, &mount.report.manifest.to_string()));
    let mut held: Vec<&HeldLayer> = account.held.iter().filter(|held| of_image(&held.image, &held.manifest)).collect();
    held.sort_by_key(|held| held.place);
    let left: Vec<_> = account.left.iter().filter(|left| left.image.as_deref().is_some_and(is_named)).collect();
    if held.is_empty() && left.is_empty() {
        return mounted.map(|mount| of_mount(account, mount, "image", target.to_owned()));
    }
    let mut seen = HashSet::new();
    let mut layers: Vec<ExplainedLayer> =
        held.iter().filter(|held| seen.insert(held.layer.as_str())).map(|held| of_held(account, held, None)).collect();
    let digests: HashSet<Option<Digest>> = layers.iter().map(|layer| layer.digest).collect();
    // One that came later counts: the image may have got an index since.
    let left = left.into_iter().filter(|left| left.digest.is_none() || !digests.contains(&left.digest));
    layers.extend(left.map(|left| ExplainedLayer {
        digest: left.digest,
        snapshot: Some(left.chain_id.clone()),
        state: State::Containerd,
        because: Some(left.because.clone()),
        origin: None,
        index: None,
        served: None,
    }));
    let image = held.first().map(|held| held.manifest.clone());
    Some(Explained { kind: "image", name: target.to_owned(), image, snapshotter: None, layers })
}

fn is_dir(target: &str, dir: &Path) -> bool {
    let named = Path::new(target);
    named == dir || std::path::absolute(named).is_ok_and(|path| path == dir)
}

fn of_mount(account: &Account, mount: &super::protocol::MountAccount, kind: &'static str, name: String) -> Explained {
    let layers = mount.layers.iter().zip(&mount.report.layers).map(|(layer, told)| {
        let state = if told.index == "streamed" { State::Whole } else { State::Lazy };
        shown(account, layer, Some(told.digest), told.way.as_ref(), state)
    });
    let image = Some(mount.report.image.clone());
    Explained { kind, name, image, snapshotter: None, layers: layers.collect() }
}

fn of_held(account: &Account, held: &HeldLayer, snapshot: Option<&str>) -> ExplainedLayer {
    let whole = held.way.as_ref().is_some_and(|way| way.origin == "streamed");
    let state = if whole { State::Whole } else { State::Lazy };
    let chain_id = held.owner.split_once('/').map(|(chain_id, _)| chain_id);
    ExplainedLayer {
        snapshot: snapshot.or(chain_id).map(str::to_owned),
        ..shown(account, &held.layer, Some(held.digest), held.way.as_ref(), state)
    }
}

fn shown(
    account: &Account,
    layer: &str,
    digest: Option<Digest>,
    way: Option<&LayerWay>,
    state: State,
) -> ExplainedLayer {
    let served = account.layers.get(layer).cloned();
    ExplainedLayer {
        digest,
        snapshot: None,
        state: if served.is_some() { state } else { State::Away },
        because: way.map(|way| way.because.clone()),
        origin: way.map(|way| way.origin.clone()),
        index: way.and_then(|way| way.index),
        served,
    }
}

/// A container of containerd's.
async fn container(account: &Account, paths: &Paths, options: &ExplainOptions) -> anyhow::Result<Explained> {
    let Stack { container, layers, ours, .. } = find(account, paths, options).await?;
    let nothing = Account::default();
    let account = if ours { account } else { &nothing };
    Ok(Explained {
        kind: "container",
        name: container.id.clone(),
        image: Some(container.image.clone()).filter(|image| !image.is_empty()),
        snapshotter: Some(container.snapshotter.clone()),
        layers: layers.iter().map(|snapshot| of_snapshot(account, snapshot)).collect(),
    })
}

/// The layer that is held for a snapshot, for each image that holds it.
fn held_layers<'a>(account: &'a Account, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a HeldLayer> {
    let digest = digest_of(snapshot);
    // Two images may have the same chain by different layers: what the labels say decides, where they are there.
    account.held.iter().filter(move |held| {
        let chain_id = held.owner.split_once('/').map(|(chain_id, _)| chain_id);
        chain_id == Some(&*snapshot.name) && digest.is_none_or(|digest| digest == held.digest)
    })
}

fn digest_of(snapshot: &Snapshot) -> Option<Digest> {
    snapshot.labels.get(labels::LAYER_DIGEST).and_then(|text| text.parse().ok())
}

fn of_snapshot(account: &Account, snapshot: &Snapshot) -> ExplainedLayer {
    if let Some(held) = held_layers(account, snapshot).next() {
        return of_held(account, held, Some(&snapshot.name));
    }
    let left = account.left.iter().rev().find(|left| left.chain_id == snapshot.name);
    ExplainedLayer {
        digest: digest_of(snapshot).or(left.and_then(|left| left.digest)),
        snapshot: Some(snapshot.name.clone()),
        state: State::Containerd,
        because: left.map(|left| left.because.clone()),
        origin: None,
        index: None,
        served: None,
    }
}

#[cfg(test)]
mod tests;

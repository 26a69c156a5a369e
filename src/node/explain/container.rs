//! Containers of containerd's: found by their names, and the snapshots that they stand on.

use std::path::PathBuf;

use anyhow::{Context, bail};

use super::{ExplainOptions, account, held_layers, here, waited_for};
use crate::containerd::{Address, Client, Container, ContainerdError, Snapshot};
use crate::node::paths::Paths;
use crate::node::protocol::{Account, HeldLayer};

/// Most snapshots that a container stands on: far more than any snapshotter can mount.
const MAX_CHAIN: usize = 4096;

/// Something whose reads can be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recordable {
    /// What the daemon calls it: a mount or an image as the user named it, or the digest of a container's manifest.
    pub target: String,
    /// The container, if it is one.
    pub container: Option<String>,
}

/// A container, and what it stands on.
pub(super) struct Stack {
    pub container: Container,
    /// The committed snapshots below it, bottom first.
    pub layers: Vec<Snapshot>,
    /// Whether its files are where this root's daemon has them. Another snapshotter may have the same image, whose layers
    /// have the same names.
    pub ours: bool,
}

/// Of whom reads are recorded when `record` names a mount, an image, or a container of containerd's. containerd is asked
/// only for what the daemon does not know.
///
/// # Errors
/// When no daemon runs, neither it nor containerd knows anything by that name, or the container stands on no layer that
/// the daemon shows.
pub fn recordable(paths: &Paths, options: &ExplainOptions) -> anyhow::Result<Recordable> {
    let image = || Recordable { target: options.target.clone(), container: None };
    if options.target.is_empty() {
        bail!("no name: give a mount point, an image, or a container");
    }
    // Images have names that no container can have, and more of them than are told here: the daemon knows.
    if !options.target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Ok(image());
    }
    let account = account(paths)?;
    if here(&account, &options.target).is_some() {
        return Ok(image());
    }
    let Stack { container, layers, ours } = waited_for(find(paths, options))?;
    let Some(held) = image_of(&account, &container, &layers).filter(|_| ours) else {
        bail!(
            "sociblk shows no layer of container {} (snapshotter {}), so it does not see what that reads; \
             `sociblk explain` says why",
            container.id,
            container.snapshotter
        );
    };
    let digest = held.manifest.rsplit_once('@').map_or(held.manifest.as_str(), |(_, digest)| digest);
    Ok(Recordable { target: digest.to_owned(), container: Some(container.id) })
}

/// The image whose layers a container reads, by one of them: its own image where that holds one, else the one that holds
/// the topmost; containerd asks only once for the snapshots that two images have in common.
pub(super) fn image_of<'a>(
    account: &'a Account,
    container: &Container,
    layers: &'a [Snapshot],
) -> Option<&'a HeldLayer> {
    let held = || layers.iter().rev().flat_map(|snapshot| held_layers(account, snapshot));
    held().find(|held| !held.image.is_empty() && held.image == container.image).or_else(|| held().next())
}

/// Finds a container.
pub(super) async fn find(paths: &Paths, options: &ExplainOptions) -> anyhow::Result<Stack> {
    let target = &options.target;
    let nothing = || format!("sociblk shows no image and no mount called {target}");
    let containerd = Client::connect(&options.containerd).await.with_context(|| {
        format!("{}, and containerd, which might have such a container, cannot be asked", nothing())
    })?;
    let container = match containerd.container(target).await {
        Ok(container) => container,
        Err(error) if error.is_not_found() => match by_prefix(&containerd, target).await? {
            Some(container) => container,
            None => bail!(
                "{}, and {} has no container of that name{}",
                nothing(),
                options.containerd,
                elsewhere(&containerd, options).await
            ),
        },
        Err(error) => return Err(error.into()),
    };
    if container.snapshot_key.is_empty() {
        bail!("container {} has no snapshot: its root file system is none of containerd's", container.id);
    }
    let layers = chain(&containerd, &container)
        .await
        .with_context(|| format!("asking containerd for the layers of container {}", container.id))?;
    let ours = match containerd.snapshot_mounts(&container.snapshotter, &container.snapshot_key).await {
        Ok(mounts) => roots(paths).iter().any(|root| mounts.use_dir(root)),
        // A layer that cannot be shown at the moment is a reason to ask about it.
        Err(error) => {
            tracing::debug!(%error, "whose the container's files are is not known");
            true
        }
    };
    Ok(Stack { container, layers, ours })
}

/// The daemon's root by the name that was given here, and by the one that it has.
fn roots(paths: &Paths) -> Vec<PathBuf> {
    let given = paths.root().to_owned();
    given.canonicalize().into_iter().chain([given]).collect()
}

/// The only container whose name begins so: people copy what `ctr` and `crictl` cut off.
async fn by_prefix(containerd: &Client, target: &str) -> anyhow::Result<Option<Container>> {
    let mut found = containerd.list_containers().await?;
    found.retain(|container| container.id.starts_with(target));
    if found.len() > 1 {
        let names: Vec<_> = found.iter().take(5).map(|container| container.id.as_str()).collect();
        bail!("{} containers begin with {target}: {}; name one in full", found.len(), names.join(", "));
    }
    Ok(found.pop())
}

/// Says in which other namespace the container is.
async fn elsewhere(containerd: &Client, options: &ExplainOptions) -> String {
    for namespace in containerd.namespaces().await.unwrap_or_default() {
        let Ok(at) = Address::new(options.containerd.socket(), &namespace) else { continue };
        let Ok(there) = Client::connect(&at).await else { continue };
        if at != options.containerd && there.container(&options.target).await.is_ok() {
            return format!("; it is in namespace {namespace}: name that with --namespace");
        }
    }
    String::new()
}

/// The committed snapshots below a container, bottom first.
async fn chain(containerd: &Client, container: &Container) -> Result<Vec<Snapshot>, ContainerdError> {
    let mut layers = Vec::new();
    let mut name = container.snapshot_key.clone();
    while !name.is_empty() && layers.len() < MAX_CHAIN {
        let snapshot = containerd.snapshot(&container.snapshotter, &name).await?;
        name.clone_from(&snapshot.parent);
        if snapshot.committed {
            layers.push(snapshot);
        }
    }
    layers.reverse();
    Ok(layers)
}

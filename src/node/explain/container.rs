//! Containers of containerd's: found by their names, and the snapshots that they stand on.

use std::path::PathBuf;

use anyhow::{Context, bail};

use super::{ExplainOptions, account, held_layers, here, waited_for};
use crate::containerd::{Address, Client, Container, ContainerdError, Snapshot};
use crate::node::paths::Paths;
use crate::node::protocol::{Account, HeldLayer};
use crate::registry::ImageRef;
use crate::units::Digest;

/// Most snapshots that a container stands on: far more than any snapshotter can mount.
const MAX_CHAIN: usize = 4096;

/// How many names are listed to choose from.
const MAX_NAMES: usize = 5;

/// Something whose reads can be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recordable {
    /// What the daemon calls it: a mount or an image as the user named it, or the digest of a container's manifest.
    pub target: String,
    /// The container, if it is one.
    pub container: Option<String>,
    /// What the recording lacks of the container's reads, and whose it becomes if not its own image's; for people.
    pub notes: Vec<String>,
}

/// A container, and what it stands on.
pub(super) struct Stack {
    pub container: Container,
    /// What its image's name means, a manifest or an index of several; `None` where containerd does not know the name.
    pub means: Option<Digest>,
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
    let image = || Recordable { target: options.target.clone(), container: None, notes: Vec::new() };
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
    let stack = waited_for(find(&account, paths, options))?;
    let container = &stack.container;
    let Some(held) = image_of(&account, &stack).filter(|_| stack.ours) else {
        bail!(
            "sociblk shows no layer of container {} (snapshotter {}), so it does not see what that reads; \
             `sociblk explain` says why",
            container.id,
            container.snapshotter
        );
    };
    let target = digest_in(&held.manifest).to_owned();
    Ok(Recordable { target, container: Some(container.id.clone()), notes: notes(&account, &stack, held) })
}

fn digest_in(name: &str) -> &str {
    name.rsplit_once('@').map_or(name, |(_, digest)| digest)
}

/// The image whose layers a container reads, by one of them: its own image where that holds one, else the one that holds
/// the topmost; containerd asks only once for the snapshots that two images have in common.
pub(super) fn image_of<'a>(account: &'a Account, stack: &'a Stack) -> Option<&'a HeldLayer> {
    let held = || stack.layers.iter().rev().flat_map(|snapshot| held_layers(account, snapshot));
    held().find(|held| is_of(stack, held)).or_else(|| held().next())
}

/// Whether a layer is held for the container's own image, under this name of it or another one.
fn is_of(stack: &Stack, held: &HeldLayer) -> bool {
    let name = &*stack.container.image;
    let named = !name.is_empty() && [&*held.image, &*held.manifest, digest_in(&held.manifest)].contains(&name);
    named || digest_in(&held.manifest).parse().is_ok_and(|manifest: Digest| stack.means == Some(manifest))
}

/// What a recording of the image that `recorded` belongs to is not, or lacks, if the container's reads are wanted.
pub(super) fn notes(account: &Account, stack: &Stack, recorded: &HeldLayer) -> Vec<String> {
    let Stack { container, layers, .. } = stack;
    let mut notes = Vec::new();
    if !is_of(stack, recorded) {
        let own = match &*container.image {
            "" => "no image that containerd names".to_owned(),
            image => format!("image {image}"),
        };
        notes.push(format!(
            "container {} is of {own}; its layers are shown for {}: the load order is that one's, of all its containers, and \
             a start of another image does not follow it",
            container.id,
            called(recorded)
        ));
    }
    let (mut containerds, mut away, mut others) = (0, 0, Vec::new());
    for snapshot in layers {
        let held: Vec<_> = held_layers(account, snapshot).collect();
        let of_recorded = |held: &&&HeldLayer| held.manifest == recorded.manifest;
        match held.iter().find(of_recorded).or(held.first()) {
            None => containerds += 1,
            Some(held) if held.manifest != recorded.manifest => others.push(called(held)),
            Some(held) if !account.layers.contains_key(&held.layer) => away += 1,
            Some(_) => {}
        }
    }
    let mut lacks = Vec::new();
    if containerds > 0 {
        lacks.push(format!("{containerds} containerd has unpacked, where sociblk does not see what is read"));
    }
    if !others.is_empty() {
        let count = others.len();
        others.sort_unstable();
        others.dedup();
        others.truncate(MAX_NAMES);
        lacks.push(format!("{count} belong to the recording of {}", others.join(" and of ")));
    }
    if away > 0 {
        lacks.push(format!("{away} sociblk does not show at the moment"));
    }
    if !lacks.is_empty() {
        notes.push(format!(
            "of the {} layers of container {} the recording lacks: {}; `sociblk explain {}` lists them",
            layers.len(),
            container.id,
            lacks.join("; "),
            container.id
        ));
    }
    notes
}

/// The image that a layer is held for.
fn called(held: &HeldLayer) -> &str {
    if held.image.is_empty() { &held.manifest } else { &held.image }
}

/// That the daemon knows nothing by a name, and what it knows instead.
fn nothing(account: &Account, target: &str) -> String {
    let full = target.parse::<ImageRef>().map(|image| image.to_string());
    let looked = full.map_or_else(|_| target.to_owned(), |full| format!("{target} or {full}"));
    let told = |name: &&str| {
        let image = name.parse::<ImageRef>();
        image.is_ok_and(|image| image.repository().rsplit('/').next() == Some(target))
    };
    let mounted = account.mounts.iter().map(|mount| &*mount.report.image);
    let mut alike: Vec<&str> = mounted.chain(account.held.iter().map(|held| &*held.image)).filter(told).collect();
    alike.sort_unstable();
    alike.dedup();
    alike.truncate(MAX_NAMES);
    let hint = match alike.is_empty() {
        true => "`sociblk ls` shows what there is; name an image in full, a mount by its directory".to_owned(),
        false => format!("name an image in full: {}", alike.join(", ")),
    };
    format!("sociblk shows no image and no mount called {looked} ({hint})")
}

/// Finds a container.
pub(super) async fn find(account: &Account, paths: &Paths, options: &ExplainOptions) -> anyhow::Result<Stack> {
    let target = &options.target;
    let nothing = || nothing(account, target);
    let containerd = Client::connect(&options.containerd).await.with_context(|| {
        format!("{}, and containerd, which might have a container of that name, cannot be asked", nothing())
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
    let means = match containerd.image(&container.image).await {
        Ok(image) => Some(image.target.digest),
        // The name may be gone, or mean something else by now: the layers tell then.
        Err(error) => {
            tracing::debug!(%error, "what the name of the container's image means is not known");
            None
        }
    };
    Ok(Stack { container, means, layers, ours })
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

//! `push`: indexes that `create` made, from the local store to the registry of their image.

use anyhow::{Context, bail};

use super::clients::Clients;
use super::indexing::{PlatformChoice, images};
use super::paths::Paths;
use super::protocol::{LoginOrder, RegistryAccess};
use crate::config::Config;
use crate::registry::{Client, Image, ImageRef, ImageSource};
pub use crate::soci::PushStep;
use crate::soci::{self, ArtifactKind, CreatedIndex, Store};
use crate::units::Digest;

/// What to do when the registry has an index of the image already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExistingIndex {
    /// Say so, and push.
    Warn,
    /// Do not push.
    Skip,
    /// Push, without looking.
    Allow,
}

/// What to push.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// The image, in a registry.
    pub image: String,
    /// For which machines.
    pub platforms: PlatformChoice,
    /// What about an index that is there.
    pub existing: ExistingIndex,
    /// Uploads at the same time.
    pub uploads: usize,
    /// How to talk to the registry.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// What is told while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent {
    /// The registry is asked for indexes.
    Checking,
    /// The registry has these.
    Found {
        /// Their digests.
        indexes: Vec<Digest>,
        /// Whether that is a reason not to push.
        skipped: Option<Digest>,
    },
    /// A v2 index goes with its image.
    V2Left,
    /// This index is pushed.
    Pushing(Digest),
    /// A step of it.
    Step(PushStep),
}

/// Pushes the newest v1 index of each platform, and the newest of our own kind.
///
/// # Errors
/// When the store has none, or the registry refuses.
pub fn run(
    paths: &Paths,
    config: &Config,
    options: &PushOptions,
    hear: &(dyn Fn(PushEvent) + Sync),
) -> anyhow::Result<()> {
    super::create::with_progress(&mut |_| {}, |_| push(paths, config, options, hear))
}

async fn push(
    paths: &Paths,
    config: &Config,
    options: &PushOptions,
    hear: &(dyn Fn(PushEvent) + Sync),
) -> anyhow::Result<()> {
    let source: ImageSource = options.image.parse()?;
    if !matches!(source, ImageSource::Registry(_)) {
        bail!("an index is pushed beside its image in a registry; {source} is none");
    }
    let store = Store::open(paths.root()).context("opening the local index store")?;
    let client = Clients::new(config).get(&source, &options.access, options.login.clone());
    let root = client.root(&source).await.with_context(|| format!("resolving {source}"))?;
    let ImageSource::Registry(target) = &root.source else { bail!("{source} is in no registry") };
    // All are found before any is pushed.
    let mut to_push = Vec::new();
    for image in images(&client, &root, &options.platforms).await? {
        let manifest = super::create::manifest(&image)?.digest;
        let indexes = newest(&store, &image, manifest, hear).await?;
        to_push.extend(indexes.into_iter().map(|index| (manifest, index)));
    }
    for (manifest, created) in to_push {
        push_one(&client, target, &store, manifest, &created, options, hear).await?;
    }
    Ok(())
}

async fn newest(
    store: &Store,
    image: &Image,
    manifest: Digest,
    hear: &(dyn Fn(PushEvent) + Sync),
) -> anyhow::Result<Vec<CreatedIndex>> {
    let known = store.blocking(move |store| store.indexes_of(&manifest)).await?;
    if known.iter().any(|index| index.kind == ArtifactKind::IndexV2) {
        hear(PushEvent::V2Left);
    }
    let newest = |kind| {
        let made_here = known.iter().filter(|index| index.kind == kind && index.location.is_empty());
        made_here.max_by_key(|index| index.created_at).map(|index| index.digest)
    };
    let found: Vec<Digest> = [ArtifactKind::IndexV1, ArtifactKind::IndexOwn].into_iter().filter_map(newest).collect();
    if found.is_empty() {
        let platform = image.platform.as_ref().map(ToString::to_string).unwrap_or_default();
        bail!(
            "could not find any soci index manifest v1 to push for platform {platform} (image manifest {manifest}); \
             make one with `sociblk create`"
        );
    }
    let mut indexes = Vec::new();
    for digest in found {
        let bytes = store.blocking(move |store| store.read(&digest)).await?;
        indexes.push(CreatedIndex::parse(bytes)?);
    }
    Ok(indexes)
}

async fn push_one(
    client: &Client,
    target: &ImageRef,
    store: &Store,
    manifest: Digest,
    created: &CreatedIndex,
    options: &PushOptions,
    hear: &(dyn Fn(PushEvent) + Sync),
) -> anyhow::Result<()> {
    if options.existing != ExistingIndex::Allow {
        hear(PushEvent::Checking);
        let source = ImageSource::Registry(target.clone());
        let kind = created.index.kind.artifact_type();
        let found = client.referrers(&source, manifest, kind).await.context("failed to fetch list of referrers")?;
        let indexes: Vec<Digest> = found.into_iter().map(|found| found.digest).collect();
        if !indexes.is_empty() {
            let skipped = (options.existing == ExistingIndex::Skip).then_some(manifest);
            hear(PushEvent::Found { indexes, skipped });
            if skipped.is_some() {
                return Ok(());
            }
        }
    }
    hear(PushEvent::Pushing(created.digest));
    let step = |step| hear(PushEvent::Step(step));
    soci::push(client, target, store, created, options.uploads, &step).await.context("pushing the index")
}

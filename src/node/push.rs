//! `push`: indexes that `create` made, from the local store or containerd's to the registry of their image.

use anyhow::{Context, bail};

use super::clients::Clients;
use super::indexing::{PlatformChoice, images};
use super::paths::Paths;
use super::protocol::{LoginOrder, RegistryAccess};
use crate::config::Config;
use crate::registry::{Client, Image, ImageRef, ImageSource};
pub use crate::soci::PushStep;
use crate::soci::{self, ArtifactKind, CreatedIndex, INDEX_DIGEST, OWN_TYPE, Store, V1_TYPE};
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
    /// The image: a reference, or `containerd:SOCKET:NAMESPACE:IMAGE`; its name says in which registry it is.
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
    let target: ImageRef = match &source {
        ImageSource::Registry(image) => image.clone(),
        ImageSource::Containerd(image) => image.name.parse()?,
        _ => bail!("an index is pushed beside its image in a registry; {source} is none"),
    };
    let registry = ImageSource::Registry(target.clone());
    let client = Clients::new(config).get(&registry, &options.access, options.login.clone());
    let root = client.root(&source).await.with_context(|| format!("resolving {source}"))?;
    let target = &target.with_digest(root.document.digest);
    let from = match &root.source {
        ImageSource::Containerd(_) => Artifacts::Containerd(&client, &root.source),
        _ => Artifacts::Local(Store::open(paths.root()).context("opening the local index store")?),
    };
    // All are found before any is pushed.
    let mut to_push = Vec::new();
    for image in images(&client, &root, &options.platforms).await? {
        let manifest = super::create::manifest(&image)?.digest;
        let found = from.newest(&image, manifest, hear).await?;
        if found.is_empty() {
            let platform = image.platform.as_ref().map(ToString::to_string).unwrap_or_default();
            bail!(
                "could not find any soci index manifest v1 to push for platform {platform} (image manifest {manifest}); \
                 make one with `sociblk create`"
            );
        }
        to_push.extend(found.into_iter().map(|index| (manifest, index)));
    }
    for (manifest, created) in to_push {
        push_one(&client, target, &from.source(), manifest, &created, options, hear).await?;
    }
    Ok(())
}

/// Where the indexes are that may be pushed.
enum Artifacts<'a> {
    /// In the local store.
    Local(Store),
    /// In containerd's content store, with the image.
    Containerd(&'a Client, &'a ImageSource),
}

impl Artifacts<'_> {
    /// The v1 index of an image that was made last, and the last of our own.
    async fn newest(
        &self,
        image: &Image,
        manifest: Digest,
        hear: &(dyn Fn(PushEvent) + Sync),
    ) -> anyhow::Result<Vec<CreatedIndex>> {
        let mut found = Vec::new();
        match self {
            Self::Local(store) => {
                let known = store.blocking(move |store| store.indexes_of(&manifest)).await?;
                if known.iter().any(|index| index.kind == ArtifactKind::IndexV2) {
                    hear(PushEvent::V2Left);
                }
                for kind in [ArtifactKind::IndexV1, ArtifactKind::IndexOwn] {
                    let of_kind = known.iter().filter(|index| index.kind == kind && index.location.is_empty());
                    let Some(digest) = of_kind.max_by_key(|index| index.created_at).map(|index| index.digest) else {
                        continue;
                    };
                    let bytes = store.blocking(move |store| store.read(&digest)).await?;
                    found.push(CreatedIndex::parse(bytes)?);
                }
            }
            Self::Containerd(client, source) => {
                if image.annotations.contains_key(INDEX_DIGEST) {
                    hear(PushEvent::V2Left);
                }
                for kind in [V1_TYPE, OWN_TYPE] {
                    // The manifest's own label stands before that of the image's record.
                    let listed = client.referrers(source, manifest, kind).await?;
                    let Some(first) = listed.first() else { continue };
                    found.push(CreatedIndex::parse(client.manifest(source, first.digest).await?.0.bytes)?);
                }
            }
        }
        Ok(found)
    }

    /// Where their zTOCs are.
    fn source(&self) -> ImageSource {
        match self {
            Self::Local(store) => store.source(),
            Self::Containerd(_, source) => (*source).clone(),
        }
    }
}

async fn push_one(
    client: &Client,
    target: &ImageRef,
    from: &ImageSource,
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
    soci::push(client, target, from, created, options.uploads, &step).await.context("pushing the index")
}

//! `create`: the v1 index of an image, into the local store and beside the image: in its registry, or in containerd.

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use super::clients::Clients;
use super::indexing::{CreatedLayer, CreatedPrefetch, IndexOptions, Indexed, Indexer, images};
use super::paths::Paths;
use super::protocol::{LoginOrder, Progress, RegistryAccess};
use super::stored::StoreWriter;
use crate::config::Config;
use crate::fill::IngestConfig;
use crate::registry::document::media_type;
use crate::registry::{Document, Image, ImageSource};
use crate::soci::{self, CreatedIndex, IndexedImage, IndexedLayer, Kind, NewIndex, SetBy, SociError, Store};
use crate::units::Digest;

/// What to build.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Image as the user named it; local paths are absolute.
    pub image: String,
    /// Push the index beside the image.
    pub push: bool,
    /// How to build.
    pub index: IndexOptions,
    /// How to talk to the registry.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// An index that was made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CreatedImage {
    /// For which machine.
    pub platform: String,
    /// Digest of the image manifest.
    pub manifest: Digest,
    /// Digest of SOCI's index; `None`: no layer of a kind that SOCI knows could be indexed.
    pub index: Option<Digest>,
    /// Digest of our own index, of zstd layers; `None`: there are none.
    pub own_index: Option<Digest>,
    /// Layers, bottom first.
    pub layers: Vec<CreatedLayer>,
    /// Load orders.
    pub prefetch: Vec<CreatedPrefetch>,
    /// Files to be fetched first that no indexed layer has.
    pub missing_files: Vec<String>,
}

/// What was built.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Created {
    /// For each platform.
    pub images: Vec<CreatedImage>,
    /// Whether they were pushed.
    pub pushed: bool,
}

/// Ends when the user wants the command to end.
async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    bail!("interrupted")
}

/// Runs work on a runtime of its own and hands on what it tells. Work that is interrupted is dropped, and tidies up.
pub(super) fn with_progress<T, F: Future<Output = anyhow::Result<T>>>(
    progress: &mut dyn FnMut(Progress),
    work: impl FnOnce(mpsc::UnboundedSender<Progress>) -> F,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (sender, mut steps) = mpsc::unbounded_channel();
    let done = runtime.block_on(async {
        let work = work(sender);
        tokio::pin!(work);
        let interrupted = interrupted();
        tokio::pin!(interrupted);
        loop {
            tokio::select! {
                Some(step) = steps.recv() => progress(step),
                stopped = &mut interrupted => stopped?,
                done = &mut work => return done,
            }
        }
    });
    // What an error leaves behind on other threads is not waited for.
    runtime.shutdown_background();
    done
}

/// Builds the indexes, and pushes them when asked to.
///
/// # Errors
/// When the image cannot be had, no layer can be indexed, or the registry refuses the index.
pub fn run(
    paths: &Paths,
    config: &Config,
    options: &CreateOptions,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Created> {
    with_progress(progress, |sender| create(paths, config, options, sender))
}

/// The manifest of an image that has one.
pub(super) fn manifest(image: &Image) -> Result<&Document, SociError> {
    image.manifest.as_ref().ok_or_else(|| SociError::NoManifest { what: image.source.to_string() })
}

/// As [`run`], within a runtime that is there, for callers that handle signals themselves. Dropped, it tidies up.
///
/// # Errors
/// As [`run`].
pub async fn create(
    paths: &Paths,
    config: &Config,
    options: &CreateOptions,
    progress: mpsc::UnboundedSender<Progress>,
) -> anyhow::Result<Created> {
    let source: ImageSource = options.image.parse()?;
    if options.push && !matches!(source, ImageSource::Registry(_)) {
        bail!("--push is for images in a registry; {source} is none (`sociblk push` pushes what is in containerd)");
    }
    let store = Store::open(paths.root()).context("opening the local index store")?;
    let client = Clients::new(config).get(&source, &options.access, options.login.clone());
    let root = client.root(&source).await.with_context(|| format!("resolving {source}"))?;
    let writer = match &root.source {
        ImageSource::Containerd(image) => Some(StoreWriter::open(&client, image).await?),
        _ => None,
    };
    if let Some(writer) = &writer {
        writer.hold(root.document.digest).await?;
    }
    let images = images(&client, &root, &options.index.platforms).await?;
    let mut indexer = Indexer::new(&client, &store, &options.index, progress);
    let mut created = Vec::new();
    let mut to_push = Vec::new();
    for image in &images {
        let document = manifest(image)?;
        let Indexed { parts, layers, prefetch, missing_files } = indexer.index(image).await?;
        let (of_soci, own) = soci::split(parts);
        let subject = Some(soci::subject_of(document));
        let index = compose(Kind::V1 { subject: subject.clone() }, of_soci)?;
        let own = compose(Kind::Own { subject }, own)?;
        for index in index.iter().chain(&own) {
            let belongs_to = IndexedImage {
                manifest: document.digest,
                image_ref: Some(root.name.clone()),
                platform: image.platform.clone(),
                set_by: SetBy::Create,
            };
            let bytes = index.bytes.clone();
            store.blocking(move |store| save(store, &bytes, belongs_to)).await?;
            if let Some(writer) = &writer {
                writer.parts(&client, &store, index).await?;
                writer.document(&index.bytes, media_type::OCI_MANIFEST).await?;
                writer.attach(document.digest, index).await?;
            }
        }
        created.push(CreatedImage {
            platform: image.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
            manifest: document.digest,
            index: index.as_ref().map(|index| index.digest),
            own_index: own.as_ref().map(|index| index.digest),
            layers,
            prefetch,
            missing_files,
        });
        to_push.extend(index.into_iter().chain(own));
    }
    if to_push.is_empty() {
        return Err(Empty { images: created }.into());
    }
    if let Some(writer) = writer {
        // The record has room for one index of each kind.
        let is_own = |index: &&CreatedIndex| matches!(index.index.kind, Kind::Own { .. });
        let first = to_push.iter().find(|index| !is_own(index));
        for index in first.into_iter().chain(to_push.iter().find(is_own)) {
            writer.attach_to_record(root.document.digest, index).await?;
        }
        writer.finish().await?;
    }
    if let (true, ImageSource::Registry(reference)) = (options.push, &root.source) {
        for index in &to_push {
            soci::push(&client, reference, &store.source(), index, soci::DEFAULT_UPLOADS, &|_| {})
                .await
                .context("pushing the index")?;
        }
    }
    Ok(Created { images: created, pushed: options.push })
}

/// An index, unless there is nothing to put into it: another platform may have larger layers.
pub(super) fn compose(kind: Kind, parts: Vec<IndexedLayer>) -> Result<Option<CreatedIndex>, SociError> {
    match soci::compose(kind, parts, &IngestConfig::default().build_tool) {
        Ok(index) => Ok(Some(index)),
        Err(SociError::Empty) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts an index that was made here into the store, with the blob that all indexes share.
pub(super) fn save(store: &Store, bytes: &[u8], image: IndexedImage) -> Result<Digest, SociError> {
    store.put(soci::CONFIG)?;
    store.put_index_of(&NewIndex { bytes, image: Some(image), location: "" })
}

/// No layer got a zTOC. Says why not.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", SociError::Empty, reasons(images))]
pub struct Empty {
    /// What was looked at.
    pub images: Vec<CreatedImage>,
}

fn reasons(images: &[CreatedImage]) -> String {
    let layers = images.iter().flat_map(|image| &image.layers).filter(|layer| !layer.reason.is_empty());
    layers.take(3).map(|layer| format!("; layer {} {}", layer.digest, layer.reason)).collect()
}

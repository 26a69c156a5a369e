//! A converted image on its way: blobs, then manifests, and the index that shows it all at last.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::protocol::Progress;
use super::stored::StoreWriter;
use crate::registry::document::{ManifestDocument, media_type, parse_manifest};
use crate::registry::{Client, Descriptor, Document, ImageRef, ImageSource, LayoutWriter, Root, Sent, Upload};
use crate::soci::convert::Converted;
use crate::soci::{self, CreatedIndex, Store};
use crate::units::{BlobOffset, Digest};

/// Where the image goes.
pub(super) enum Destination<'a> {
    Registry {
        client: &'a Client,
        image: ImageRef,
        /// Another repository of the same registry that has the blobs.
        mount_from: Option<String>,
    },
    Layout(LayoutWriter),
    Containerd(StoreWriter),
}

impl<'a> Destination<'a> {
    pub(super) async fn open(client: &'a Client, target: &ImageSource, source: &ImageSource) -> anyhow::Result<Self> {
        let image = match target {
            ImageSource::Registry(image) => image,
            ImageSource::Containerd(image) => return Ok(Self::Containerd(StoreWriter::open(client, image).await?)),
            _ => return Ok(Self::Layout(LayoutWriter::create(target)?)),
        };
        if image.digest().is_some() {
            bail!("the destination {image} must be a tag; a digest is known only afterwards");
        }
        let mount_from = match source {
            ImageSource::Registry(from)
                if from.registry() == image.registry() && from.repository() != image.repository() =>
            {
                Some(from.repository().to_owned())
            }
            _ => None,
        };
        Ok(Self::Registry { client, image: image.clone(), mount_from })
    }

    /// Adds an index of our own, which belongs to a manifest that is there already.
    pub(super) async fn attach(
        &mut self,
        client: &Client,
        store: &Store,
        index: &CreatedIndex,
        uploads: usize,
    ) -> anyhow::Result<()> {
        match self {
            Self::Registry { client: to, image, .. } => {
                soci::push(to, image, &store.source(), index, uploads, &|_| {})
                    .await
                    .context("pushing the index of zstd layers")?;
            }
            Self::Layout(writer) => {
                copy_parts(client, store, index, writer).await?;
                writer.put(&index.bytes)?;
                let kind = index.index.kind.artifact_type();
                writer.list_artifact(kind, index.digest, index.bytes.len() as u64);
            }
            Self::Containerd(writer) => {
                writer.parts(client, store, index).await?;
                writer.document(&index.bytes, media_type::OCI_MANIFEST).await?;
                if let Some(subject) = index.index.kind.subject() {
                    writer.attach(subject.digest, index).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether the image comes from where it goes.
    pub(super) fn has(&self, source: &ImageSource) -> bool {
        matches!(self, Self::Containerd(writer) if writer.has(source))
    }

    /// Keeps an image that comes from where it goes until that is done.
    pub(super) async fn hold(&self, root: &Root) -> anyhow::Result<()> {
        match self {
            Self::Containerd(writer) if writer.has(&root.source) => writer.hold(root.document.digest).await,
            _ => Ok(()),
        }
    }

    /// Shows the image.
    pub(super) async fn finish(self, converted: &Converted) -> anyhow::Result<()> {
        match self {
            Self::Registry { client, image, .. } => {
                client
                    .push_manifest(&image, image.tag(), media_type::OCI_INDEX, &converted.bytes)
                    .await
                    .with_context(|| format!("pushing the image index to {image}"))?;
            }
            Self::Layout(mut writer) => {
                writer.put(&converted.bytes)?;
                writer.finish(media_type::OCI_INDEX, converted.digest, converted.bytes.len() as u64)?;
            }
            Self::Containerd(writer) => {
                writer.document(&converted.bytes, media_type::OCI_INDEX).await?;
                writer.name_image(&converted.bytes).await?;
                writer.finish().await?;
            }
        }
        Ok(())
    }
}

/// A manifest on its way, after its blobs.
struct Manifest {
    media_type: String,
    bytes: Bytes,
}

/// Copies all but the image index itself.
#[expect(clippy::too_many_arguments, reason = "what comes from where, and where it goes")]
pub(super) async fn transfer(
    client: &Client,
    root: &Root,
    store: &Store,
    converted: &Converted,
    made: &[&CreatedIndex],
    destination: &mut Destination<'_>,
    uploads: usize,
    progress: &mpsc::UnboundedSender<Progress>,
) -> anyhow::Result<()> {
    let mut manifests: Vec<Manifest> = Vec::new();
    for digest in &converted.kept {
        let (Document { media_type, bytes, .. }, _) = match client.manifest(&root.source, *digest).await {
            Err(error) if destination.has(&root.source) && error.is_not_found() => continue,
            read => read.with_context(|| format!("reading what the image index lists besides the images: {digest}"))?,
        };
        manifests.push(Manifest { media_type, bytes });
    }
    let new = converted.manifests.iter().map(|new| new.bytes.clone());
    manifests.extend(new.map(|bytes| Manifest { media_type: media_type::OCI_MANIFEST.to_owned(), bytes }));
    let blobs = blobs(&manifests)?;
    let indexes = made.iter().map(|index| index.bytes.clone());
    manifests.extend(indexes.map(|bytes| Manifest { media_type: media_type::OCI_MANIFEST.to_owned(), bytes }));
    let moved = Moved::new(&blobs, progress);
    match destination {
        Destination::Registry { client: to, image, mount_from } => {
            let (moved, to, image, from) = (&moved, *to, &*image, mount_from.as_deref());
            let jobs: Vec<_> = blobs
                .iter()
                .map(|blob| async move {
                    let source = client.blob(&root.source, blob.digest, blob.size).await?;
                    let sent = to.push_blob_from(image, blob.digest, &Upload::Source(source), from).await;
                    let sent = sent.with_context(|| format!("copying blob {} to {image}", blob.digest))?;
                    tracing::info!(digest = %blob.digest, mounted = sent == Sent::Mounted, "blob is there");
                    moved.add(blob.size.get());
                    anyhow::Ok(())
                })
                .collect();
            stream::iter(jobs).buffer_unordered(uploads.max(1)).try_collect::<Vec<()>>().await?;
            for index in made {
                soci::push_blobs(to, image, &store.source(), index, uploads, &|_| {})
                    .await
                    .context("pushing the index")?;
            }
            for manifest in &manifests {
                if made.iter().any(|index| index.bytes == manifest.bytes) {
                    continue;
                }
                let pushed = to.push_manifest(image, None, &manifest.media_type, &manifest.bytes).await;
                pushed.with_context(|| format!("pushing a manifest to {image}"))?;
            }
            for index in made {
                soci::push_index(to, image, index).await.context("pushing the index")?;
            }
        }
        Destination::Layout(writer) => {
            for blob in &blobs {
                let source = client.blob(&root.source, blob.digest, blob.size).await?;
                writer.copy(source.as_ref()).await?;
                moved.add(blob.size.get());
            }
            for index in made {
                copy_parts(client, store, index, writer).await?;
            }
            writer.put(soci::CONFIG)?;
            for manifest in &manifests {
                writer.put(&manifest.bytes)?;
            }
        }
        Destination::Containerd(writer) => {
            for blob in &blobs {
                writer.copy(client, &root.source, blob.digest, blob.size).await?;
                moved.add(blob.size.get());
            }
            for index in made {
                writer.parts(client, store, index).await?;
            }
            for manifest in &manifests {
                writer.document(&manifest.bytes, &manifest.media_type).await?;
            }
        }
    }
    Ok(())
}

/// Copies the zTOCs and load orders of an index from the store.
async fn copy_parts(
    client: &Client,
    store: &Store,
    index: &CreatedIndex,
    writer: &mut LayoutWriter,
) -> anyhow::Result<()> {
    let local = store.source();
    for (digest, size) in index.parts() {
        writer.copy(client.blob(&local, digest, size).await?.as_ref()).await?;
    }
    Ok(())
}

/// What the manifests need, each once. Layers that registries must not hold are left where they are.
fn blobs(manifests: &[Manifest]) -> anyhow::Result<Vec<Descriptor>> {
    let mut seen: HashSet<Digest> = HashSet::new();
    let mut all = Vec::new();
    for manifest in manifests {
        let ManifestDocument::Manifest(parsed) = parse_manifest(&manifest.bytes, Some(&manifest.media_type))
            .with_context(|| format!("manifest {}", Digest::of(&manifest.bytes)))?
        else {
            // Only artifacts may be indexes here; what they list is theirs.
            continue;
        };
        let foreign = |kind: &str| kind.contains("nondistributable") || kind.contains("foreign");
        let layers = parsed.layers.into_iter().filter(|layer| !foreign(&layer.media_type));
        all.extend(layers.chain([parsed.config]).filter(|blob| seen.insert(blob.digest)));
    }
    Ok(all)
}

/// How much is copied.
struct Moved {
    progress: mpsc::UnboundedSender<Progress>,
    done: Arc<AtomicU64>,
    total_bytes: u64,
}

impl Moved {
    fn new(blobs: &[Descriptor], progress: &mpsc::UnboundedSender<Progress>) -> Self {
        let total_bytes = blobs.iter().map(|blob| blob.size).map(BlobOffset::get).sum();
        Self { progress: progress.clone(), done: Arc::default(), total_bytes }
    }

    fn add(&self, bytes: u64) {
        let done_bytes = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Nobody may be there to hear it.
        let _ = self.progress.send(Progress { step: "copying".to_owned(), done_bytes, total_bytes: self.total_bytes });
    }
}

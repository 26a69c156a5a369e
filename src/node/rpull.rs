//! `rpull`: an image into containerd, with the labels that showing its layers lazily needs. For hosts whose clients do not
//! set them.
//!
//! The order is that of containerd's own clients: documents, then a snapshot for each layer from the bottom up, then the
//! image's name. What the snapshotter has needs no blob; of a layer that it leaves to containerd the blob is fetched and
//! unpacked. All belongs to a lease until the name is there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio::sync::mpsc;

use super::clients::Clients;
use super::create::with_progress;
use super::protocol::{LoginOrder, Progress, RegistryAccess};
use super::stored::references;
use crate::config::Config;
use crate::containerd::labels::Labels;
use crate::containerd::{Address, BoxError, Client, ContainerdError, LEASE_LIFE, NewContent, PreparedLayer, Target};
use crate::registry::document::parse_manifest;
use crate::registry::{self, Document, Image, ImageSource, LayerDescriptor, Platform};
use crate::snapshot::labels;
use crate::units::{BlobOffset, Digest, DigestHasher, u64_from_usize};

/// containerd keeps labels (key and value) of this length at most.
const MAX_LABEL_BYTES: usize = 4096;

/// What is to be pulled, and where to.
#[derive(Debug, Clone)]
pub struct RpullOptions {
    /// Image reference.
    pub image: String,
    /// Which containerd, and which of its namespaces.
    pub containerd: Address,
    /// containerd's name of the snapshotter.
    pub snapshotter: String,
    /// The index to use, in place of the one that would be found.
    pub index: Option<Digest>,
    /// Which image of a multi-platform index; default: this machine's.
    pub platform: Option<String>,
    /// How to talk to the registry.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// What was pulled.
#[derive(Debug, Clone, Serialize)]
pub struct Pulled {
    /// Name in containerd.
    pub image: String,
    /// What the name means: an index or a manifest.
    pub target: Digest,
    /// Manifest of the platform.
    pub manifest: Digest,
    /// Layers, lowest first.
    pub layers: Vec<PulledLayer>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// A layer of a pulled image.
#[derive(Debug, Clone, Serialize)]
pub struct PulledLayer {
    /// Its digest.
    pub digest: Digest,
    /// Its chain ID.
    pub chain_id: Digest,
    /// How it came.
    pub how: How,
    /// How long that took.
    pub elapsed_ms: u64,
}

/// How a layer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It was there.
    Present,
    /// The snapshotter has it.
    Snapshotter,
    /// containerd unpacked it.
    Unpacked,
}

/// Which containerd, by its socket, and which of its namespaces.
///
/// # Errors
/// For a namespace that containerd would not take, or a relative path.
pub fn address(socket: &Path, namespace: &str) -> Result<Address, ContainerdError> {
    Address::new(socket, namespace)
}

/// Pulls an image.
///
/// # Errors
/// What the registry, containerd or the snapshotter said; nothing is named in containerd then.
pub fn run(config: &Config, options: &RpullOptions, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Pulled> {
    with_progress(progress, |progress| pull(config.clone(), options.clone(), progress))
}

async fn pull(
    config: Config,
    options: RpullOptions,
    progress: mpsc::UnboundedSender<Progress>,
) -> anyhow::Result<Pulled> {
    let began = Instant::now();
    let source: ImageSource = options.image.parse()?;
    let ImageSource::Registry(name) = &source else { bail!("{source} is no image in a registry") };
    let platform = options.platform.as_deref().map_or_else(|| Ok(Platform::host()), str::parse)?;
    let clients = Clients::new(&config);
    let client = clients.get(&source, &options.access, options.login.clone());
    let lease = Client::connect(&options.containerd).await?.lease(LEASE_LIFE).await?;
    let root = client.root(&source).await.with_context(|| format!("resolving {source}"))?;
    let image = clients.resolve(&client, &root.source, &platform).await?;
    let manifest = image.manifest.clone().context("an image in a registry has a manifest")?;
    let pull = Pull {
        containerd: lease.client(),
        client: &client,
        image: &image,
        manifest: &manifest,
        options: &options,
        name: name.to_string(),
    };
    let chain = chain_ids(&image)?;
    pull.documents(&root.document, chain.last()).await?;
    let mut layers = Vec::new();
    let mut parent = String::new();
    for (at, (layer, chain_id)) in image.layers.iter().zip(&chain).enumerate() {
        let step = format!("layer {} of {}", at + 1, chain.len());
        // Nobody may be there to hear it.
        let _ = progress.send(Progress { step, done_bytes: 0, total_bytes: 0 });
        let layer_began = Instant::now();
        let how = pull.layer(at, layer, &parent, chain_id).await?;
        parent = chain_id.to_string();
        layers.push(PulledLayer { digest: layer.digest, chain_id: *chain_id, how, elapsed_ms: millis(layer_began) });
    }
    let target = Target {
        media_type: root.document.media_type.clone(),
        digest: root.document.digest,
        size: BlobOffset::new(u64_from_usize(root.document.bytes.len())),
    };
    let name = name.to_string();
    lease.client().put_image(&name, &target).await?;
    lease.release().await?;
    Ok(Pulled { image: name, target: target.digest, manifest: manifest.digest, layers, elapsed_ms: millis(began) })
}

/// One pull under way.
struct Pull<'a> {
    containerd: &'a Client,
    client: &'a Arc<registry::Client>,
    image: &'a Image,
    manifest: &'a Document,
    options: &'a RpullOptions,
    name: String,
}

impl Pull<'_> {
    /// Writes index, manifest and config, which keep each other and, by the config, the topmost snapshot.
    async fn documents(&self, root: &Document, top: Option<&Digest>) -> anyhow::Result<()> {
        let config = self.image.config.as_ref().context("an image in a registry has a config")?;
        let mut keeps = Labels::new();
        if let Some(top) = top {
            keeps.insert(format!("containerd.io/gc.ref.snapshot.{}", self.options.snapshotter), top.to_string());
        }
        self.containerd.write_bytes(&config.bytes, &keeps).await?;
        self.document(&self.manifest.bytes, &self.manifest.media_type).await?;
        if root.digest != self.manifest.digest {
            self.document(&root.bytes, &root.media_type).await?;
        }
        Ok(())
    }

    async fn document(&self, bytes: &Bytes, kind: &str) -> anyhow::Result<()> {
        let parsed = parse_manifest(bytes, Some(kind)).with_context(|| Digest::of(bytes).to_string())?;
        self.containerd.write_bytes(bytes, &references(&parsed)).await?;
        Ok(())
    }

    async fn layer(&self, at: usize, layer: &LayerDescriptor, parent: &str, chain_id: &Digest) -> anyhow::Result<How> {
        let (containerd, snapshotter) = (self.containerd, self.options.snapshotter.as_str());
        let name = chain_id.to_string();
        if containerd.has_snapshot(snapshotter, &name).await.with_context(|| self.no_snapshotter())? {
            return Ok(How::Present);
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let key = format!("extract-{} {chain_id}", since.as_nanos());
        let prepared = containerd.prepare_layer(snapshotter, &key, parent, &self.labels(at, layer, &name)).await?;
        let PreparedLayer::Unpack(mounts) = prepared else { return Ok(How::Snapshotter) };
        let unpacked = async {
            let target = Target { media_type: layer.media_type.clone(), digest: layer.digest, size: layer.size };
            self.fetch(layer).await?;
            let diff_id = containerd.apply(&target, mounts).await?;
            if layer.diff_id.is_some_and(|expected| expected != diff_id) {
                bail!("layer {}: it unpacks to {diff_id}, which is not what the image's config says", layer.digest);
            }
            Ok(containerd.commit_snapshot(snapshotter, &key, &name).await?)
        };
        if let Err(error) = unpacked.await {
            if let Err(left) = containerd.remove_snapshot(snapshotter, &key).await {
                tracing::warn!(key, error = %left, "an unfinished snapshot stays until containerd collects garbage");
            }
            return Err(error);
        }
        Ok(How::Unpacked)
    }

    fn no_snapshotter(&self) -> String {
        format!(
            "asking containerd for its snapshotter {0:?} (is it among the proxy_plugins of containerd's configuration? \
             docs/CONTAINERD.md says how)",
            self.options.snapshotter
        )
    }

    async fn fetch(&self, layer: &LayerDescriptor) -> anyhow::Result<()> {
        let (digest, size) = (layer.digest, layer.size);
        let open = |at: BlobOffset| async move {
            let source = self.client.blob(&self.image.source, digest, size).await?;
            Ok(self.client.whole(&source, at).map_err(BoxError::from).boxed())
        };
        self.containerd.write(NewContent { digest, size, labels: &Labels::new() }, open).await?;
        Ok(())
    }

    /// The labels by which the snapshotter knows the layer.
    fn labels(&self, at: usize, layer: &LayerDescriptor, chain_id: &str) -> Labels {
        let mut all = Labels::new();
        let mut put = |key: &str, value: String| drop(all.insert(key.to_owned(), value));
        put(labels::SNAPSHOT_REF, chain_id.to_owned());
        put(labels::IMAGE_REF, self.name.clone());
        put(labels::MANIFEST_DIGEST, self.manifest.digest.to_string());
        put(labels::LAYER_DIGEST, layer.digest.to_string());
        put(labels::LAYER_SIZE, layer.size.to_string());
        if let Some(index) = self.options.index {
            put(labels::INDEX_DIGEST, index.to_string());
        }
        let mut rest = String::new();
        for layer in self.image.layers.iter().skip(at) {
            let next = layer.digest.to_string();
            if labels::IMAGE_LAYERS.len() + rest.len() + 1 + next.len() > MAX_LABEL_BYTES {
                break;
            }
            if !rest.is_empty() {
                rest.push(',');
            }
            rest.push_str(&next);
        }
        put(labels::IMAGE_LAYERS, rest);
        all
    }
}

/// Chain IDs of an image's layers (image-spec, config.md, "Layer ChainID").
fn chain_ids(image: &Image) -> anyhow::Result<Vec<Digest>> {
    let mut chain: Vec<Digest> = Vec::new();
    for layer in &image.layers {
        let diff_id = layer.diff_id.with_context(|| format!("layer {} has no diffID in the config", layer.digest))?;
        chain.push(match chain.last() {
            None => diff_id,
            Some(below) => {
                let mut hasher = DigestHasher::new();
                hasher.update(format!("{below} {diff_id}").as_bytes());
                hasher.finish()
            }
        });
    }
    Ok(chain)
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

//! The SOCI index of an image: zTOCs of its layers, built while they stream by, and a v1 index of them. Needs no
//! daemon, and stores nothing but the artifacts.

use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::clients::Clients;
use super::paths::Paths;
use super::protocol::{LoginOrder, Progress, RegistryAccess};
use crate::config::Config;
use crate::fill::{IngestConfig, ingest};
use crate::registry::{Client, Image, ImageSource, LayerCompression, LayerDescriptor, Platform};
use crate::soci::{self, LayerZtoc, Store};
use crate::units::{BlobOffset, Digest};

/// Layers that are indexed at the same time: inflating is what takes the time, so one for each CPU, and few enough that
/// their pieces in flight stay small in memory.
const MAX_PARALLEL_LAYERS: usize = 4;
/// Parallel requests for each layer, and their length: 2 x 4 MiB hide a round trip of 60 ms at 1 Gbit/s.
const LAYER_REQUESTS: usize = 2;
const PIECE_BYTES: u64 = 4 << 20;

/// What to build.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Image as the user named it; local paths are absolute.
    pub image: String,
    /// Push the index beside the image.
    pub push: bool,
    /// Span size in bytes.
    pub span_size_bytes: u64,
    /// Layers with smaller blobs get no zTOC.
    pub min_layer_bytes: u64,
    /// `OS/ARCH[/VARIANT]`, or this machine's.
    pub platform: Option<String>,
    /// How to talk to the registry.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// What became of a layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CreatedLayer {
    /// Blob digest.
    pub digest: Digest,
    /// Its zTOC.
    pub ztoc: Option<Digest>,
    /// Why there is none; empty when there is one.
    pub reason: String,
}

/// What was built.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Created {
    /// The index manifest's digest.
    pub index: Digest,
    /// Layers, bottom first.
    pub layers: Vec<CreatedLayer>,
    /// Whether it was pushed.
    pub pushed: bool,
}

/// Builds the index, and pushes it when asked to.
///
/// # Errors
/// When the image cannot be had, no layer can be indexed, or the registry refuses the index.
pub fn run(
    paths: &Paths,
    config: &Config,
    options: &CreateOptions,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Created> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (sender, mut steps) = mpsc::unbounded_channel();
    runtime.block_on(async {
        let work = create(paths, config, options, sender);
        tokio::pin!(work);
        loop {
            tokio::select! {
                Some(step) = steps.recv() => progress(step),
                done = &mut work => return done,
            }
        }
    })
}

async fn create(
    paths: &Paths,
    config: &Config,
    options: &CreateOptions,
    progress: mpsc::UnboundedSender<Progress>,
) -> anyhow::Result<Created> {
    let source: ImageSource = options.image.parse()?;
    if options.push && !matches!(source, ImageSource::Registry(_)) {
        bail!("only the index of an image in a registry can be pushed; {source} is none");
    }
    let platform = match &options.platform {
        Some(text) => text.parse()?,
        None => Platform::host(),
    };
    let store = Store::open(paths.root()).context("opening the local index store")?;
    let clients = Clients::new(config);
    let client = clients.get(&source, &options.access, options.login.clone());
    let image = clients.resolve(&client, &source, &platform).await?;
    let total_bytes = image.layers.iter().map(|l| l.size.get()).sum();
    let shown = Arc::new(Shown { progress, total_bytes, done: std::sync::Mutex::new(vec![0; image.layers.len()]) });
    let parallel = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_PARALLEL_LAYERS);
    let jobs =
        image.layers.iter().enumerate().map(|(i, layer)| index_layer(&client, &image, layer, i, options, &shown));
    // Collected first: the stream's type must not borrow the closure.
    let jobs: Vec<_> = jobs.collect();
    let ztocs: Vec<Result<Vec<u8>, String>> = stream::iter(jobs).buffered(parallel).try_collect().await?;
    let built = image.layers.iter().zip(&ztocs).filter_map(|(layer, ztoc)| {
        let ztoc = ztoc.as_ref().ok()?;
        Some(LayerZtoc { layer, ztoc, span_size_bytes: options.span_size_bytes })
    });
    let built: Vec<LayerZtoc<'_>> = built.collect();
    let created = soci::create(&store, &image, &built, &IngestConfig::default().build_tool)?;
    if let (true, ImageSource::Registry(reference)) = (options.push, &image.source) {
        soci::push(&client, reference, &store, &created).await.context("pushing the index")?;
    }
    let layers = image.layers.iter().zip(ztocs).map(|(layer, ztoc)| CreatedLayer {
        digest: layer.digest,
        ztoc: ztoc.as_ref().ok().map(|bytes| Digest::of(bytes)),
        reason: ztoc.err().unwrap_or_default(),
    });
    Ok(Created { index: created.digest, layers: layers.collect(), pushed: options.push })
}

/// Bytes done, over all layers that are worked on side by side.
struct Shown {
    progress: mpsc::UnboundedSender<Progress>,
    total_bytes: u64,
    done: std::sync::Mutex<Vec<u64>>,
}

impl Shown {
    fn at(&self, layer: usize, bytes: u64) {
        let mut done = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(slot) = done.get_mut(layer) {
            *slot = bytes;
        }
        let done_bytes = done.iter().sum();
        // Nobody may be there to hear it.
        let _ = self.progress.send(Progress { step: "indexing".to_owned(), done_bytes, total_bytes: self.total_bytes });
    }
}

/// The zTOC of a layer, or why it gets none.
async fn index_layer(
    client: &Client,
    image: &Image,
    layer: &LayerDescriptor,
    number: usize,
    options: &CreateOptions,
    shown: &Arc<Shown>,
) -> anyhow::Result<Result<Vec<u8>, String>> {
    if layer.size.get() < options.min_layer_bytes {
        return Ok(Err(format!("size {} is less than min-layer-size {}", layer.size, options.min_layer_bytes)));
    }
    if layer.compression() == LayerCompression::Zstd {
        return Ok(Err("compressed with zstd, which zTOCs cannot index".to_owned()));
    }
    let source = client.blob(&image.source, layer.digest, layer.size).await?;
    let config = IngestConfig {
        requests: LAYER_REQUESTS,
        piece_bytes: PIECE_BYTES,
        span_size_bytes: options.span_size_bytes,
        ..IngestConfig::default()
    };
    let hears = Arc::clone(shown);
    let progress = Box::new(move |at: BlobOffset| hears.at(number, at.get()));
    Ok(Ok(ingest(None, source, layer.diff_id, config, progress).await?.ztoc.into_bytes()?))
}

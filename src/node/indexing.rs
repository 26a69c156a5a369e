//! zTOCs of an image's layers, built while they stream by: for `create` and `convert`. Needs no daemon, and stores nothing
//! but the artifacts.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::progress::Shown;
use super::protocol::Progress;
use super::{one_line, program};
use crate::fill::{IngestConfig, IngestError, Ingested, ingest};
use crate::registry::{Client, Image, LayerCompression, LayerDescriptor, Platform, RegistryError, Root};
use crate::soci::build::BuildError;
use crate::soci::load_order::{self, SpanRange};
use crate::soci::toc::{self, FileSpans};
use crate::soci::{IndexedLayer, PrefetchEntry, RecordedZtoc, SociError, Store, ZtocEntry};
use crate::spans::Compression;
use crate::spans::tar::TarError;
use crate::units::{BlobOffset, Digest};

/// Layers that are indexed at the same time: inflating is what takes the time, so one for each CPU, and few enough that
/// their pieces in flight stay small in memory.
const MAX_PARALLEL_LAYERS: usize = 4;
/// Parallel requests for each layer, and their length: 2 x 2 MiB hide a round trip of 30 ms at 1 Gbit/s.
const LAYER_REQUESTS: usize = 2;
const PIECE_BYTES: u64 = 2 << 20;

/// How zTOCs are built.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Span size in bytes.
    pub span_size_bytes: u64,
    /// Layers with smaller blobs get no zTOC.
    pub min_layer_bytes: u64,
    /// Build zTOCs anew that the store has.
    pub force: bool,
    /// Note which layers have no extended attributes.
    pub optimize_xattrs: bool,
    /// Files whose spans are fetched first.
    pub prefetch_files: Vec<String>,
    /// Fetch first what the image's command needs to be loaded, too.
    pub prefetch_program: bool,
    /// For which machines.
    pub platforms: PlatformChoice,
}

/// Which images of an index.
#[derive(Debug, Clone, Default)]
pub struct PlatformChoice {
    /// `OS/ARCH[/VARIANT]`; none: this machine's, or the only one that there is.
    pub named: Vec<String>,
    /// All that there are.
    pub all: bool,
}

/// What became of a layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CreatedLayer {
    /// Blob digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its zTOC.
    pub ztoc: Option<Digest>,
    /// Whether the store had it.
    pub reused: bool,
    /// Why there is none; empty when there is one.
    pub reason: String,
}

/// A load order that was made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CreatedPrefetch {
    /// The document.
    pub digest: Digest,
    /// Its layer.
    pub layer: Digest,
    /// Its spans.
    pub spans: Vec<SpanRange>,
}

/// Layers of one image.
#[derive(Debug)]
pub(super) struct Indexed {
    /// Those with a zTOC, lowest first.
    pub parts: Vec<IndexedLayer>,
    /// What is told of all.
    pub layers: Vec<CreatedLayer>,
    /// Load orders.
    pub prefetch: Vec<CreatedPrefetch>,
    /// Files that were to be fetched first and that no indexed layer has.
    pub missing_files: Vec<String>,
}

/// A layer that was looked at.
#[derive(Clone)]
enum Layer {
    Has { ztoc: RecordedZtoc, reused: bool, needs_xattrs: bool, located: Vec<FileSpans> },
    Skipped { reason: String },
}

/// What several images share in one run.
pub(super) struct Indexer<'a> {
    client: &'a Client,
    store: &'a Store,
    options: &'a IndexOptions,
    names: Vec<String>,
    progress: mpsc::UnboundedSender<Progress>,
    done: HashMap<Digest, Layer>,
}

impl<'a> Indexer<'a> {
    pub(super) fn new(
        client: &'a Client,
        store: &'a Store,
        options: &'a IndexOptions,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> Self {
        let names = options.prefetch_files.iter().map(|path| load_order::tar_name(path)).collect();
        Self { client, store, options, names, progress, done: HashMap::new() }
    }

    /// Sees to it that the store has the zTOCs of the image's layers.
    pub(super) async fn index(&mut self, image: &Image) -> anyhow::Result<Indexed> {
        let mut missing: Vec<&LayerDescriptor> =
            image.layers.iter().filter(|layer| !self.done.contains_key(&layer.digest)).collect();
        // The largest first: a large one that begins last would keep the other CPUs waiting. The same layer may come twice.
        missing.sort_by_key(|layer| (std::cmp::Reverse(layer.size), layer.digest));
        missing.dedup_by_key(|layer| layer.digest);
        let total_bytes = missing.iter().map(|layer| layer.size.get()).sum();
        let shown = Shown::new("indexing", total_bytes, self.progress.clone());
        let parallel = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_PARALLEL_LAYERS);
        let this = &*self;
        // Collected first: the stream's type must not borrow the closure.
        let jobs: Vec<_> = missing
            .into_iter()
            .map(|layer| {
                let shown = Arc::clone(&shown);
                async move { anyhow::Ok((layer.digest, this.layer(image, layer, &shown).await?)) }
            })
            .collect();
        let looked_at: Vec<_> = stream::iter(jobs).buffer_unordered(parallel).try_collect().await?;
        self.done.extend(looked_at);
        let program = self.program(image).await;
        self.report(image, program)
    }

    /// Where the image's program lies. That it cannot be found out costs nothing but time at the first start.
    async fn program(&self, image: &Image) -> HashMap<Digest, Vec<FileSpans>> {
        if !self.options.prefetch_program {
            return HashMap::new();
        }
        let ztoc = |layer: &LayerDescriptor| match self.done.get(&layer.digest) {
            Some(Layer::Has { ztoc, .. }) => Some((layer.digest, ztoc.digest)),
            _ => None,
        };
        let ztocs = image.layers.iter().filter_map(ztoc).collect();
        let found = program::spans(self.client, self.store, image, &ztocs).await;
        let missed = match &found {
            Ok(found) if found.is_empty() => Some("its command names no program that an indexed layer has".to_owned()),
            Ok(_) => None,
            Err(error) => Some(one_line(error)),
        };
        if let Some(reason) = missed {
            tracing::warn!(image = %image.source, reason, "what its program needs is not prefetched");
        }
        found.unwrap_or_default()
    }

    fn report(&self, image: &Image, program: HashMap<Digest, Vec<FileSpans>>) -> anyhow::Result<Indexed> {
        let mut indexed =
            Indexed { parts: Vec::new(), layers: Vec::new(), prefetch: Vec::new(), missing_files: Vec::new() };
        let (orders, missing_files) = self.load_orders(image, program);
        indexed.missing_files = missing_files;
        for layer in &image.layers {
            let mut told = CreatedLayer {
                digest: layer.digest,
                media_type: layer.media_type.clone(),
                ztoc: None,
                reused: false,
                reason: String::new(),
            };
            match self.done.get(&layer.digest) {
                Some(Layer::Has { ztoc, reused, needs_xattrs, .. }) => {
                    (told.ztoc, told.reused) = (Some(ztoc.digest), *reused);
                    let prefetch = match orders.get(&layer.digest) {
                        None => None,
                        Some(spans) => {
                            let bytes = load_order::document(spans)?;
                            let digest = self.store.put(&bytes)?;
                            let made = CreatedPrefetch { digest, layer: layer.digest, spans: spans.clone() };
                            if !indexed.prefetch.iter().any(|old| old.layer == layer.digest) {
                                indexed.prefetch.push(made);
                            }
                            let size = BlobOffset::new(bytes.len() as u64);
                            Some(PrefetchEntry { digest, size, layer_digest: layer.digest })
                        }
                    };
                    indexed.parts.push(IndexedLayer {
                        ztoc: ZtocEntry {
                            digest: ztoc.digest,
                            size: ztoc.size,
                            layer_digest: layer.digest,
                            layer_media_type: layer.media_type.clone(),
                            span_size_bytes: ztoc.span_size_bytes,
                            disable_xattrs: self.options.optimize_xattrs && !needs_xattrs,
                        },
                        prefetch,
                        own: layer.compression() == LayerCompression::Zstd,
                    });
                }
                Some(Layer::Skipped { reason }) => told.reason.clone_from(reason),
                None => {}
            }
            indexed.layers.push(told);
        }
        Ok(indexed)
    }

    /// Spans by layer, of `files` and of what was asked for; and what of that was not found. The topmost layer that has a file
    /// counts.
    fn load_orders(
        &self,
        image: &Image,
        mut files: HashMap<Digest, Vec<FileSpans>>,
    ) -> (HashMap<Digest, Vec<SpanRange>>, Vec<String>) {
        let mut missing = Vec::new();
        for (name, path) in self.options.prefetch_files.iter().enumerate() {
            let found = image.layers.iter().rev().find_map(|layer| match self.done.get(&layer.digest) {
                Some(Layer::Has { located, .. }) => {
                    located.iter().find(|file| file.name == name).map(|file| (layer.digest, *file))
                }
                _ => None,
            });
            match found {
                Some((layer, file)) => files.entry(layer).or_default().push(file),
                None => missing.push(path.clone()),
            }
        }
        (files.into_iter().map(|(layer, files)| (layer, load_order::merged(files))).collect(), missing)
    }

    async fn layer(&self, image: &Image, layer: &LayerDescriptor, shown: &Arc<Shown>) -> anyhow::Result<Layer> {
        if let Some(reason) = self.reason_to_skip(layer) {
            shown.at(layer.digest, layer.size.get());
            return Ok(Layer::Skipped { reason });
        }
        if !self.options.force
            && let Some(known) = self.reused(layer).await?
        {
            shown.at(layer.digest, layer.size.get());
            return Ok(known);
        }
        let source = self.client.blob(&image.source, layer.digest, layer.size).await?;
        let config = IngestConfig {
            requests: LAYER_REQUESTS,
            piece_bytes: PIECE_BYTES,
            span_size_bytes: self.options.span_size_bytes,
            spool_dir: Some(self.store.scratch_dir()),
            locate: self.names.clone(),
            ..IngestConfig::default()
        };
        let (hears, digest) = (Arc::clone(shown), layer.digest);
        let progress = Box::new(move |at: BlobOffset| hears.at(digest, at.get()));
        let Ingested { mut ztoc, compression, needs_xattrs, located, .. } =
            match ingest(None, source, layer.diff_id, config, progress).await {
                Ok(built) => built,
                Err(IngestError::Build { source, .. }) if is_unsupported(&source) => {
                    shown.at(layer.digest, layer.size.get());
                    return Ok(Layer::Skipped { reason: format!("cannot be indexed: {}", one_line(&source.into())) });
                }
                Err(error) => return Err(error.into()),
            };
        if !is_as_said(layer, compression) {
            shown.at(layer.digest, layer.size.get());
            let reason = format!("is compressed otherwise than its media type says: {}", compression.name());
            return Ok(Layer::Skipped { reason });
        }
        let span_size_bytes = Some(self.options.span_size_bytes);
        let ztoc = self
            .store
            .blocking(move |store| {
                let (digest_of_ztoc, size) = store.put_written(|out| ztoc.write_to(out))?;
                let recorded = RecordedZtoc { digest: digest_of_ztoc, size, span_size_bytes };
                store.record_ztoc(&digest, &recorded)?;
                Ok(recorded)
            })
            .await?;
        Ok(Layer::Has { ztoc, reused: false, needs_xattrs, located })
    }

    /// SOCI's words.
    fn reason_to_skip(&self, layer: &LayerDescriptor) -> Option<String> {
        let least = self.options.min_layer_bytes;
        if layer.size.get() < least {
            return Some(format!("size {} is less than min-layer-size {least}", layer.size));
        }
        match layer.compression() {
            LayerCompression::None | LayerCompression::Gzip | LayerCompression::Zstd => None,
            LayerCompression::Other => Some("is no layer of a kind that can be indexed".to_owned()),
        }
    }

    /// The zTOC that the store has of this layer, with this span size.
    async fn reused(&self, layer: &LayerDescriptor) -> anyhow::Result<Option<Layer>> {
        let (digest, span_size_bytes) = (layer.digest, self.options.span_size_bytes);
        let names = self.names.clone();
        let found = self.store.blocking(move |store| {
            let Some(ztoc) = store.reuse_ztoc(&digest, span_size_bytes)? else { return Ok(None) };
            let bytes = store.read(&ztoc.digest)?;
            // A zTOC that cannot be read is built anew.
            Ok(toc::facts(&bytes, &names).ok().map(|facts| (ztoc, facts)))
        });
        let found = match found.await {
            // It was removed for that, and is built anew.
            Err(SociError::Corrupt { .. }) => None,
            found => found?,
        };
        let found = found.filter(|(_, (compression, ..))| is_as_said(layer, *compression));
        Ok(found.map(|(ztoc, (_, needs_xattrs, located))| Layer::Has { ztoc, reused: true, needs_xattrs, located }))
    }
}

/// Whether the layer's media type says zstd just when it is: the zTOC of a zstd layer must not come into SOCI's index.
fn is_as_said(layer: &LayerDescriptor, compression: Compression) -> bool {
    (layer.compression() == LayerCompression::Zstd) == (compression == Compression::Zstd)
}

/// What a builder meets in good layers that a zTOC cannot describe.
fn is_unsupported(error: &BuildError) -> bool {
    matches!(
        error,
        BuildError::UnsupportedCompression { .. }
            | BuildError::SpanSize
            | BuildError::Tar(TarError::Unsupported { .. } | TarError::TooLarge { .. })
    )
}

/// Images of the platforms that are asked for, resolved by the root's digest.
pub(super) async fn images(client: &Client, root: &Root, choice: &PlatformChoice) -> anyhow::Result<Vec<Image>> {
    let offered = client.platforms(root).await.with_context(|| format!("reading {}", root.source))?;
    let mut wanted: Vec<Platform> = Vec::new();
    if choice.all {
        wanted.clone_from(&offered);
    } else {
        for text in &choice.named {
            wanted.push(text.parse()?);
        }
    }
    if wanted.is_empty() {
        // The only platform that there is serves on any machine.
        let only = offered.first().filter(|_| offered.len() == 1 || root.is_single());
        wanted.push(only.cloned().unwrap_or_else(Platform::host));
    }
    let mut images: Vec<Image> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for platform in wanted.into_iter().filter(|platform| seen.insert(platform.clone())) {
        let image = client.resolve(&root.source, &platform).await?;
        // What merely runs on a machine is not the image for it: its index would be listed for the wrong one.
        if !offered.contains(&platform) && image.platform.as_ref().is_some_and(|made_for| *made_for != platform) {
            let offered = offered.iter().map(ToString::to_string).collect();
            let (what, wanted) = (root.source.to_string(), platform.to_string());
            return Err(RegistryError::NoPlatform { what, wanted, offered }.into());
        }
        images.push(Image { platform: Some(platform), ..image });
    }
    Ok(images)
}

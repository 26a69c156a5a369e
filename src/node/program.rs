//! Where in its layers an image's program lies: what `create --prefetch-program` has fetched first. A wish, not a duty: what
//! cannot be had, takes too long or too much memory is left out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::layer_reader::{BlobBytes, LayerReader, open};
use super::one_line;
use crate::program::{Command, Contents, Stack, needed};
use crate::registry::{BackoffConfig, BlobSource, Client, Image, RegistryError, retry};
use crate::soci::toc::FileSpans;
use crate::soci::{SociError, Store};
use crate::spans::SpanTable;
use crate::tree::Tree;
use crate::units::{BlobRange, Digest, LayerRange, SpanId, u64_from_usize, usize_from_u64};

/// Bytes of spans that are kept in memory while programs are looked at: sources of modules are read here and there.
const KEPT_BYTES: u64 = 256 << 20;
/// Spans of each layer that are kept at least: headers and strings lie at a file's beginning, what points to them at its end.
const KEPT_SPANS: usize = 2;
/// A layer is not looked into where spans are longer, inflated or not: each has to be fetched whole, and held in memory.
const MAX_SPAN_BYTES: u64 = 64 << 20;
/// Layers of which spans are kept at the same time.
const KEPT_LAYERS: usize = 16;
/// Most bytes of zTOCs that are held at once: some hundred GB of layers. Those above go first.
const MAX_ZTOC_BYTES: u64 = 512 << 20;
/// Most inodes of all layers together.
const MAX_INODES: u32 = 1 << 23;
/// So long is looked, over slow links and at images that want to be looked at for ever.
const LIMIT: Duration = Duration::from_secs(120);

/// The spans of what the image's command needs to be loaded, by layer. `ztocs` are those of its layers, as far as they have one.
/// What could not be looked into is in the log.
///
/// # Errors
/// Only what is wrong with this process.
pub(super) async fn spans(
    client: &Client,
    store: &Store,
    image: &Image,
    ztocs: &HashMap<Digest, Digest>,
) -> anyhow::Result<HashMap<Digest, Vec<FileSpans>>> {
    let command = image.config.as_ref().map(|config| Command::of_config(&config.bytes)).unwrap_or_default();
    if command.words.is_empty() {
        return Ok(HashMap::new());
    }
    let patience = Patience { until: Instant::now() + LIMIT, gone: Arc::default() };
    // Whoever waits for this may be gone before the thread below is done.
    let _gone = Gone(Arc::clone(&patience.gone));
    let mut left = Left { ztoc_bytes: MAX_ZTOC_BYTES, inodes: MAX_INODES };
    let (mut opened, mut trouble, mut seen) = (Vec::new(), None, HashSet::new());
    // From the top: what is above decides, and of a layer that is there twice the upper one.
    for layer in image.layers.iter().rev() {
        let mut found = None;
        if let Some(ztoc) = ztocs.get(&layer.digest).filter(|_| seen.insert(layer.digest)) {
            match open_layer(*ztoc, store, &mut left).await {
                Ok((bytes, table, tree)) => {
                    let source = client.blob(&image.source, layer.digest, layer.size).await?;
                    let backoff = client.config().backoff;
                    let blob = Remote { source, backoff, handle: Handle::current(), patience: patience.clone() };
                    let keeps = kept_spans(&table, image.layers.len());
                    found = Some((LayerReader::new(blob, bytes, table, keeps), tree));
                }
                Err(error) => {
                    trouble.get_or_insert_with(|| format!("layer {}: {}", layer.digest.short(), one_line(&error)));
                }
            }
        }
        opened.push(found);
    }
    opened.reverse();
    let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let found = tokio::task::spawn_blocking(move || {
        let (readers, trees): (Vec<_>, Vec<_>) = opened.into_iter().map(Option::unzip).unzip();
        let mut layers_read = Layers { readers, kept: VecDeque::new(), trouble };
        let mut found: HashMap<Digest, Vec<FileSpans>> = HashMap::new();
        let stack = Stack::new(trees);
        let all = needed(&stack, &command, &mut layers_read);
        if stack.is_tired() {
            layers_read.trouble.get_or_insert_with(|| "it names more files than are looked up".to_owned());
        }
        for wanted in all {
            let Some((layer, reader)) = layers.get(wanted.layer).zip(layers_read.of(wanted.layer)) else { continue };
            let spans = reader.table().covering(wanted.range);
            if let Some(last) = spans.end.checked_sub(1).filter(|last| *last >= spans.start) {
                found.entry(*layer).or_default().push(FileSpans { name: 0, first: spans.start, last });
            }
        }
        (found, layers_read.trouble)
    });
    let (found, trouble) = found.await?;
    if let Some(reason) = trouble {
        tracing::warn!(image = %image.source, reason, "part of what its program needs is not prefetched");
    }
    Ok(found)
}

/// How many spans of a layer, one of so many, are kept in memory.
fn kept_spans(table: &SpanTable, layers: usize) -> usize {
    let longest = table.iter().map(|(_, span)| span.layer.len_bytes()).max().unwrap_or(1);
    usize_from_u64(share_bytes(layers) / longest.max(1)).unwrap_or(0).max(KEPT_SPANS)
}

/// What one of so many layers may keep in memory.
fn share_bytes(layers: usize) -> u64 {
    KEPT_BYTES / u64_from_usize(layers.clamp(1, KEPT_LAYERS))
}

/// What may still be held of layers.
struct Left {
    ztoc_bytes: u64,
    inodes: u32,
}

/// A layer's zTOC, if there is room for it, and what it says.
async fn open_layer(ztoc: Digest, store: &Store, left: &mut Left) -> anyhow::Result<(Vec<u8>, SpanTable, Tree)> {
    let path = store.blob_path(&ztoc);
    let len_bytes = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
    let rest = left.ztoc_bytes.checked_sub(len_bytes);
    left.ztoc_bytes = rest.context("its zTOC, with those of the layers above, is too long to be held in memory")?;
    let read = move |store: &Store| -> Result<_, SociError> { store.read(&ztoc) };
    let bytes = store.blocking(read).await?;
    let max_inodes = left.inodes;
    let opening = tokio::task::spawn_blocking(move || {
        let (table, tree) = open(&bytes, max_inodes)?;
        anyhow::Ok((bytes, table, tree))
    });
    let (bytes, table, tree) = opening.await??;
    left.inodes = left.inodes.saturating_sub(u32::try_from(tree.inode_count()).unwrap_or(u32::MAX));
    Ok((bytes, table, tree))
}

/// Until when bytes are waited for, and whether anybody still wants to know.
#[derive(Clone)]
struct Patience {
    until: Instant,
    gone: Arc<AtomicBool>,
}

impl Patience {
    fn is_over(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || Instant::now() >= self.until
    }
}

/// Says so when it is dropped.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The layers of an image, the lowest first.
struct Layers {
    /// Of which spans are kept, the one that was read last behind.
    kept: VecDeque<usize>,
    readers: Vec<Option<LayerReader<Remote, Vec<u8>>>>,
    /// The first reason why something could not be looked into.
    trouble: Option<String>,
}

impl Layers {
    fn of(&mut self, layer: usize) -> Option<&mut LayerReader<Remote, Vec<u8>>> {
        self.readers.get_mut(layer)?.as_mut()
    }

    fn try_read(&mut self, layer: usize, range: LayerRange) -> anyhow::Result<Vec<u8>> {
        let most = share_bytes(self.readers.len()) / u64_from_usize(KEPT_SPANS);
        let reader = self.of(layer).context("no such layer")?;
        let table = reader.table();
        let spans = table.covering(range).filter_map(|id| table.get(SpanId(id)));
        let longest = spans.map(|span| span.layer.len_bytes().max(span.blob.len_bytes())).max();
        if longest.is_some_and(|longest| longest > most.min(MAX_SPAN_BYTES)) {
            bail!("a layer has spans that are too long to be looked into");
        }
        let mut bytes = Vec::new();
        reader.copy(range, &mut bytes)?;
        self.kept.retain(|other| *other != layer);
        self.kept.push_back(layer);
        if self.kept.len() > KEPT_LAYERS
            && let Some(reader) = self.kept.pop_front().and_then(|other| self.of(other))
        {
            reader.forget();
        }
        Ok(bytes)
    }
}

impl Contents for Layers {
    fn read(&mut self, layer: usize, range: LayerRange) -> io::Result<Vec<u8>> {
        let read = self.try_read(layer, range);
        read.map_err(|error| {
            let reason = one_line(&error);
            self.trouble.get_or_insert_with(|| reason.clone());
            io::Error::other(reason)
        })
    }
}

/// A blob in a registry, or wherever the image is.
struct Remote {
    source: Arc<dyn BlobSource>,
    backoff: BackoffConfig,
    handle: Handle,
    patience: Patience,
}

impl BlobBytes for Remote {
    fn read(&mut self, range: BlobRange) -> anyhow::Result<Vec<u8>> {
        let late = || format!("what came within {} s is looked into, no more", LIMIT.as_secs());
        if self.patience.is_over() {
            bail!(late());
        }
        let attempts = retry(self.backoff, || fetch(self.source.as_ref(), range));
        let limited = async { tokio::time::timeout_at(self.patience.until, attempts).await };
        let bytes = self.handle.block_on(limited).with_context(late)??;
        if bytes.len() as u64 != range.len_bytes() {
            bail!("{}: {} of {} bytes came", self.source.describe(), bytes.len(), range.len_bytes());
        }
        Ok(bytes)
    }
}

/// One attempt. A server that ignores ranges sends all from the beginning.
async fn fetch(source: &dyn BlobSource, range: BlobRange) -> Result<Vec<u8>, RegistryError> {
    let mut stream = source.open(range).await?;
    let mut skip = range.start().get().saturating_sub(stream.starts_at.get());
    let want = usize_from_u64(range.len_bytes()).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        let piece = piece?;
        let from = usize_from_u64(skip).unwrap_or(usize::MAX).min(piece.len());
        skip -= from as u64;
        bytes.extend_from_slice(piece.get(from..).unwrap_or_default());
        if bytes.len() >= want {
            bytes.truncate(want);
            break;
        }
    }
    Ok(bytes)
}

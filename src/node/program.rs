//! Where in its layers an image's program lies: what `create --prefetch-program` has fetched first.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use tokio::runtime::Handle;

use super::layer_reader::{BlobBytes, LayerReader, open};
use crate::program::{Command, Contents, Stack, needed};
use crate::registry::{BackoffConfig, BlobSource, Client, Image, RegistryError, retry};
use crate::soci::toc::FileSpans;
use crate::soci::{SociError, Store};
use crate::units::{BlobRange, Digest, LayerRange, SpanId, usize_from_u64};

/// Spans of each layer that are kept in memory while programs are looked at: headers and strings lie at a file's beginning,
/// what points to them at its end.
const KEPT_SPANS: usize = 2;
/// A layer of longer ones is not looked into: it has to be fetched whole for that, and held in memory.
const MAX_SPAN_BYTES: u64 = 64 << 20;

/// The spans of what the image's command needs to be loaded, by layer. `ztocs` are those of its layers, as far as they have one.
///
/// # Errors
/// When bytes of the layers, or zTOCs, cannot be had.
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
    let mut readers = Vec::new();
    let mut trees = Vec::new();
    for layer in &image.layers {
        let Some(ztoc) = ztocs.get(&layer.digest).copied() else {
            readers.push(None);
            trees.push(None);
            continue;
        };
        let read = move |store: &Store| -> Result<_, SociError> { store.read(&ztoc) };
        let bytes = store.blocking(read).await?;
        let (table, tree) = open(&bytes).with_context(|| ztoc.to_string())?;
        let source = client.blob(&image.source, layer.digest, layer.size).await?;
        let blob = Remote { source, backoff: client.config().backoff, handle: Handle::current() };
        readers.push(Some(LayerReader::new(blob, bytes, table, KEPT_SPANS)));
        trees.push(Some(tree));
    }
    let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let found = tokio::task::spawn_blocking(move || {
        let mut layers_read = Layers { readers };
        let wanted = needed(&Stack::new(trees), &command, &mut layers_read)?;
        let mut found: HashMap<Digest, Vec<FileSpans>> = HashMap::new();
        for wanted in wanted {
            let Some((layer, reader)) = layers.get(wanted.layer).zip(layers_read.of(wanted.layer)) else { continue };
            let spans = reader.table().covering(wanted.range);
            if let Some(last) = spans.end.checked_sub(1).filter(|last| *last >= spans.start) {
                found.entry(*layer).or_default().push(FileSpans { name: 0, first: spans.start, last });
            }
        }
        io::Result::Ok(found)
    });
    Ok(found.await??)
}

/// The layers of an image, the lowest first.
struct Layers {
    readers: Vec<Option<LayerReader<Remote, Vec<u8>>>>,
}

impl Layers {
    fn of(&mut self, layer: usize) -> Option<&mut LayerReader<Remote, Vec<u8>>> {
        self.readers.get_mut(layer)?.as_mut()
    }
}

impl Contents for Layers {
    fn read(&mut self, layer: usize, range: LayerRange) -> io::Result<Vec<u8>> {
        let reader = self.of(layer).ok_or(io::ErrorKind::NotFound)?;
        let table = reader.table();
        let longest =
            table.covering(range).filter_map(|id| table.get(SpanId(id))).map(|span| span.layer.len_bytes()).max();
        if longest.is_some_and(|longest| longest > MAX_SPAN_BYTES) {
            return Err(io::Error::other("its layer has spans that are too long to be looked into"));
        }
        let mut bytes = Vec::new();
        reader.copy(range, &mut bytes).map_err(|error| io::Error::other(super::one_line(&error)))?;
        Ok(bytes)
    }
}

/// A blob in a registry, or wherever the image is.
struct Remote {
    source: Arc<dyn BlobSource>,
    backoff: BackoffConfig,
    handle: Handle,
}

impl BlobBytes for Remote {
    fn read(&mut self, range: BlobRange) -> anyhow::Result<Vec<u8>> {
        let bytes = self.handle.block_on(retry(self.backoff, || fetch(self.source.as_ref(), range)))?;
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

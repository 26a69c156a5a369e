//! From the zTOCs of an image's layers to what their devices show: checked spans, EROFS metadata on disk, extent tables.
//!
//! Works on a whole chain, because a directory that a layer implies but does not list shows what it is like in the
//! layers below. Pure computing and local files; runs on blocking threads.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

mod files;
mod seal;

use files::Memo;
pub(super) use files::sweep;
use seal::Seal;

use super::paths::Paths;
use crate::erofs::{BlockSize, Image, Space, WriterOptions, image_uuid};
use crate::spans::SpanTable;
use crate::spans::ztoc::{Ztoc, ZtocError};
use crate::tree::{Omissions, Tree, TreeError, TreeOptions, attributes_below};
use crate::units::{BlobOffset, Digest, usize_from_u64};

/// One layer of a chain: its blob and its zTOC document.
#[derive(Debug, Clone)]
pub struct ChainLayer {
    /// Under which digest the layer is kept; names its metadata.
    pub key: Digest,
    /// Blob digest.
    pub digest: Digest,
    /// Blob size, as the image manifest has it.
    pub blob_size: BlobOffset,
    /// Digest of the zTOC document.
    pub ztoc_digest: Digest,
    /// The zTOC document on local disk.
    pub ztoc: PathBuf,
}

/// What is needed to serve a layer.
#[derive(Debug)]
pub struct Synthesized {
    /// File-name form of digest and variant.
    pub name: String,
    /// The checked spans.
    pub table: Arc<SpanTable>,
    /// Where device bytes come from.
    pub space: Space,
    /// The metadata file: EROFS metadata and a hole of [`ZERO_HOLE_BYTES`](crate::frontend::ZERO_HOLE_BYTES).
    pub metadata: File,
    /// sha256 of the metadata without the hole.
    pub metadata_digest: Digest,
    /// The zTOC document, for its windows.
    pub ztoc: File,
    /// What could not be shown.
    pub omissions: Omissions,
}

/// Why a layer cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SynthesisError {
    /// A local file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The zTOC on local disk is not the one that was put there.
    #[error("layer {layer}: its zTOC cannot be used: {path} has changed on disk, its digest is {got} now")]
    Damaged {
        /// Blob digest of the layer.
        layer: Digest,
        /// The zTOC document.
        path: PathBuf,
        /// Digest of what is there.
        got: Digest,
    },
    /// The zTOC is damaged or hostile.
    #[error("layer {layer}: its zTOC cannot be used: {source}")]
    Ztoc {
        /// Blob digest.
        layer: Digest,
        /// What is wrong.
        source: ZtocError,
    },
    /// The zTOC belongs to another blob.
    #[error(
        "layer {layer}: its zTOC cannot be used: it speaks of a blob of {ztoc} bytes, the image manifest of {manifest}"
    )]
    BlobSize {
        /// Blob digest.
        layer: Digest,
        /// Size in the zTOC.
        ztoc: BlobOffset,
        /// Size in the manifest.
        manifest: BlobOffset,
    },
    /// The table of contents describes no tree that can be shown.
    #[error("layer {layer}: its zTOC cannot be used: {source}")]
    Tree {
        /// Blob digest.
        layer: Digest,
        /// What is wrong.
        source: TreeError,
    },
    /// The tree has no EROFS image.
    #[error("layer {layer}: its zTOC cannot be used: {source}")]
    Erofs {
        /// Blob digest.
        layer: Digest,
        /// What is wrong.
        source: crate::erofs::ErofsError,
    },
}

impl SynthesisError {
    /// The layer whose zTOC is at fault; `None` when the trouble is this machine's.
    #[must_use]
    pub fn unusable_ztoc(&self) -> Option<Digest> {
        match self {
            Self::Io { .. } => None,
            Self::Damaged { layer, .. }
            | Self::Ztoc { layer, .. }
            | Self::BlobSize { layer, .. }
            | Self::Tree { layer, .. }
            | Self::Erofs { layer, .. } => Some(*layer),
        }
    }
}

struct Parsed {
    table: SpanTable,
    tree: Tree,
    ztoc: (File, Option<Seal>),
}

/// Synthesizes all layers of `chain`, the bottom one first.
///
/// # Errors
/// The first layer's error that is met; files written for other layers stay, they are right.
pub fn synthesize(paths: &Paths, chain: &[ChainLayer]) -> Result<Vec<Synthesized>, SynthesisError> {
    let parsed = in_parallel(chain, |_, layer| parse(layer))?;
    let (mut trees, mut rest) = (Vec::new(), Vec::new());
    for Parsed { table, tree, ztoc } in parsed {
        trees.push(tree);
        rest.push((Arc::new(table), ztoc));
    }
    // From the bottom up: a layer inherits from trees that have inherited themselves.
    let mut variants = Vec::new();
    for i in 0..trees.len() {
        let (below, from_here) = trees.split_at_mut(i);
        variants.push(from_here[0].inherit(|path| attributes_below(below.iter().rev(), path)));
    }
    in_parallel(chain, |i, layer| emit(paths, layer, &trees[i], variants[i], &rest[i]))
}

/// Applies `f` to each item, on as many threads as there are CPUs, and keeps the order.
fn in_parallel<T: Send, E: Send>(
    items: &[ChainLayer],
    f: impl Fn(usize, &ChainLayer) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len().max(1));
    let next = std::sync::atomic::AtomicUsize::new(0);
    let mut results: Vec<Option<Result<T, E>>> = Vec::new();
    results.resize_with(items.len(), || None);
    let slots: Vec<_> = results.iter_mut().map(std::sync::Mutex::new).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let (Some(item), Some(slot)) = (items.get(i), slots.get(i)) else { return };
                    let result = f(i, item);
                    **slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    drop(slots);
    results.into_iter().flatten().collect()
}

/// Takes up again what an earlier process synthesized for a device that still stands: the very bytes that it showed,
/// whichever version wrote them. Reads local files only, and of those only small ones where nothing was changed since they
/// were found right: readers wait for this, and the zTOCs of large layers have megabytes.
///
/// # Errors
/// When a file is missing or damaged; the device can then not be served again.
pub fn restore(
    paths: &Paths,
    name: &str,
    metadata_digest: Digest,
    layer: &ChainLayer,
) -> Result<Synthesized, SynthesisError> {
    let (ztoc, sealed_ztoc) = open_ztoc(layer)?;
    let memo = files::recall(paths, name, metadata_digest).filter(|memo| {
        memo.ztoc_digest == layer.ztoc_digest
            && Some(memo.ztoc) == sealed_ztoc
            && memo.table.blob_size() == layer.blob_size
    });
    let (table, sealed) = match memo {
        Some(memo) => (memo.table, Some(memo.metadata)),
        None => (parse_ztoc(&read_ztoc(layer, &ztoc)?, layer.digest, layer.blob_size)?.spans().clone(), None),
    };
    let (metadata, space) = files::find(paths, name, metadata_digest, layer, table.layer_size(), sealed)?;
    if sealed.is_none_or(|seal| !seal.fits(&metadata)) {
        remember(paths, (name, metadata_digest), layer, &table, sealed_ztoc, &metadata);
    }
    Ok(Synthesized {
        name: name.to_owned(),
        table: Arc::new(table),
        space,
        metadata,
        metadata_digest,
        ztoc,
        omissions: Omissions::default(),
    })
}

/// Leaves a memo of what was just found right, for an image of this name and metadata.
fn remember(
    paths: &Paths,
    (name, metadata_digest): (&str, Digest),
    layer: &ChainLayer,
    table: &SpanTable,
    ztoc: Option<Seal>,
    metadata: &File,
) {
    let (Some(ztoc), Some(metadata)) = (ztoc, Seal::of(metadata)) else { return };
    let memo = Memo { ztoc_digest: layer.ztoc_digest, ztoc, metadata, table: table.clone() };
    files::remember(paths, name, metadata_digest, &memo);
}

fn parse(layer: &ChainLayer) -> Result<Parsed, SynthesisError> {
    let (file, seal) = open_ztoc(layer)?;
    let bytes = read_ztoc(layer, &file)?;
    let (ztoc, tree) = read(&bytes, layer.digest, layer.blob_size)?;
    Ok(Parsed { table: ztoc.spans().clone(), tree, ztoc: (file, seal) })
}

/// What a zTOC says of a layer, checked as far as it can be without the layer's bytes.
///
/// # Errors
/// When it cannot be used for this layer.
pub(super) fn read(bytes: &[u8], layer: Digest, blob_size: BlobOffset) -> Result<(Ztoc<'_>, Tree), SynthesisError> {
    let ztoc = parse_ztoc(bytes, layer, blob_size)?;
    let tree = Tree::build(ztoc.entries(), TreeOptions::new(ztoc.layer_size()))
        .map_err(|source| SynthesisError::Tree { layer, source })?;
    Ok((ztoc, tree))
}

/// The zTOC, sealed before it is read: who writes to it from now on changes it.
fn open_ztoc(layer: &ChainLayer) -> Result<(File, Option<Seal>), SynthesisError> {
    let file = File::open(&layer.ztoc).map_err(|source| SynthesisError::Io { path: layer.ztoc.clone(), source })?;
    let seal = Seal::of(&file);
    Ok((file, seal))
}

fn read_ztoc(layer: &ChainLayer, mut file: &File) -> Result<Vec<u8>, SynthesisError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|source| SynthesisError::Io { path: layer.ztoc.clone(), source })?;
    // A zTOC decides which bytes are right: one that changed on disk must not.
    let got = Digest::of(&bytes);
    if got != layer.ztoc_digest {
        return Err(SynthesisError::Damaged { layer: layer.digest, path: layer.ztoc.clone(), got });
    }
    Ok(bytes)
}

fn parse_ztoc(bytes: &[u8], layer: Digest, blob_size: BlobOffset) -> Result<Ztoc<'_>, SynthesisError> {
    let ztoc = Ztoc::parse(bytes).map_err(|source| SynthesisError::Ztoc { layer, source })?;
    if ztoc.blob_size() != blob_size {
        return Err(SynthesisError::BlobSize { layer, ztoc: ztoc.blob_size(), manifest: blob_size });
    }
    Ok(ztoc)
}

fn emit(
    paths: &Paths,
    layer: &ChainLayer,
    tree: &Tree,
    variant: Option<Digest>,
    (table, (ztoc, sealed_ztoc)): &(Arc<SpanTable>, (File, Option<Seal>)),
) -> Result<Synthesized, SynthesisError> {
    let options = WriterOptions {
        block_size: BlockSize::B4096,
        uuid: image_uuid(&layer.key, variant.as_ref(), BlockSize::B4096),
        layer_size: table.layer_size(),
    };
    let image = Image::build(tree, &options).map_err(|source| SynthesisError::Erofs { layer: layer.digest, source })?;
    let name = Paths::layer_name(&layer.key, variant);
    let metadata_digest = Digest::of(&image.metadata);
    let metadata = files::keep(paths, &name, &image, metadata_digest, table.layer_size())?;
    remember(paths, (&name, metadata_digest), layer, table, *sealed_ztoc, &metadata);
    let ztoc = ztoc.try_clone().map_err(|source| SynthesisError::Io { path: layer.ztoc.clone(), source })?;
    Ok(Synthesized {
        name,
        table: Arc::clone(table),
        space: image.space,
        metadata,
        metadata_digest,
        ztoc,
        omissions: tree.omissions(),
    })
}

/// Narrows a length of a piece within one request.
pub(super) fn piece_len(len_bytes: u64) -> u32 {
    usize_from_u64(len_bytes).and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;

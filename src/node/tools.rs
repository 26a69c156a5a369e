//! What works on layer files alone, without daemon or registry: building and reading zTOCs, extracting a file, writing
//! a layer as an EROFS image.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, bail};

use super::layer_reader::{LayerReader, open};
pub use crate::erofs::BlockSize;
use crate::erofs::{Image, Piece, WriterOptions, image_uuid};
use crate::soci::build::{BuildOptions, Built, build_file};
use crate::spans::SpanTable;
use crate::spans::ztoc::{Ztoc, ZtocInfo};
use crate::tree::{NodeKind, NodeView, Tree, TreeOptions};
use crate::units::{BlobOffset, DeviceOffset, DeviceRange, Digest, LayerOffset, LayerRange, SpanId, usize_from_u64};

/// Builds the zTOC of the layer file `layer` into `output`. `progress` hears how many bytes of the blob are done.
///
/// # Errors
/// When the file is no layer, is cut off, or cannot be read or written.
pub fn build_ztoc(
    layer: &Path,
    output: &Path,
    span_size_bytes: u64,
    build_tool: Option<String>,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<Built> {
    let mut options = BuildOptions { span_size_bytes, ..BuildOptions::default() };
    if let Some(tool) = build_tool {
        options.build_tool = tool;
    }
    let built = build_file(layer, options, &mut |at: BlobOffset| progress(at.get()))
        .with_context(|| layer.display().to_string())?;
    super::state::write_atomically(output, &built.ztoc).with_context(|| output.display().to_string())?;
    Ok(built)
}

/// Reads what the zTOC file says.
///
/// # Errors
/// When it is no usable zTOC.
pub fn ztoc_info(file: &Path) -> anyhow::Result<ZtocInfo> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let parsed = Ztoc::parse(&bytes).and_then(|ztoc| ztoc.info());
    parsed.with_context(|| file.display().to_string())
}

/// Extracts the regular file `path` of a layer to `out`; symbolic links are followed within the layer.
///
/// # Errors
/// When there is no such file, or zTOC and layer do not belong together.
pub fn get_file(ztoc: &Path, path: &str, layer: &Path, out: &mut dyn Write) -> anyhow::Result<u64> {
    let bytes = std::fs::read(ztoc).with_context(|| ztoc.display().to_string())?;
    get_file_by(&bytes, &ztoc.display().to_string(), path, layer, out)
}

/// As [`get_file`], by a zTOC in memory that is called `name`.
pub(super) fn get_file_by(
    ztoc: &[u8],
    name: &str,
    path: &str,
    layer: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<u64> {
    let (table, tree) = open(ztoc, TreeOptions::DEFAULT_MAX_INODES).with_context(|| name.to_owned())?;
    let node = follow(&tree, path)?;
    let data = match node.kind() {
        NodeKind::File => node.data(),
        _ => bail!("{path} is no regular file"),
    };
    let blob = File::open(layer).with_context(|| layer.display().to_string())?;
    if let Some(data) = data {
        LayerReader::new(&blob, ztoc, table, 1).copy(data, out)?;
    }
    Ok(node.size_bytes())
}

/// Looks `path` up, following symbolic links in its last component.
fn follow<'a>(tree: &'a Tree, path: &str) -> anyhow::Result<NodeView<'a>> {
    const MAX_LINKS: usize = 40;
    let mut at = path.as_bytes().to_vec();
    for _ in 0..MAX_LINKS {
        let shown = String::from_utf8_lossy(&at).into_owned();
        let node = tree.lookup(&at).with_context(|| format!("{shown} is not in this layer"))?;
        let Some(target) = node.target() else { return Ok(node) };
        let mut next = if target.starts_with(b"/") {
            Vec::new()
        } else {
            at.rsplitn(2, |b| *b == b'/').nth(1).unwrap_or_default().to_vec()
        };
        next.push(b'/');
        next.extend_from_slice(target);
        at = resolve_dots(&next);
    }
    bail!("{path}: too many symbolic links")
}

fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join(&b'/')
}

/// Sizes of an image that was written.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct ImageSizes {
    /// EROFS metadata.
    pub metadata_bytes: u64,
    /// The whole image.
    pub image_bytes: u64,
    /// Number of inodes.
    pub inodes: usize,
}

/// Writes a layer as an EROFS image: with 4096-byte blocks what the device shows, with 512-byte blocks metadata followed
/// by the tar. Without `ztoc` one is built on the way.
///
/// # Errors
/// When the layer cannot be read, or the image cannot be written; nothing is left at `output` then.
pub fn write_image(
    layer: &Path,
    ztoc: Option<&Path>,
    block_size: BlockSize,
    output: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<ImageSizes> {
    let bytes = match ztoc {
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
        None => {
            build_file(layer, BuildOptions::default(), &mut |_| {}).with_context(|| layer.display().to_string())?.ztoc
        }
    };
    let (table, tree) = open(&bytes, TreeOptions::DEFAULT_MAX_INODES)?;
    let blob = File::open(layer).with_context(|| layer.display().to_string())?;
    let size = blob.metadata()?.len();
    if size != table.blob_size().get() {
        bail!(
            "{} has {size} bytes, its zTOC speaks of {}: they do not belong together",
            layer.display(),
            table.blob_size()
        );
    }
    let tmp = output.with_extension(format!("tmp{}", std::process::id()));
    let written: anyhow::Result<ImageSizes> = (|| {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&tmp)?;
        let sizes = fill_image(&blob, &bytes, table, &tree, block_size, &file, progress)?;
        std::fs::rename(&tmp, output)?;
        Ok(sizes)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
    written.with_context(|| output.display().to_string())
}

fn fill_image(
    blob: &File,
    ztoc: &[u8],
    table: SpanTable,
    tree: &Tree,
    block_size: BlockSize,
    mut file: &File,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<ImageSizes> {
    let identity = Digest::of(ztoc);
    let uuid = image_uuid(&identity, None, block_size);
    // The tar may go on behind what the zTOC counts: the last span knows.
    let mut reader = LayerReader::new(blob, ztoc, table, 1);
    let layer_size = match block_size {
        BlockSize::B4096 => reader.table().layer_size(),
        BlockSize::B512 => true_layer_size(&mut reader)?,
    };
    let image = Image::build(tree, &WriterOptions { block_size, uuid, layer_size })?;
    let total = image.space.device_size().get();
    file.write_all(&image.metadata)?;
    file.set_len(total)?;
    let whole = DeviceRange::new(DeviceOffset::new(image.space.metadata_len()), image.space.device_size())
        .context("an image shorter than its metadata")?;
    let mut at = image.space.metadata_len();
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    for piece in image.space.pieces(whole)? {
        match piece {
            Piece::Layer(range) => copy_with_tail(&mut reader, range, &mut out)?,
            // The file is sparse where the image is zero.
            Piece::Zeros { len_bytes } => {
                out.seek(SeekFrom::Current(i64::try_from(len_bytes).context("an image beyond 2^63 bytes")?))?;
            }
            Piece::Metadata { .. } => bail!("metadata behind the metadata"),
        }
        at += piece.len_bytes();
        progress(at, total);
    }
    out.flush()?;
    Ok(ImageSizes { metadata_bytes: image.space.metadata_len(), image_bytes: total, inodes: tree.inode_count() })
}

/// The layer of a file.
type FileReader<'a> = LayerReader<&'a File, &'a [u8]>;

/// The last span, and where it begins.
fn last_span(reader: &FileReader<'_>) -> anyhow::Result<(SpanId, u64)> {
    reader.table().iter().last().map(|(id, span)| (id, span.layer.start().get())).context("no span")
}

/// The layer with the padding that follows what the zTOC counts.
fn true_layer_size(reader: &mut FileReader<'_>) -> anyhow::Result<LayerOffset> {
    let (id, start) = last_span(reader)?;
    Ok(LayerOffset::new(start + reader.span(id)?.len() as u64))
}

/// As [`LayerReader::copy`], for ranges that may reach into the padding behind the last span's counted bytes.
fn copy_with_tail(reader: &mut FileReader<'_>, range: LayerRange, out: &mut dyn Write) -> anyhow::Result<()> {
    reader.copy(range, out)?;
    let counted = reader.table().layer_size();
    if range.end() <= counted {
        return Ok(());
    }
    let (id, start) = last_span(reader)?;
    let from = usize_from_u64(range.start().max(counted).get() - start).context("span too large")?;
    let to = usize_from_u64(range.end().get() - start).context("span too large")?;
    let tail = reader.span(id)?.get(from..to).context("a tail that ends early")?;
    out.write_all(tail)?;
    Ok(())
}

//! Writing a zTOC, byte for byte what SOCI's builder writes for the same layer; for a zstd layer, which it does not know, the
//! same document with checkpoints of ours.

use super::builder::{Builder, Position};
use super::{GZIP, UNCOMPRESSED, VERSION, ZSTD, zinfo};
use crate::spans::{Checkpoint, Compression, TocEntry};
use crate::units::{BlobOffset, Digest, LayerOffset};

/// All that a zTOC says, but for the checkpoints of a compressed layer.
pub struct ZtocParts<'a> {
    /// What builds it, e.g. `AWS SOCI CLI v0.2`.
    pub build_tool: &'a str,
    /// Size of the blob.
    pub compressed_size: BlobOffset,
    /// Size of the layer up to and with the tar's end mark ([`TarToc::end`](crate::spans::tar::TarToc::end)).
    pub uncompressed_size: LayerOffset,
    /// The table of contents, in the order of the tar.
    pub entries: &'a [TocEntry<'a>],
    /// How the blob is compressed.
    pub compression: Compression,
    /// Span size asked for, in bytes.
    pub span_size: u64,
    /// One per span.
    pub span_digests: &'a [Digest],
}

/// Why parts do not make a zTOC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A compressed layer needs as many checkpoints as digests, and at least one; a plain tar needs no checkpoints, and a
    /// digest for each span.
    #[error("{digests} span digests and {checkpoints} checkpoints do not go together")]
    SpanCount {
        /// Number of digests.
        digests: usize,
        /// Number of checkpoints.
        checkpoints: usize,
    },
    /// An offset or size that the format's signed 64 bits cannot hold.
    #[error("an offset or size does not fit into 63 bits")]
    Number,
    /// A zTOC of more than 2 GiB, which flatbuffers cannot hold.
    #[error("the zTOC would grow beyond 2 GiB; ask for larger spans")]
    TooLarge,
}

/// A zTOC whose checkpoints are left out: `head`, the records of the checkpoints ([`checkpoint_record`]) one after the
/// other, `tail`. The 32 KiB of history in each of them are nearly all of a zTOC; so a builder need not hold them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZtocFrame {
    /// What stands before the checkpoints.
    pub head: Vec<u8>,
    /// Length of all checkpoints' records.
    pub checkpoint_bytes: usize,
    /// What stands behind.
    pub tail: Vec<u8>,
}

/// A checkpoint as the zTOC of a layer with this compression holds it; a plain tar has none.
///
/// # Errors
/// [`WriteError::Number`].
pub fn checkpoint_record(compression: Compression, checkpoint: &Checkpoint) -> Result<Vec<u8>, WriteError> {
    let record = match compression {
        Compression::Gzip => zinfo::gzip_checkpoint(checkpoint),
        Compression::Zstd => zinfo::zstd_checkpoint(checkpoint),
        Compression::Uncompressed => Some(Vec::new()),
    };
    record.ok_or(WriteError::Number)
}

/// Writes the whole document; `checkpoints` are one per span, none for a plain tar.
///
/// # Errors
/// When the parts do not fit together, or the document would grow too large.
pub fn write(parts: &ZtocParts<'_>, checkpoints: &[Checkpoint]) -> Result<Vec<u8>, WriteError> {
    let ZtocFrame { head: mut document, checkpoint_bytes, tail } = frame(parts, checkpoints.len())?;
    document.reserve_exact(checkpoint_bytes + tail.len());
    for checkpoint in checkpoints {
        document.extend(checkpoint_record(parts.compression, checkpoint)?);
    }
    document.extend(tail);
    Ok(document)
}

/// Writes the document around `checkpoints` checkpoints. Objects are created in the order of SOCI's writer
/// (`ztoc/ztoc_marshaler.go`), because flatbuffers lays them out in the order of creation.
///
/// # Errors
/// When the parts do not fit together, or the document would grow too large.
pub fn frame(parts: &ZtocParts<'_>, checkpoints: usize) -> Result<ZtocFrame, WriteError> {
    let (zinfo, checkpoint_bytes) = begin_zinfo(parts, checkpoints)?;
    let mut builder = Builder::new();
    let version = builder.string(VERSION.as_bytes());
    let build_tool = builder.string(parts.build_tool.as_bytes());

    let mut entries = Vec::with_capacity(parts.entries.len());
    for entry in parts.entries.iter().rev() {
        entries.push(write_entry(&mut builder, entry)?);
    }
    entries.reverse();
    let metadata = builder.vector(&entries);
    builder.start_table(1);
    builder.add_offset(0, metadata);
    let toc = builder.end_table();

    let checkpoints = match parts.compression {
        Compression::Gzip | Compression::Zstd => builder.bytes_with_hole(&zinfo, checkpoint_bytes),
        Compression::Uncompressed => builder.bytes(&zinfo),
    };
    let digests: Vec<Position> =
        parts.span_digests.iter().map(|digest| builder.string(digest.to_string().as_bytes())).collect();
    let span_digests = builder.vector(&digests);
    builder.start_table(4);
    builder.add_i32(1, i32::try_from(digests.len() - 1).map_err(|_| WriteError::TooLarge)?);
    builder.add_offset(2, span_digests);
    builder.add_offset(3, checkpoints);
    let algorithm = match parts.compression {
        Compression::Gzip => GZIP,
        Compression::Uncompressed => UNCOMPRESSED,
        Compression::Zstd => ZSTD,
    };
    builder.add_i8(0, algorithm, GZIP);
    let compression_info = builder.end_table();

    builder.start_table(6);
    builder.add_offset(0, version);
    builder.add_offset(1, build_tool);
    builder.add_offset(4, toc);
    builder.add_i64(2, signed(parts.compressed_size.get())?);
    builder.add_i64(3, signed(parts.uncompressed_size.get())?);
    builder.add_offset(5, compression_info);
    let root = builder.end_table();
    let document = builder.finish(root).ok_or(WriteError::TooLarge)?;
    Ok(ZtocFrame { head: document.head, checkpoint_bytes, tail: document.tail })
}

/// What stands in the zinfo before the checkpoints, and how long they are.
fn begin_zinfo(parts: &ZtocParts<'_>, checkpoints: usize) -> Result<(Vec<u8>, usize), WriteError> {
    let digests = parts.span_digests.len();
    let span_count = WriteError::SpanCount { digests, checkpoints };
    match parts.compression {
        Compression::Gzip | Compression::Zstd if digests != checkpoints || digests == 0 => Err(span_count),
        Compression::Gzip => {
            let (header, bytes) = zinfo::gzip_header(parts.span_size, checkpoints).ok_or(WriteError::Number)?;
            Ok((header.to_vec(), bytes))
        }
        Compression::Zstd => {
            let (header, bytes) = zinfo::zstd_header(parts.span_size, checkpoints).ok_or(WriteError::Number)?;
            Ok((header.to_vec(), bytes))
        }
        Compression::Uncompressed => {
            let spans = if parts.span_size == 0 { 0 } else { parts.compressed_size.get().div_ceil(parts.span_size) };
            if checkpoints != 0 || digests == 0 || usize::try_from(spans) != Ok(digests) {
                return Err(span_count);
            }
            let zinfo = zinfo::write_tar(parts.span_size, parts.compressed_size).ok_or(WriteError::Number)?;
            Ok((zinfo, 0))
        }
    }
}

fn write_entry(builder: &mut Builder, entry: &TocEntry<'_>) -> Result<Position, WriteError> {
    let name = builder.string(&entry.name);
    let kind = builder.string(entry.kind.as_str().as_bytes());
    let linkname = builder.string(&entry.linkname);
    let uname = builder.string(&entry.uname);
    let gname = builder.string(&entry.gname);
    let mod_time = builder.string(entry.mtime.to_text().as_bytes());
    let records: Vec<Position> = entry
        .pax
        .iter()
        .map(|(key, value)| {
            let (key, value) = (builder.string(key), builder.string(value));
            builder.start_table(2);
            builder.add_offset(0, key);
            builder.add_offset(1, value);
            builder.end_table()
        })
        .collect();
    let records = builder.vector(&records);

    builder.start_table(14);
    builder.add_offset(0, name);
    builder.add_offset(1, kind);
    builder.add_i64(2, signed(entry.data.start().get())?);
    builder.add_i64(3, signed(entry.data.len_bytes())?);
    builder.add_offset(4, linkname);
    builder.add_i64(5, i64::from(entry.mode));
    builder.add_u32(6, entry.uid);
    builder.add_u32(7, entry.gid);
    builder.add_offset(8, uname);
    builder.add_offset(9, gname);
    builder.add_offset(10, mod_time);
    builder.add_i64(11, i64::from(entry.devmajor));
    builder.add_i64(12, i64::from(entry.devminor));
    builder.add_offset(13, records);
    Ok(builder.end_table())
}

fn signed(bytes: u64) -> Result<i64, WriteError> {
    i64::try_from(bytes).map_err(|_| WriteError::Number)
}

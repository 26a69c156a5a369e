//! zinfo: the checkpoints inside a zTOC.
//!
//! For gzip a packed little-endian array, `have: i32, span_size: i64`, then per checkpoint `in: i64, out: i64,
//! bits: u8, window: [u8; 32768]`. It has no version field; its length tells: version 2 holds `have` checkpoints,
//! version 1 leaves out the first. For a plain tar a flatbuffers table `version: i32, span_size: i64, size: i64`.
//! (SOCI: `ztoc/compression/gzip_zinfo.c`, `tar_zinfo.go`.)
//!
//! For zstd, which SOCI does not know, a packed little-endian array of ours: `version: i32, have: i32, span_size: i64`, then
//! per span `in: i64, out: i64`: where a frame begins in the blob, and how many layer bytes lie before. The first is 0, 0.

use super::flat::{Doc, Table};
use super::{Checkpoint, ZinfoError};
use crate::spans::table::GZIP_HEADER_BYTES;
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange, WINDOW_BYTES, u64_from_usize};

const HEADER_BYTES: usize = 4 + 8;
const GEOMETRY_BYTES: usize = 8 + 8 + 1;
const CHECKPOINT_BYTES: usize = GEOMETRY_BYTES + WINDOW_BYTES;

const ZSTD_HEADER_BYTES: usize = 4 + 4 + 8;
const ZSTD_CHECKPOINT_BYTES: usize = 8 + 8;
/// The version of a zstd zinfo.
const ZSTD_VERSION: i32 = 1;

/// The version that SOCI writes into a tar's zinfo.
const TAR_VERSION: i32 = 2;

/// What a zinfo says, its lengths checked; the numbers are still claims.
#[derive(Clone, Copy)]
pub(super) enum Zinfo<'a> {
    Gzip {
        span_size: u64,
        /// Number of checkpoints, the one that version 1 leaves out included.
        count: usize,
        /// Whether checkpoint 0 was left out.
        first_omitted: bool,
        /// The packed checkpoints.
        packed: &'a [u8],
    },
    Tar {
        span_size: u64,
        size: BlobOffset,
    },
    Zstd {
        span_size: u64,
        /// Number of checkpoints.
        count: usize,
        /// The packed checkpoints.
        packed: &'a [u8],
    },
}

/// A checkpoint's place.
struct Geometry {
    blob: BlobOffset,
    layer: LayerOffset,
    bits: u8,
}

impl<'a> Zinfo<'a> {
    pub fn parse(compression: Compression, bytes: &'a [u8]) -> Result<Self, ZinfoError> {
        match compression {
            Compression::Gzip => Self::parse_gzip(bytes),
            Compression::Uncompressed => Self::parse_tar(bytes),
            Compression::Zstd => Self::parse_zstd(bytes),
        }
    }

    fn parse_gzip(bytes: &'a [u8]) -> Result<Self, ZinfoError> {
        let length = || ZinfoError::Length { zinfo_bytes: bytes.len() };
        let (&have, rest) = bytes.split_first_chunk().ok_or_else(length)?;
        let (&span_size, packed) = rest.split_first_chunk().ok_or_else(length)?;
        let (have, span_size) = (i32::from_le_bytes(have), i64::from_le_bytes(span_size));
        let span_size = u64::try_from(span_size).map_err(|_| ZinfoError::SpanSize { span_size })?;
        let whole = packed.len() % CHECKPOINT_BYTES == 0;
        let stored = i64::try_from(packed.len() / CHECKPOINT_BYTES).map_err(|_| length())?;
        let first_omitted = match i64::from(have) - stored {
            _ if !whole || have < 1 => return Err(ZinfoError::Count { have, zinfo_bytes: bytes.len() }),
            0 => false,
            1 => true,
            _ => return Err(ZinfoError::Count { have, zinfo_bytes: bytes.len() }),
        };
        let count = usize::try_from(have).map_err(|_| length())?;
        Ok(Self::Gzip { span_size, count, first_omitted, packed })
    }

    fn parse_tar(bytes: &'a [u8]) -> Result<Self, ZinfoError> {
        let damage = |_| ZinfoError::Length { zinfo_bytes: bytes.len() };
        let table: Table<'_> = Doc::new(bytes).root().map_err(damage)?;
        let version = table.i32(0).map_err(damage)?;
        if version != TAR_VERSION {
            return Err(ZinfoError::Version { version, of: Compression::Uncompressed });
        }
        let span_size = table.i64(1).map_err(damage)?;
        let size = table.i64(2).map_err(damage)?;
        let size = u64::try_from(size).map(BlobOffset::new).map_err(|_| ZinfoError::Offset { span: 0, value: size })?;
        match u64::try_from(span_size) {
            Ok(span_size @ 1..) => Ok(Self::Tar { span_size, size }),
            _ => Err(ZinfoError::SpanSize { span_size }),
        }
    }

    fn parse_zstd(bytes: &'a [u8]) -> Result<Self, ZinfoError> {
        let length = || ZinfoError::Length { zinfo_bytes: bytes.len() };
        let (&version, rest) = bytes.split_first_chunk().ok_or_else(length)?;
        let version = i32::from_le_bytes(version);
        if version != ZSTD_VERSION {
            return Err(ZinfoError::Version { version, of: Compression::Zstd });
        }
        let (&have, rest) = rest.split_first_chunk().ok_or_else(length)?;
        let (&span_size, packed) = rest.split_first_chunk().ok_or_else(length)?;
        let (have, span_size) = (i32::from_le_bytes(have), i64::from_le_bytes(span_size));
        let span_size = u64::try_from(span_size).map_err(|_| ZinfoError::SpanSize { span_size })?;
        let count = usize::try_from(have).unwrap_or(0);
        if count == 0 || count.checked_mul(ZSTD_CHECKPOINT_BYTES) != Some(packed.len()) {
            return Err(ZinfoError::Count { have, zinfo_bytes: bytes.len() });
        }
        Ok(Self::Zstd { span_size, count, packed })
    }

    /// The span size that the builder was asked for, in bytes.
    pub fn span_size(self) -> u64 {
        match self {
            Self::Gzip { span_size, .. } | Self::Tar { span_size, .. } | Self::Zstd { span_size, .. } => span_size,
        }
    }

    /// How many spans there are.
    pub fn span_count(self) -> u64 {
        match self {
            Self::Gzip { count, .. } | Self::Zstd { count, .. } => u64_from_usize(count),
            Self::Tar { span_size, size } => size.get().div_ceil(span_size),
        }
    }

    /// Span table; `at` is where the zinfo lies in the document, `digests` has [`span_count`](Self::span_count) items.
    pub fn table(
        self,
        at: usize,
        blob_size: BlobOffset,
        layer_size: LayerOffset,
        digests: &[Digest],
    ) -> Result<SpanTable, ZinfoError> {
        let mut spans = Vec::with_capacity(digests.len());
        for (i, &digest) in digests.iter().enumerate() {
            let here = self.geometry(i)?;
            let next = if i + 1 < digests.len() { Some(self.geometry(i + 1)?) } else { None };
            let start = BlobOffset::new(here.blob.get().saturating_sub(u64::from(here.bits != 0)));
            let blob_end = next.as_ref().map_or(blob_size, |n| n.blob);
            let layer_end = next.as_ref().map_or(layer_size.max(here.layer), |n| n.layer);
            let inverted = || ZinfoError::Inverted { span: i, blob: here.blob, layer: here.layer };
            spans.push(Span {
                blob: BlobRange::new(start, blob_end).ok_or_else(inverted)?,
                layer: LayerRange::new(here.layer, layer_end).ok_or_else(inverted)?,
                bits: here.bits,
                digest,
                window_at: self.window_at(i).map(|window| u64_from_usize(at.saturating_add(window))),
            });
        }
        Ok(SpanTable::new(self.compression(), blob_size, layer_size, spans)?)
    }

    /// The checkpoint of this number; `None` beyond the last, and for a plain tar, which needs none.
    pub fn checkpoint(self, index: usize) -> Option<Checkpoint> {
        let (packed, count, has_window) = match self {
            Self::Gzip { packed, count, .. } => (packed, count, true),
            Self::Zstd { packed, count, .. } => (packed, count, false),
            Self::Tar { .. } => return None,
        };
        let Geometry { blob, layer, bits } = self.geometry(index).ok().filter(|_| index < count)?;
        if !has_window {
            return Some(Checkpoint { blob, layer, bits, window: None });
        }
        let mut window = Box::new([0; WINDOW_BYTES]);
        if let Some(stored) = self.packed_at(index) {
            let from = (stored + GEOMETRY_BYTES).checked_sub(HEADER_BYTES)?;
            *window = *packed.get(from..)?.first_chunk()?;
        }
        Some(Checkpoint { blob, layer, bits, window: Some(window) })
    }

    fn compression(self) -> Compression {
        match self {
            Self::Gzip { .. } => Compression::Gzip,
            Self::Tar { .. } => Compression::Uncompressed,
            Self::Zstd { .. } => Compression::Zstd,
        }
    }

    fn geometry(self, index: usize) -> Result<Geometry, ZinfoError> {
        match self {
            Self::Gzip { packed, .. } => {
                let Some(at) = self.packed_at(index) else {
                    let blob = BlobOffset::new(GZIP_HEADER_BYTES);
                    return Ok(Geometry { blob, layer: LayerOffset::ZERO, bits: 0 });
                };
                let length = || ZinfoError::Length { zinfo_bytes: packed.len().saturating_add(HEADER_BYTES) };
                let record = at.checked_sub(HEADER_BYTES).and_then(|at| packed.get(at..)).ok_or_else(length)?;
                let &fields: &[u8; GEOMETRY_BYTES] = record.first_chunk().ok_or_else(length)?;
                let [i0, i1, i2, i3, i4, i5, i6, i7, o0, o1, o2, o3, o4, o5, o6, o7, bits] = fields;
                let blob = offset(index, [i0, i1, i2, i3, i4, i5, i6, i7])?;
                let layer = offset(index, [o0, o1, o2, o3, o4, o5, o6, o7])?;
                Ok(Geometry { blob: BlobOffset::new(blob), layer: LayerOffset::new(layer), bits })
            }
            Self::Zstd { packed, .. } => {
                let length = || ZinfoError::Length { zinfo_bytes: packed.len().saturating_add(ZSTD_HEADER_BYTES) };
                let record = index.checked_mul(ZSTD_CHECKPOINT_BYTES).and_then(|at| packed.get(at..));
                let (&blob, rest) = record.and_then(<[u8]>::split_first_chunk).ok_or_else(length)?;
                let &layer = rest.first_chunk().ok_or_else(length)?;
                let (blob, layer) = (offset(index, blob)?, offset(index, layer)?);
                Ok(Geometry { blob: BlobOffset::new(blob), layer: LayerOffset::new(layer), bits: 0 })
            }
            Self::Tar { span_size, .. } => {
                let start = u64_from_usize(index).saturating_mul(span_size);
                Ok(Geometry { blob: BlobOffset::new(start), layer: LayerOffset::new(start), bits: 0 })
            }
        }
    }

    /// Where this checkpoint's record begins, from the start of a gzip zinfo; `None` when it is not stored.
    fn packed_at(self, index: usize) -> Option<usize> {
        let Self::Gzip { first_omitted, .. } = self else { return None };
        let stored = if first_omitted { index.checked_sub(1)? } else { index };
        stored.checked_mul(CHECKPOINT_BYTES)?.checked_add(HEADER_BYTES)
    }

    fn window_at(self, index: usize) -> Option<usize> {
        if index == 0 { None } else { self.packed_at(index)?.checked_add(GEOMETRY_BYTES) }
    }
}

/// An offset of a packed checkpoint.
fn offset(span: usize, raw: [u8; 8]) -> Result<u64, ZinfoError> {
    let value = i64::from_le_bytes(raw);
    u64::try_from(value).map_err(|_| ZinfoError::Offset { span, value })
}

/// What stands before the checkpoints in a gzip zinfo, version 2, and the length of `count` checkpoints in bytes. `None`
/// when there are more than it can count, or for a number that it cannot hold.
pub(super) fn gzip_header(span_size: u64, count: usize) -> Option<([u8; HEADER_BYTES], usize)> {
    let mut header = [0; HEADER_BYTES];
    let (have, size) = header.split_at_mut(4);
    have.copy_from_slice(&i32::try_from(count).ok()?.to_le_bytes());
    size.copy_from_slice(&i64::try_from(span_size).ok()?.to_le_bytes());
    Some((header, count.checked_mul(CHECKPOINT_BYTES)?))
}

/// One checkpoint of a gzip zinfo. `None` for an offset that it cannot hold.
pub(super) fn gzip_checkpoint(checkpoint: &Checkpoint) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(CHECKPOINT_BYTES);
    bytes.extend_from_slice(&i64::try_from(checkpoint.blob.get()).ok()?.to_le_bytes());
    bytes.extend_from_slice(&i64::try_from(checkpoint.layer.get()).ok()?.to_le_bytes());
    bytes.push(checkpoint.bits);
    match &checkpoint.window {
        Some(window) => bytes.extend_from_slice(window.as_slice()),
        None => bytes.resize(CHECKPOINT_BYTES, 0),
    }
    Some(bytes)
}

/// As [`gzip_header`], of a zstd zinfo.
pub(super) fn zstd_header(span_size: u64, count: usize) -> Option<([u8; ZSTD_HEADER_BYTES], usize)> {
    let mut header = [0; ZSTD_HEADER_BYTES];
    let (version, rest) = header.split_at_mut(4);
    let (have, size) = rest.split_at_mut(4);
    version.copy_from_slice(&ZSTD_VERSION.to_le_bytes());
    have.copy_from_slice(&i32::try_from(count).ok()?.to_le_bytes());
    size.copy_from_slice(&i64::try_from(span_size).ok()?.to_le_bytes());
    Some((header, count.checked_mul(ZSTD_CHECKPOINT_BYTES)?))
}

/// As [`gzip_checkpoint`], of a zstd zinfo.
pub(super) fn zstd_checkpoint(checkpoint: &Checkpoint) -> Option<Vec<u8>> {
    let (blob, layer) = (i64::try_from(checkpoint.blob.get()).ok()?, i64::try_from(checkpoint.layer.get()).ok()?);
    Some([blob.to_le_bytes(), layer.to_le_bytes()].concat())
}

/// A plain tar's zinfo. `None` when a number is beyond what it can hold.
pub(super) fn write_tar(span_size: u64, size: BlobOffset) -> Option<Vec<u8>> {
    let mut builder = super::builder::Builder::new();
    builder.start_table(3);
    builder.add_i32(0, TAR_VERSION);
    builder.add_i64(1, i64::try_from(span_size).ok()?);
    builder.add_i64(2, i64::try_from(size.get()).ok()?);
    let root = builder.end_table();
    builder.finish(root).map(|document| document.head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_tars_checkpoints_are_the_bytes_of_soci() {
        let golden = "140000000000000000000a001c0018000c0004000a000000\
                      0008a7000000000000004000000000000000000002000000";
        let written = write_tar(4 << 20, BlobOffset::new(10_946_560)).map(hex::encode);
        assert_eq!(written.as_deref(), Some(golden));
    }
}

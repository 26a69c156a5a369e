//! Where a layer can be entered: the zTOC of a layer, read once, checked once, trusted after.
//!
//! A zTOC (SOCI's flatbuffers document) names every tar entry of a layer and every *checkpoint*: a place in the deflate
//! stream where inflating can start, given a bit offset and 32 KiB of history. The bytes between two checkpoints are a
//! *span*, the unit of trust (sha256 of its compressed bytes).
//!
//! Pure: functions of bytes, no I/O.

use std::borrow::Cow;

use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange, SpanId};

/// How the blob is compressed, as the zTOC says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// A plain tar: blob bytes are layer bytes.
    Uncompressed,
}

/// One span: the layer between two checkpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// Compressed bytes that the digest covers. Begins one byte early when `bits` is not 0, so that neighbours may
    /// overlap by one byte.
    pub blob: BlobRange,
    /// Uncompressed bytes of the span. The last span may inflate to more (tar padding that the zTOC does not count).
    pub layer: LayerRange,
    /// 0..=7: how many high bits of the first blob byte belong to this span; 0: the span begins on a byte boundary.
    pub bits: u8,
    /// sha256 of the blob bytes.
    pub digest: Digest,
    /// Where in the zTOC document the 32 KiB deflate window lies, in bytes from its start; `None` when there is no
    /// history (the first span, uncompressed layers).
    pub window_at: Option<u64>,
}

/// All spans of a layer: sorted, gap-free in layer space, within the blob. Can only be made by checking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpanTable {
    compression: Compression,
    blob_size: BlobOffset,
    layer_size: LayerOffset,
    spans: Box<[Span]>,
}

impl SpanTable {
    /// How the blob is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Size of the compressed blob in bytes.
    #[must_use]
    pub fn blob_size(&self) -> BlobOffset {
        self.blob_size
    }

    /// Size of the layer that the zTOC speaks of, in bytes; the tar may go on with padding.
    #[must_use]
    pub fn layer_size(&self) -> LayerOffset {
        self.layer_size
    }

    /// Number of spans; never 0.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Always false: a layer has at least one span.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The span with this number, or `None` beyond the last.
    #[must_use]
    pub fn get(&self, id: SpanId) -> Option<&Span> {
        self.spans.get(id.index())
    }

    /// All spans in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (SpanId, &Span)> {
        self.spans.iter().enumerate().map(|(i, s)| (SpanId(u32::try_from(i).unwrap_or(u32::MAX)), s))
    }

    /// The spans that hold `range`, as a half-open range of span numbers; empty for an empty range or one beyond
    /// the layer.
    #[must_use]
    pub fn covering(&self, range: LayerRange) -> std::ops::Range<u32> {
        let clipped = LayerRange::new(LayerOffset::ZERO, self.layer_size).and_then(|all| all.intersection(&range));
        let Some(clipped) = clipped else { return 0..0 };
        let first = self.spans.partition_point(|s| s.layer.end() <= clipped.start());
        let last = self.spans.partition_point(|s| s.layer.start() < clipped.end());
        u32::try_from(first).unwrap_or(u32::MAX)..u32::try_from(last).unwrap_or(u32::MAX)
    }
}

/// What a tar entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Regular file.
    Reg,
    /// Directory.
    Dir,
    /// Symbolic link; target in `linkname`.
    Symlink,
    /// Hard link; `linkname` names an entry of the same layer.
    Hardlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

/// A modification time: seconds since 1970 (may be negative) and nanoseconds 0..1_000_000_000 after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub struct ModTime {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds, always counted forward from `secs`.
    pub nanos: u32,
}

/// One entry of the table of contents. Names, owners and PAX records are raw tar bytes, not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TocEntry<'a> {
    /// Name exactly as in the tar (leading `./`, trailing `/` kept).
    pub name: Cow<'a, [u8]>,
    /// What it is.
    pub kind: EntryKind,
    /// Where the file's data lie in the layer; empty for anything but regular files.
    pub data: LayerRange,
    /// Target of a symbolic or hard link.
    pub linkname: Cow<'a, [u8]>,
    /// Permission bits with suid, sgid, sticky, as the tar has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name, informative.
    pub uname: Cow<'a, [u8]>,
    /// Group's name, informative.
    pub gname: Cow<'a, [u8]>,
    /// Modification time.
    pub mtime: ModTime,
    /// Major number of a device.
    pub devmajor: u32,
    /// Minor number of a device.
    pub devminor: u32,
    /// All PAX records, sorted by key; those with the prefix `SCHILY.xattr.` are extended attributes.
    pub pax: Vec<(Cow<'a, [u8]>, Cow<'a, [u8]>)>,
}

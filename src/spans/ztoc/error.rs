//! What can be wrong with a zTOC.

use super::flat::Damage;
use crate::spans::{Compression, ModTimeError, SpanTableError};
use crate::units::{BlobOffset, DigestError, LayerOffset, LayerRange};

/// Why a document is no usable zTOC. None of these heals: the zTOC must be built anew or done without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZtocError {
    /// An offset or length leads out of the document, or the document was cut short.
    #[error("damaged zTOC: no {what} at byte {at}; the document is cut short or not a zTOC")]
    Damaged {
        /// Byte position in the document.
        at: usize,
        /// What should have been there.
        what: &'static str,
    },
    /// Another format version.
    #[error("zTOC version {found:?} is not supported, only {:?} is", super::VERSION)]
    Version {
        /// The version found.
        found: String,
    },
    /// A part that every zTOC has is not there.
    #[error("zTOC without {what}")]
    Missing {
        /// The part.
        what: &'static str,
    },
    /// A negative size.
    #[error("zTOC with the {what} {value}")]
    Size {
        /// Which size.
        what: &'static str,
        /// Its value in bytes.
        value: i64,
    },
    /// An unknown compression.
    #[error("zTOC for the unknown compression {algorithm}; known are 1 (gzip), 2 (uncompressed) and 122 (zstd)")]
    Compression {
        /// Number of the algorithm.
        algorithm: i8,
    },
    /// Checkpoints that are not what zinfo must be.
    #[error("zTOC with bad checkpoints")]
    Zinfo(#[from] ZinfoError),
    /// The numbers of spans, digests and checkpoints differ.
    #[error("zTOC with {digests} span digests and {checkpoints} checkpoints, but {max_span_id} as its last span")]
    SpanCount {
        /// Number of the last span, as claimed.
        max_span_id: i32,
        /// Number of digests.
        digests: u64,
        /// Number of checkpoints.
        checkpoints: u64,
    },
    /// A plain tar whose checkpoints speak of another size.
    #[error("zTOC of a plain tar of {blob_size} bytes, with checkpoints for {zinfo} bytes")]
    TarSize {
        /// Size according to the checkpoints.
        zinfo: BlobOffset,
        /// Size according to the zTOC.
        blob_size: BlobOffset,
    },
    /// A span digest that is none.
    #[error("zTOC with a bad digest for span {span}")]
    Digest {
        /// Number of the span.
        span: usize,
        /// What is wrong with it.
        source: DigestError,
    },
    /// A bad entry.
    #[error("zTOC entry {index} ({name:?})")]
    Entry {
        /// Number of the entry in the document.
        index: usize,
        /// Its name, made printable.
        name: String,
        /// What is wrong with it.
        source: EntryFault,
    },
    /// Two files in one place.
    #[error("zTOC entries {first:?} and {second:?} share layer bytes {shared}")]
    Overlap {
        /// Name of one file, made printable.
        first: String,
        /// Name of the other.
        second: String,
        /// The bytes that both claim.
        shared: LayerRange,
    },
    /// Entries that refer to the same strings again and again, so that a small document claims a large table.
    #[error("zTOC of {document_bytes} bytes whose entries claim more than {limit_bytes} bytes")]
    Inflated {
        /// Size of the document.
        document_bytes: usize,
        /// How much its entries may claim.
        limit_bytes: usize,
    },
}

/// What is wrong with checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZinfoError {
    /// Too short to be read.
    #[error("{zinfo_bytes} bytes are too few")]
    Length {
        /// Length of the checkpoints.
        zinfo_bytes: usize,
    },
    /// Neither version 1 nor version 2 has this length for so many checkpoints.
    #[error("{zinfo_bytes} bytes do not hold {have} checkpoints")]
    Count {
        /// Number of checkpoints claimed.
        have: i32,
        /// Length of the checkpoints.
        zinfo_bytes: usize,
    },
    /// A negative span size, or 0 in a plain tar.
    #[error("impossible span size {span_size}")]
    SpanSize {
        /// Its value in bytes.
        span_size: i64,
    },
    /// An unknown version of a plain tar's or a zstd layer's checkpoints.
    #[error("unknown version {version} of the checkpoints of {} layers", of.name())]
    Version {
        /// The version found.
        version: i32,
        /// How the layer is compressed.
        of: Compression,
    },
    /// A negative offset or size.
    #[error("checkpoint {span} at the offset {value}")]
    Offset {
        /// Number of the checkpoint.
        span: usize,
        /// The offset.
        value: i64,
    },
    /// A checkpoint that lies behind the next one, or behind the end.
    #[error("checkpoint {span} (blob byte {blob}, layer byte {layer}) lies beyond the end of its span")]
    Inverted {
        /// Number of the checkpoint.
        span: usize,
        /// Its place in the blob.
        blob: BlobOffset,
        /// Its place in the layer.
        layer: LayerOffset,
    },
    /// Checkpoints that do not make a table of spans.
    #[error(transparent)]
    Table(#[from] SpanTableError),
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// A type that SOCI does not write.
    #[error("unknown type {found:?}")]
    Kind {
        /// The type as it came, made printable.
        found: String,
    },
    /// A number outside of what the field can mean.
    #[error("impossible {field} {value}")]
    Number {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// Data beyond the end of the layer.
    #[error("{size_bytes} bytes at layer byte {offset} reach beyond the layer's {layer_size} bytes")]
    BeyondLayer {
        /// Where the data are said to begin.
        offset: u64,
        /// How many there are said to be.
        size_bytes: u64,
        /// Size of the layer.
        layer_size: LayerOffset,
    },
    /// Data that do not begin at a block of the tar.
    #[error("data at layer byte {offset}, which is not a multiple of 512")]
    Unaligned {
        /// Where the data are said to begin.
        offset: u64,
    },
    /// A modification time that is none.
    #[error("bad modification time")]
    ModTime(#[from] ModTimeError),
}

impl From<Damage> for ZtocError {
    fn from(Damage { at, what }: Damage) -> Self {
        Self::Damaged { at, what }
    }
}

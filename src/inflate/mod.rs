//! From a restart point and blob bytes to layer bytes.
//!
//! Two directions: [`SpanInflater`] enters a layer at a checkpoint of its zTOC and yields the bytes of one span;
//! [`Indexer`] reads a whole gzip blob once and finds the checkpoints that SOCI's own builder would choose; [`ZstdIndexer`]
//! does so with the frames of a zstd blob, and [`BlobIndexer`] with either.
//!
//! Pure: functions of bytes, no I/O, and no trust: any input ends in the exact bytes or in an error. Whether blob bytes
//! are the right ones (the span's digest) is for the caller to check first.

mod arriving;
mod blob;
mod deflate;
mod gzip;
mod index;
mod pieces;
mod span;
mod starts;
mod stream;
mod table;
mod zstd;

#[cfg(test)]
mod tests;

use std::io;

pub use arriving::ArrivingSpan;
pub use blob::BlobIndexer;
pub use index::{Boundary, IndexEnd, IndexError, Indexer};
pub use span::{Inflated, SpanInflater, TAIL_LIMIT_BYTES, Want};
pub use zstd::{MAX_WINDOW_LOG, ZstdIndexer};

use crate::units::{BlobOffset, LayerOffset, SpanId};

/// Receives layer bytes in order, piece by piece.
pub type LayerSink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// What is wrong with compressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DataFault {
    /// The bytes begin with no gzip member header.
    #[error("no gzip header")]
    NotGzip,
    /// The checksum of a member header is wrong.
    #[error("header check failed")]
    HeaderCheck,
    /// The CRC-32 of a member is wrong.
    #[error("data check failed: wrong CRC-32")]
    DataCheck,
    /// The length of a member is wrong.
    #[error("length check failed")]
    LengthCheck,
    /// A block of the type that does not exist.
    #[error("invalid block type")]
    BlockType,
    /// The length of a stored block and its complement differ.
    #[error("invalid length of a stored block")]
    StoredLength,
    /// A block with more symbols than there are.
    #[error("too many length or distance symbols")]
    TooManySymbols,
    /// The code length code is no complete code.
    #[error("invalid code length code")]
    PrecodeCode,
    /// The literal/length code is no complete code.
    #[error("invalid literal/length code")]
    LitlenCode,
    /// The distance code is no complete code.
    #[error("invalid distance code")]
    DistanceCode,
    /// A code length is to be repeated before there is one.
    #[error("no code length to repeat")]
    NothingToRepeat,
    /// More code lengths than symbols.
    #[error("too many code lengths")]
    TooManyLengths,
    /// A block whose code has no end-of-block symbol.
    #[error("missing end-of-block symbol")]
    NoEndOfBlock,
    /// Bits that are no code word for a literal or length.
    #[error("no such literal or length")]
    NoSuchLitlen,
    /// Bits that are no code word for a distance.
    #[error("no such distance")]
    NoSuchDistance,
    /// A match that begins before the first byte.
    #[error("distance too far back")]
    TooFarBack,
    /// The bytes begin with no zstd frame.
    #[error("no zstd frame")]
    NotZstd,
    /// A zstd frame that needs more memory than is given to any.
    #[error("a zstd frame whose window is longer than {} MiB", (1_u64 << MAX_WINDOW_LOG) >> 20)]
    Window,
    /// A zstd frame that needs a dictionary, which a layer cannot bring.
    #[error("a zstd frame that needs a dictionary")]
    Dictionary,
    /// A zstd frame that cannot be decoded.
    #[error("damaged zstd frame: {what}")]
    Zstd {
        /// What the decoder says.
        what: &'static str,
    },
    /// A zstd frame that goes on behind its span.
    #[error("a zstd frame that does not end where its span does")]
    OpenFrame,
}

/// Why a span does not yield its layer bytes.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    /// The layer has no such span.
    #[error("span {span}: the layer has only {spans}")]
    NoSuchSpan {
        /// The span asked for.
        span: SpanId,
        /// How many the layer has.
        spans: usize,
    },
    /// The caller passed more or fewer bytes than the span has: a bug of the caller, not of the data.
    #[error("span {span}: expected {expected_bytes} bytes of blob, got {got_bytes}")]
    BlobLength {
        /// The span.
        span: SpanId,
        /// Length of its blob range.
        expected_bytes: u64,
        /// Length of what was passed.
        got_bytes: u64,
    },
    /// The blob bytes are no deflate data, or zstd frames, from this checkpoint on: the zTOC does not belong to this layer, or lies.
    #[error(
        "span {span}: no valid compressed data at blob offset {blob} (layer offset {layer}): {reason}; \
         the zTOC does not fit the layer, rebuild it"
    )]
    Data {
        /// The span.
        span: SpanId,
        /// Where in the blob the decoder stopped.
        blob: BlobOffset,
        /// How far in the layer it had come.
        layer: LayerOffset,
        /// What is wrong there.
        reason: DataFault,
    },
    /// The blob bytes inflate to fewer or more bytes than the zTOC says.
    #[error(
        "span {span}: inflates to {got_bytes} bytes where the zTOC says {expected_bytes}; the zTOC does not fit the \
         layer, rebuild it"
    )]
    Length {
        /// The span.
        span: SpanId,
        /// Length of its layer range.
        expected_bytes: u64,
        /// What came out; one more than expected stands for any excess.
        got_bytes: u64,
    },
    /// The blob bytes could not be read from where they wait.
    #[error("span {span}: cannot read its blob bytes")]
    Source {
        /// The span.
        span: SpanId,
        /// The reader's error.
        source: io::Error,
    },
    /// The receiver of the bytes failed.
    #[error("span {span}: cannot hand on layer bytes")]
    Sink {
        /// The span.
        span: SpanId,
        /// The receiver's error.
        source: io::Error,
    },
}

//! From a restart point and blob bytes to layer bytes.
//!
//! Two directions: [`SpanInflater`] enters a layer at a checkpoint of its zTOC and yields the bytes of one span;
//! [`Indexer`] reads a whole blob once and finds the checkpoints that SOCI's own builder would choose.
//!
//! Pure: functions of bytes, no I/O, and no trust: any input ends in the exact bytes or in an error. Whether blob bytes
//! are the right ones (the span's digest) is for the caller to check first.

mod gzip;
mod index;
mod prefix;
mod span;
mod stream;

#[cfg(test)]
mod tests;

use std::io;

pub use index::{IndexEnd, IndexError, Indexer};
pub use span::{Inflated, SpanInflater, TAIL_LIMIT_BYTES, Want};

use crate::units::{BlobOffset, LayerOffset, SpanId};

/// Receives layer bytes in order, piece by piece.
pub type LayerSink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

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
    /// The blob bytes are no deflate data from this checkpoint on: the zTOC does not belong to this layer, or lies.
    #[error(
        "span {span}: no valid deflate data at blob offset {blob} (layer offset {layer}): {reason}; \
         the zTOC does not fit the layer, rebuild it"
    )]
    Data {
        /// The span.
        span: SpanId,
        /// Where in the blob the engine stopped.
        blob: BlobOffset,
        /// How far in the layer it had come.
        layer: LayerOffset,
        /// The engine's words.
        reason: &'static str,
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
    /// The receiver of the bytes failed.
    #[error("span {span}: cannot hand on layer bytes")]
    Sink {
        /// The span.
        span: SpanId,
        /// The receiver's error.
        source: io::Error,
    },
}

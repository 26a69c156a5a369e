//! One pass over a compressed blob, however it is compressed.

use super::{Boundary, IndexError, Indexer, LayerSink, ZstdIndexer};
use crate::spans::{Checkpoint, Compression};
use crate::units::LayerOffset;

/// The indexer for a blob's compression. See [`Indexer`] and [`ZstdIndexer`].
pub enum BlobIndexer {
    /// Of a gzip blob.
    Gzip(Box<Indexer>),
    /// Of a zstd blob.
    Zstd(Box<ZstdIndexer>),
}

impl BlobIndexer {
    /// An indexer before the first byte of a blob, whose checkpoints are so far apart; `None` for a plain tar, which needs
    /// none.
    #[must_use]
    pub fn new(compression: Compression, span_size_bytes: u64) -> Option<Self> {
        match compression {
            Compression::Gzip => Some(Self::Gzip(Box::new(Indexer::new(span_size_bytes)))),
            Compression::Zstd => Some(Self::Zstd(Box::new(ZstdIndexer::new(span_size_bytes)))),
            Compression::Uncompressed => None,
        }
    }

    /// An indexer that makes no checkpoints, but notes the places where a decoder can start at the layer offsets `wanted`,
    /// which increase; `None` for a plain tar.
    #[must_use]
    pub fn watching(compression: Compression, wanted: Vec<LayerOffset>) -> Option<Self> {
        match compression {
            Compression::Gzip => Some(Self::Gzip(Box::new(Indexer::watching(wanted)))),
            Compression::Zstd => Some(Self::Zstd(Box::new(ZstdIndexer::watching(wanted)))),
            Compression::Uncompressed => None,
        }
    }

    /// How the blob is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        match self {
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }

    /// Takes the next bytes of the blob.
    ///
    /// # Errors
    /// Any [`IndexError`] but `CutOff`; the indexer is of no use then.
    pub fn push(&mut self, input: &[u8], sink: LayerSink<'_>) -> Result<(), IndexError> {
        match self {
            Self::Gzip(indexer) => indexer.push(input, sink),
            Self::Zstd(indexer) => indexer.push(input, sink),
        }
    }

    /// Hands on the rest of the layer.
    ///
    /// # Errors
    /// Any [`IndexError`], foremost that the blob is not complete.
    pub fn finish(&mut self, sink: LayerSink<'_>) -> Result<(), IndexError> {
        match self {
            Self::Gzip(indexer) => indexer.finish(sink).map(drop),
            Self::Zstd(indexer) => indexer.finish().map(drop),
        }
    }

    /// Takes the checkpoints that were found since the last call.
    pub fn take_checkpoints(&mut self) -> Vec<Checkpoint> {
        match self {
            Self::Gzip(indexer) => indexer.take_checkpoints(),
            Self::Zstd(indexer) => indexer.take_checkpoints(),
        }
    }

    /// Takes the wanted places that were found since the last call, in order.
    pub fn take_boundaries(&mut self) -> Vec<Boundary> {
        match self {
            Self::Gzip(indexer) => indexer.take_boundaries(),
            Self::Zstd(indexer) => indexer.take_boundaries(),
        }
    }
}

//! One pass over a blob: layer bytes out, and the checkpoints that SOCI's own builder would choose.
//!
//! SOCI's rule (its `gzip_zinfo.c`): the first place behind the gzip header is a checkpoint, then every block boundary
//! that lies *more* than the span size behind the last one. Starts of further members count as boundaries, the ends of
//! last blocks do not. SOCI stops at every boundary to look; here the decoder runs on until one counts.

use std::io;

use super::deflate::{Deflate, Pause};
use super::gzip::{HeaderFault, HeaderReader, Trailer};
use super::pieces::Pieces;
use super::starts::Starts;
use super::{DataFault, LayerSink};
use crate::spans::Checkpoint;
use crate::units::{BlobOffset, LayerOffset, u64_from_usize};

/// How far an indexer came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEnd {
    /// Size of the blob.
    pub blob_size: BlobOffset,
    /// True size of the layer: all that the blob inflates to.
    pub layer_size: LayerOffset,
}

/// A place of a blob where a deflate block or a zstd frame begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boundary {
    /// The first whole byte of the block, or the first of the frame.
    pub blob: BlobOffset,
    /// Layer bytes that lie before.
    pub layer: LayerOffset,
    /// 0..=7: how many high bits of the byte before `blob` belong to the block.
    pub bits: u8,
}

/// Why a blob cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The blob is damaged.
    #[error("the compressed data is damaged at blob offset {blob} (layer offset {layer}): {source}")]
    Data {
        /// Where in the blob.
        blob: BlobOffset,
        /// How much of the layer was out.
        layer: LayerOffset,
        /// What is wrong there.
        source: DataFault,
    },
    /// The blob ends in the middle of a gzip member or zstd frame.
    #[error("the compressed data is cut off: the blob ends at {blob} within a member or frame (layer offset {layer})")]
    CutOff {
        /// Size of the blob.
        blob: BlobOffset,
        /// How much of the layer was out.
        layer: LayerOffset,
    },
    /// Something other than a gzip member or zero padding, or a zstd frame, follows the last one.
    #[error("what follows the last member or frame, at blob offset {blob}, is neither another one nor zero padding")]
    TrailingGarbage {
        /// Where it begins.
        blob: BlobOffset,
    },
    /// The spans are so small that the zTOC would grow beyond 2 GiB.
    #[error("more than {limit} spans by layer offset {layer}; ask for larger spans")]
    TooManySpans {
        /// Most spans possible.
        limit: usize,
        /// How much of the layer was out.
        layer: LayerOffset,
    },
    /// The receiver of the layer bytes failed.
    #[error("cannot hand on layer bytes at layer offset {layer}")]
    Sink {
        /// Layer offset of the piece.
        layer: LayerOffset,
        /// The receiver's error.
        source: io::Error,
    },
}

/// What the next input byte is.
enum State {
    Header(HeaderReader),
    Deflate,
    Trailer,
    BetweenMembers,
    Padding,
}

/// Takes a gzip blob in pieces; yields the layer in pieces and collects checkpoints.
pub struct Indexer {
    deflate: Deflate,
    pieces: Pieces,
    starts: Starts,
    state: State,
    trailer: Trailer,
    blob: u64,
    /// Blob offset at which the current member begins.
    member_start: u64,
    layer: u64,
}

impl Indexer {
    /// An indexer before the first byte of a blob. `span_size_bytes` 0 makes a checkpoint of every block boundary.
    #[must_use]
    pub fn new(span_size_bytes: u64) -> Self {
        Self::with(Starts::spans(span_size_bytes))
    }

    /// An indexer that makes no checkpoints, but notes all block boundaries at the layer offsets `wanted`, which increase:
    /// to hold another builder's checkpoints against the stream.
    #[must_use]
    pub fn watching(wanted: Vec<LayerOffset>) -> Self {
        Self::with(Starts::watching(wanted))
    }

    fn with(starts: Starts) -> Self {
        Self {
            deflate: Deflate::new(),
            pieces: Pieces::new(),
            starts,
            state: State::Header(HeaderReader::new()),
            trailer: Trailer::new(),
            blob: 0,
            member_start: 0,
            layer: 0,
        }
    }

    /// Takes the checkpoints that were found since the last call: all that lie in the bytes pushed. Each holds 32 KiB:
    /// whoever takes them often needs little memory.
    pub fn take_checkpoints(&mut self) -> Vec<Checkpoint> {
        self.starts.take_checkpoints()
    }

    /// Takes the boundaries at wanted places that were found since the last call, in order.
    pub fn take_boundaries(&mut self) -> Vec<Boundary> {
        self.starts.take_boundaries()
    }

    /// Takes the next bytes of the blob. The sink may lag behind by a piece until [`Indexer::finish`].
    ///
    /// # Errors
    /// Any [`IndexError`] but `CutOff`; the indexer is of no use then.
    pub fn push(&mut self, mut input: &[u8], sink: LayerSink<'_>) -> Result<(), IndexError> {
        // Output may be waiting when the input is used up, so only the decoder says when it needs more.
        loop {
            let (consumed, more) = match &mut self.state {
                State::Deflate => self.inflate(input, sink)?,
                _ if input.is_empty() => return Ok(()),
                State::Header(_) => (self.header(input)?, true),
                State::Trailer => {
                    let (consumed, complete) = self.trailer.push(input).map_err(|source| self.error(source))?;
                    if complete {
                        self.state = State::BetweenMembers;
                    }
                    (consumed, true)
                }
                State::BetweenMembers => {
                    self.member_start = self.blob;
                    let padding = input.first() == Some(&0);
                    self.state = if padding { State::Padding } else { State::Header(HeaderReader::new()) };
                    (0, true)
                }
                State::Padding => (self.padding(input)?, true),
            };
            self.blob += u64_from_usize(consumed);
            input = input.get(consumed..).unwrap_or_default();
            if !more {
                return Ok(());
            }
        }
    }

    /// Hands on the rest of the layer and says how long both sides are.
    ///
    /// # Errors
    /// [`IndexError::CutOff`] when the blob is not complete; errors of the sink.
    pub fn finish(&mut self, sink: LayerSink<'_>) -> Result<IndexEnd, IndexError> {
        self.flush(sink)?;
        let (blob_size, layer_size) = (BlobOffset::new(self.blob), LayerOffset::new(self.layer));
        match self.state {
            State::BetweenMembers | State::Padding => Ok(IndexEnd { blob_size, layer_size }),
            _ => Err(IndexError::CutOff { blob: blob_size, layer: layer_size }),
        }
    }

    /// Takes bytes of a member header; gives how many.
    fn header(&mut self, input: &[u8]) -> Result<usize, IndexError> {
        let State::Header(reader) = &mut self.state else { return Ok(0) };
        match reader.push(input) {
            Ok(None) => Ok(input.len()),
            Ok(Some(consumed)) => {
                self.state = State::Deflate;
                self.deflate.restart(0, 0);
                self.pieces.new_member();
                self.trailer = Trailer::new();
                self.boundary(self.blob + u64_from_usize(consumed), 0)?;
                Ok(consumed)
            }
            // A second or later member with a bad header is garbage behind the last one.
            Err(_) if self.member_start > 0 => {
                Err(IndexError::TrailingGarbage { blob: BlobOffset::new(self.member_start) })
            }
            Err(HeaderFault::NotGzip) => Err(self.error(DataFault::NotGzip)),
            Err(HeaderFault::Checksum) => Err(self.error(DataFault::HeaderCheck)),
        }
    }

    /// Takes zeros behind the last member; gives how many.
    fn padding(&self, input: &[u8]) -> Result<usize, IndexError> {
        match input.iter().position(|&b| b != 0) {
            None => Ok(input.len()),
            Some(at) => Err(IndexError::TrailingGarbage { blob: BlobOffset::new(self.blob + u64_from_usize(at)) }),
        }
    }

    /// One run of the decoder; gives the bytes consumed and whether it can go on.
    fn inflate(&mut self, input: &[u8], sink: LayerSink<'_>) -> Result<(usize, bool), IndexError> {
        if self.pieces.is_full() {
            self.flush(sink)?;
        }
        let to_next = self.starts.next().saturating_sub(self.layer);
        let (step, made) = self.pieces.inflate(&mut self.deflate, input, u64::MAX, to_next);
        let pending = self.pieces.pending();
        self.trailer.data(pending.get(pending.len() - made..).unwrap_or_default());
        self.layer += u64_from_usize(made);
        match step.result {
            Ok(Pause::Input) => return Ok((step.consumed, false)),
            Ok(Pause::Output) => {}
            Ok(Pause::Boundary { bits }) => self.boundary(self.blob + u64_from_usize(step.consumed), bits)?,
            Ok(Pause::End) => self.state = State::Trailer,
            Err(source) => {
                self.blob += u64_from_usize(step.consumed);
                return Err(self.error(source));
            }
        }
        Ok((step.consumed, true))
    }

    /// A decoder can be started at this place of the blob; notes it if it counts.
    fn boundary(&mut self, blob: u64, bits: u8) -> Result<(), IndexError> {
        let pieces = &self.pieces;
        self.starts.boundary(Boundary::new(blob, self.layer, bits), || Some(pieces.window()))
    }

    fn flush(&mut self, sink: LayerSink<'_>) -> Result<(), IndexError> {
        let layer = LayerOffset::new(self.layer - u64_from_usize(self.pieces.pending().len()));
        self.pieces.flush(sink).map_err(|source| IndexError::Sink { layer, source })
    }

    fn error(&self, source: DataFault) -> IndexError {
        IndexError::Data { blob: BlobOffset::new(self.blob), layer: LayerOffset::new(self.layer), source }
    }
}

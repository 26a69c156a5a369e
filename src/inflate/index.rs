//! One pass over a blob: layer bytes out, and the checkpoints that SOCI's own builder would choose.
//!
//! SOCI's rule (its `gzip_zinfo.c`): the first place behind the gzip header is a checkpoint, then every block boundary
//! that lies *more* than the span size behind the last one. Starts of further members count as boundaries, the ends of
//! last blocks do not. SOCI stops at every boundary to look; here the engine runs freely until a boundary can
//! count, which gives the same checkpoints and is a few per cent faster.

use std::io;

use super::LayerSink;
use crate::spans::Checkpoint;
use crate::sys::zlib::{GzipBlocks, Place, Stop, ZlibError};
use crate::units::{BlobOffset, LayerOffset, WINDOW_BYTES, u64_from_usize, usize_from_u64};

/// Layer bytes go to the sink in pieces of this size; with the history in front they fit the second-level cache.
const PIECE_BYTES: usize = 512 * 1024;

/// The fixed part of a gzip header (RFC 1952, section 2.3).
const SHORTEST_HEADER_BYTES: u64 = 10;

/// Limit of checkpoints: at 32 KiB each, more would not fit the 2 GiB that a zTOC can have.
const MAX_CHECKPOINTS: usize = 65_000;

/// How far an indexer came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEnd {
    /// Size of the blob.
    pub blob_size: BlobOffset,
    /// True size of the layer: all that the blob inflates to.
    pub layer_size: LayerOffset,
}

/// Why a blob cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The blob is damaged.
    #[error("the gzip data is damaged at blob offset {blob} (layer offset {layer}): {source}")]
    Data {
        /// Where in the blob.
        blob: BlobOffset,
        /// How much of the layer was out.
        layer: LayerOffset,
        /// The engine's words.
        source: ZlibError,
    },
    /// The blob ends in the middle of a gzip member.
    #[error("the gzip data is cut off: the blob ends at {blob} within a member (layer offset {layer})")]
    CutOff {
        /// Size of the blob.
        blob: BlobOffset,
        /// How much of the layer was out.
        layer: LayerOffset,
    },
    /// Something other than a gzip member or zero padding follows the last member.
    #[error("what follows the last gzip member, at blob offset {blob}, is neither a member nor zero padding")]
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
    /// The engine failed for lack of memory.
    #[error("the inflate engine failed")]
    Engine {
        /// The engine's error.
        source: ZlibError,
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InMember,
    BetweenMembers,
    Padding,
}

/// Takes a gzip blob in pieces; yields the layer in pieces and collects checkpoints.
pub struct Indexer {
    engine: GzipBlocks,
    span_size_bytes: u64,
    state: State,
    blob: u64,
    /// Blob offset at which the current member begins.
    member_start: u64,
    layer: u64,
    /// Found since they were last taken.
    checkpoints: Vec<Checkpoint>,
    /// How many were found, and where the last one lies in the layer.
    found: usize,
    last: Option<u64>,
    /// The last 32 KiB that the sink has seen (zeros before there were any), then the piece being filled.
    buffer: Box<[u8]>,
    filled: usize,
}

impl Indexer {
    /// An indexer before the first byte of a blob. `span_size_bytes` 0 makes a checkpoint of every block boundary.
    ///
    /// # Errors
    /// [`IndexError::Engine`] without memory.
    pub fn new(span_size_bytes: u64) -> Result<Self, IndexError> {
        Ok(Self {
            engine: GzipBlocks::new().map_err(|source| IndexError::Engine { source })?,
            span_size_bytes,
            state: State::InMember,
            blob: 0,
            member_start: 0,
            layer: 0,
            checkpoints: Vec::new(),
            found: 0,
            last: None,
            buffer: vec![0; WINDOW_BYTES + PIECE_BYTES].into(),
            filled: 0,
        })
    }

    /// Takes the checkpoints that were found since the last call. Each holds 32 KiB: whoever takes them often needs
    /// little memory.
    pub fn take_checkpoints(&mut self) -> Vec<Checkpoint> {
        std::mem::take(&mut self.checkpoints)
    }

    /// Takes the next bytes of the blob. The sink may lag behind by a piece until [`Indexer::finish`].
    ///
    /// # Errors
    /// Any [`IndexError`] but `CutOff`; the indexer is of no use then.
    pub fn push(&mut self, mut input: &[u8], sink: LayerSink<'_>) -> Result<(), IndexError> {
        while let Some(&next) = input.first() {
            match self.state {
                State::InMember => {
                    let consumed = self.step(input, sink)?;
                    input = input.get(consumed..).unwrap_or_default();
                }
                State::BetweenMembers if next == 0 => self.state = State::Padding,
                State::BetweenMembers => {
                    self.engine.next_member().map_err(|source| IndexError::Engine { source })?;
                    self.member_start = self.blob;
                    self.state = State::InMember;
                }
                State::Padding => {
                    let zeros = input.iter().take_while(|&&b| b == 0).count();
                    self.blob += u64_from_usize(zeros);
                    input = input.get(zeros..).unwrap_or_default();
                    if !input.is_empty() {
                        return Err(IndexError::TrailingGarbage { blob: BlobOffset::new(self.blob) });
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands on the rest of the layer and says how long both sides are.
    ///
    /// # Errors
    /// [`IndexError::CutOff`] when the blob is not complete; errors of the sink.
    pub fn finish(&mut self, sink: LayerSink<'_>) -> Result<IndexEnd, IndexError> {
        // Output may still be waiting inside the engine when the last piece of input filled the buffer.
        while self.state == State::InMember {
            let before = self.layer;
            self.step(&[], sink)?;
            if self.layer == before {
                break;
            }
        }
        self.flush(sink)?;
        let (blob_size, layer_size) = (BlobOffset::new(self.blob), LayerOffset::new(self.layer));
        if self.state == State::InMember {
            return Err(IndexError::CutOff { blob: blob_size, layer: layer_size });
        }
        Ok(IndexEnd { blob_size, layer_size })
    }

    /// One call of the engine; gives the bytes consumed.
    fn step(&mut self, input: &[u8], sink: LayerSink<'_>) -> Result<usize, IndexError> {
        if self.filled == PIECE_BYTES {
            self.flush(sink)?;
        }
        let room = PIECE_BYTES - self.filled;
        let until_countable = self.last.map_or(0, |last| self.span_size_bytes.saturating_sub(self.layer - last));
        let (stop, room) = match usize_from_u64(until_countable) {
            Some(0) => (Stop::BlockBoundary, room),
            Some(n) => (Stop::Nowhere, room.min(n)),
            None => (Stop::Nowhere, room),
        };
        let start = WINDOW_BYTES + self.filled;
        let output = self.buffer.get_mut(start..start + room).unwrap_or_default();
        let step = self.engine.step(input, output, stop).map_err(|source| self.error(source))?;
        self.blob += u64_from_usize(step.consumed);
        self.layer += u64_from_usize(step.produced);
        self.filled += step.produced;
        match step.place {
            Place::Boundary { bits } => self.boundary(bits)?,
            Place::MemberEnd => self.state = State::BetweenMembers,
            Place::Within => {}
        }
        Ok(step.consumed)
    }

    fn boundary(&mut self, bits: u8) -> Result<(), IndexError> {
        let countable = match self.last {
            None => true,
            // SOCI would also repeat the first checkpoint behind empty blocks at the very start, and then refuse its own
            // zTOC for spans without bytes; one checkpoint at a place is enough.
            Some(last) => {
                let since = self.layer - last;
                since > self.span_size_bytes && since > 0
            }
        };
        if !countable {
            return Ok(());
        }
        if self.found == MAX_CHECKPOINTS {
            return Err(IndexError::TooManySpans { limit: MAX_CHECKPOINTS, layer: LayerOffset::new(self.layer) });
        }
        let mut window = Box::new([0; WINDOW_BYTES]);
        // `filled` is at most PIECE_BYTES and the buffer that much longer than the window.
        window.copy_from_slice(&self.buffer[self.filled..self.filled + WINDOW_BYTES]);
        self.checkpoints.push(Checkpoint {
            blob: BlobOffset::new(self.blob),
            layer: LayerOffset::new(self.layer),
            bits,
            window,
        });
        self.found += 1;
        self.last = Some(self.layer);
        Ok(())
    }

    /// Gives the piece to the sink and keeps its last 32 KiB as history.
    fn flush(&mut self, sink: LayerSink<'_>) -> Result<(), IndexError> {
        let piece = self.buffer.get(WINDOW_BYTES..WINDOW_BYTES + self.filled).unwrap_or_default();
        if !piece.is_empty() {
            let layer = LayerOffset::new(self.layer - u64_from_usize(piece.len()));
            sink(piece).map_err(|source| IndexError::Sink { layer, source })?;
            self.buffer.copy_within(self.filled..self.filled + WINDOW_BYTES, 0);
            self.filled = 0;
        }
        Ok(())
    }

    fn error(&self, source: ZlibError) -> IndexError {
        let ZlibError::Data { consumed, produced, .. } = &source else { return IndexError::Engine { source } };
        let blob = self.blob + u64_from_usize(*consumed);
        // A second or later member with a bad header is garbage behind the last one.
        if self.member_start > 0 && blob < self.member_start + SHORTEST_HEADER_BYTES {
            return IndexError::TrailingGarbage { blob: BlobOffset::new(self.member_start) };
        }
        let layer = LayerOffset::new(self.layer + u64_from_usize(*produced));
        IndexError::Data { blob: BlobOffset::new(blob), layer, source }
    }
}

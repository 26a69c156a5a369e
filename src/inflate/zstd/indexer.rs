//! One pass over a zstd blob: layer bytes out, and the frames at which spans begin.
//!
//! A span begins at the first frame that lies the span size or more behind the beginning of the last one: frames are never split,
//! so a blob of a single frame has a single span. Skippable frames belong to the span that they stand in; the first span
//! begins with the blob.

use super::{Event, Failure, Frames};
use crate::inflate::starts::Starts;
use crate::inflate::{Boundary, DataFault, IndexEnd, IndexError, LayerSink};
use crate::spans::Checkpoint;
use crate::units::{BlobOffset, LayerOffset, u64_from_usize};

/// Takes a zstd blob in pieces; yields the layer in pieces and collects checkpoints.
pub struct ZstdIndexer {
    frames: Frames,
    starts: Starts,
    /// Every frame is noted, not only those with data: another builder may begin spans with skippable ones.
    watching: bool,
    layer: u64,
}

impl ZstdIndexer {
    /// An indexer before the first byte of a blob. `span_size_bytes` 0 makes a checkpoint of every frame with data.
    #[must_use]
    pub fn new(span_size_bytes: u64) -> Self {
        // At the span size counts, where gzip counts what lies behind it: encoders make frames of just such sizes.
        Self::with(Starts::spans(span_size_bytes.saturating_sub(1)), false)
    }

    /// An indexer that makes no checkpoints, but notes all frames at the layer offsets `wanted`, which increase.
    #[must_use]
    pub fn watching(wanted: Vec<LayerOffset>) -> Self {
        Self::with(Starts::watching(wanted), true)
    }

    fn with(starts: Starts, watching: bool) -> Self {
        Self { frames: Frames::new(), starts, watching, layer: 0 }
    }

    /// Takes the checkpoints that were found since the last call. They lie in the bytes pushed since, or in the last
    /// [`MARK_BYTES`](Self::MARK_BYTES) before them.
    pub fn take_checkpoints(&mut self) -> Vec<Checkpoint> {
        self.starts.take_checkpoints()
    }

    /// Takes the boundaries at wanted places that were found since the last call, in order.
    pub fn take_boundaries(&mut self) -> Vec<Boundary> {
        self.starts.take_boundaries()
    }

    /// How many of the last bytes may turn out to begin a frame only with the next ones.
    pub const MARK_BYTES: usize = 3;

    /// Takes the next bytes of the blob.
    ///
    /// # Errors
    /// Any [`IndexError`] but `CutOff`; the indexer is of no use then.
    pub fn push(&mut self, input: &[u8], sink: LayerSink<'_>) -> Result<(), IndexError> {
        let Self { frames, starts, watching, layer } = self;
        if starts.is_empty() && !*watching {
            starts.boundary(Boundary::new(0, 0, 0), || None)?;
        }
        let done = frames.push(input, &mut |event| match event {
            Event::Frame { skippable: true, .. } if !*watching => Ok(()),
            Event::Frame { at, .. } => starts.boundary(Boundary::new(at, *layer, 0), || None),
            Event::Bytes(bytes) => {
                let here = LayerOffset::new(*layer);
                *layer += u64_from_usize(bytes.len());
                sink(bytes).map_err(|source| IndexError::Sink { layer: here, source })
            }
        });
        done.map_err(|failure| match failure {
            Failure::Heard(error) => error,
            Failure::Data { frame: frame @ 1.., reason: DataFault::NotZstd } => {
                IndexError::TrailingGarbage { blob: BlobOffset::new(frame) }
            }
            Failure::Data { frame, reason } => {
                IndexError::Data { blob: BlobOffset::new(frame), layer: LayerOffset::new(self.layer), source: reason }
            }
        })
    }

    /// Says how long both sides are.
    ///
    /// # Errors
    /// [`IndexError::CutOff`] when the blob is not complete.
    pub fn finish(&mut self) -> Result<IndexEnd, IndexError> {
        let (blob_size, layer_size) = (BlobOffset::new(self.frames.at()), LayerOffset::new(self.layer));
        if self.frames.is_between_frames() {
            Ok(IndexEnd { blob_size, layer_size })
        } else {
            Err(IndexError::CutOff { blob: blob_size, layer: layer_size })
        }
    }
}

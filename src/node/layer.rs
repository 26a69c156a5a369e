//! A served layer: the one place where the device's address space, the layer file and the fill scheduler meet.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::synthesis::{Synthesized, piece_len};
use crate::cache::LayerFile;
use crate::erofs::{Piece, Space};
use crate::fill::{FillError, FillLayer, Priority};
use crate::frontend::{
    Backend, Completion, ReadError, Readiness, Segment, Segments, SourceFile, ZERO_HOLE_BYTES,
};
use crate::units::{DeviceOffset, DeviceRange, Digest, LayerOffset, LayerRange};

/// A layer that a frontend serves. Shared by all mounts that hold it.
pub struct Layer {
    name: String,
    space: Space,
    metadata: File,
    metadata_digest: Digest,
    file: Arc<LayerFile>,
    fill: Arc<FillLayer>,
    failed_reads: AtomicU64,
}

impl Layer {
    /// Joins what was synthesized with the layer file and its filler.
    #[must_use]
    pub fn new(parts: Synthesized, file: Arc<LayerFile>, fill: Arc<FillLayer>) -> Self {
        Self {
            name: parts.name,
            space: parts.space,
            metadata: parts.metadata,
            metadata_digest: parts.metadata_digest,
            file,
            fill,
            failed_reads: AtomicU64::new(0),
        }
    }

    /// File-name form of digest and variant.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// sha256 of the metadata that the device shows.
    #[must_use]
    pub fn metadata_digest(&self) -> Digest {
        self.metadata_digest
    }

    /// The layer file.
    #[must_use]
    pub fn file(&self) -> &Arc<LayerFile> {
        &self.file
    }

    /// What fills it.
    #[must_use]
    pub fn fill(&self) -> &Arc<FillLayer> {
        &self.fill
    }

    /// Kernel requests that were answered with an error.
    #[must_use]
    pub fn failed_reads(&self) -> u64 {
        self.failed_reads.load(Ordering::Relaxed)
    }

    /// Layer ranges that `segments` read. Pieces that lie close together (files with a header between them) are one.
    fn layer_ranges(segments: &Segments) -> impl Iterator<Item = LayerRange> {
        // A tar header and a few KiB of small dropped entries are no reason for a second look at the scheduler.
        const JOIN_BYTES: u64 = 64 << 10;
        let mut pieces = segments.iter().filter(|s| s.file == SourceFile::Layer).peekable();
        std::iter::from_fn(move || {
            let first = pieces.next()?;
            let start = first.offset;
            let mut end = start + u64::from(first.len_bytes);
            while let Some(next) = pieces.next_if(|n| n.offset >= end && n.offset - end <= JOIN_BYTES) {
                end = next.offset + u64::from(next.len_bytes);
            }
            LayerRange::new(LayerOffset::new(start), LayerOffset::new(end))
        })
    }
}

/// Several waits that end together: the completion runs when the last one is over, with the first error.
struct Join {
    left: AtomicUsize,
    failed: AtomicBool,
    done: Mutex<Option<Completion>>,
}

impl Join {
    fn finish(&self, error: Option<ReadError>) {
        if error.is_some() {
            self.failed.store(true, Ordering::SeqCst);
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1
            && let Some(done) = self.done.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            let failed = self.failed.load(Ordering::SeqCst);
            done(if failed { Err(ReadError::Unavailable) } else { Ok(()) });
        }
    }

    /// Whether every wait was over before it began; the completion is dropped unused then.
    fn was_ready(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return false;
        }
        self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        true
    }
}

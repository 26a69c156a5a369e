//! A served layer: the one place where the device's address space, the layer file and the fill scheduler meet.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::synthesis::{Synthesized, piece_len};
use crate::cache::LayerFile;
use crate::erofs::{Piece, Space};
use crate::fill::{FillError, FillLayer, Priority};
use crate::frontend::{Backend, Completion, ReadError, Readiness, Segment, Segments, SourceFile, ZERO_HOLE_BYTES};
use crate::units::{DeviceOffset, DeviceRange, LayerOffset, LayerRange};

/// A layer that a frontend serves. Shared by all mounts that hold it.
pub struct Layer {
    name: String,
    space: Space,
    metadata: File,
    file: Arc<LayerFile>,
    fill: Arc<FillLayer>,
    failed_reads: AtomicU64,
}

impl Layer {
    /// Joins what was synthesized with the layer file and its filler.
    #[must_use]
    pub fn new(name: String, parts: Synthesized, file: Arc<LayerFile>, fill: Arc<FillLayer>) -> Self {
        Self { name, space: parts.space, metadata: parts.metadata, file, fill, failed_reads: AtomicU64::new(0) }
    }

    /// Storage key, variant and frontend, in file-name form.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
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

    /// Gives back the asker's share. True when every wait was over before it began: the completion was dropped unused
    /// then. A failure that came in meanwhile is told to the completion like any other.
    fn end_of_asking(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return false;
        }
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        match done {
            Some(done) if self.failed.load(Ordering::SeqCst) => {
                done(Err(ReadError::Unavailable));
                false
            }
            _ => true,
        }
    }
}

impl Backend for Layer {
    fn size(&self) -> DeviceOffset {
        self.space.device_size()
    }

    fn file(&self, which: SourceFile) -> BorrowedFd<'_> {
        match which {
            SourceFile::Metadata => self.metadata.as_fd(),
            SourceFile::Layer => self.file.fd(),
        }
    }

    fn segments(&self, range: DeviceRange, out: &mut Segments) -> Result<(), ReadError> {
        for piece in self.space.pieces(range).map_err(|_| ReadError::OutOfRange)? {
            match piece {
                Piece::Metadata { offset_bytes, len_bytes } => {
                    out.push(Segment {
                        file: SourceFile::Metadata,
                        offset: offset_bytes,
                        len_bytes: piece_len(len_bytes),
                    });
                }
                Piece::Layer(part) => out.push(Segment {
                    file: SourceFile::Layer,
                    offset: part.start().get(),
                    len_bytes: piece_len(part.len_bytes()),
                }),
                Piece::Zeros { len_bytes } => {
                    let mut left = len_bytes;
                    while left > 0 {
                        let now = left.min(ZERO_HOLE_BYTES);
                        out.push(Segment {
                            file: SourceFile::Metadata,
                            offset: self.space.metadata_len(),
                            len_bytes: piece_len(now),
                        });
                        left -= now;
                    }
                }
            }
        }
        Ok(())
    }

    fn ensure(&self, segments: &Segments, done: Completion) -> Readiness {
        let mut ranges = Self::layer_ranges(segments);
        let Some(first) = ranges.next() else { return Readiness::Ready };
        let second = ranges.next();
        if second.is_none() {
            let waiter = Box::new(move |result: Result<(), FillError>| done(result.map_err(read_error)));
            return if self.fill.ensure(first, Priority::Demand, waiter) {
                Readiness::Ready
            } else {
                Readiness::Pending
            };
        }
        // One share for each wait and one for this call, so that nothing ends before all have begun.
        let join =
            Arc::new(Join { left: AtomicUsize::new(1), failed: AtomicBool::new(false), done: Mutex::new(Some(done)) });
        for range in [first].into_iter().chain(second).chain(ranges) {
            join.left.fetch_add(1, Ordering::SeqCst);
            let waiting = Arc::clone(&join);
            let waiter =
                Box::new(move |result: Result<(), FillError>| waiting.finish(result.map_err(read_error).err()));
            if self.fill.ensure(range, Priority::Demand, waiter) {
                join.left.fetch_sub(1, Ordering::SeqCst);
            }
        }
        if join.end_of_asking() { Readiness::Ready } else { Readiness::Pending }
    }

    fn failed(&self, range: DeviceRange, error: &dyn std::error::Error) {
        // Each is worth a count; the log gets the first of every power of two, so that a dead registry cannot fill it.
        let count = self.failed_reads.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(layer = %self.name, %range, %error, count, "a read was answered with an I/O error");
        }
    }
}

fn read_error(error: FillError) -> ReadError {
    match error {
        FillError::Stopping => ReadError::Stopping,
        _ => ReadError::Unavailable,
    }
}

//! A served layer: the one place where the device's address space, the layer file and the fill scheduler meet.

mod files;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::synthesis::{Synthesized, piece_len};
use crate::cache::LayerFile;
use crate::erofs::{Piece, Space, root_owner};
use crate::fill::{FillError, FillLayer};
use crate::frontend::fuse_fs::FileTree;
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

    /// User and group of its root directory.
    ///
    /// # Errors
    /// When the metadata file cannot be read.
    pub fn root_owner(&self) -> io::Result<(u32, u32)> {
        root_owner(|at, bytes| self.metadata.read_exact_at(bytes, at))
    }

    /// Bytes at the device's beginning that are EROFS metadata.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        self.space.metadata_len()
    }

    /// Where on the device the first byte of a layer range is; `None` when the device shows none of it.
    #[must_use]
    pub fn device_offset(&self, range: LayerRange) -> Option<DeviceOffset> {
        self.space.device_ranges(range).next().map(|(_, device)| device.start())
    }

    /// Its files, for the frontend that serves them one by one.
    ///
    /// # Errors
    /// When the metadata file cannot be mapped, or is not what was written.
    pub fn files(&self) -> io::Result<Box<dyn FileTree>> {
        Ok(Box::new(files::LayerFiles::open(&self.metadata, self.metadata_bytes())?))
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

    /// Holds all that `segments` read, or nothing.
    fn hold(&self, segments: &Segments) -> bool {
        for (held, range) in Self::layer_ranges(segments).enumerate() {
            if !self.fill.hold(range) {
                Self::layer_ranges(segments).take(held).for_each(|range| self.fill.release(range));
                return false;
            }
        }
        true
    }
}

/// Several waits that end together: the completion runs when the last one is over.
struct Join {
    state: Mutex<JoinState>,
}

struct JoinState {
    left: usize,
    result: Result<(), ReadError>,
    done: Option<Completion>,
}

impl Join {
    fn new(waits: usize, done: Completion) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(JoinState { left: waits, result: Ok(()), done: Some(done) }) })
    }

    fn finish(&self, result: Result<(), ReadError>) {
        let (done, result) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            // That we stop explains every other failure, and is no failure of the reader's.
            if state.result != Err(ReadError::Stopping) && result.is_err() {
                state.result = result;
            }
            state.left -= 1;
            if state.left > 0 {
                return;
            }
            (state.done.take(), state.result)
        };
        if let Some(done) = done {
            done(result);
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
                            offset: self.metadata_bytes(),
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
        if self.hold(segments) {
            return Readiness::Ready;
        }
        let join = Join::new(Self::layer_ranges(segments).count(), done);
        for range in Self::layer_ranges(segments) {
            let join = Arc::clone(&join);
            self.fill.want(range, Box::new(move |result| join.finish(result.map_err(read_error))));
        }
        Readiness::Pending
    }

    fn release(&self, segments: &Segments) {
        Self::layer_ranges(segments).for_each(|range| self.fill.release(range));
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

#[cfg(test)]
mod tests;

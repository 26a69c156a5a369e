//! The blob bytes of a span on their way: in memory, or of a long zstd span in a file.
//!
//! A zstd frame is never split, so a layer that is a single frame is a single span of any length. Its bytes wait on disk until
//! all of them are here and their digest is right: no byte of a span is believed before. Spans of gzip layers and plain tars
//! are as short as their zTOC was asked to make them.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use super::ahead::{Ahead, Outcome};
use super::layer::LayerInner;
use super::workers::JobQueue;
use super::{FillError, Priority};
use crate::cache::CacheError;
use crate::inflate::{InflateError, Inflated, LayerSink, SpanInflater, Want};
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{Digest, DigestHasher, SpanId, WINDOW_BYTES, u64_from_usize, usize_from_u64};

/// First allocation for a span's bytes at most: a zTOC may claim a span of many gigabytes.
const FIRST_BUFFER_BYTES: u64 = 8 << 20;

/// Memory that a span on disk is counted with: buffers, and the window that decoders usually need.
pub(super) const LONG_SPAN_MEMORY_BYTES: u64 = 10 << 20;

/// Whether a span's bytes wait on disk.
pub(super) fn is_long(table: &SpanTable, span: &Span, long_span_bytes: u64) -> bool {
    table.compression() == Compression::Zstd && span.blob.len_bytes() > long_span_bytes
}

/// Bytes of a span, from its first on.
pub(super) enum SpanBytes {
    Memory(Vec<u8>),
    /// In memory, and worked on while they come.
    Ahead {
        ahead: Arc<Ahead>,
        jobs: Arc<JobQueue>,
        priority: Priority,
        len_bytes: u64,
        last: Option<u8>,
    },
    Disk {
        file: File,
        hasher: DigestHasher,
        len_bytes: u64,
    },
}

/// Where the bytes of spans go.
pub(super) struct Room {
    pub long_span_bytes: u64,
    pub jobs: Arc<JobQueue>,
    /// Of what is done with them; nobody is in a hurry for the background.
    pub priority: Priority,
}

impl Room {
    /// For a span of which nothing is here yet.
    pub fn of(&self, layer: &Arc<LayerInner>, id: SpanId, span: &Span) -> Result<SpanBytes, FillError> {
        let whole_bytes = span.blob.len_bytes();
        if is_long(&layer.table, span, self.long_span_bytes) {
            let file = layer.file.spool().map_err(|error| disk_error(layer, error, whole_bytes))?;
            return Ok(SpanBytes::Disk { file, hasher: DigestHasher::new(), len_bytes: 0 });
        }
        if self.priority != Priority::Background && Ahead::is_worth_it(&layer.table, id, span) {
            let (ahead, jobs) = (Ahead::new(layer, id, span), self.jobs.clone());
            return Ok(SpanBytes::Ahead { ahead, jobs, priority: self.priority, len_bytes: 0, last: None });
        }
        let first = usize_from_u64(whole_bytes.min(FIRST_BUFFER_BYTES)).unwrap_or(0);
        Ok(SpanBytes::Memory(Vec::with_capacity(first)))
    }
}

impl SpanBytes {
    /// How many are here.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => u64_from_usize(bytes.len()),
            Self::Ahead { len_bytes, .. } | Self::Disk { len_bytes, .. } => *len_bytes,
        }
    }

    /// Takes the next ones. Those for the disk go to the page cache.
    pub fn append(&mut self, layer: &LayerInner, span: &Span, more: &[u8]) -> Result<(), FillError> {
        match self {
            Self::Memory(bytes) => bytes.extend_from_slice(more),
            Self::Ahead { ahead, jobs, priority, len_bytes, last } => {
                ahead.append(more, jobs, *priority);
                *len_bytes += u64_from_usize(more.len());
                *last = more.last().copied().or(*last);
            }
            Self::Disk { file, hasher, len_bytes } => {
                let missing_bytes = span.blob.len_bytes().saturating_sub(*len_bytes);
                write(file, more, layer, missing_bytes)?;
                hasher.update(more);
                *len_bytes += u64_from_usize(more.len());
            }
        }
        Ok(())
    }

    /// All bytes are here: where, their sha256, and what they inflate to if that is known already.
    pub fn settle(self) -> (Settled, Digest, Option<Vec<u8>>) {
        match self {
            Self::Memory(bytes) => {
                let digest = Digest::of(&bytes);
                (Settled::Memory(bytes), digest, None)
            }
            Self::Ahead { ahead, .. } => {
                let Outcome { blob, digest, inflated } = ahead.finish();
                (Settled::Memory(blob), digest, inflated)
            }
            Self::Disk { file, hasher, len_bytes } => (Settled::Disk { file, len_bytes }, hasher.finish(), None),
        }
    }

    /// The last byte of bytes in memory; a neighbour may share it.
    pub fn last(&self) -> Option<u8> {
        match self {
            Self::Memory(bytes) => bytes.last().copied(),
            Self::Ahead { last, .. } => *last,
            Self::Disk { .. } => None,
        }
    }
}

/// All bytes of a span.
pub(super) enum Settled {
    Memory(Vec<u8>),
    Disk { file: File, len_bytes: u64 },
}

impl Settled {
    /// Inflates the whole span.
    pub fn inflate(
        &self,
        inflater: &mut SpanInflater,
        table: &SpanTable,
        id: SpanId,
        window: Option<&[u8; WINDOW_BYTES]>,
        sink: LayerSink<'_>,
    ) -> Result<Inflated, InflateError> {
        match self {
            Self::Memory(bytes) => inflater.inflate(table, id, bytes, window, Want::Whole, sink),
            Self::Disk { file, len_bytes } => {
                let mut from = file;
                from.seek(SeekFrom::Start(0)).map_err(|source| InflateError::Source { span: id, source })?;
                inflater.inflate_long(table, id, &mut from.take(*len_bytes), *len_bytes, sink)
            }
        }
    }
}

/// Writes all, if need be after other layers have made room.
fn write(mut file: &File, bytes: &[u8], layer: &LayerInner, missing_bytes: u64) -> Result<(), FillError> {
    let before = file.stream_position().map_err(|error| disk_error(layer, error, missing_bytes))?;
    let Err(error) = file.write_all(bytes) else { return Ok(()) };
    let failure = layer.file.write_failure(error, missing_bytes);
    if !failure.is_no_space() || layer.file.make_room(missing_bytes).map_err(cache_error)? == 0 {
        return Err(cache_error(failure));
    }
    let again = file.seek(SeekFrom::Start(before)).and_then(|_| file.write_all(bytes));
    again.map_err(|error| disk_error(layer, error, missing_bytes))
}

fn disk_error(layer: &LayerInner, error: io::Error, needed_bytes: u64) -> FillError {
    cache_error(layer.file.write_failure(error, needed_bytes))
}

pub(super) fn cache_error(source: CacheError) -> FillError {
    FillError::Cache { source: std::sync::Arc::new(source) }
}

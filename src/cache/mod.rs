//! Layer files: which spans of a layer are on this disk, proven or not. Local disk only.
//!
//! Under the root there is one folder per layer digest, `layers/<hex>/`, with three files:
//!
//! | file | what |
//! |---|---|
//! | `data` | the layer's tar, sparse where spans are missing; the frontend reads from it |
//! | `present` | which spans are there, see [`record`] for the bytes |
//! | `state.json` | format version, geometry of the span table, proven diffID, true length of the layer |
//!
//! # What a crash costs
//!
//! The order is always data, `fdatasync`, record: a span that the record names has its bytes on disk. What was written
//! but not yet recorded is fetched again. Taking away goes the other way round: record, `fdatasync`, hole.
//!
//! # Who may read
//!
//! Spans of layers in use may be evicted when the budget is exceeded. A reader holds them first ([`LayerFile::hold`], or
//! a [`ReadPin`] that lets go by itself); a span that is held is never punched.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::units::{Digest, SpanId};

mod bitmap;
mod evict;
mod flusher;
mod ingest;
mod layer_file;
mod pins;
pub mod record;
mod state;
mod store;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use bitmap::Bitmap;
pub use ingest::IngestFile;
pub use layer_file::{LayerFile, SpanWriter};
pub use pins::ReadPin;
pub use store::Cache;

/// How a cache behaves.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Disk budget for all layer files together, in bytes as the file system counts them (`st_blocks`).
    /// `u64::MAX`: no limit.
    pub max_bytes: u64,
    /// As many written spans wait for one `fdatasync` before the flusher is woken early.
    pub flush_spans: usize,
    /// A written span is recorded durably at most this long after it was written.
    pub flush_after: Duration,
    /// A span that was read or written less than this ago is not evicted from a layer in use.
    pub min_idle: Duration,
}

impl Default for CacheConfig {
    /// 32 spans are about 128 MiB at SOCI's usual span size: one `fdatasync` for a second of a fast link. Five seconds
    /// is what the kernel itself lets dirty pages rest (`dirty_writeback_centisecs`). A request lives for milliseconds;
    /// a minute of idleness leaves room for a very slow machine.
    fn default() -> Self {
        Self {
            max_bytes: u64::MAX,
            flush_spans: 32,
            flush_after: Duration::from_secs(5),
            min_idle: Duration::from_secs(60),
        }
    }
}

/// Why the cache could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A system call on a cache file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system of the cache is full, or a quota is.
    #[error(
        "no space left for {needed_bytes} bytes of layer {digest} in {}: free disk space or lower the cache's size limit",
        path.display()
    )]
    NoSpace {
        /// The layer.
        digest: Digest,
        /// The file that could not grow.
        path: PathBuf,
        /// How many bytes were to be written.
        needed_bytes: u64,
    },
    /// Another process uses this cache.
    #[error("{} is in use by another process: stop it, or choose another --root", root.display())]
    Locked {
        /// The cache's root.
        root: PathBuf,
    },
    /// The layer is being ingested, or is open while an ingest wants it.
    #[error("layer {digest} is in use: an ingest needs it alone")]
    Busy {
        /// The layer.
        digest: Digest,
    },
    /// A span does not have the length that its zTOC claims.
    #[error("span {span} of layer {digest} has {got_bytes} bytes, its zTOC says {expected_bytes}")]
    SpanLength {
        /// The layer.
        digest: Digest,
        /// The span.
        span: SpanId,
        /// Length in the zTOC.
        expected_bytes: u64,
        /// Length of the bytes given.
        got_bytes: u64,
    },
    /// The layer has no such span.
    #[error("layer {digest} has no span {span}")]
    NoSuchSpan {
        /// The layer.
        digest: Digest,
        /// The span.
        span: SpanId,
    },
    /// A proven layer is shorter than a zTOC for it claims.
    #[error("the zTOC of layer {digest} speaks of {table_bytes} bytes, the layer has {layer_bytes}: the zTOC is wrong")]
    TableTooLong {
        /// The layer.
        digest: Digest,
        /// Size in the zTOC.
        table_bytes: u64,
        /// Size of the proven layer.
        layer_bytes: u64,
    },
    /// The layer cannot be proven yet.
    #[error("layer {digest} lacks {missing} spans and cannot be proven yet")]
    Incomplete {
        /// The layer.
        digest: Digest,
        /// How many spans are missing.
        missing: u32,
    },
    /// The work was stopped from outside.
    #[error("stopped")]
    Stopped,
    /// All spans are here, yet the layer is not what the image says.
    #[error(
        "layer {digest} is complete but its bytes have the digest {got}, the image says diffID {expected}: the zTOC does not belong to this image"
    )]
    DiffId {
        /// The layer.
        digest: Digest,
        /// The image's diffID.
        expected: Digest,
        /// What the bytes hash to.
        got: Digest,
    },
}

impl CacheError {
    /// Whether more disk space would help.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Takes a lock whose holders cannot leave broken state behind: every critical section here ends consistent or aborts.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! "Make this layer range present", exactly once per span: the one crossing from block threads to async.
//!
//! ```text
//! ensure ─► scheduler ─► range GET ─► sha256, inflate, pwrite ─► layer file ─► waiters
//!  (any thread)  (pure)    (tokio)        (CPU threads)
//! ```
//!
//! The scheduler ([`sched`]) is a pure state machine: `apply(event, now) -> actions`. Everything around it carries out
//! actions and reports events. What it promises:
//!
//! - a span is fetched by one transfer at a time, however many readers want it;
//! - every waiter is called exactly once;
//! - demand goes first: other work leaves requests, memory and the link free for it, and a queued span that a reader
//!   wants moves to the front;
//! - trouble of the registry holds readers and is retried; after [`FillConfig::hold_limit`] they fail. No failure is
//!   remembered: the next `ensure` tries again.
//!
//! No byte reaches the layer file before its span's sha256 was right.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::CacheError;
use crate::inflate::InflateError;
use crate::registry::RegistryError;
use crate::units::{BlobOffset, Digest, SpanId};

mod ahead;
mod excerpt;
mod filler;
mod ingest;
mod layer;
mod link;
pub mod sched;
mod span_bytes;
mod touched;
mod transfer;
mod waits;
mod workers;

#[cfg(test)]
mod ingest_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod zstd_tests;

pub use excerpt::{Excerpt, excerpt_table};
pub use filler::Filler;
pub use ingest::{IngestConfig, IngestError, Ingested, Interrupted, Pieces, Progress, ingest, stream};
pub use layer::{FillLayer, LayerSpec, LayerStatus, Waiter};
pub use touched::{Touch, read_clock_us};
pub use waits::{MAX_SLOWEST, SlowRead, WaitingRead, Waits, WaitsFor};

/// Why a span is wanted; later ones go first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Priority {
    /// To complete the layer while nothing else is to do.
    Background,
    /// A recorded load order says it will be read.
    Recorded,
    /// A sequential reader is about to reach it.
    ReadAhead,
    /// A reader is blocked on it.
    Demand,
}

/// How filling behaves.
#[derive(Clone, Debug)]
pub struct FillConfig {
    /// Threads that hash, inflate and write; 0: one per core.
    pub cpu_threads: usize,
    /// Parallel requests in total.
    pub max_requests: usize,
    /// Parallel requests to one registry host.
    pub max_requests_per_host: usize,
    /// Parallel requests for one layer.
    pub max_requests_per_layer: usize,
    /// How many of each of these only demand may use.
    pub reserved_requests: usize,
    /// Memory for bytes on their way, compressed and inflated together. A span that needs more goes alone.
    pub memory_bytes: u64,
    /// Blob bytes of a zstd span that wait on disk and not in memory until all are here are more than this.
    pub long_span_bytes: u64,
    /// Longest transfer, in blob bytes; one span is always allowed.
    pub max_transfer_bytes: u64,
    /// Parallel requests for one transfer where connections are slow to start, up to 4; 1: never.
    pub max_ways: u64,
    /// Longest transfer in the background or of a recorded load order, in blob bytes; one span is always allowed. A reader
    /// that comes to want its last span waits for all of it.
    pub background_transfer_bytes: u64,
    /// How long the background leaves a new layer alone: whoever has it shown reads it soon, or has a load order for it that
    /// is still on its way.
    pub background_begin: Duration,
    /// How long the background waits after a demand read of the same host: programs read again soon.
    pub background_quiet: Duration,
    /// How long the background leaves layers alone whose load order is followed: what the start needs is on its way, and what
    /// else would come only takes link and CPU from it.
    pub background_settle: Duration,
    /// Present spans of up to so many blob bytes are fetched again when that joins two transfers.
    pub bridge_bytes: u64,
    /// Largest read-ahead of a sequential reader, in blob bytes; 0: none.
    pub read_ahead_bytes: u64,
    /// Complete layers while idle.
    pub background: bool,
    /// Rate of what is fetched at [`Priority::Background`], in blob bytes per second; 0: as fast as the link.
    pub background_bytes_per_sec: u64,
    /// How long a reader is held while the registry is in trouble.
    pub hold_limit: Duration,
    /// A transfer that brings no byte for so long is given up and tried again.
    pub stall_limit: Duration,
    /// An excerpt that has brought no byte for so long while a reader waits for it is given up: the layer's own spans may
    /// be there to be had.
    pub excerpt_patience: Duration,
    /// Upper bound of the first pause before a retry.
    pub first_pause: Duration,
    /// Upper bound of any pause.
    pub longest_pause: Duration,
}

impl Default for FillConfig {
    /// The numbers are starting points for measurements. 8 MiB is what object stores like best in one request; 16
    /// requests saturate a 10 Gbit/s link at 100 ms and stay below the limits of public registries; a bridge of 16 KiB costs
    /// less than the round trip that it saves.
    fn default() -> Self {
        Self {
            cpu_threads: 0,
            max_requests: 16,
            max_requests_per_host: 12,
            max_requests_per_layer: 6,
            reserved_requests: 2,
            memory_bytes: 256 << 20,
            long_span_bytes: 32 << 20,
            max_transfer_bytes: 8 << 20,
            // More made single reads over a far link slower, not faster (docs/decisions/reads-behind-a-link.md).
            max_ways: 1,
            background_transfer_bytes: 2 << 20,
            background_begin: Duration::ZERO,
            background_quiet: Duration::from_millis(50),
            background_settle: Duration::from_secs(10),
            bridge_bytes: 16 << 10,
            read_ahead_bytes: 32 << 20,
            background: false,
            background_bytes_per_sec: 0,
            hold_limit: Duration::from_secs(600),
            stall_limit: Duration::from_secs(60),
            excerpt_patience: Duration::from_secs(5),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(20),
        }
    }
}

/// Why layer bytes could not be made present. Cheap to clone: one failure may concern many readers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    /// The blob's bytes could not be had.
    #[error("layer {layer}: {source}")]
    Registry {
        /// The layer.
        layer: Digest,
        /// What the registry module said.
        source: Arc<RegistryError>,
    },
    /// The answer ended before the range did.
    #[error("layer {layer}: {from} ended at blob byte {at}, {expected} were asked for")]
    CutOff {
        /// The layer.
        layer: Digest,
        /// The source.
        from: String,
        /// Where it ended.
        at: BlobOffset,
        /// Where it should have ended.
        expected: BlobOffset,
    },
    /// The answer begins elsewhere than asked for.
    #[error("layer {layer}: {from} sent bytes from {got} on, {asked} was asked for")]
    Misplaced {
        /// The layer.
        layer: Digest,
        /// The source.
        from: String,
        /// First byte asked for.
        asked: BlobOffset,
        /// First byte sent.
        got: BlobOffset,
    },
    /// No byte came for too long.
    #[error("layer {layer}: {from} sent nothing for {limit_ms} ms")]
    Stalled {
        /// The layer.
        layer: Digest,
        /// The source.
        from: String,
        /// The limit.
        limit_ms: u128,
    },
    /// Bytes do not have the digest that the zTOC says, even when fetched again.
    #[error(
        "layer {layer}: span {span} from {from} has digest {got}, the zTOC says {expected}: the blob or its zTOC is wrong"
    )]
    SpanDigest {
        /// The layer.
        layer: Digest,
        /// The span.
        span: SpanId,
        /// Digest in the zTOC.
        expected: Digest,
        /// Digest of the bytes.
        got: Digest,
        /// The source.
        from: String,
    },
    /// Bytes have the right digest but do not inflate as the zTOC says.
    #[error("layer {layer}: {source}; the zTOC is wrong")]
    Inflate {
        /// The layer.
        layer: Digest,
        /// What inflate said.
        source: Arc<InflateError>,
    },
    /// The zTOC document could not be read from disk.
    #[error("layer {layer}: cannot read the window of span {span} from the zTOC: {source}")]
    Window {
        /// The layer.
        layer: Digest,
        /// The span.
        span: SpanId,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Blob bytes that waited on disk could not be read again.
    #[error("layer {layer}: cannot read the blob bytes of span {span}, which waited on disk: {source}")]
    Spool {
        /// The layer.
        layer: Digest,
        /// The span.
        span: SpanId,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The layer file could not be written.
    #[error("{source}")]
    Cache {
        /// What the cache said.
        source: Arc<CacheError>,
    },
    /// A span had other bytes than an excerpt of its layer.
    #[error("layer {layer}: an excerpt of it had other bytes than the layer has, seen before span {span}")]
    Contradicted {
        /// The layer.
        layer: Digest,
        /// The span that was wanted.
        span: SpanId,
    },
    /// The reader was held for as long as allowed.
    #[error("gave up after {} s{}", waited.as_secs(), last.as_ref().map_or_else(String::new, |e| format!("; last trouble: {e}")))]
    Held {
        /// How long.
        waited: Duration,
        /// What stood in the way last.
        last: Option<Arc<FillError>>,
    },
    /// The layer is being taken down.
    #[error("the daemon is stopping")]
    Stopping,
}

impl FillError {
    /// Whether trying again can help: if so, readers are held.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // Credentials may be refreshed while the reader is held.
            Self::Registry { source, .. } => source.is_transient() || source.is_auth(),
            Self::CutOff { .. } | Self::Stalled { .. } => true,
            _ => false,
        }
    }

    /// How long the registry asked us to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Registry { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}

/// Takes a lock whose holders cannot leave broken state behind.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! Work that is done on a span while its bytes still come: hashing and inflating. When the last byte is here, only the rest of
//! both and the writing are left to do. No byte is written before the digest was right.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::layer::LayerInner;
use super::workers::JobQueue;
use super::{Priority, lock};
use crate::inflate::ArrivingSpan;
use crate::spans::{Span, SpanTable};
use crate::units::{Digest, DigestHasher, SpanId, WINDOW_BYTES, usize_from_u64};

/// So many bytes are worth a job.
const FEED_BYTES: usize = 64 << 10;

/// Spans that are worth it: shorter ones inflate in a millisecond.
const MIN_BLOB_BYTES: u64 = 4 * FEED_BYTES as u64;

/// What may be held in memory inflated. A zTOC may claim any length, and the usual one is 4 MiB.
const MAX_LAYER_BYTES: u64 = 16 << 20;

/// A span on its way.
pub(super) struct Ahead {
    layer: Arc<LayerInner>,
    id: SpanId,
    /// Came, and not looked at.
    incoming: Mutex<Vec<u8>>,
    /// A job will look.
    scheduled: AtomicBool,
    work: Mutex<Work>,
}

struct Work {
    blob: Vec<u8>,
    hasher: DigestHasher,
    inflating: Inflating,
}

enum Inflating {
    NotYet,
    Going(Box<ArrivingSpan>),
    Failed,
}

/// What has come of a span.
pub(super) struct Outcome {
    /// Its blob bytes.
    pub blob: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What they inflate to; `None` when that has to be done again to learn what is wrong.
    pub inflated: Option<Vec<u8>>,
}

impl Ahead {
    /// Whether a span is worth it.
    pub fn is_worth_it(table: &SpanTable, id: SpanId, span: &Span) -> bool {
        ArrivingSpan::is_possible(table, id)
            && span.blob.len_bytes() >= MIN_BLOB_BYTES
            && span.layer.len_bytes() <= MAX_LAYER_BYTES
    }

    /// A span before its first byte.
    pub fn new(layer: &Arc<LayerInner>, id: SpanId, span: &Span) -> Arc<Self> {
        // As long as the span is at most: what it inflates to has a limit, which bounds what belongs to it.
        let first = usize_from_u64(span.blob.len_bytes().min(MAX_LAYER_BYTES)).unwrap_or(0);
        let blob = Vec::with_capacity(first);
        Arc::new(Self {
            layer: layer.clone(),
            id,
            incoming: Mutex::default(),
            scheduled: AtomicBool::new(false),
            work: Mutex::new(Work { blob, hasher: DigestHasher::new(), inflating: Inflating::NotYet }),
        })
    }

    /// Takes the next bytes.
    pub fn append(self: &Arc<Self>, more: &[u8], jobs: &Arc<JobQueue>, priority: Priority) {
        let waiting = {
            let mut incoming = lock(&self.incoming);
            incoming.extend_from_slice(more);
            incoming.len()
        };
        if waiting >= FEED_BYTES && !self.scheduled.swap(true, Ordering::AcqRel) {
            let me = self.clone();
            jobs.push(priority, Box::new(move |_| drop(me.advance())));
        }
    }

    /// Works on what has come.
    fn advance(&self) -> std::sync::MutexGuard<'_, Work> {
        let mut work = lock(&self.work);
        self.scheduled.store(false, Ordering::Release);
        let fresh = std::mem::take(&mut *lock(&self.incoming));
        work.hasher.update(&fresh);
        work.blob.extend_from_slice(&fresh);
        let Work { blob, inflating, .. } = &mut *work;
        if let Inflating::NotYet = inflating {
            *inflating = self.begin().map_or(Inflating::Failed, |span| Inflating::Going(Box::new(span)));
        }
        if let Inflating::Going(span) = inflating {
            span.advance(blob);
        }
        work
    }

    fn begin(&self) -> Option<ArrivingSpan> {
        let table = &self.layer.table;
        let mut window = [0; WINDOW_BYTES];
        let at = table.get(self.id)?.window_at;
        if let Some(at) = at {
            self.layer.windows.read_exact_at(&mut window, at).ok()?;
        }
        ArrivingSpan::new(table, self.id, at.map(|_| &window))
    }

    /// Does what is left, when all bytes are here.
    pub fn finish(&self) -> Outcome {
        let mut work = self.advance();
        let inflated = match std::mem::replace(&mut work.inflating, Inflating::Failed) {
            Inflating::Going(span) => span.finish(),
            Inflating::NotYet | Inflating::Failed => None,
        };
        let digest = work.hasher.clone().finish();
        Outcome { blob: std::mem::take(&mut work.blob), digest, inflated }
    }
}

//! One layer in the scheduler: its entries and its queue.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::readahead::Readers;
use super::{FillConfig, FillError, Now, Presence, Priority, TransferId, WaiterId};
use crate::fill::span_bytes::{LONG_SPAN_MEMORY_BYTES, is_long};
use crate::registry::{Backoff, BackoffConfig};
use crate::spans::SpanTable;
use crate::units::SpanId;

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In the queue.
    Queued,
    /// On its way.
    Flying(TransferId),
}

/// A wanted span that is not here.
pub(super) struct Entry {
    pub priority: Priority,
    seq: u64,
    place: Place,
    pub waiters: SmallVec<[WaiterId; 1]>,
    refetched: bool,
}

/// Place in the queue: priority, then age.
type Key = (Reverse<Priority>, u64, u32);

pub(super) struct Layer {
    pub table: Arc<SpanTable>,
    pub present: Arc<dyn Presence>,
    pub host: Arc<str>,
    entries: BTreeMap<u32, Entry>,
    queue: BTreeSet<Key>,
    readers: Readers,
    /// Transfers that receive.
    pub receiving: usize,
    /// The transfer that brings the whole blob, if one does.
    pub whole: Option<TransferId>,
    /// Registry trouble: nothing starts before.
    pub blocked_until: Option<Now>,
    backoff: Backoff,
    pub last_error: Option<FillError>,
    /// All spans have been present at some time, or need not be.
    pub full: bool,
    long_span_bytes: u64,
    /// Where the background goes on.
    pub background_next: u32,
    /// Something failed for good: the background, which would meet it again and again, pauses.
    pub background_until: Now,
    /// A load order is followed: whatever it does not name can wait so long.
    pub settling_until: Now,
}

impl Layer {
    pub fn new(table: Arc<SpanTable>, present: Arc<dyn Presence>, host: Arc<str>, config: &FillConfig) -> Self {
        let backoff = Backoff::new(BackoffConfig {
            first: config.first_pause,
            longest: config.longest_pause,
            // The hold limit of the readers ends it, not a count.
            retries: None,
        });
        Self {
            readers: Readers::new(config.read_ahead_bytes),
            full: present.is_complete(),
            long_span_bytes: config.long_span_bytes,
            table,
            present,
            host,
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
            receiving: 0,
            whole: None,
            blocked_until: None,
            backoff,
            last_error: None,
            background_next: 0,
            background_until: Duration::ZERO,
            settling_until: Duration::ZERO,
        }
    }

    /// Number of spans.
    pub fn len(&self) -> u32 {
        u32::try_from(self.table.len()).unwrap_or(u32::MAX)
    }

    pub fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The most urgent queued span.
    pub fn head(&self) -> Option<(Priority, u64, u32)> {
        self.queue.first().map(|(Reverse(priority), seq, span)| (*priority, *seq, *span))
    }

    /// Blob bytes of a span.
    pub fn blob_bytes(&self, span: u32) -> u64 {
        self.table.get(SpanId(span)).map_or(0, |s| s.blob.len_bytes())
    }

    /// Memory that a span needs on its way: what is received and what it inflates to, unless it waits on disk.
    pub fn memory_bytes(&self, span: u32) -> u64 {
        self.table.get(SpanId(span)).map_or(0, |s| match is_long(&self.table, s, self.long_span_bytes) {
            true => LONG_SPAN_MEMORY_BYTES,
            false => s.blob.len_bytes().saturating_add(s.layer.len_bytes()),
        })
    }

    pub fn place(&self, span: u32) -> Option<Place> {
        self.entries.get(&span).map(|entry| entry.place)
    }

    pub fn priority(&self, span: u32) -> Option<Priority> {
        self.entries.get(&span).map(|entry| entry.priority)
    }

    /// Adds an entry or joins it; a queued one moves forward if this is more urgent.
    pub fn want(&mut self, span: u32, priority: Priority, seq: u64, waiter: Option<WaiterId>) {
        let queue = &mut self.queue;
        let entry = self.entries.entry(span).or_insert_with(|| {
            queue.insert((Reverse(priority), seq, span));
            Entry { priority, seq, place: Place::Queued, waiters: SmallVec::new(), refetched: false }
        });
        if priority > entry.priority {
            if entry.place == Place::Queued {
                queue.remove(&(Reverse(entry.priority), entry.seq, span));
                queue.insert((Reverse(priority), seq, span));
            }
            entry.priority = priority;
            entry.seq = seq;
        }
        entry.waiters.extend(waiter);
    }

    /// Removes an entry from wherever it is.
    pub fn take(&mut self, span: u32) -> Option<Entry> {
        let entry = self.entries.remove(&span)?;
        self.queue.remove(&(Reverse(entry.priority), entry.seq, span));
        Some(entry)
    }

    /// A queued span leaves with a transfer.
    pub fn fly(&mut self, span: u32, transfer: TransferId) {
        if let Some(entry) = self.entries.get_mut(&span) {
            self.queue.remove(&(Reverse(entry.priority), entry.seq, span));
            entry.place = Place::Flying(transfer);
        }
    }

    /// A flying span waits again, at its old place.
    pub fn requeue(&mut self, span: u32) {
        if let Some(entry) = self.entries.get_mut(&span) {
            entry.place = Place::Queued;
            self.queue.insert((Reverse(entry.priority), entry.seq, span));
        }
    }

    /// Fetches a span once more, from scratch; false when that was already tried.
    pub fn refetch(&mut self, span: u32) -> bool {
        let Some(entry) = self.entries.get_mut(&span) else { return false };
        if std::mem::replace(&mut entry.refetched, true) {
            return false;
        }
        self.requeue(span);
        true
    }

    /// Whether nobody waits for the span and nobody asked for it.
    pub fn is_speculative(&self, span: u32) -> bool {
        self.entries
            .get(&span)
            .is_some_and(|e| e.waiters.is_empty() && matches!(e.priority, Priority::Background | Priority::ReadAhead))
    }

    /// A waiter gives up: demand that nobody waits for any more is dropped from the queue.
    pub fn leave(&mut self, spans: Range<u32>, waiter: WaiterId) {
        let mut idle = Vec::new();
        for (span, entry) in self.entries.range_mut(spans) {
            let before = entry.waiters.len();
            entry.waiters.retain(|w| *w != waiter);
            let left = before != entry.waiters.len() && entry.waiters.is_empty();
            if left && entry.place == Place::Queued && entry.priority == Priority::Demand {
                idle.push(*span);
            }
        }
        for span in idle {
            self.take(span);
        }
    }

    /// A reader is at `spans`: what to fetch ahead of it.
    pub fn reader_at(&mut self, spans: Range<u32>, link_bytes: u64) -> Option<Range<u32>> {
        self.readers.at(spans, link_bytes, &self.table)
    }

    /// The registry is in trouble: a pause, longer each time.
    pub fn trouble(&mut self, now: Now, retry_after: Option<Duration>) {
        // Transfers that fail together are one trouble.
        if self.blocked_until.is_some_and(|until| until > now) {
            return;
        }
        if let Some(pause) = self.backoff.next_pause(retry_after) {
            self.blocked_until = Some(now.saturating_add(pause));
        }
    }

    /// Something arrived.
    pub fn trouble_over(&mut self) {
        self.backoff.reset();
        self.blocked_until = None;
    }
}

//! Sequential readers: who reads on, and how far ahead of them to fetch.
//!
//! A reader that comes to the span behind its last one is sequential. Its window doubles with each such step, until it is
//! what keeps the link busy: more gains no time, and is fetched in vain when the reader stops. The first
//! span of what was fetched ahead is marked; when the reader reaches the mark, the next window is fetched: there is always
//! one window under way while one is being read.

use std::ops::Range;

use crate::spans::SpanTable;
use crate::units::SpanId;

/// Readers of one layer that are told apart.
const READERS: usize = 8;

/// First window: about one usual span. Guessed.
const FIRST_WINDOW_BYTES: u64 = 2 << 20;

/// A window that the link bounds has so many spans at least: the request for the next one goes out when the first of them is
/// here, so the last one covers its round trip.
const LEAST_SPANS: u32 = 2;

/// Where one reader is.
struct Reader {
    /// The span that it needs next.
    next: u32,
    /// How far was fetched ahead.
    ahead: u32,
    /// Reaching this span asks for the next window.
    mark: u32,
    window_bytes: u64,
    /// For forgetting the one that was longest silent.
    used: u64,
}

pub(super) struct Readers {
    readers: Vec<Reader>,
    max_window_bytes: u64,
    clock: u64,
}

impl Readers {
    pub fn new(max_window_bytes: u64) -> Self {
        Self { readers: Vec::new(), max_window_bytes, clock: 0 }
    }

    /// Somebody reads `spans`; returns what to fetch ahead, not empty. `link_bytes` on their way keep the link busy.
    pub fn at(&mut self, spans: Range<u32>, link_bytes: u64, table: &SpanTable) -> Option<Range<u32>> {
        if self.max_window_bytes == 0 || spans.is_empty() {
            return None;
        }
        self.clock += 1;
        // On from where a reader was, within what was fetched ahead of it, or again in its last span.
        let known = self.readers.iter_mut().find(|r| spans.start <= r.next.max(r.ahead) && spans.start + 1 >= r.next);
        let Some(reader) = known else {
            self.remember(spans.end);
            return None;
        };
        reader.used = self.clock;
        if spans.end <= reader.next {
            return None;
        }
        reader.next = spans.end;
        if spans.end <= reader.mark {
            return None;
        }
        reader.window_bytes = (reader.window_bytes * 2).max(FIRST_WINDOW_BYTES).min(self.max_window_bytes);
        let start = reader.ahead.max(spans.end);
        let mut end = start;
        let mut bytes = 0;
        while let Some(span) = table.get(SpanId(end)) {
            bytes += span.blob.len_bytes();
            let has = end - start;
            if (has >= 1 && bytes > reader.window_bytes) || (has >= LEAST_SPANS && bytes > link_bytes) {
                break;
            }
            end += 1;
        }
        reader.ahead = end;
        reader.mark = start;
        (start < end).then_some(start..end)
    }

    fn remember(&mut self, next: u32) {
        let reader = Reader { next, ahead: next, mark: next, window_bytes: 0, used: self.clock };
        if self.readers.len() < READERS {
            self.readers.push(reader);
        } else if let Some(oldest) = self.readers.iter_mut().min_by_key(|r| r.used) {
            *oldest = reader;
        }
    }
}

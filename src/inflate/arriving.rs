//! One span of a gzip layer, inflated while its bytes arrive.

use super::stream::{Ended, StreamEngine};
use crate::spans::{Compression, SpanTable};
use crate::units::{SpanId, WINDOW_BYTES, u64_from_usize};

/// Inflates a span whose bytes come bit by bit, so that little is left to do when the last one is here.
///
/// What comes out is a guess until the caller has checked the bytes that went in against the span's digest. When it
/// fails, nothing is said of why: [`SpanInflater`](super::SpanInflater), given the whole span, does that.
pub struct ArrivingSpan {
    engine: StreamEngine,
    blob_bytes: u64,
    layer_bytes: u64,
    /// Why it can go no further.
    stopped: Option<Stopped>,
    out: Vec<u8>,
}

#[derive(PartialEq, Eq)]
enum Stopped {
    Complete,
    Failed,
}

impl ArrivingSpan {
    /// A span before its first byte. `None` for spans that must be seen whole: those of other compressions, the last one, whose
    /// end only its bytes show, and the first where the zTOC does not say how long the gzip header is.
    #[must_use]
    pub fn new(table: &SpanTable, id: SpanId, window: Option<&[u8; WINDOW_BYTES]>) -> Option<Self> {
        if !Self::is_possible(table, id) {
            return None;
        }
        let span = table.get(id)?;
        let mut engine = StreamEngine::new();
        engine.begin(span.bits, window);
        let (blob_bytes, layer_bytes) = (span.blob.len_bytes(), span.layer.len_bytes());
        Some(Self { engine, blob_bytes, layer_bytes, stopped: None, out: Vec::new() })
    }

    /// Whether [`ArrivingSpan::new`] takes this span.
    #[must_use]
    pub fn is_possible(table: &SpanTable, id: SpanId) -> bool {
        let is_last = id.index() + 1 >= table.len();
        // Every span but the first has a window or begins with a member, and so no header to skip.
        table.compression() == Compression::Gzip && id != SpanId(0) && !is_last
    }

    /// Takes the span's bytes: all that are here, from its first on.
    pub fn advance(&mut self, blob: &[u8]) {
        if self.stopped.is_some() {
            return;
        }
        let complete = u64_from_usize(blob.len()) >= self.blob_bytes;
        let out = &mut self.out;
        // One byte more than declared would show a span that is too long.
        let ended = self.engine.advance(blob, complete, self.layer_bytes.saturating_add(1), &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        });
        self.stopped = match ended {
            Ok(None) => None,
            Ok(Some(Ended { produced, .. })) if complete && produced == self.layer_bytes => Some(Stopped::Complete),
            Ok(Some(_)) | Err(_) => Some(Stopped::Failed),
        };
    }

    /// The layer bytes, if all have come out and there are as many as the zTOC says.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        (self.stopped == Some(Stopped::Complete)).then_some(self.out)
    }
}

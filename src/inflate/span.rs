//! One span: blob bytes in, layer bytes out.

use std::io;

use super::stream::{End, Ended, StreamEngine, StreamError};
use super::zstd::{Once, Reading};
use super::{DataFault, InflateError, LayerSink, gzip};
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{LayerOffset, Offset, SpanId, WINDOW_BYTES, u64_from_usize, usize_from_u64};

/// How far the last span may go beyond what the zTOC counts. SOCI's builder stops counting where the tar reader stops;
/// what follows is padding, usually below 10 KiB.
pub const TAIL_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// How much output must be valid before a guessed start of deflate data counts as found.
const PROBE_BYTES: u64 = 64 * 1024;

/// Length of a gzip header without optional fields. zTOCs with version 1 of the zinfo do not say where the header ends
/// and are read as if it were always this.
const PLAIN_HEADER_BYTES: u64 = 10;

/// How much of a span is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// All of it; for the last span also the tail of the tar that the zTOC does not count.
    Whole,
    /// Only the first so many bytes (at most the span's length in the layer): stops early.
    First(u64),
}

/// What inflating a span gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inflated {
    /// Layer bytes given to the sink. With [`Want::Whole`] exactly the span's length in the layer; for the last span
    /// that or more.
    pub bytes: u64,
    /// Whether the sink has seen the layer to its very end. Only ever true for the last span with [`Want::Whole`];
    /// false there means that the tail is damaged or longer than [`TAIL_LIMIT_BYTES`]: the span's own bytes
    /// are good, but the diffID cannot be computed.
    pub end_of_layer: bool,
}

/// Inflates spans, one after the other. One for each worker thread: it keeps the decoder's tables and about 0.3 MiB of
/// scratch memory, which are freed with it.
pub struct SpanInflater {
    stream: StreamEngine,
}

impl Default for SpanInflater {
    fn default() -> Self {
        Self::new()
    }
}

impl SpanInflater {
    /// An inflater with its scratch memory.
    #[must_use]
    pub fn new() -> Self {
        Self { stream: StreamEngine::new() }
    }

    /// Inflates span `id` of `table` from `blob`, the bytes of its blob range, which the caller has checked against the
    /// span's digest. `window` is the checkpoint's history; `None` where the zTOC has none
    /// ([`Span::window_at`]). `sink` gets the layer bytes in order from the span's start on, in one piece or several; after
    /// an error what it got is not to be trusted.
    ///
    /// # Errors
    /// Any [`InflateError`]. Without error the length is exact, see [`Inflated::bytes`].
    pub fn inflate(
        &mut self,
        table: &SpanTable,
        id: SpanId,
        blob: &[u8],
        window: Option<&[u8; WINDOW_BYTES]>,
        want: Want,
        sink: LayerSink<'_>,
    ) -> Result<Inflated, InflateError> {
        let span = table.get(id).ok_or(InflateError::NoSuchSpan { span: id, spans: table.len() })?;
        if u64_from_usize(blob.len()) != span.blob.len_bytes() {
            return Err(InflateError::BlobLength {
                span: id,
                expected_bytes: span.blob.len_bytes(),
                got_bytes: u64_from_usize(blob.len()),
            });
        }
        let job = Job { id, span, is_last: id.index() + 1 == table.len(), blob, window };
        match table.compression() {
            Compression::Uncompressed => job.copy(want, sink),
            Compression::Gzip => self.run(&job, want, sink),
            Compression::Zstd => job.zstd(&mut Once(Some(blob)), want, sink),
        }
    }

    /// As [`inflate`](Self::inflate) with [`Want::Whole`], of a span whose `blob_bytes` blob bytes are read piece by piece:
    /// those of a zstd layer may be too long for memory. Those of others are not, and are read at once.
    ///
    /// # Errors
    /// As [`inflate`](Self::inflate); [`InflateError::Source`].
    pub fn inflate_long(
        &mut self,
        table: &SpanTable,
        id: SpanId,
        blob: &mut dyn io::Read,
        blob_bytes: u64,
        sink: LayerSink<'_>,
    ) -> Result<Inflated, InflateError> {
        let span = table.get(id).ok_or(InflateError::NoSuchSpan { span: id, spans: table.len() })?;
        let expected_bytes = span.blob.len_bytes();
        if blob_bytes != expected_bytes {
            return Err(InflateError::BlobLength { span: id, expected_bytes, got_bytes: blob_bytes });
        }
        if table.compression() != Compression::Zstd {
            let mut bytes = Vec::new();
            blob.read_to_end(&mut bytes).map_err(|source| InflateError::Source { span: id, source })?;
            return self.inflate(table, id, &bytes, None, Want::Whole, sink);
        }
        let job = Job { id, span, is_last: id.index() + 1 == table.len(), blob: &[], window: None };
        job.zstd(&mut Reading::new(blob), Want::Whole, sink)
    }

    pub(super) fn run(&mut self, job: &Job<'_>, want: Want, sink: LayerSink<'_>) -> Result<Inflated, InflateError> {
        let len_bytes = job.span.layer.len_bytes();
        match want {
            Want::First(bytes) if bytes < len_bytes || job.is_last => {
                let bytes = bytes.min(len_bytes);
                self.exactly(job, bytes, bytes, sink)
            }
            _ if job.is_last => self.last_span(job, sink),
            // One byte more than declared would show a span that is too long.
            _ => self.exactly(job, len_bytes, len_bytes.saturating_add(1), sink),
        }
    }

    /// Inflates up to `limit_bytes`; just `need_bytes` must come out.
    fn exactly(
        &mut self,
        job: &Job<'_>,
        need_bytes: u64,
        limit_bytes: u64,
        sink: LayerSink<'_>,
    ) -> Result<Inflated, InflateError> {
        let skip = self.deflate_start(job);
        let blob = job.blob.get(skip..).unwrap_or_default();
        let mut left = need_bytes;
        let ended = self.stream.run(blob, job.span.bits, job.window, limit_bytes, &mut |bytes| {
            let take = usize_from_u64(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            left -= u64_from_usize(take);
            match bytes.get(..take) {
                Some([]) | None => Ok(()),
                Some(bytes) => sink(bytes),
            }
        });
        match ended {
            Ok(Ended { produced, .. }) if produced == need_bytes => {
                Ok(Inflated { bytes: produced, end_of_layer: false })
            }
            Ok(Ended { produced, .. }) => Err(job.wrong_length(need_bytes, produced)),
            Err(e) => Err(job.error(e, skip)),
        }
    }

    /// The last span, to the end of the last member.
    fn last_span(&mut self, job: &Job<'_>, sink: LayerSink<'_>) -> Result<Inflated, InflateError> {
        let len_bytes = job.span.layer.len_bytes();
        let skip = self.deflate_start(job);
        let blob = job.blob.get(skip..).unwrap_or_default();
        let limit_bytes = len_bytes.saturating_add(TAIL_LIMIT_BYTES);
        let mut given = 0;
        let ended = self.stream.run(blob, job.span.bits, job.window, limit_bytes, &mut |bytes| {
            given += u64_from_usize(bytes.len());
            sink(bytes)
        });
        match ended {
            Ok(Ended { produced, .. }) if produced < len_bytes => Err(job.wrong_length(len_bytes, produced)),
            Ok(Ended { produced, end }) => Ok(Inflated { bytes: produced, end_of_layer: end == End::Members }),
            // The tail is broken, the span is not: SOCI, too, reads only what the zTOC counts.
            Err(StreamError::Data { .. }) if given >= len_bytes => Ok(Inflated { bytes: given, end_of_layer: false }),
            Err(e) => Err(job.error(e, skip)),
        }
    }

    /// How many bytes of header still lie before the deflate data: 0, unless the zTOC only guessed where the header ends
    /// (zinfo version 1) and the header has optional fields.
    fn deflate_start(&mut self, job: &Job<'_>) -> usize {
        if job.id != SpanId(0) || job.window.is_some() || job.span.blob.start().get() != PLAIN_HEADER_BYTES {
            return 0;
        }
        let probe_bytes = PROBE_BYTES.min(job.span.layer.len_bytes());
        for start in gzip::deflate_starts(job.blob) {
            let blob = job.blob.get(start..).unwrap_or_default();
            let found = self.stream.run(blob, job.span.bits, None, probe_bytes, &mut |_| Ok(()));
            if found.is_ok_and(|ended| ended.produced == probe_bytes) {
                return start;
            }
        }
        0
    }
}

/// A span with all that inflating it needs.
pub(super) struct Job<'a> {
    pub(super) id: SpanId,
    pub(super) span: &'a Span,
    pub(super) is_last: bool,
    pub(super) blob: &'a [u8],
    pub(super) window: Option<&'a [u8; WINDOW_BYTES]>,
}

impl Job<'_> {
    /// Uncompressed layers: blob bytes are layer bytes.
    pub(super) fn copy(&self, want: Want, sink: LayerSink<'_>) -> Result<Inflated, InflateError> {
        let len_bytes = self.span.layer.len_bytes();
        let blob_bytes = u64_from_usize(self.blob.len());
        let (take_bytes, end_of_layer) = match want {
            Want::First(bytes) => (bytes.min(len_bytes), false),
            Want::Whole if self.is_last => (blob_bytes.max(len_bytes), true),
            Want::Whole => (len_bytes, false),
        };
        let bytes = usize_from_u64(take_bytes)
            .and_then(|take| self.blob.get(..take))
            .ok_or_else(|| self.wrong_length(take_bytes, blob_bytes))?;
        let inflated = self.hand_on(bytes, sink)?;
        Ok(Inflated { end_of_layer, ..inflated })
    }

    fn hand_on(&self, bytes: &[u8], sink: LayerSink<'_>) -> Result<Inflated, InflateError> {
        sink(bytes).map_err(|source| InflateError::Sink { span: self.id, source })?;
        Ok(Inflated { bytes: u64_from_usize(bytes.len()), end_of_layer: false })
    }

    pub(super) fn wrong_length(&self, expected_bytes: u64, got_bytes: u64) -> InflateError {
        InflateError::Length { span: self.id, expected_bytes, got_bytes }
    }

    fn error(&self, error: StreamError, skip: usize) -> InflateError {
        match error {
            StreamError::Sink(source) => InflateError::Sink { span: self.id, source },
            StreamError::Data { at_bytes, produced, reason } => {
                self.bad_data(at_bytes + u64_from_usize(skip), produced, reason)
            }
        }
    }

    /// What is wrong so many blob bytes into the span and behind so much output.
    pub(super) fn bad_data(&self, at_bytes: u64, produced: u64, reason: DataFault) -> InflateError {
        let (blob, layer) = (self.span.blob.start(), self.span.layer.start());
        InflateError::Data {
            span: self.id,
            blob: blob.checked_add(at_bytes).unwrap_or(blob),
            layer: layer.checked_add(produced).unwrap_or(LayerOffset::ZERO),
            reason,
        }
    }
}

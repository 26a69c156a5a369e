//! Carrying out transfers: from a range request to spans in the layer file.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::Semaphore;

use super::filler::Shared;
use super::layer::LayerInner;
use super::sched::{Event, Transfer, TransferId};
use super::span_bytes::{SpanBytes, cache_error};
use super::workers::Scratch;
use super::{FillError, Priority};
use crate::inflate::InflateError;
use crate::registry::{BlobStream, RegistryError};
use crate::spans::Span;
use crate::units::{BlobOffset, BlobRange, SpanId, u64_from_usize, usize_from_u64};

/// Spans of a whole-blob stream that are worked on at once: one is inflated while the next arrives. Their memory is not
/// reserved by the scheduler.
const WHOLE_BLOB_JOBS: u32 = 2;

/// Reports the end of a transfer, also when its task is dropped.
struct EndGuard {
    shared: Arc<Shared>,
    transfer: TransferId,
    handed: SpanId,
    ended: bool,
}

impl EndGuard {
    fn end(&mut self, error: Option<FillError>) {
        self.ended = true;
        self.shared.apply(Event::TransferEnded { transfer: self.transfer, handed: self.handed, error });
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Some(FillError::Stopping));
        }
    }
}

/// Runs one transfer to its end and reports it.
pub(super) async fn run(shared: Arc<Shared>, layer: Arc<LayerInner>, transfer: Transfer) {
    let mut guard =
        EndGuard { shared: shared.clone(), transfer: transfer.id, handed: SpanId(transfer.spans.start), ended: false };
    let error = receive(&shared, &layer, &transfer, &mut guard).await.err();
    if let Some(error) = &error {
        layer.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(layer = %layer.digest.short(), from = layer.source.describe(), %error, retry = error.is_transient(), "transfer failed");
        layer.note(error);
    }
    guard.end(error);
}

async fn receive(
    shared: &Arc<Shared>,
    layer: &Arc<LayerInner>,
    transfer: &Transfer,
    guard: &mut EndGuard,
) -> Result<(), FillError> {
    let table = &*layer.table;
    let first = table.get(SpanId(transfer.spans.start));
    let last = transfer.spans.end.checked_sub(1).and_then(|id| table.get(SpanId(id)));
    let range = first.zip(last).and_then(|(a, b)| BlobRange::new(a.blob.start(), b.blob.end()));
    let Some(range) = range else { return Ok(()) };

    layer.requests.fetch_add(1, Ordering::Relaxed);
    layer.journal.asked(transfer.spans.clone().filter(|span| !transfer.bridged.contains(&SpanId(*span))));
    let BlobStream { starts_at, mut bytes } =
        limited(shared, layer, layer.source.open(range)).await?.map_err(|e| layer.registry_error(e))?;
    let whole = starts_at == BlobOffset::ZERO && range.start() != BlobOffset::ZERO;
    if !whole && starts_at != range.start() {
        let from = layer.source.describe();
        return Err(FillError::Misplaced { layer: layer.digest, from, asked: range.start(), got: starts_at });
    }
    let (spans, expected) = if whole {
        tracing::info!(layer = %layer.digest.short(), "the server ignores ranges: taking the whole layer");
        shared.apply(Event::WholeBlob { transfer: transfer.id });
        guard.handed = SpanId(0);
        (0..u32::try_from(table.len()).unwrap_or(u32::MAX), table.blob_size())
    } else {
        (transfer.spans.clone(), range.end())
    };
    let end = spans.end;
    let slots = whole.then(|| Arc::new(Semaphore::new(WHOLE_BLOB_JOBS as usize)));
    let mut cutter = Cutter::new(layer, spans, starts_at, shared.config.long_span_bytes);
    let mut opened_at = starts_at;
    while guard.handed.0 < end {
        let chunk = match limited(shared, layer, bytes.next()).await {
            Ok(Some(chunk)) => chunk.map_err(|e| layer.registry_error(e)),
            Ok(None) => {
                let from = layer.source.describe();
                Err(FillError::CutOff { layer: layer.digest, from, at: cutter.at(), expected })
            }
            Err(error) => Err(error),
        };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // What has come of a long span is not asked for again, as long as each request brings some more.
            Err(error) if error.is_transient() && !whole && cutter.is_on_disk() && cutter.at() > opened_at => {
                tracing::info!(layer = %layer.digest.short(), %error, at = %cutter.at(), "going on with a long span");
                opened_at = cutter.at();
                bytes = reopen(shared, layer, opened_at, expected).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut chunk = &*chunk;
        layer.fetched_bytes.fetch_add(u64_from_usize(chunk.len()), Ordering::Relaxed);
        while let Some((span, blob)) = cutter.push(&mut chunk)? {
            // Waiting here holds back the stream: the memory of a whole blob is not reserved.
            let permit = match &slots {
                Some(slots) => slots.clone().acquire_owned().await.ok(),
                None => None,
            };
            guard.handed = SpanId(span.0 + 1);
            layer.journal.came(span);
            if transfer.bridged.contains(&span) && !whole {
                continue;
            }
            if layer.file.has(span) {
                layer.journal.landed(span);
                shared.apply(Event::SpanDone { layer: layer.id, transfer: transfer.id, span });
                continue;
            }
            let (shared_, layer, id) = (shared.clone(), layer.clone(), transfer.id);
            let background = transfer.priority == Priority::Background;
            let job = move |scratch: &mut Scratch| {
                let event = process(&layer, id, span, &blob, scratch);
                if matches!(event, Event::SpanDone { .. }) {
                    layer.journal.landed(span);
                    layer.background_spans.fetch_add(u64::from(background), Ordering::Relaxed);
                }
                drop((blob, permit));
                shared_.apply(event);
            };
            shared.jobs.push(transfer.priority, Box::new(job));
        }
    }
    if let Some(slots) = slots {
        // All spans have reported before the transfer does: what is still wanted then has truly failed.
        let _all = slots.acquire_many(WHOLE_BLOB_JOBS).await;
    }
    Ok(())
}

/// The rest of a range that broke.
async fn reopen(
    shared: &Arc<Shared>,
    layer: &Arc<LayerInner>,
    at: BlobOffset,
    end: BlobOffset,
) -> Result<BoxStream<'static, Result<Bytes, RegistryError>>, FillError> {
    let Some(rest) = BlobRange::new(at, end) else { return Ok(futures_util::stream::empty().boxed()) };
    layer.requests.fetch_add(1, Ordering::Relaxed);
    let BlobStream { starts_at, bytes } =
        limited(shared, layer, layer.source.open(rest)).await?.map_err(|e| layer.registry_error(e))?;
    if starts_at != at {
        let from = layer.source.describe();
        return Err(FillError::Misplaced { layer: layer.digest, from, asked: at, got: starts_at });
    }
    Ok(bytes)
}

/// Gives up when nothing comes for too long. Dropping the future is what cancels the request.
async fn limited<T>(shared: &Shared, layer: &LayerInner, future: impl Future<Output = T>) -> Result<T, FillError> {
    let limit = shared.config.stall_limit;
    tokio::time::timeout(limit, future).await.map_err(|_| FillError::Stalled {
        layer: layer.digest,
        from: layer.source.describe(),
        limit_ms: limit.as_millis(),
    })
}

/// Checks, inflates and writes one span.
fn process(
    layer: &Arc<LayerInner>,
    transfer: TransferId,
    span: SpanId,
    blob: &SpanBytes,
    scratch: &mut Scratch,
) -> Event {
    let done = match layer.table.get(span) {
        Some(entry) => check_and_write(layer, span, entry, blob, scratch),
        None => Ok(()),
    };
    match done {
        Ok(()) => Event::SpanDone { layer: layer.id, transfer, span },
        Err(error) => {
            layer.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(layer = %layer.digest.short(), span = span.0, %error, "span failed");
            layer.note(&error);
            let refetch = matches!(error, FillError::SpanDigest { .. });
            if let (true, Some(entry)) = (refetch, layer.table.get(span)) {
                layer.source.reject(entry.blob);
            }
            Event::SpanFailed { layer: layer.id, transfer, span, error, refetch }
        }
    }
}

fn check_and_write(
    layer: &Arc<LayerInner>,
    id: SpanId,
    span: &Span,
    blob: &SpanBytes,
    scratch: &mut Scratch,
) -> Result<(), FillError> {
    let got = blob.digest();
    if got != span.digest {
        let from = layer.source.describe();
        return Err(FillError::SpanDigest { layer: layer.digest, span: id, expected: span.digest, got, from });
    }
    if let Some(at) = span.window_at {
        let read = layer.windows.read_exact_at(&mut scratch.window[..], at);
        read.map_err(|source| FillError::Window { layer: layer.digest, span: id, source: Arc::new(source) })?;
    }
    match inflate_and_write(layer, id, span, blob, scratch) {
        Err(FillError::Cache { source }) if source.is_no_space() => {
            let freed = layer.file.make_room(span.layer.len_bytes()).map_err(cache_error)?;
            if freed == 0 {
                return Err(FillError::Cache { source });
            }
            inflate_and_write(layer, id, span, blob, scratch)
        }
        done => done,
    }
}

fn inflate_and_write(
    layer: &Arc<LayerInner>,
    id: SpanId,
    span: &Span,
    blob: &SpanBytes,
    scratch: &mut Scratch,
) -> Result<(), FillError> {
    let mut writer = layer.file.begin_span(id).map_err(cache_error)?;
    let window = span.window_at.map(|_| &*scratch.window);
    let sink = &mut |bytes: &[u8]| writer.push(bytes);
    let inflated = match blob.inflate(&mut scratch.inflater, &layer.table, id, window, sink) {
        Ok(inflated) => inflated,
        Err(InflateError::Sink { source, .. }) => {
            return Err(cache_error(layer.file.write_failure(source, span.layer.len_bytes())));
        }
        Err(InflateError::Source { source, .. }) => {
            return Err(FillError::Spool { layer: layer.digest, span: id, source: Arc::new(source) });
        }
        Err(source) => return Err(FillError::Inflate { layer: layer.digest, source: Arc::new(source) }),
    };
    if id.index() + 1 == layer.table.len() && !inflated.end_of_layer {
        layer.tail_damaged.store(true, Ordering::Relaxed);
    }
    writer.finish().map_err(cache_error)
}

/// Cuts a stream of blob bytes into spans. Bytes before the first span (a gzip header) are skipped; a byte that two
/// spans share goes to both.
struct Cutter<'a> {
    layer: &'a LayerInner,
    spans: std::ops::Range<u32>,
    /// Blob position of the next byte that comes.
    at: u64,
    long_span_bytes: u64,
    /// Of the first of `spans`.
    buffer: Option<SpanBytes>,
}

impl<'a> Cutter<'a> {
    fn new(layer: &'a LayerInner, spans: std::ops::Range<u32>, starts_at: BlobOffset, long_span_bytes: u64) -> Self {
        Self { layer, spans, at: starts_at.get(), long_span_bytes, buffer: None }
    }

    fn at(&self) -> BlobOffset {
        BlobOffset::new(self.at)
    }

    /// Whether the bytes of the present span are on disk.
    fn is_on_disk(&self) -> bool {
        matches!(self.buffer, Some(SpanBytes::Disk { .. }))
    }

    /// Takes bytes off `chunk`; returns the next complete span, or `None` when `chunk` is used up.
    fn push(&mut self, chunk: &mut &[u8]) -> Result<Option<(SpanId, SpanBytes)>, FillError> {
        let Some(id) = self.spans.clone().next().map(SpanId) else { return Ok(None) };
        let layer = self.layer;
        let Some(span) = layer.table.get(id) else { return Ok(None) };
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => SpanBytes::room_for(layer, span, self.long_span_bytes)?,
        };
        let length = span.blob.len_bytes();
        let wanted = span.blob.start().get() + buffer.len_bytes();
        self.advance(chunk, wanted.saturating_sub(self.at));
        let taken = self.advance(chunk, length - buffer.len_bytes());
        buffer.append(layer, span, taken)?;
        if buffer.len_bytes() < length {
            self.buffer = Some(buffer);
            return Ok(None);
        }
        self.spans.start += 1;
        let next = layer.table.get(SpanId(self.spans.start)).filter(|next| next.blob.start().get() < self.at);
        if let (Some(next), Some(shared)) = (next, buffer.last()) {
            let mut after = SpanBytes::room_for(layer, next, self.long_span_bytes)?;
            after.append(layer, next, &[shared])?;
            self.buffer = Some(after);
        }
        Ok(Some((id, buffer)))
    }

    fn advance<'c>(&mut self, chunk: &mut &'c [u8], bytes: u64) -> &'c [u8] {
        let n = usize_from_u64(bytes).map_or(chunk.len(), |n| n.min(chunk.len()));
        let (taken, rest) = chunk.split_at(n);
        *chunk = rest;
        self.at += u64_from_usize(n);
        taken
    }
}

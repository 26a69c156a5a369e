//! Carrying out transfers: from a range request to spans in the layer file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{Semaphore, watch};

use super::filler::Shared;
use super::layer::LayerInner;
use super::sched::{Event, Pace, Transfer, TransferId};
use super::span_bytes::Room;
use super::workers::Scratch;
use super::{FillError, Priority};
use crate::units::{BlobRange, SpanId, u64_from_usize};

mod cutter;
mod process;
mod ranges;

use cutter::Cutter;
use process::process;
use ranges::Ranges;

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
pub(super) async fn run(shared: Arc<Shared>, layer: Arc<LayerInner>, transfer: Transfer, pace: watch::Receiver<Pace>) {
    let mut guard =
        EndGuard { shared: shared.clone(), transfer: transfer.id, handed: SpanId(transfer.spans.start), ended: false };
    let error = receive(&shared, &layer, &transfer, pace, &mut guard).await.err();
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
    pace: watch::Receiver<Pace>,
    guard: &mut EndGuard,
) -> Result<(), FillError> {
    let table = &*layer.table;
    let first = table.get(SpanId(transfer.spans.start));
    let last = transfer.spans.end.checked_sub(1).and_then(|id| table.get(SpanId(id)));
    let range = first.zip(last).and_then(|(a, b)| BlobRange::new(a.blob.start(), b.blob.end()));
    let Some(range) = range else { return Ok(()) };

    layer.journal.asked(transfer.spans.clone().filter(|span| !transfer.bridged.contains(&SpanId(*span))));
    let mut bytes = Ranges::open(shared, layer, range, transfer.priority, pace.clone()).await?;
    let whole = bytes.is_whole();
    let spans = if whole {
        tracing::info!(layer = %layer.digest.short(), "the server ignores ranges: taking the whole layer");
        shared.apply(Event::WholeBlob { transfer: transfer.id });
        guard.handed = SpanId(0);
        0..u32::try_from(table.len()).unwrap_or(u32::MAX)
    } else {
        transfer.spans.clone()
    };
    let end = spans.end;
    let slots = whole.then(|| Arc::new(Semaphore::new(WHOLE_BLOB_JOBS as usize)));
    let room =
        Room { long_span_bytes: shared.config.long_span_bytes, jobs: shared.jobs.clone(), priority: transfer.priority };
    let mut cutter = Cutter::new(layer, spans, bytes.starts_at(), room);
    let mut opened_at = bytes.starts_at();
    while guard.handed.0 < end {
        let chunk = match bytes.next().await {
            Ok(chunk) => chunk,
            // What has come of a long span is not asked for again, as long as each request brings some more.
            Err(error) if error.is_transient() && !whole && cutter.is_on_disk() && cutter.at() > opened_at => {
                tracing::info!(layer = %layer.digest.short(), %error, at = %cutter.at(), "going on with a long span");
                opened_at = cutter.at();
                bytes.restart(opened_at);
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
                let event = process(&layer, id, span, blob, scratch);
                if matches!(event, Event::SpanDone { .. }) {
                    layer.journal.landed(span);
                    layer.background_spans.fetch_add(u64::from(background), Ordering::Relaxed);
                }
                drop(permit);
                shared_.apply(event);
            };
            // A reader may have come to wait for what was begun for nobody.
            let priority = match *pace.borrow() {
                Pace::Full => transfer.priority.max(Priority::ReadAhead),
                Pace::Pieces | Pace::Held => transfer.priority,
            };
            shared.jobs.push(priority, Box::new(job));
        }
    }
    bytes.finish();
    if let Some(slots) = slots {
        // All spans have reported before the transfer does: what is still wanted then has truly failed.
        let _all = slots.acquire_many(WHOLE_BLOB_JOBS).await;
    }
    Ok(())
}

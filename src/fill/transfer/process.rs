//! On the CPU threads: is the span what the zTOC says, and into the layer file with it.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::fill::FillError;
use crate::fill::layer::LayerInner;
use crate::fill::sched::{Event, TransferId};
use crate::fill::span_bytes::{Settled, SpanBytes, cache_error};
use crate::fill::workers::Scratch;
use crate::inflate::{InflateError, Inflated};
use crate::spans::Span;
use crate::units::{SpanId, u64_from_usize};

/// Checks, inflates and writes one span.
pub(super) fn process(
    layer: &Arc<LayerInner>,
    transfer: TransferId,
    span: SpanId,
    blob: SpanBytes,
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
    blob: SpanBytes,
    scratch: &mut Scratch,
) -> Result<(), FillError> {
    let (blob, got, inflated) = blob.settle();
    if got != span.digest {
        let from = layer.source.describe();
        return Err(FillError::SpanDigest { layer: layer.digest, span: id, expected: span.digest, got, from });
    }
    if let Some(at) = span.window_at {
        let read = layer.windows.read_exact_at(&mut scratch.window[..], at);
        read.map_err(|source| FillError::Window { layer: layer.digest, span: id, source: Arc::new(source) })?;
    }
    let bytes = (&blob, inflated.as_deref());
    match inflate_and_write(layer, id, span, bytes, scratch) {
        Err(FillError::Cache { source }) if source.is_no_space() => {
            let freed = layer.file.make_room(span.layer.len_bytes()).map_err(cache_error)?;
            if freed == 0 {
                return Err(FillError::Cache { source });
            }
            inflate_and_write(layer, id, span, bytes, scratch)
        }
        done => done,
    }
}

fn inflate_and_write(
    layer: &Arc<LayerInner>,
    id: SpanId,
    span: &Span,
    (blob, inflated): (&Settled, Option<&[u8]>),
    scratch: &mut Scratch,
) -> Result<(), FillError> {
    let mut writer = layer.file.begin_span(id).map_err(cache_error)?;
    let window = span.window_at.map(|_| &*scratch.window);
    let sink = &mut |bytes: &[u8]| writer.push(bytes);
    let inflated = match inflated {
        Some(bytes) => sink(bytes)
            .map(|()| Inflated { bytes: u64_from_usize(bytes.len()), end_of_layer: false })
            .map_err(|source| InflateError::Sink { span: id, source }),
        None => blob.inflate(&mut scratch.inflater, &layer.table, id, window, sink),
    };
    let inflated = match inflated {
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

//! From a stream of blob bytes to the bytes of spans.

use std::ops::Range;
use std::sync::Arc;

use crate::fill::FillError;
use crate::fill::layer::LayerInner;
use crate::fill::span_bytes::{Room, SpanBytes};
use crate::units::{BlobOffset, SpanId, u64_from_usize, usize_from_u64};

/// Cuts a stream of blob bytes into spans. Bytes before the first span (a gzip header) are skipped; a byte that two
/// spans share goes to both.
pub(super) struct Cutter<'a> {
    layer: &'a Arc<LayerInner>,
    spans: Range<u32>,
    /// Blob position of the next byte that comes.
    at: u64,
    room: Room,
    /// Of the first of `spans`.
    buffer: Option<SpanBytes>,
}

impl<'a> Cutter<'a> {
    pub fn new(layer: &'a Arc<LayerInner>, spans: Range<u32>, starts_at: BlobOffset, room: Room) -> Self {
        Self { layer, spans, at: starts_at.get(), room, buffer: None }
    }

    pub fn at(&self) -> BlobOffset {
        BlobOffset::new(self.at)
    }

    /// Whether the bytes of the present span are on disk.
    pub fn is_on_disk(&self) -> bool {
        matches!(self.buffer, Some(SpanBytes::Disk { .. }))
    }

    /// Takes bytes off `chunk`; returns the next complete span, or `None` when `chunk` is used up.
    pub fn push(&mut self, chunk: &mut &[u8]) -> Result<Option<(SpanId, SpanBytes)>, FillError> {
        let Some(id) = self.spans.clone().next().map(SpanId) else { return Ok(None) };
        let layer = self.layer;
        let Some(span) = layer.table.get(id) else { return Ok(None) };
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => self.room.of(layer, id, span)?,
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
            let mut after = self.room.of(layer, SpanId(self.spans.start), next)?;
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

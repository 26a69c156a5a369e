//! Digests of spans: sha256 over the compressed bytes.

use crate::inflate::ZstdIndexer;
use crate::spans::{Checkpoint, Compression};
use crate::units::{BlobOffset, Digest, DigestHasher, u64_from_usize, usize_from_u64};

/// Digests of the blob bytes of each span, while they go by.
#[derive(Default)]
pub(super) struct SpanDigests {
    done: Vec<Digest>,
    current: Option<DigestHasher>,
    /// Blob bytes that went by.
    blob: u64,
    last_byte: Option<u8>,
    /// The last bytes of a zstd blob, which the next ones may show to begin a span.
    held: Vec<u8>,
}

impl SpanDigests {
    /// Takes a piece of a compressed blob, and the checkpoints that were found in it; an empty one ends the blob.
    pub(super) fn compressed(&mut self, compression: Compression, piece: &[u8], checkpoints: &[Checkpoint]) {
        match compression {
            Compression::Zstd => self.zstd(piece, checkpoints),
            _ => self.gzip(piece, checkpoints),
        }
    }

    /// Takes a piece of a gzip blob, and the checkpoints that lie in it.
    fn gzip(&mut self, piece: &[u8], checkpoints: &[Checkpoint]) {
        let mut rest = piece;
        for checkpoint in checkpoints {
            let ahead = checkpoint.blob.get().saturating_sub(self.blob);
            let (span_end, after) = usize_from_u64(ahead).and_then(|n| rest.split_at_checked(n)).unwrap_or((rest, &[]));
            self.hash(span_end);
            self.end_span();
            let mut next = DigestHasher::new();
            // The byte that two spans share belongs to the digests of both.
            if checkpoint.bits != 0
                && let Some(shared) = self.last_byte
            {
                next.update(&[shared]);
            }
            self.current = Some(next);
            rest = after;
        }
        self.hash(rest);
    }

    /// Takes a piece of a zstd blob, and the checkpoints that were found in it; an empty one ends the blob.
    fn zstd(&mut self, piece: &[u8], checkpoints: &[Checkpoint]) {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(piece);
        let held = if piece.is_empty() { 0 } else { ZstdIndexer::MARK_BYTES };
        let certain = bytes.len().saturating_sub(held);
        self.held = bytes.split_off(certain);
        self.gzip(&bytes, checkpoints);
    }

    /// Takes a piece of a plain tar, whose spans have a fixed length.
    pub(super) fn tar(&mut self, mut piece: &[u8], span_size_bytes: u64) {
        while !piece.is_empty() {
            let in_span = self.blob % span_size_bytes;
            if in_span == 0 {
                self.end_span();
                self.current = Some(DigestHasher::new());
            }
            let left = usize_from_u64(span_size_bytes - in_span).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at(left.min(piece.len()));
            self.hash(now);
            piece = later;
        }
    }

    /// Blob bytes that went by.
    pub(super) fn blob_size(&self) -> BlobOffset {
        BlobOffset::new(self.blob + u64_from_usize(self.held.len()))
    }

    fn hash(&mut self, bytes: &[u8]) {
        if let Some(current) = &mut self.current {
            current.update(bytes);
        }
        self.blob += u64_from_usize(bytes.len());
        self.last_byte = bytes.last().copied().or(self.last_byte);
    }

    fn end_span(&mut self) {
        self.done.extend(self.current.take().map(DigestHasher::finish));
    }

    pub(super) fn finish(mut self) -> Vec<Digest> {
        self.end_span();
        self.done
    }
}

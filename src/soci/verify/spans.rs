//! Spans and checkpoints against the stream: digests, places, windows.

use super::{Findings, Part, span_id};
use crate::inflate::Boundary;
use crate::spans::ztoc::Ztoc;
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{BlobOffset, DigestHasher, LayerOffset, WINDOW_BYTES, u64_from_usize, usize_from_u64};

/// Digests of the spans that a table names.
pub(super) struct SpanDigests<'z> {
    table: &'z SpanTable,
    /// Number of the span that is being hashed, or awaited.
    current: usize,
    hasher: DigestHasher,
    blob: u64,
}

impl<'z> SpanDigests<'z> {
    pub fn new(table: &'z SpanTable) -> Self {
        Self { table, current: 0, hasher: DigestHasher::new(), blob: 0 }
    }

    pub fn take(&mut self, mut piece: &[u8], findings: &mut Findings) {
        while let Some(span) = self.table.get(span_id(self.current)).filter(|_| !piece.is_empty()) {
            let before = span.blob.start().get().saturating_sub(self.blob);
            let upto = if before > 0 { before } else { span.blob.end().get().saturating_sub(self.blob) };
            let len = usize_from_u64(upto).unwrap_or(usize::MAX).min(piece.len());
            let (now, later) = piece.split_at(len);
            if before == 0 {
                self.hasher.update(now);
            }
            self.blob += u64_from_usize(len);
            piece = later;
            if before == 0 && self.blob == span.blob.end().get() {
                self.end(span, findings);
                // The byte that two spans share belongs to the digests of both.
                if let (Some(shared), Some(next)) = (now.last(), self.table.get(span_id(self.current)))
                    && next.bits != 0
                {
                    self.hasher.update(&[*shared]);
                }
            }
        }
        self.blob += u64_from_usize(piece.len());
    }

    fn end(&mut self, span: &Span, findings: &mut Findings) {
        let got = std::mem::take(&mut self.hasher).finish();
        if got != span.digest {
            findings.add(Part::Span { number: self.current }, "digest", got, span.digest);
        }
        self.current += 1;
    }

    /// Spans that the blob ended before.
    pub fn finish(&mut self, findings: &mut Findings) {
        let end = BlobOffset::new(self.blob);
        for (number, (_, span)) in self.table.iter().enumerate().skip(self.current) {
            let found = format!("blob bytes {}", span.blob);
            findings.add(Part::Span { number }, "blob range", format!("at most {end}, where the blob ends"), found);
        }
    }
}

/// Places of the checkpoints.
pub(super) struct Places<'z> {
    table: &'z SpanTable,
    /// Number of the first checkpoint that was not yet met.
    next: usize,
    /// The first boundary at its layer offset that is not quite it.
    near: Option<Boundary>,
}

impl<'z> Places<'z> {
    pub fn new(ztoc: &'z Ztoc<'z>) -> Self {
        // Version 1 of zinfo leaves the first checkpoint out; there is nothing to be wrong then.
        Self { table: ztoc.spans(), next: usize::from(ztoc.first_span_is_guessed()), near: None }
    }

    /// Layer offsets at which boundaries are of interest.
    pub fn wanted(&self) -> Vec<LayerOffset> {
        self.table.iter().skip(self.next).map(|(_, span)| span.layer.start()).collect()
    }

    /// Takes boundaries in the order of the stream.
    pub fn take(&mut self, boundaries: &[Boundary], findings: &mut Findings) {
        for boundary in boundaries {
            while let Some(span) = self.awaited().filter(|span| span.layer.start() < boundary.layer) {
                self.missed(span, findings);
            }
            let Some(span) = self.awaited().filter(|span| span.layer.start() == boundary.layer) else { continue };
            if place(span) == (boundary.blob, boundary.bits) {
                self.next += 1;
                self.near = None;
            } else {
                self.near = self.near.or(Some(*boundary));
            }
        }
    }

    pub fn finish(&mut self, findings: &mut Findings) {
        while let Some(span) = self.awaited() {
            self.missed(span, findings);
        }
    }

    fn awaited(&self) -> Option<&'z Span> {
        self.table.get(span_id(self.next))
    }

    fn missed(&mut self, span: &Span, findings: &mut Findings) {
        let part = || Part::Checkpoint { number: self.next };
        let (blob, bits) = place(span);
        match self.near {
            Some(near) => {
                if near.blob != blob {
                    findings.add(part(), "blob offset", near.blob, blob);
                }
                if near.bits != bits {
                    findings.add(part(), "bits", near.bits, bits);
                }
            }
            None => {
                let found = format!("{}, where none begins", span.layer.start());
                let begins = match self.table.compression() {
                    Compression::Zstd => "a place where a zstd frame begins",
                    _ => "a place where a deflate block begins",
                };
                findings.add(part(), "layer offset", begins, found);
            }
        }
        self.next += 1;
        self.near = None;
    }
}

/// The first whole byte of the block that a span begins with, and how many bits lie before it.
fn place(span: &Span) -> (BlobOffset, u8) {
    let start = span.blob.start().get();
    (BlobOffset::new(start.saturating_add(u64::from(span.bits != 0))), span.bits)
}

/// Windows of the checkpoints, against the layer bytes before them.
pub(super) struct Windows<'z> {
    ztoc: &'z Ztoc<'z>,
    next: usize,
    layer: u64,
    /// The last layer bytes, at most a window of them.
    tail: Vec<u8>,
}

impl<'z> Windows<'z> {
    pub fn new(ztoc: &'z Ztoc<'z>) -> Self {
        Self { ztoc, next: 0, layer: 0, tail: Vec::new() }
    }

    pub fn take(&mut self, piece: &[u8], findings: &mut Findings) {
        let table = self.ztoc.spans();
        if table.compression() != Compression::Gzip {
            return;
        }
        while let Some(span) = table.get(span_id(self.next)) {
            let ahead = usize_from_u64(span.layer.start().get().saturating_sub(self.layer)).unwrap_or(usize::MAX);
            let Some(before) = piece.get(..ahead) else { break };
            if let Some(checkpoint) = self.ztoc.checkpoint(span_id(self.next))
                && let Some(window) = &checkpoint.window
                && let Some((at, expected, found)) = difference(window.as_slice(), &self.tail, before)
            {
                let of = |byte: u8| format!("{byte:#04x} at byte {at} of 32768");
                findings.add(Part::Checkpoint { number: self.next }, "window", of(expected), of(found));
            }
            self.next += 1;
        }
        self.layer += u64_from_usize(piece.len());
        let kept = WINDOW_BYTES.saturating_sub(piece.len());
        let old = self.tail.len().saturating_sub(kept);
        self.tail.drain(..old);
        self.tail.extend_from_slice(piece.get(piece.len().saturating_sub(WINDOW_BYTES)..).unwrap_or_default());
    }
}

/// Where a window first differs from the bytes before its checkpoint, `older` and then `newer`, and what should be there
/// and what is. Zeros stand for bytes before the layer.
fn difference(window: &[u8], older: &[u8], newer: &[u8]) -> Option<(usize, u8, u8)> {
    let (window_head, in_newer) = window.split_at(window.len() - newer.len().min(window.len()));
    let (zeros, in_older) = window_head.split_at(window_head.len() - older.len().min(window_head.len()));
    let last = |bytes: &'_ [u8], len: usize| bytes.len() - len.min(bytes.len());
    let older = older.get(last(older, in_older.len())..).unwrap_or_default();
    let newer = newer.get(last(newer, in_newer.len())..).unwrap_or_default();
    if in_newer == newer && in_older == older && zeros.iter().all(|&byte| byte == 0) {
        return None;
    }
    let history = zeros.iter().map(|_| 0).chain(older.iter().copied()).chain(newer.iter().copied());
    let mut pairs = history.zip(window.iter().copied()).enumerate();
    pairs.find(|(_, (right, said))| right != said).map(|(at, (right, said))| (at, right, said))
}

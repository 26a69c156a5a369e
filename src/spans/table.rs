//! Spans and the table of them, checked when it is made.

use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange, SpanId, WINDOW_BYTES};

/// How the blob is compressed, as the zTOC says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// A plain tar: blob bytes are layer bytes.
    Uncompressed,
    /// One or more zstd frames (RFC 8878). SOCI's zTOCs do not know it; ours do (docs/decisions/zstd-layers.md).
    Zstd,
}

impl Compression {
    /// Its name, for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Uncompressed => "uncompressed",
            Self::Zstd => "zstd",
        }
    }
}

/// A place in a compressed blob where inflating can start: a block of a gzip member, or a zstd frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The first whole byte of the block that begins here. With `bits` set, the block begins in the byte before.
    pub blob: BlobOffset,
    /// Layer bytes that lie before.
    pub layer: LayerOffset,
    /// 0..=7: how many high bits of the byte before `blob` belong to the block; 0 for zstd.
    pub bits: u8,
    /// The layer bytes before, oldest first; zeros where fewer than 32 KiB precede. `None` for zstd, whose frames need no
    /// history.
    pub window: Option<Box<[u8; WINDOW_BYTES]>>,
}

/// One span: the layer between two checkpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// Compressed bytes that the digest covers. Begins one byte early when `bits` is not 0, so that neighbours may
    /// overlap by one byte.
    pub blob: BlobRange,
    /// Uncompressed bytes of the span. The last span may inflate to more (tar padding that the zTOC does not count).
    pub layer: LayerRange,
    /// 0..=7: how many high bits of the first blob byte belong to this span; 0: the span begins on a byte boundary.
    pub bits: u8,
    /// sha256 of the blob bytes.
    pub digest: Digest,
    /// Where in the zTOC document the 32 KiB deflate window lies, in bytes from its start; `None` when there is no
    /// history (the first span, uncompressed and zstd layers).
    pub window_at: Option<u64>,
}

/// Why spans do not make a table. Offsets are bytes of the named space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpanTableError {
    /// A layer has at least one span.
    #[error("no spans")]
    Empty,
    /// More spans than span numbers.
    #[error("{count} spans are more than a zTOC can number")]
    TooMany {
        /// Number of spans.
        count: usize,
    },
    /// More than 7 bits, bits before the start of the blob, or bits where none can be (first span, plain tar).
    #[error("span {span}: impossible bit offset {bits}")]
    Bits {
        /// Number of the span.
        span: SpanId,
        /// Bits claimed.
        bits: u8,
    },
    /// The first span begins neither at the start of the blob nor, for gzip, behind a header, or not at layer byte 0.
    #[error("the first span begins at blob byte {blob}, layer byte {layer}")]
    Start {
        /// Where it begins in the blob.
        blob: BlobOffset,
        /// Where it begins in the layer.
        layer: LayerOffset,
    },
    /// A span is empty, begins before the previous one ends, or leaves a gap.
    #[error("span {span} (blob {blob}, layer {layer}) does not follow the previous span")]
    Order {
        /// Number of the span.
        span: SpanId,
        /// Its blob bytes.
        blob: BlobRange,
        /// Its layer bytes.
        layer: LayerRange,
    },
    /// A span reaches beyond the blob, or the last one ends before it.
    #[error("span {span} ends at blob byte {end}, the blob has {blob_size} bytes")]
    BlobEnd {
        /// Number of the span.
        span: SpanId,
        /// Where it ends.
        end: BlobOffset,
        /// Size of the blob.
        blob_size: BlobOffset,
    },
    /// The spans end before the layer does.
    #[error("the spans end at layer byte {end}, the layer has {layer_size} bytes")]
    LayerEnd {
        /// Where the last span ends.
        end: LayerOffset,
        /// Size of the layer.
        layer_size: LayerOffset,
    },
    /// More layer bytes than the compression can make of so few blob bytes, or, in a plain tar, another number of bytes.
    #[error("span {span}: {blob_bytes} blob bytes cannot hold {layer_bytes} layer bytes")]
    Ratio {
        /// Number of the span.
        span: SpanId,
        /// Length in the blob.
        blob_bytes: u64,
        /// Length in the layer.
        layer_bytes: u64,
    },
}

/// Shortest gzip header (RFC 1952, section 2.3).
pub(super) const GZIP_HEADER_BYTES: u64 = 10;

/// Deflate's best: a match of 258 bytes from a one-bit length code and a one-bit distance code, four to the byte.
const DEFLATE_MAX_RATIO: u64 = 1032;

/// zstd's best: a block of 128 KiB, the longest, from a block header of three bytes and the one byte that it repeats (RFC
/// 8878, section 3.1.1.2).
const ZSTD_MAX_RATIO: u64 = 128 * 1024 / 4;

/// All spans of a layer: sorted, gap-free in layer space, within the blob. Can only be made by checking.
///
/// The spans cover the blob from the first to its end, and the layer from 0 to at least
/// [`layer_size`](Self::layer_size). They may go on beyond it: SOCI counts a layer only up to the tar's end mark, while
/// its checkpoints follow the deflate stream into the padding behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpanTable {
    compression: Compression,
    blob_size: BlobOffset,
    layer_size: LayerOffset,
    spans: Box<[Span]>,
}

impl SpanTable {
    /// Checks `spans` and makes them a table.
    ///
    /// # Errors
    /// When they are not what [`SpanTable`] promises.
    pub fn new(
        compression: Compression,
        blob_size: BlobOffset,
        layer_size: LayerOffset,
        spans: Vec<Span>,
    ) -> Result<Self, SpanTableError> {
        if i32::try_from(spans.len()).is_err() {
            return Err(SpanTableError::TooMany { count: spans.len() });
        }
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return Err(SpanTableError::Empty) };
        let starts_right = match compression {
            Compression::Gzip => first.blob.start().get() >= GZIP_HEADER_BYTES,
            Compression::Uncompressed | Compression::Zstd => first.blob.start() == BlobOffset::ZERO,
        };
        if !starts_right || first.layer.start() != LayerOffset::ZERO {
            return Err(SpanTableError::Start { blob: first.blob.start(), layer: first.layer.start() });
        }

        let mut previous: Option<&Span> = None;
        for (i, span) in (0_u32..).zip(&spans) {
            let id = SpanId(i);
            let may_have_bits = compression == Compression::Gzip && i != 0;
            if span.bits > 7 || (span.bits != 0 && !may_have_bits) {
                return Err(SpanTableError::Bits { span: id, bits: span.bits });
            }
            if span.blob.end() > blob_size {
                return Err(SpanTableError::BlobEnd { span: id, end: span.blob.end(), blob_size });
            }
            let is_last = id.index() + 1 == spans.len();
            let follows = previous.is_none_or(|p| {
                p.blob.end().get() == span.blob.start().get() + u64::from(span.bits != 0)
                    && p.layer.end() == span.layer.start()
            });
            if !follows || span.blob.is_empty() || (span.layer.is_empty() && !is_last) {
                return Err(SpanTableError::Order { span: id, blob: span.blob, layer: span.layer });
            }
            check_ratio(compression, id, span)?;
            previous = Some(span);
        }
        if last.blob.end() != blob_size {
            let span = SpanId(u32::try_from(spans.len() - 1).unwrap_or(u32::MAX));
            return Err(SpanTableError::BlobEnd { span, end: last.blob.end(), blob_size });
        }
        if last.layer.end() < layer_size {
            return Err(SpanTableError::LayerEnd { end: last.layer.end(), layer_size });
        }
        Ok(Self { compression, blob_size, layer_size, spans: spans.into_boxed_slice() })
    }

    /// The same table with the first span beginning at another blob byte.
    ///
    /// Version 1 of zinfo does not record where the deflate data begin; the table made from it assumes a gzip header of
    /// 10 bytes ([`Ztoc::first_span_is_guessed`](super::ztoc::Ztoc::first_span_is_guessed)). Whoever has read the
    /// real header corrects it here.
    ///
    /// # Errors
    /// When `at` is no possible start of the first span.
    pub fn with_first_span_at(self, at: BlobOffset) -> Result<Self, SpanTableError> {
        let Self { compression, blob_size, layer_size, spans } = self;
        let mut spans = spans.into_vec();
        if let Some(first) = spans.first_mut() {
            let moved = BlobRange::new(at, first.blob.end());
            first.blob = moved.ok_or(SpanTableError::Start { blob: at, layer: first.layer.start() })?;
        }
        Self::new(compression, blob_size, layer_size, spans)
    }

    /// How the blob is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Size of the compressed blob in bytes.
    #[must_use]
    pub fn blob_size(&self) -> BlobOffset {
        self.blob_size
    }

    /// Size of the layer that the zTOC speaks of, in bytes; the tar may go on with padding.
    #[must_use]
    pub fn layer_size(&self) -> LayerOffset {
        self.layer_size
    }

    /// Number of spans; never 0.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Always false: a layer has at least one span.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The span with this number, or `None` beyond the last.
    #[must_use]
    pub fn get(&self, id: SpanId) -> Option<&Span> {
        self.spans.get(id.index())
    }

    /// All spans in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (SpanId, &Span)> {
        self.spans.iter().enumerate().map(|(i, s)| (SpanId(u32::try_from(i).unwrap_or(u32::MAX)), s))
    }

    /// The last span that begins at or before `offset`; the last of all for an offset beyond the layer.
    #[must_use]
    pub fn starting_at_or_before(&self, offset: LayerOffset) -> SpanId {
        let behind = self.spans.partition_point(|s| s.layer.start() <= offset);
        SpanId(u32::try_from(behind.saturating_sub(1)).unwrap_or(u32::MAX))
    }

    /// The spans that hold `range`, as a half-open range of span numbers; empty for an empty range or one beyond
    /// the layer.
    #[must_use]
    pub fn covering(&self, range: LayerRange) -> std::ops::Range<u32> {
        let clipped = LayerRange::new(LayerOffset::ZERO, self.layer_size).and_then(|all| all.intersection(&range));
        let Some(clipped) = clipped else { return 0..0 };
        let first = self.spans.partition_point(|s| s.layer.end() <= clipped.start());
        let last = self.spans.partition_point(|s| s.layer.start() < clipped.end());
        u32::try_from(first).unwrap_or(u32::MAX)..u32::try_from(last).unwrap_or(u32::MAX)
    }
}

fn check_ratio(compression: Compression, id: SpanId, span: &Span) -> Result<(), SpanTableError> {
    let (blob_bytes, layer_bytes) = (span.blob.len_bytes(), span.layer.len_bytes());
    let possible = match compression {
        Compression::Gzip => layer_bytes <= blob_bytes.saturating_mul(DEFLATE_MAX_RATIO),
        Compression::Zstd => layer_bytes <= blob_bytes.saturating_mul(ZSTD_MAX_RATIO),
        Compression::Uncompressed => layer_bytes <= blob_bytes && span.layer.start().get() == span.blob.start().get(),
    };
    if possible { Ok(()) } else { Err(SpanTableError::Ratio { span: id, blob_bytes, layer_bytes }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A gzip layer whose spans have these lengths in the layer; its last 10 bytes are padding behind the tar's end.
    fn table(layer_lens: &[u64]) -> SpanTable {
        let (mut blob, mut layer) = (BlobOffset::new(20), LayerOffset::ZERO);
        let span = |len| {
            let span = Span {
                blob: BlobRange::from_len(blob, 100).expect("small"),
                layer: LayerRange::from_len(layer, len).expect("small"),
                bits: 0,
                digest: Digest::of(b""),
                window_at: None,
            };
            (blob, layer) = (span.blob.end(), span.layer.end());
            span
        };
        let spans = layer_lens.iter().copied().map(span).collect();
        let layer_size = LayerOffset::new(layer.get().saturating_sub(10));
        SpanTable::new(Compression::Gzip, blob, layer_size, spans).expect("sound")
    }

    proptest! {
        #[test]
        fn covering_finds_the_spans_that_hold_a_byte_of_the_range(
            lens in prop::collection::vec(1_u64..40, 1..12),
            start in 0_u64..300,
            len in 0_u64..100,
        ) {
            let table = table(&lens);
            let range = LayerRange::from_len(LayerOffset::new(start), len).expect("small");
            let within = |at: &u64| *at < table.layer_size().get();
            let mut held: Vec<u32> = (start..start + len)
                .filter(within)
                .filter_map(|at| table.iter().find(|(_, span)| span.layer.contains(LayerOffset::new(at))))
                .map(|(id, _)| id.0)
                .collect();
            held.dedup();
            prop_assert_eq!(table.covering(range).collect::<Vec<_>>(), held);
        }

        #[test]
        fn the_last_span_before_an_offset_is_found(lens in prop::collection::vec(1_u64..40, 1..12), at in 0_u64..600) {
            let table = table(&lens);
            let at = LayerOffset::new(at);
            let want = table.iter().filter(|(_, span)| span.layer.start() <= at).map(|(id, _)| id).last();
            prop_assert_eq!(Some(table.starting_at_or_before(at)), want);
        }
    }

    #[test]
    fn spans_must_be_within_the_blob_and_cover_the_layer() {
        let spans = || table(&[20, 30]).iter().map(|(_, span)| span.clone()).collect::<Vec<_>>();
        let new = |blob_size, layer_size, spans| {
            SpanTable::new(Compression::Gzip, BlobOffset::new(blob_size), LayerOffset::new(layer_size), spans)
        };
        assert!(new(220, 50, spans()).is_ok());
        assert_eq!(new(220, 50, Vec::new()), Err(SpanTableError::Empty));
        assert!(matches!(new(219, 50, spans()), Err(SpanTableError::BlobEnd { .. })));
        assert!(matches!(new(221, 50, spans()), Err(SpanTableError::BlobEnd { .. })));
        assert!(matches!(new(220, 51, spans()), Err(SpanTableError::LayerEnd { .. })));
        let mut gap = spans();
        gap.remove(0);
        assert!(matches!(new(220, 50, gap), Err(SpanTableError::Start { .. })));
    }
}

//! A span table as a file's content: what a daemon leaves for the one that takes over its devices, which then need not read
//! the zTOC, most of which is windows.
//!
//! ```text
//! 0   8      "sbspans1"
//! 8   8      compression: 0 gzip, 1 none, 2 zstd
//! 16  8      size of the blob in bytes
//! 24  8      size of the layer in bytes
//! 32  80 n   spans: start and end in the blob (8, 8), start and end in the layer (8, 8), where the window lies in the zTOC
//!            document (8; all ones: nowhere), bits (8), sha256 of the blob bytes (32)
//!     32     sha256 of all before
//! ```
//! All numbers little-endian.

use super::{Compression, Span, SpanTable, SpanTableError};
use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange};

/// To be raised when reading a zTOC comes to refuse, or read otherwise, what it took before: a table is not judged again.
const MAGIC: [u8; 8] = *b"sbspans1";
const HEADER_BYTES: usize = 32;
const SPAN_BYTES: usize = 80;
const DIGEST_BYTES: usize = 32;
const NO_WINDOW: u64 = u64::MAX;

/// Why saved bytes are no span table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedSpansError {
    /// The bytes are damaged, or were never a table.
    #[error("a saved span table cannot be used: {reason}")]
    Damaged {
        /// What is wrong.
        reason: &'static str,
    },
    /// The spans are no table.
    #[error("a saved span table cannot be used: {source}")]
    Spans {
        /// What is wrong.
        #[from]
        source: SpanTableError,
    },
}

const fn damaged(reason: &'static str) -> SavedSpansError {
    SavedSpansError::Damaged { reason }
}

impl SpanTable {
    /// The table as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.len() * SPAN_BYTES + DIGEST_BYTES);
        bytes.extend(MAGIC);
        let compression: u64 = match self.compression() {
            Compression::Gzip => 0,
            Compression::Uncompressed => 1,
            Compression::Zstd => 2,
        };
        for number in [compression, self.blob_size().get(), self.layer_size().get()] {
            bytes.extend(number.to_le_bytes());
        }
        for (_, span) in self.iter() {
            let (blob, layer) = (span.blob, span.layer);
            let places = [blob.start().get(), blob.end().get(), layer.start().get(), layer.end().get()];
            let more = [span.window_at.unwrap_or(NO_WINDOW), u64::from(span.bits)];
            for number in places.into_iter().chain(more) {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(span.digest.as_bytes());
        }
        let check = Digest::of(&bytes);
        bytes.extend(check.as_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version, or the spans are not what a [`SpanTable`] promises.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SavedSpansError> {
        let (body, check) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or(damaged("too short"))?;
        if Digest::of(body).as_bytes() != check {
            return Err(damaged("its checksum does not fit"));
        }
        let (header, spans) = body.split_first_chunk::<HEADER_BYTES>().ok_or(damaged("too short"))?;
        let (magic, numbers) = header.split_first_chunk::<8>().ok_or(damaged("too short"))?;
        if *magic != MAGIC {
            return Err(damaged("it is of another version"));
        }
        let [compression, blob_size, layer_size] = numbers_of(numbers).ok_or(damaged("too short"))?;
        let compression = match compression {
            0 => Compression::Gzip,
            1 => Compression::Uncompressed,
            2 => Compression::Zstd,
            _ => return Err(damaged("an unknown compression")),
        };
        let (spans, rest) = spans.as_chunks::<SPAN_BYTES>();
        if !rest.is_empty() {
            return Err(damaged("a span is cut off"));
        }
        let spans: Option<Vec<Span>> = spans.iter().map(span).collect();
        let spans = spans.ok_or(damaged("a span that no layer has"))?;
        Ok(Self::new(compression, BlobOffset::new(blob_size), LayerOffset::new(layer_size), spans)?)
    }
}

fn span(bytes: &[u8; SPAN_BYTES]) -> Option<Span> {
    let (numbers, digest) = bytes.split_last_chunk::<DIGEST_BYTES>()?;
    let [blob_start, blob_end, layer_start, layer_end, window_at, bits] = numbers_of(numbers)?;
    Some(Span {
        blob: BlobRange::new(BlobOffset::new(blob_start), BlobOffset::new(blob_end))?,
        layer: LayerRange::new(LayerOffset::new(layer_start), LayerOffset::new(layer_end))?,
        bits: u8::try_from(bits).ok()?,
        digest: Digest::from_bytes(*digest),
        window_at: (window_at != NO_WINDOW).then_some(window_at),
    })
}

/// Exactly `N` numbers.
fn numbers_of<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (numbers, rest) = bytes.as_chunks::<8>();
    let numbers: Vec<u64> = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
    numbers.try_into().ok().filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of three spans, the first without a window, the last one in the middle of a byte.
    fn table(compression: Compression) -> SpanTable {
        let first = if compression == Compression::Gzip { 10 } else { 0 };
        let gzip = compression == Compression::Gzip;
        let make = |i: u64, bits: u8| Span {
            blob: BlobRange::new(
                BlobOffset::new(if i == 0 { first } else { i * 1000 - u64::from(bits != 0) }),
                BlobOffset::new((i + 1) * 1000),
            )
            .expect("ordered"),
            layer: LayerRange::new(LayerOffset::new(i * 1000), LayerOffset::new((i + 1) * 1000)).expect("ordered"),
            bits,
            digest: Digest::of(&i.to_le_bytes()),
            window_at: (gzip && i > 0).then_some(i * 40_000),
        };
        let spans = vec![make(0, 0), make(1, 0), make(2, if gzip { 3 } else { 0 })];
        SpanTable::new(compression, BlobOffset::new(3000), LayerOffset::new(2990), spans).expect("a good table")
    }

    #[test]
    fn what_was_saved_comes_back() {
        for compression in [Compression::Gzip, Compression::Uncompressed, Compression::Zstd] {
            let table = table(compression);
            assert_eq!(SpanTable::from_bytes(&table.to_bytes()).expect("reads"), table);
        }
    }

    #[test]
    fn damage_at_any_byte_and_any_cut_is_an_error() {
        let bytes = table(Compression::Gzip).to_bytes();
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 0x10;
            assert!(SpanTable::from_bytes(&bent).is_err(), "byte {at}");
            assert!(SpanTable::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn spans_that_lie_are_refused_even_with_a_right_checksum() {
        let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = table(Compression::Gzip).to_bytes();
            bytes.truncate(bytes.len() - DIGEST_BYTES);
            change(&mut bytes);
            let check = Digest::of(&bytes);
            bytes.extend(check.as_bytes());
            SpanTable::from_bytes(&bytes)
        };
        assert!(sealed(&|_| {}).is_ok());
        let put = |at: usize, number: u64| {
            move |bytes: &mut Vec<u8>| bytes[at..at + 8].copy_from_slice(&number.to_le_bytes())
        };
        // Another magic; an unknown compression; a blob that is too small; a first span that is empty, or ends too early, or
        // has more bits than a byte, or any.
        for (at, number) in [(0, 0), (8, 3), (16, 2999), (32, 1000), (40, 900), (72, 256), (72, 1)] {
            assert!(sealed(&put(at, number)).is_err(), "{number} at {at}");
        }
        for cut in [1, SPAN_BYTES, 2 * SPAN_BYTES, 3 * SPAN_BYTES] {
            assert!(sealed(&|bytes| bytes.truncate(bytes.len() - cut)).is_err(), "{cut} bytes less");
        }
    }
}

//! Proves a zTOC against its layer: whatever a zTOC claims is held against what the layer's bytes show, in one pass.
//!
//! ```text
//! blob ─► sha256 of the blob and of each span ─► inflate ─► sha256 of the tar, windows, tar headers
//!                                                  └─► block boundaries at the checkpoints
//! ```
//!
//! The layer is judge, not a zTOC built anew: builders may rightly differ in which block boundaries they made
//! checkpoints. So each checkpoint is held against the stream at its own place.

mod finding;
mod spans;
#[cfg(test)]
mod tests;
mod toc;

pub use finding::{Finding, Findings, Part};

use crate::inflate::{BlobIndexer, IndexError};
use crate::soci::build::{BuildError, detect_compression};
use crate::spans::Compression;
use crate::spans::tar::{TarError, TarIndexer};
use crate::spans::ztoc::Ztoc;
use crate::units::{BlobOffset, Digest, DigestHasher, LayerOffset, SpanId, u64_from_usize};

use self::spans::{Places, SpanDigests, Windows};

/// Pieces in which the blob is worked on: small enough that inflating finds it in the cache after hashing.
const PIECE_BYTES: usize = 256 * 1024;

/// Enough of a blob to tell its compression.
const MARK_BYTES: usize = 8;

/// What the image says of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob.
    pub blob_size: BlobOffset,
    /// Digest of the tar, from the image config.
    pub diff_id: Option<Digest>,
}

/// What a pass over a layer showed.
#[derive(Debug)]
pub struct Checked {
    /// What is wrong.
    pub findings: Findings,
    /// Why some of it could not be checked.
    pub unchecked: Option<String>,
    /// Digest of the blob.
    pub blob_digest: Digest,
    /// Size of the blob.
    pub blob_size: BlobOffset,
    /// Size of the tar with its padding.
    pub layer_size: LayerOffset,
}

/// Holds a zTOC against the bytes of a layer's blob.
pub struct Verifier<'z> {
    ztoc: &'z Ztoc<'z>,
    expected: Expected,
    /// The first bytes, until they tell the compression.
    head: Vec<u8>,
    reader: Reader,
    blob_hasher: DigestHasher,
    blob_bytes: u64,
    digests: SpanDigests<'z>,
    places: Places<'z>,
    layer: Layer<'z>,
    findings: Findings,
    unchecked: Option<String>,
}

enum Reader {
    Undecided,
    Compressed(BlobIndexer),
    Tar,
    /// What is there cannot be read; its digests can still be checked.
    Broken,
}

/// What is done with layer bytes.
struct Layer<'z> {
    tar: Result<TarIndexer, TarError>,
    hasher: DigestHasher,
    windows: Windows<'z>,
    bytes: u64,
}

impl Layer<'_> {
    fn take(&mut self, bytes: &[u8], findings: &mut Findings) {
        self.hasher.update(bytes);
        self.windows.take(bytes, findings);
        if let Ok(tar) = &mut self.tar
            && let Err(error) = tar.feed(bytes)
        {
            self.tar = Err(error);
        }
        self.bytes += u64_from_usize(bytes.len());
    }
}

impl<'z> Verifier<'z> {
    /// Before the first byte of the blob.
    #[must_use]
    pub fn new(ztoc: &'z Ztoc<'z>, expected: Expected) -> Self {
        let mut findings = Findings::default();
        if ztoc.blob_size() != expected.blob_size {
            findings.add(Part::Ztoc, "blob size", expected.blob_size, ztoc.blob_size());
        }
        Self {
            ztoc,
            expected,
            head: Vec::new(),
            reader: Reader::Undecided,
            blob_hasher: DigestHasher::new(),
            blob_bytes: 0,
            digests: SpanDigests::new(ztoc.spans()),
            places: Places::new(ztoc),
            layer: Layer {
                tar: Ok(TarIndexer::new()),
                hasher: DigestHasher::new(),
                windows: Windows::new(ztoc),
                bytes: 0,
            },
            findings,
            unchecked: None,
        }
    }

    /// Takes the next bytes of the blob.
    pub fn push(&mut self, bytes: &[u8]) {
        if !matches!(self.reader, Reader::Undecided) {
            return bytes.chunks(PIECE_BYTES).for_each(|piece| self.piece(piece));
        }
        self.head.extend_from_slice(bytes);
        if self.head.len() >= MARK_BYTES {
            self.begin();
        }
    }

    fn begin(&mut self) {
        let head = std::mem::take(&mut self.head);
        let said = self.ztoc.spans().compression();
        let seen = detect_compression(&head);
        self.reader = match (&seen, said) {
            (Ok(seen), said) if *seen == said => {
                BlobIndexer::watching(said, self.places.wanted()).map_or(Reader::Tar, Reader::Compressed)
            }
            (seen, _) => {
                let seen = match seen {
                    Ok(seen) => seen.name(),
                    Err(BuildError::UnsupportedCompression { name }) => name,
                    Err(_) => "something else",
                };
                self.findings.add(Part::Ztoc, "compression", seen, said.name());
                Reader::Broken
            }
        };
        head.chunks(PIECE_BYTES).for_each(|piece| self.piece(piece));
    }

    fn piece(&mut self, piece: &[u8]) {
        self.blob_hasher.update(piece);
        self.blob_bytes += u64_from_usize(piece.len());
        self.digests.take(piece, &mut self.findings);
        let (layer, findings) = (&mut self.layer, &mut self.findings);
        match &mut self.reader {
            Reader::Compressed(indexer) => {
                let done = indexer.push(piece, &mut |bytes| {
                    layer.take(bytes, findings);
                    Ok(())
                });
                self.places.take(&indexer.take_boundaries(), &mut self.findings);
                if let Err(error) = done {
                    self.broken(&error);
                }
            }
            Reader::Tar => layer.take(piece, findings),
            Reader::Undecided | Reader::Broken => {}
        }
    }

    fn broken(&mut self, error: &IndexError) {
        let (field, expected) = match &self.reader {
            Reader::Compressed(BlobIndexer::Zstd(_)) => ("zstd data", "zstd frames up to the end"),
            _ => ("gzip data", "gzip members up to the end"),
        };
        self.findings.add(Part::Layer, field, expected, error);
        self.reader = Reader::Broken;
    }

    /// Ends the blob.
    #[must_use]
    pub fn finish(mut self) -> Checked {
        if matches!(self.reader, Reader::Undecided) {
            self.begin();
        }
        let (layer, findings) = (&mut self.layer, &mut self.findings);
        let done = match &mut self.reader {
            Reader::Compressed(indexer) => {
                let done = indexer.finish(&mut |bytes| {
                    layer.take(bytes, findings);
                    Ok(())
                });
                self.places.take(&indexer.take_boundaries(), &mut self.findings);
                done
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            self.broken(&error);
        }
        let blob_digest = self.blob_hasher.finish();
        let blob_size = BlobOffset::new(self.blob_bytes);
        if blob_size != self.expected.blob_size {
            self.findings.add(Part::Layer, "blob size", self.expected.blob_size, blob_size);
        }
        if blob_digest != self.expected.digest {
            self.findings.add(Part::Layer, "digest", self.expected.digest, blob_digest);
        }
        self.digests.finish(&mut self.findings);
        let layer_size = LayerOffset::new(self.layer.bytes);
        if !matches!(self.reader, Reader::Broken) {
            if self.ztoc.spans().compression() != Compression::Uncompressed {
                self.places.finish(&mut self.findings);
            }
            let got = self.layer.hasher.finish();
            if let Some(expected) = self.expected.diff_id.filter(|expected| *expected != got) {
                self.findings.add(Part::Layer, "diffID", expected, got);
            }
            match self.layer.tar.and_then(TarIndexer::finish) {
                Ok(tar) => {
                    let (end, said) = (tar.end, self.ztoc.layer_size());
                    // SOCI counts up to the tar's end mark; a builder that counts the padding, too, says nothing wrong.
                    if said != end && said != layer_size {
                        self.findings.add(Part::Ztoc, "uncompressed size", end, said);
                    }
                    toc::compare(&tar.entries, self.ztoc, &mut self.findings);
                }
                Err(error @ (TarError::Unsupported { .. } | TarError::TooLarge { .. })) => {
                    self.unchecked = Some(format!("the table of contents: {error}"));
                }
                Err(error) => self.findings.add(Part::Layer, "tar", "a tar", error),
            }
        }
        let Self { findings, unchecked, .. } = self;
        Checked { findings, unchecked, blob_digest, blob_size, layer_size }
    }
}

/// Number of a span, which is at most that of an `i32`.
fn span_id(index: usize) -> SpanId {
    SpanId(u32::try_from(index).unwrap_or(u32::MAX))
}

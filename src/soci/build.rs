//! Builds a layer's zTOC in one pass, without temporary files.
//!
//! SOCI's own builder reads a layer three times (checkpoints, span digests, table of contents). Here every piece of the
//! blob is inflated, hashed and read as a tar while it is in the processor's cache, and the layer bytes are handed
//! on: whoever streams a layer anyway gets its zTOC with it. The document is byte for byte what SOCI writes for the same
//! layer, span size and build tool identifier; of zstd layers, which SOCI does not know, it is a document of our own.

mod digests;
mod spool;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use self::spool::ZtocDocument;

use self::digests::SpanDigests;
use self::spool::Spool;
use crate::inflate::{BlobIndexer, IndexError, LayerSink};
use crate::soci::toc::{FileSpans, SpanStarts, TocFacts};
use crate::spans::tar::{TarError, TarIndexer};
use crate::spans::ztoc::{self, WriteError, ZtocParts};
use crate::spans::{Checkpoint, Compression};
use crate::units::{BlobOffset, Digest, DigestHasher, LayerOffset, u64_from_usize};

/// SOCI's default span size.
pub const DEFAULT_SPAN_SIZE_BYTES: u64 = 4 * 1024 * 1024;

/// Pieces in which the blob is worked on: small enough that hashing finds it in the cache after inflating.
const PIECE_BYTES: usize = 256 * 1024;

/// What the caller may choose.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The layer length behind which the next block boundary, or at which the next frame, ends a span. For gzip and zstd 0
    /// makes a span of every block or frame.
    pub span_size_bytes: u64,
    /// What the zTOC says built it; informative.
    pub build_tool: String,
    /// Whether to compute the digest of the blob.
    pub blob_digest: bool,
    /// Whether to compute the diffID, the digest of the layer. Costs about a quarter of the speed.
    pub diff_id: bool,
    /// A directory in which the checkpoints wait, in a file without a name, until the zTOC is written; `None`: in memory, at
    /// 32 KiB for each span.
    pub spool_dir: Option<PathBuf>,
    /// Names of files whose spans are wanted, as tars have them, without a leading `/`.
    pub locate: Vec<String>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            span_size_bytes: DEFAULT_SPAN_SIZE_BYTES,
            build_tool: concat!("sociblk v", env!("CARGO_PKG_VERSION")).to_owned(),
            blob_digest: false,
            diff_id: false,
            spool_dir: None,
            locate: Vec::new(),
        }
    }
}

/// A finished zTOC and what the pass showed of the layer.
#[derive(Clone, Debug)]
pub struct Built<Z = Vec<u8>> {
    /// The document.
    pub ztoc: Z,
    /// Digest of the blob, where asked for.
    pub blob_digest: Option<Digest>,
    /// Size of the blob.
    pub blob_size: BlobOffset,
    /// Digest of the layer, where asked for.
    pub diff_id: Option<Digest>,
    /// True size of the layer, with all padding; the zTOC may count less.
    pub layer_size: LayerOffset,
    /// How the blob is compressed. Of zstd layers the zTOC is of our own kind, and not for SOCI.
    pub compression: Compression,
    /// Number of spans.
    pub span_count: usize,
    /// Number of tar entries.
    pub entry_count: usize,
    /// Whether the layer has extended attributes or opaque directories.
    pub needs_xattrs: bool,
    /// Where the files of [`BuildOptions::locate`] are, as far as the layer has them.
    pub located: Vec<FileSpans>,
}

/// Why a layer gets no zTOC.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A compression that zTOCs do not know.
    #[error("unsupported compression {name}: only gzip and zstd layers and plain tars can be indexed")]
    UnsupportedCompression {
        /// Its name.
        name: &'static str,
    },
    /// A plain tar has spans of just the asked size, which cannot be 0.
    #[error("span size 0 is not possible for an uncompressed layer")]
    SpanSize,
    /// The compressed data cannot be read.
    #[error("cannot index the layer")]
    Index(#[source] IndexError),
    /// The layer is not a tar that SOCI could read.
    #[error("cannot read the layer as a tar")]
    Tar(#[source] TarError),
    /// The zTOC cannot be written.
    #[error("cannot write the zTOC")]
    Write(#[source] WriteError),
    /// The file in which checkpoints wait cannot be written or read.
    #[error("cannot keep checkpoints in {}: {source}", path.display())]
    Spool {
        /// Its directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The receiver of the layer bytes failed.
    #[error("cannot hand on layer bytes at layer offset {layer}")]
    Sink {
        /// Layer offset of the piece.
        layer: LayerOffset,
        /// The receiver's error.
        source: io::Error,
    },
    /// The layer file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// How the blob that begins with `head` is compressed. Four bytes suffice; what has no known mark is taken for a plain
/// tar, which the tar reader then confirms or refuses.
///
/// # Errors
/// [`BuildError::UnsupportedCompression`] for xz and bzip2.
pub fn detect_compression(head: &[u8]) -> Result<Compression, BuildError> {
    let unsupported = |name| Err(BuildError::UnsupportedCompression { name });
    match head {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        // A zstd frame, or a skippable one, which zstd:chunked may begin with.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', ..] => unsupported("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => unsupported("bzip2"),
        _ => Ok(Compression::Uncompressed),
    }
}

/// Takes a blob in pieces and makes its zTOC.
pub struct ZtocBuilder {
    options: BuildOptions,
    /// `None` for a plain tar.
    indexer: Option<BlobIndexer>,
    layer: LayerReader,
    spans: SpanDigests,
    /// Where each span begins in the layer; none for a plain tar.
    starts: Vec<LayerOffset>,
    spool: Spool,
    blob_hasher: Option<DigestHasher>,
}

impl ZtocBuilder {
    /// A builder before the first byte of a blob.
    ///
    /// # Errors
    /// [`BuildError::SpanSize`].
    pub fn new(options: BuildOptions, compression: Compression) -> Result<Self, BuildError> {
        if compression == Compression::Uncompressed && options.span_size_bytes == 0 {
            return Err(BuildError::SpanSize);
        }
        let indexer = BlobIndexer::new(compression, options.span_size_bytes);
        let spool = Spool::new(options.spool_dir.as_deref());
        let spool_dir = || options.spool_dir.clone().unwrap_or_default();
        Ok(Self {
            indexer,
            starts: Vec::new(),
            spool: spool.map_err(|source| BuildError::Spool { path: spool_dir(), source })?,
            layer: LayerReader { tar: TarIndexer::new(), hasher: options.diff_id.then(DigestHasher::new), size: 0 },
            spans: SpanDigests::default(),
            blob_hasher: options.blob_digest.then(DigestHasher::new),
            options,
        })
    }

    /// Takes the next bytes of the blob; `sink` gets the layer bytes that come of them, possibly with the next call.
    ///
    /// # Errors
    /// Any [`BuildError`]; the builder is of no use then.
    pub fn push(&mut self, input: &[u8], sink: LayerSink<'_>) -> Result<(), BuildError> {
        for piece in input.chunks(PIECE_BYTES) {
            if let Some(hasher) = &mut self.blob_hasher {
                hasher.update(piece);
            }
            match &mut self.indexer {
                Some(indexer) => {
                    self.layer.through(sink, |layer_sink| indexer.push(piece, layer_sink))?;
                    let found = indexer.take_checkpoints();
                    self.spans.compressed(indexer.compression(), piece, &found);
                    keep(indexer.compression(), &found, &mut self.starts, &mut self.spool)?;
                }
                None => {
                    self.layer.take(piece, sink)?;
                    self.spans.tar(piece, self.options.span_size_bytes);
                }
            }
        }
        Ok(())
    }

    /// Ends the blob: hands on the rest of the layer and writes the zTOC.
    ///
    /// # Errors
    /// Any [`BuildError`], foremost that the blob is cut off.
    pub fn finish(self, sink: LayerSink<'_>) -> Result<Built, BuildError> {
        let place = self.spool.place();
        let built = self.finish_spooled(sink)?;
        let ztoc = built.ztoc.into_bytes().map_err(|source| BuildError::Spool { path: place, source })?;
        Ok(Built {
            ztoc,
            blob_digest: built.blob_digest,
            blob_size: built.blob_size,
            diff_id: built.diff_id,
            layer_size: built.layer_size,
            compression: built.compression,
            span_count: built.span_count,
            entry_count: built.entry_count,
            needs_xattrs: built.needs_xattrs,
            located: built.located,
        })
    }

    /// As [`ZtocBuilder::finish`], with the checkpoints left where they are.
    ///
    /// # Errors
    /// As [`ZtocBuilder::finish`].
    pub fn finish_spooled(mut self, sink: LayerSink<'_>) -> Result<Built<ZtocDocument>, BuildError> {
        let compression = self.indexer.as_ref().map_or(Compression::Uncompressed, BlobIndexer::compression);
        if let Some(indexer) = &mut self.indexer {
            self.layer.through(sink, |layer_sink| indexer.finish(layer_sink))?;
            let found = indexer.take_checkpoints();
            self.spans.compressed(compression, &[], &found);
            keep(compression, &found, &mut self.starts, &mut self.spool)?;
        }
        let toc = self.layer.tar.finish().map_err(BuildError::Tar)?;
        let blob_size = self.spans.blob_size();
        let digests = self.spans.finish();
        let parts = ZtocParts {
            build_tool: &self.options.build_tool,
            compressed_size: blob_size,
            uncompressed_size: toc.end,
            entries: &toc.entries,
            compression,
            span_size: self.options.span_size_bytes,
            span_digests: &digests,
        };
        let frame = ztoc::frame(&parts, self.starts.len()).map_err(BuildError::Write)?;
        let starts = match compression {
            Compression::Gzip | Compression::Zstd => SpanStarts::At(&self.starts),
            Compression::Uncompressed => SpanStarts::Every(self.options.span_size_bytes),
        };
        let mut facts = TocFacts::new(&self.options.locate);
        toc.entries.iter().for_each(|entry| facts.see(entry, starts));
        let (needs_xattrs, located) = facts.finish();
        Ok(Built {
            ztoc: ZtocDocument::new(frame, self.spool),
            blob_digest: self.blob_hasher.map(DigestHasher::finish),
            blob_size,
            diff_id: self.layer.hasher.map(DigestHasher::finish),
            layer_size: LayerOffset::new(self.layer.size),
            compression,
            span_count: digests.len(),
            entry_count: toc.entries.len(),
            needs_xattrs,
            located,
        })
    }
}

/// Puts checkpoints where they wait.
fn keep(
    compression: Compression,
    found: &[Checkpoint],
    starts: &mut Vec<LayerOffset>,
    spool: &mut Spool,
) -> Result<(), BuildError> {
    for checkpoint in found {
        let record = ztoc::checkpoint_record(compression, checkpoint).map_err(BuildError::Write)?;
        spool.push(&record).map_err(|source| BuildError::Spool { path: spool.place(), source })?;
        starts.push(checkpoint.layer);
    }
    Ok(())
}

/// Reads the file at `path` through a [`ZtocBuilder`]; `progress` hears after each piece how much of the blob is done.
///
/// # Errors
/// Any [`BuildError`].
pub fn build_file(
    path: &Path,
    options: BuildOptions,
    progress: &mut dyn FnMut(BlobOffset),
) -> Result<Built, BuildError> {
    let fail = |source| BuildError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(fail)?;
    let mut buffer = vec![0; 4 * PIECE_BYTES];
    let mut filled = fill(&mut file, &mut buffer).map_err(fail)?;
    let mut builder = ZtocBuilder::new(options, detect_compression(filled)?)?;
    while !filled.is_empty() {
        builder.push(filled, &mut |_| Ok(()))?;
        progress(builder.spans.blob_size());
        filled = fill(&mut file, &mut buffer).map_err(fail)?;
    }
    builder.finish(&mut |_| Ok(()))
}

/// Reads until `buffer` is full or the file ends.
fn fill<'a>(file: &mut File, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(buffer.get(..len).unwrap_or_default())
}

/// What is done with layer bytes before the caller gets them.
struct LayerReader {
    tar: TarIndexer,
    hasher: Option<DigestHasher>,
    size: u64,
}

impl LayerReader {
    fn take(&mut self, bytes: &[u8], sink: LayerSink<'_>) -> Result<(), BuildError> {
        self.tar.feed(bytes).map_err(BuildError::Tar)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        sink(bytes).map_err(|source| BuildError::Sink { layer: LayerOffset::new(self.size), source })?;
        self.size += u64_from_usize(bytes.len());
        Ok(())
    }

    /// Runs the indexer with a sink that ends here; errors from here win over what the indexer makes of them.
    fn through<T>(
        &mut self,
        sink: LayerSink<'_>,
        run: impl FnOnce(LayerSink<'_>) -> Result<T, IndexError>,
    ) -> Result<T, BuildError> {
        let mut fault = None;
        let result = run(&mut |bytes| {
            self.take(bytes, sink).map_err(|e| {
                fault = Some(e);
                io::ErrorKind::Other.into()
            })
        });
        match fault {
            Some(fault) => Err(fault),
            None => result.map_err(BuildError::Index),
        }
    }
}

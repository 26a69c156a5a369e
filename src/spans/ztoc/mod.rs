//! The zTOC document, version 0.9: reading what anybody wrote, writing what SOCI's builder would write.
//!
//! A flatbuffers document (SOCI: `ztoc/fbs/ztoc.fbs`), without file identifier or length prefix. Slots in order:
//!
//! | table | fields |
//! |---|---|
//! | Ztoc (root) | version, build tool, blob size i64, layer size i64, TOC, compression info |
//! | TOC | entries |
//! | entry | name, type, data offset i64, data size i64, linkname, mode i64, uid u32, gid u32, uname, gname, mod time, devmajor i64, devminor i64, PAX records |
//! | PAX record | key, value |
//! | compression info | algorithm i8 (1 gzip, the default; 2 uncompressed; 122 zstd, ours), number of the last span i32, span digests, zinfo |
//!
//! [`Ztoc::parse`] checks everything about spans and about where the files' data lie; [`Ztoc::entries`] checks each
//! entry as it goes by. Both borrow from the document and allocate at most a few times its size.

mod builder;
mod entries;
mod error;
mod flat;
mod info;
#[cfg(test)]
mod tests;
mod write;
mod zinfo;

use std::borrow::Cow;

pub use entries::Entries;
pub use error::{EntryFault, ZinfoError, ZtocError};
pub use info::{FileInfo, ZtocInfo};
pub use write::{WriteError, ZtocFrame, ZtocParts, checkpoint_record, frame, write};

use self::flat::{Doc, Vector};
use self::zinfo::Zinfo;
use super::entry::printable;
use super::{Checkpoint, Compression, SpanTable};
use crate::units::{BlobOffset, Digest, LayerOffset, SpanId, u64_from_usize};

/// The version this module reads and writes.
pub const VERSION: &str = "0.9";

/// `CompressionAlgorithm` in `ztoc.fbs`; the default, thus not written.
const GZIP: i8 = 1;
const UNCOMPRESSED: i8 = 2;
/// Not SOCI's: it has no number for zstd. The letter `z` is far from what it will count up to; SOCI refuses a zTOC with an
/// algorithm that it does not know.
const ZSTD: i8 = 122;

/// A zTOC whose spans have been checked.
#[derive(Clone)]
pub struct Ztoc<'a> {
    doc: Doc<'a>,
    build_tool: &'a [u8],
    metadata: Vector<'a>,
    zinfo: Zinfo<'a>,
    spans: SpanTable,
}

impl<'a> Ztoc<'a> {
    /// Reads a document.
    ///
    /// # Errors
    /// When the document is damaged, of another version, or claims what cannot be: spans that do not cover blob and
    /// layer, files beyond the layer, two files in one place.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ZtocError> {
        let doc = Doc::new(bytes);
        let root = doc.root()?;
        let version = root.bytes(0, "version")?;
        if version != VERSION.as_bytes() {
            return Err(ZtocError::Version { found: printable(version) });
        }
        let build_tool = root.bytes(1, "build tool")?;
        let size = |slot, what| {
            let value = root.i64(slot)?;
            u64::try_from(value).map_err(|_| ZtocError::Size { what, value })
        };
        let blob_size = BlobOffset::new(size(2, "compressed archive size")?);
        let layer_size = LayerOffset::new(size(3, "uncompressed archive size")?);
        let toc = root.table(4, "table of contents")?.ok_or(ZtocError::Missing { what: "table of contents" })?;
        let metadata = toc.vector(0, "entries")?;

        let info = root.table(5, "compression info")?.ok_or(ZtocError::Missing { what: "compression info" })?;
        let compression = match info.i8(0, GZIP)? {
            GZIP => Compression::Gzip,
            UNCOMPRESSED => Compression::Uncompressed,
            ZSTD => Compression::Zstd,
            algorithm => return Err(ZtocError::Compression { algorithm }),
        };
        let max_span_id = info.i32(1)?;
        let digest_texts = info.vector(2, "span digests")?;
        let (zinfo_at, zinfo_bytes) = info.bytes_at(3, "checkpoints")?;
        let zinfo = Zinfo::parse(compression, zinfo_bytes)?;
        if let Zinfo::Tar { size, .. } = zinfo
            && size != blob_size
        {
            return Err(ZtocError::TarSize { zinfo: size, blob_size });
        }
        let digest_count = u64_from_usize(digest_texts.len());
        if zinfo.span_count() != digest_count || i64::from(max_span_id) + 1 != i64::try_from(digest_count).unwrap_or(-1)
        {
            return Err(ZtocError::SpanCount { max_span_id, digests: digest_count, checkpoints: zinfo.span_count() });
        }
        let digests = (0..digest_texts.len()).map(|i| span_digest(digest_texts, i)).collect::<Result<Vec<_>, _>>()?;
        let spans = zinfo.table(zinfo_at, blob_size, layer_size, &digests)?;
        let ztoc = Self { doc, build_tool, metadata, zinfo, spans };
        entries::check_placement(&ztoc)?;
        Ok(ztoc)
    }

    /// Format version; always [`VERSION`].
    #[must_use]
    pub fn version(&self) -> &'static str {
        VERSION
    }

    /// What wrote the document, as it says, e.g. `AWS SOCI CLI v0.2`.
    #[must_use]
    pub fn build_tool(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.build_tool)
    }

    /// Size of the layer blob.
    #[must_use]
    pub fn blob_size(&self) -> BlobOffset {
        self.spans.blob_size()
    }

    /// Size of the layer as SOCI counts it: up to and with the tar's end mark.
    #[must_use]
    pub fn layer_size(&self) -> LayerOffset {
        self.spans.layer_size()
    }

    /// The span size that the builder was asked for, in bytes. Spans of gzip layers are larger.
    #[must_use]
    pub fn span_size(&self) -> u64 {
        self.zinfo.span_size()
    }

    /// The spans.
    #[must_use]
    pub fn spans(&self) -> &SpanTable {
        &self.spans
    }

    /// Whether the blob start of the first span is a guess: version 1 of zinfo leaves it out, and the table assumes a
    /// gzip header without optional fields. See [`SpanTable::with_first_span_at`].
    #[must_use]
    pub fn first_span_is_guessed(&self) -> bool {
        matches!(self.zinfo, Zinfo::Gzip { first_omitted: true, .. })
    }

    /// The checkpoint that a span begins with; `None` beyond the last span and for a plain tar.
    #[must_use]
    pub fn checkpoint(&self, id: SpanId) -> Option<Checkpoint> {
        self.zinfo.checkpoint(id.index())
    }

    /// How many entries the table of contents has.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.metadata.len()
    }

    /// The entries in the order of the document, each checked as it goes by; ends after the first error.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries::new(self)
    }

    /// What `ztoc info` tells.
    ///
    /// # Errors
    /// When an entry is bad.
    pub fn info(&self) -> Result<ZtocInfo, ZtocError> {
        info::info(self)
    }
}

impl std::fmt::Debug for Ztoc<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ztoc")
            .field("document_bytes", &self.doc.len())
            .field("build_tool", &self.build_tool())
            .field("entries", &self.entry_count())
            .field("spans", &self.spans.len())
            .finish_non_exhaustive()
    }
}

fn span_digest(texts: Vector<'_>, index: usize) -> Result<Digest, ZtocError> {
    let text = printable(texts.bytes(index)?);
    text.parse().map_err(|source| ZtocError::Digest { span: index, source })
}

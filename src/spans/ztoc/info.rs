//! What a zTOC tells about itself, in the words of `soci ztoc info`.

use super::{Ztoc, ZtocError};
use crate::spans::{Compression, EntryKind};
use crate::units::{LayerOffset, u64_from_usize};

/// A summary of a zTOC; as JSON it has the keys that SOCI prints.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ZtocInfo {
    /// Format version.
    pub version: String,
    /// What wrote the zTOC.
    pub build_tool: String,
    /// Size of the zTOC document in bytes.
    pub size: u64,
    /// Span size asked for, in bytes.
    pub span_size: u64,
    /// How the layer is compressed, where it is not SOCI's business: `zstd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Number of spans.
    pub num_spans: u64,
    /// Number of entries.
    pub num_files: u64,
    /// Number of entries whose start and end lie in different spans.
    pub num_multi_span_files: u64,
    /// The entries, in the order of their data.
    pub files: Vec<FileInfo>,
}

/// An entry of a zTOC.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileInfo {
    /// Name, made printable.
    pub filename: String,
    /// Where its data begin in the layer.
    pub offset: LayerOffset,
    /// Size in bytes.
    pub size: u64,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Number of the span with the first byte.
    pub start_span: u32,
    /// Number of the span with the byte behind the last (SOCI's way of counting).
    pub end_span: u32,
}

pub(super) fn info(ztoc: &Ztoc<'_>) -> Result<ZtocInfo, ZtocError> {
    let spans = ztoc.spans();
    let mut files = Vec::with_capacity(ztoc.entry_count());
    for entry in ztoc.entries() {
        let entry = entry?;
        files.push(FileInfo {
            filename: String::from_utf8_lossy(&entry.name).into_owned(),
            offset: entry.data.start(),
            size: entry.data.len_bytes(),
            kind: entry.kind,
            start_span: spans.starting_at_or_before(entry.data.start()).0,
            end_span: spans.starting_at_or_before(entry.data.end()).0,
        });
    }
    files.sort_by_key(|file| file.offset);
    Ok(ZtocInfo {
        version: ztoc.version().to_owned(),
        build_tool: ztoc.build_tool().into_owned(),
        size: u64_from_usize(ztoc.doc.len()),
        span_size: ztoc.span_size(),
        compression: Some(spans.compression()).filter(|c| *c == Compression::Zstd),
        num_spans: u64_from_usize(spans.len()),
        num_files: u64_from_usize(files.len()),
        num_multi_span_files: u64_from_usize(files.iter().filter(|file| file.start_span != file.end_span).count()),
        files,
    })
}

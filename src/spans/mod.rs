//! Where a layer can be entered: the zTOC of a layer, read once, checked once, trusted after.
//!
//! A zTOC (SOCI's flatbuffers document) names every tar entry of a layer and every *checkpoint*: a place in the deflate
//! stream where inflating can start, given a bit offset and 32 KiB of history. The bytes between two checkpoints are a
//! *span*, the unit of trust (sha256 of its compressed bytes).
//!
//! - [`ztoc`](crate::spans::ztoc) reads and writes the document; what it hands out has been checked.
//! - [`tar`](crate::spans::tar) makes the table of contents from the bytes of a layer, as SOCI's own builder does.
//! - [`SpanTable`](crate::spans::SpanTable) maps layer ranges to blob ranges.
//!
//! Pure: functions of bytes, no I/O.

#[cfg(test)]
pub(crate) mod corpus;
mod entry;
mod mtime;
mod saved;
mod table;
pub mod tar;
pub mod ztoc;

pub use entry::{EntryKind, PaxRecord, TocEntry, XATTR_PREFIX};
pub use mtime::{ModTime, ModTimeError};
pub use saved::SavedSpansError;
pub use table::{Checkpoint, Compression, Span, SpanTable, SpanTableError};

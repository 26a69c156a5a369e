//! What an index wants to know of a layer's table of contents: whether it has extended attributes, and in which spans
//! named files lie. The same for a table that was just built and for one that is read from a zTOC.

use crate::spans::ztoc::{Ztoc, ZtocError};
use crate::spans::{Compression, EntryKind, TocEntry};
use crate::units::LayerOffset;

/// The mark of an opaque directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Spans that hold a file, by SOCI's rule: up to the one with the byte behind the file, which may be one too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSpans {
    /// Which of the names that were asked for.
    pub name: usize,
    /// First span.
    pub first: u32,
    /// Last span.
    pub last: u32,
}

/// Where spans begin in the layer.
#[derive(Clone, Copy, Debug)]
pub enum SpanStarts<'a> {
    /// At these places, in order.
    At(&'a [LayerOffset]),
    /// At every multiple of so many bytes.
    Every(u64),
}

impl SpanStarts<'_> {
    /// The span that holds a byte of the layer.
    fn span_of(self, at: LayerOffset) -> u32 {
        let index = match self {
            Self::At(starts) => starts.partition_point(|start| *start <= at).saturating_sub(1) as u64,
            Self::Every(bytes) => at.get().checked_div(bytes).unwrap_or(0),
        };
        u32::try_from(index).unwrap_or(u32::MAX)
    }
}

/// Looks at entries as they go by.
pub struct TocFacts<'a> {
    names: &'a [String],
    needs_xattrs: bool,
    located: Vec<FileSpans>,
}

impl<'a> TocFacts<'a> {
    /// Looks for files of these names, which have no leading `/`.
    #[must_use]
    pub fn new(names: &'a [String]) -> Self {
        Self { names, needs_xattrs: false, located: Vec::new() }
    }

    /// The next entry.
    pub fn see(&mut self, entry: &TocEntry<'_>, starts: SpanStarts<'_>) {
        self.needs_xattrs |=
            entry.xattrs().next().is_some() || entry.name.rsplit(|b| *b == b'/').next() == Some(OPAQUE);
        if entry.kind != EntryKind::Reg {
            return;
        }
        for (name, wanted) in self.names.iter().enumerate() {
            // SOCI compares raw tar names, and the first match counts.
            if *entry.name == *wanted.as_bytes() && !self.located.iter().any(|found| found.name == name) {
                let (first, last) = (starts.span_of(entry.data.start()), starts.span_of(entry.data.end()));
                self.located.push(FileSpans { name, first, last });
            }
        }
    }

    /// Whether there were extended attributes or opaque directories, and the files that were found.
    #[must_use]
    pub fn finish(self) -> (bool, Vec<FileSpans>) {
        (self.needs_xattrs, self.located)
    }
}

/// The facts of a zTOC document: how its layer is compressed, and what [`TocFacts::finish`] gives.
///
/// # Errors
/// When it is no sound zTOC.
pub fn facts(document: &[u8], names: &[String]) -> Result<(Compression, bool, Vec<FileSpans>), ZtocError> {
    let ztoc = Ztoc::parse(document)?;
    let starts: Vec<LayerOffset> = ztoc.spans().iter().map(|(_, span)| span.layer.start()).collect();
    let mut facts = TocFacts::new(names);
    for entry in ztoc.entries() {
        facts.see(&entry?, SpanStarts::At(&starts));
    }
    let (needs_xattrs, located) = facts.finish();
    Ok((ztoc.spans().compression(), needs_xattrs, located))
}

//! Writing one span, piece by piece.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::LayerFile;
use crate::cache::{CacheError, lock};
use crate::spans::Span;
use crate::units::{LayerOffset, SpanId, u64_from_usize};

impl LayerFile {
    /// A file without a name on the same disk, for blob bytes that wait there. It is gone when it is dropped, or the process
    /// is; no limit of the cache counts it.
    ///
    /// # Errors
    /// What the file system says; [`LayerFile::write_failure`] names it.
    pub fn spool(&self) -> io::Result<File> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("spool-{}-{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

/// Writes a span in order. Dropped unfinished, it gives back the disk space that it took.
pub struct SpanWriter<'a> {
    file: &'a Arc<LayerFile>,
    id: SpanId,
    span: &'a Span,
    written_bytes: u64,
    finished: bool,
}

impl<'a> SpanWriter<'a> {
    pub(super) fn new(file: &'a Arc<LayerFile>, id: SpanId, span: &'a Span) -> Self {
        Self { file, id, span, written_bytes: 0, finished: false }
    }

    /// Appends to the span.
    ///
    /// # Errors
    /// What the file system says; [`LayerFile::write_failure`] names it. Also when these are more bytes than the span
    /// has, unless it is the last.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let after = self.written_bytes.saturating_add(u64_from_usize(bytes.len()));
        if after > self.span.layer.len_bytes() && !self.is_last() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than the span has"));
        }
        let at = self.span.layer.start().get() + self.written_bytes;
        self.file.compare_slices(LayerOffset::new(at), bytes);
        self.file.data.write_all_at(bytes, at)?;
        self.written_bytes = after;
        Ok(())
    }

    /// Marks the span present. The durable record follows within [`super::CacheConfig::flush_after`].
    ///
    /// # Errors
    /// [`CacheError::SpanLength`] when bytes are lacking; the span stays missing.
    pub fn finish(mut self) -> Result<(), CacheError> {
        let (expected_bytes, got_bytes) = (self.span.layer.len_bytes(), self.written_bytes);
        if got_bytes < expected_bytes {
            let digest = self.file.digest;
            return Err(CacheError::SpanLength { digest, span: self.id, expected_bytes, got_bytes });
        }
        self.finished = true;
        self.file.mark(self.id, got_bytes);
        Ok(())
    }

    fn is_last(&self) -> bool {
        self.id.index() + 1 == self.file.table.len()
    }
}

impl Drop for SpanWriter<'_> {
    fn drop(&mut self) {
        // Held while punching: another writer of this span begins before or after, never in between.
        let mut writing = lock(&self.file.writing);
        if let Some(mine) = writing.iter().position(|id| *id == self.id.0) {
            writing.swap_remove(mine);
        }
        let untouched = self.finished || self.written_bytes == 0 || !self.file.shared.can_punch;
        let used = self.file.present.has(self.id.0) || self.file.has_slices_of(self.id);
        if untouched || writing.contains(&self.id.0) || used {
            return;
        }
        let start = self.span.layer.start().get();
        if let Err(error) = self.file.punch(start, start + self.written_bytes) {
            tracing::debug!(%error, "an unfinished span keeps its disk space");
        }
    }
}

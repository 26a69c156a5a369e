//! One layer on disk: its sparse tar and what is known about it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::bitmap::Bitmap;
use super::pins::{Pins, ReadPin};
use super::record;
use super::state::LayerState;
use super::store::Shared;
use super::{CacheError, lock};
use crate::spans::SpanTable;
use crate::units::{Digest, DigestHasher, LayerOffset, LayerRange, SpanId, u64_from_usize, usize_from_u64};

mod evict;
mod record_file;
mod slices;
mod writer;

use record_file::Record;
use slices::Slices;
pub use writer::SpanWriter;

/// A layer's tar on disk, sparse where spans are missing. One per digest and process, shared by all its users.
pub struct LayerFile {
    digest: Digest,
    folder: PathBuf,
    table: Arc<SpanTable>,
    geometry: Digest,
    data: File,
    present: Bitmap,
    /// What is here of spans that are not.
    slices: Slices,
    pins: Pins,
    /// When each span was last read or written, in seconds of the cache's clock.
    touched: Box<[AtomicU32]>,
    proven: AtomicBool,
    /// Spans written but not yet recorded.
    pending: Mutex<Vec<u32>>,
    /// Held over every change of what the disk says about presence.
    record: Mutex<Record>,
    /// Held from the first to the last step of an eviction, and by a writer while it enters [`Self::writing`]: no hole is
    /// punched into a span that somebody writes.
    evicting: Mutex<()>,
    /// The spans being written, one entry for each writer.
    writing: Mutex<Vec<u32>>,
    shared: Arc<Shared>,
}

impl LayerFile {
    /// Opens or makes the layer's folder. What is found there but does not fit `table` is dropped, unless the layer
    /// is proven.
    pub(super) fn open(
        digest: Digest,
        folder: PathBuf,
        table: Arc<SpanTable>,
        shared: Arc<Shared>,
    ) -> Result<Self, CacheError> {
        let geometry = record::geometry(&table);
        let spans = u32::try_from(table.len()).unwrap_or(u32::MAX);
        std::fs::create_dir_all(&folder).map_err(CacheError::io("create", &folder))?;
        let data_path = folder.join("data");
        let data = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&data_path)
            .map_err(CacheError::io("open", &data_path))?;
        let length = data.metadata().map_err(CacheError::io("stat", &data_path))?.len();

        let state = LayerState::read(&folder);
        let proven = state.as_ref().and_then(|s| s.proven.and(s.layer_bytes)).is_some_and(|l| l.get() == length);
        if proven && length < table.layer_size().get() {
            return Err(CacheError::TableTooLong {
                digest,
                table_bytes: table.layer_size().get(),
                layer_bytes: length,
            });
        }
        let fits = state.as_ref().is_some_and(|s| s.geometry == Some(geometry));
        if !proven && !fits {
            // The record goes before the data, so that no crash leaves a record that names bytes which are gone.
            super::store::forget(&folder)?;
            data.set_len(0).map_err(CacheError::io("truncate", &data_path))?;
            LayerState::new(Some(geometry)).write(&folder)?;
        }
        let mut record = Record::open(&folder, geometry, spans)?;
        let present = Bitmap::new(spans);
        if proven {
            record.bits.fill(0);
        }
        for (id, span) in table.iter() {
            let bit = 1 << (id.0 % record::SPANS_PER_SLOT);
            let slot = record.bits.get_mut((id.0 / record::SPANS_PER_SLOT) as usize);
            let recorded = slot.as_deref().is_some_and(|bits| bits & bit != 0);
            if proven || (recorded && span.layer.end().get() <= length) {
                present.set(id.0);
            } else if let Some(bits) = slot {
                *bits &= !bit;
            }
        }
        let now = shared.now_secs();
        LayerState::touch(&folder);
        Ok(Self {
            digest,
            folder,
            geometry,
            data,
            present,
            slices: Slices::new(&table),
            pins: Pins::new(spans),
            touched: (0..spans).map(|_| AtomicU32::new(now)).collect(),
            proven: AtomicBool::new(proven),
            pending: Mutex::new(Vec::new()),
            record: Mutex::new(record),
            evicting: Mutex::default(),
            writing: Mutex::default(),
            table,
            shared,
        })
    }

    /// The layer blob's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The spans that the file is cut into.
    #[must_use]
    pub fn table(&self) -> &Arc<SpanTable> {
        &self.table
    }

    /// The file that holds the tar; position = layer offset.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    /// The file's path, for people and tools.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Whether the span's bytes are in the file. Lock-free.
    #[must_use]
    pub fn has(&self, id: SpanId) -> bool {
        self.present.has(id.0)
    }

    /// Whether all these spans are in the file; true for none. Lock-free.
    #[must_use]
    pub fn has_all(&self, ids: Range<u32>) -> bool {
        self.present.has_all(ids)
    }

    /// Those of `ids` that are not in the file, ascending.
    #[must_use]
    pub fn missing(&self, ids: Range<u32>) -> Vec<SpanId> {
        let end = ids.end.min(self.present.len());
        (ids.start..end).filter(|id| !self.present.has(*id)).map(SpanId).collect()
    }

    /// Keeps `ids` from being evicted until [`LayerFile::release`], if all of them are here: else false, and nothing is to
    /// be released. Lock-free, without allocation. For owners that do not fit [`LayerFile::pin`].
    pub fn hold(&self, ids: Range<u32>) -> bool {
        // Pin first, look second: eviction clears the bit first and looks for pins second, so one of the two sees the
        // other.
        self.pins.add(ids.clone());
        let here = self.present.has_all(ids.clone());
        if !here {
            self.pins.remove(ids.clone());
        }
        self.touch(ids);
        here
    }

    /// Undoes one [`LayerFile::hold`] of the same `ids`.
    pub fn release(&self, ids: Range<u32>) {
        self.pins.remove(ids);
    }

    /// As [`LayerFile::hold`] for the bytes of `range`, whose spans are `ids`: slices of an excerpt will do where spans are
    /// missing.
    pub fn hold_range(&self, range: LayerRange, ids: Range<u32>) -> bool {
        if self.hold(ids.clone()) {
            return true;
        }
        if self.slices.is_empty() {
            return false;
        }
        self.pins.add(ids.clone());
        let here = self.has_range(range);
        if !here {
            self.pins.remove(ids);
        }
        here
    }

    /// Keeps `ids` from being evicted while the pin lives, if all of them are here. Lock-free.
    pub fn pin(self: &Arc<Self>, ids: Range<u32>) -> Option<ReadPin> {
        self.hold(ids.clone()).then(|| ReadPin::new(self.clone(), ids))
    }

    /// Notes that these spans are in use, for the order of eviction.
    pub fn touch(&self, ids: Range<u32>) {
        let now = self.shared.now_secs();
        for cell in self.touched.get(ids.start as usize..ids.end as usize).unwrap_or_default() {
            cell.store(now, Ordering::Relaxed);
        }
    }

    /// Begins to write one span, piece by piece. Nothing is present before [`SpanWriter::finish`].
    ///
    /// # Errors
    /// [`CacheError::NoSuchSpan`].
    pub fn begin_span(self: &Arc<Self>, id: SpanId) -> Result<SpanWriter<'_>, CacheError> {
        let span = self.table.get(id).ok_or(CacheError::NoSuchSpan { digest: self.digest, span: id })?;
        // An eviction that begins later leaves the span alone, even if another writer finishes it meanwhile.
        let _no_eviction = lock(&self.evicting);
        lock(&self.writing).push(id.0);
        Ok(SpanWriter::new(self, id, span))
    }

    /// Writes one span and marks it present. The durable record follows within [`super::CacheConfig::flush_after`].
    ///
    /// The last span may be longer than its zTOC says (tar padding); every other length must fit exactly.
    ///
    /// # Errors
    /// [`CacheError::NoSpace`] and other failures leave the span missing.
    pub fn write_span(self: &Arc<Self>, id: SpanId, bytes: &[u8]) -> Result<(), CacheError> {
        let mut writer = self.begin_span(id)?;
        writer.push(bytes).map_err(|error| self.write_failure(error, u64_from_usize(bytes.len())))?;
        writer.finish()
    }

    /// Names a failure to write `needed_bytes` to this file.
    #[must_use]
    pub fn write_failure(&self, source: io::Error, needed_bytes: u64) -> CacheError {
        write_error(source, self.digest, &self.path(), needed_bytes)
    }

    /// A span's bytes are in the file.
    fn mark(self: &Arc<Self>, id: SpanId, bytes: u64) {
        self.touch(id.0..id.0 + 1);
        if self.present.set(id.0) {
            let waiting = {
                let mut pending = lock(&self.pending);
                pending.push(id.0);
                pending.len()
            };
            self.shared.written(self, bytes, waiting);
        }
    }

    /// Number of spans in the file.
    #[must_use]
    pub fn present_spans(&self) -> u32 {
        self.present.count()
    }

    /// Whether every span is in the file.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.present.count() == self.present.len()
    }

    /// Bytes of the layer that are in the file, by the zTOC's count.
    #[must_use]
    pub fn present_bytes(&self) -> u64 {
        self.table.iter().filter(|(id, _)| self.present.has(id.0)).map(|(_, span)| span.layer.len_bytes()).sum()
    }

    /// Whether the whole file was found to have the image's diffID.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::SeqCst)
    }

    /// Length of the tar with all its padding, known once the last span is here.
    ///
    /// # Errors
    /// When the file cannot be examined.
    pub fn true_len(&self) -> Result<Option<LayerOffset>, CacheError> {
        let last = self.present.len().saturating_sub(1);
        if !self.present.has(last) {
            return Ok(None);
        }
        let meta = self.data.metadata().map_err(CacheError::io("stat", &self.path()))?;
        Ok(Some(LayerOffset::new(meta.len())))
    }

    /// Hashes the whole file and, when it has this diffID, notes so durably. Blocks for as long as reading takes, or
    /// until `stop` is set.
    ///
    /// # Errors
    /// [`CacheError::Incomplete`], [`CacheError::DiffId`], [`CacheError::Stopped`], or a failure to read or write.
    pub fn verify_against(self: &Arc<Self>, diff_id: Digest, stop: &AtomicBool) -> Result<(), CacheError> {
        let all = 0..self.present.len();
        let incomplete = || CacheError::Incomplete {
            digest: self.digest,
            missing: self.present.len() - self.present.count().min(self.present.len()),
        };
        let _pin = self.pin(all).ok_or_else(incomplete)?;
        let length = self.true_len()?.ok_or_else(incomplete)?;
        let mut hasher = DigestHasher::new();
        // Large enough to amortize the call, small enough to stay in the second-level cache.
        let mut buffer = vec![0; 256 * 1024];
        let mut at = 0;
        while at < length.get() {
            if stop.load(Ordering::Relaxed) {
                return Err(CacheError::Stopped);
            }
            let want = usize_from_u64(length.get() - at).unwrap_or(usize::MAX).min(buffer.len());
            let piece = &mut buffer[..want];
            self.data.read_exact_at(piece, at).map_err(CacheError::io("read", &self.path()))?;
            hasher.update(piece);
            at += u64_from_usize(want);
        }
        let got = hasher.finish();
        if got != diff_id {
            return Err(CacheError::DiffId { digest: self.digest, expected: diff_id, got });
        }
        self.flush()?;
        let mut state = LayerState::new(Some(self.geometry));
        state.proven = Some(diff_id);
        state.layer_bytes = Some(length);
        let _record = lock(&self.record);
        state.write(&self.folder)?;
        self.proven.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Frees disk space elsewhere in this cache: at least `bytes`, if there is so much to free. Blocks. Returns what was
    /// freed.
    ///
    /// # Errors
    /// When the cache's folders cannot be read.
    pub fn make_room(&self, bytes: u64) -> Result<u64, CacheError> {
        super::evict::make_room(&self.shared, bytes)
    }

    /// Records all spans written so far, after their data.
    ///
    /// # Errors
    /// When the data cannot be synced: the spans concerned are missing again, because nobody knows what reached the
    /// disk. When the record cannot be written: they stay present until the daemon ends.
    pub fn flush(&self) -> Result<(), CacheError> {
        let mut record = lock(&self.record);
        let pending = std::mem::take(&mut *lock(&self.pending));
        if pending.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.data.sync_data() {
            for id in pending {
                self.present.clear(id);
            }
            self.slices.forget_all();
            return Err(write_error(error, self.digest, &self.path(), 0));
        }
        // Eviction needs the record's lock, so what is present now stays so until the record is out.
        let ids: Vec<u32> = pending.into_iter().filter(|id| self.present.has(*id)).collect();
        record.change(self.geometry, &ids, true)
    }
}

impl Drop for LayerFile {
    fn drop(&mut self) {
        LayerState::touch(&self.folder);
    }
}

/// Tells a full disk from other trouble.
pub(super) fn write_error(source: io::Error, digest: Digest, path: &Path, needed_bytes: u64) -> CacheError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            CacheError::NoSpace { digest, path: path.to_owned(), needed_bytes }
        }
        _ => CacheError::Io { action: "write", path: path.to_owned(), source },
    }
}

//! A layer that comes as one stream: no spans yet, nothing to read before the end.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::layer_file::write_error;
use super::state::LayerState;
use super::store::{Shared, forget};
use super::{CacheError, lock};
use crate::units::{Digest, LayerOffset, u64_from_usize};

/// The cache's limit is looked at each time that so much was appended: looking costs a `stat` for each layer.
const LIMIT_CHECK_BYTES: u64 = 64 << 20;

/// The file of a layer that is being streamed in from its first byte. Dropped without [`IngestFile::finish`], it
/// leaves nothing.
pub struct IngestFile {
    digest: Digest,
    folder: PathBuf,
    data: File,
    len_bytes: u64,
    finished: bool,
    shared: Arc<Shared>,
}

impl IngestFile {
    pub(super) fn create(digest: Digest, folder: PathBuf, shared: Arc<Shared>) -> Result<Self, CacheError> {
        std::fs::create_dir_all(&folder).map_err(CacheError::io("create", &folder))?;
        forget(&folder)?;
        let path = folder.join("data");
        let data = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let data = data.map_err(CacheError::io("create", &path))?;
        Ok(Self { digest, folder, data, len_bytes: 0, finished: false, shared })
    }

    /// Appends the next bytes of the tar.
    ///
    /// # Errors
    /// [`CacheError::NoSpace`] after eviction could not help; other failures of the file system. The ingest is lost
    /// then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        use std::os::unix::fs::FileExt as _;
        let needed_bytes = u64_from_usize(bytes.len());
        let path = self.folder.join("data");
        let mut written = self.data.write_all_at(bytes, self.len_bytes);
        let full = |e: &std::io::Error| write_error(e.kind().into(), self.digest, &path, 0).is_no_space();
        if written.as_ref().is_err_and(full) && super::evict::make_room(&self.shared, needed_bytes)? > 0 {
            written = self.data.write_all_at(bytes, self.len_bytes);
        }
        written.map_err(|error| write_error(error, self.digest, &path, needed_bytes))?;
        let before = self.len_bytes;
        self.len_bytes += needed_bytes;
        self.shared.usage_bytes.fetch_add(needed_bytes, Ordering::Relaxed);
        if before / LIMIT_CHECK_BYTES != self.len_bytes / LIMIT_CHECK_BYTES {
            super::evict::keep_limit(&self.shared);
        }
        Ok(())
    }

    /// How much of the tar is here.
    #[must_use]
    pub fn len(&self) -> LayerOffset {
        LayerOffset::new(self.len_bytes)
    }

    /// Whether nothing was appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Makes the file durable and notes that it is proven: `diff_id` is the sha256 of everything appended, which the
    /// caller has computed on the way and compared with the image's.
    ///
    /// # Errors
    /// Failures of the file system; the ingest is lost then.
    pub fn finish(mut self, diff_id: Digest) -> Result<LayerOffset, CacheError> {
        let path = self.folder.join("data");
        self.data.flush().and_then(|()| self.data.sync_all()).map_err(CacheError::io("sync", &path))?;
        let mut state = LayerState::new(None);
        state.proven = Some(diff_id);
        state.layer_bytes = Some(self.len());
        state.write(&self.folder)?;
        self.finished = true;
        Ok(self.len())
    }
}

impl Drop for IngestFile {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(folder = %self.folder.display(), %error, "an unfinished layer file stays behind");
        }
        lock(&self.shared.in_use).remove(&self.digest);
    }
}

//! The cache: one root, one process, all layers.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::flusher::{FlushQueue, Flusher};
use super::state::LayerState;
use super::{CacheConfig, CacheError, IngestFile, LayerFile, lock};
use crate::spans::SpanTable;
use crate::units::{Digest, LayerOffset};

/// All layer files under one root. While it lives no other process can open the same root.
pub struct Cache {
    shared: Arc<Shared>,
    /// Dropped first: it writes out what is still pending.
    _flusher: Flusher,
    _root_lock: File,
}

/// How a layer is in use.
pub(super) enum InUse {
    Open(Weak<LayerFile>),
    Ingest,
}

/// What layer files, flusher and eviction share.
pub(super) struct Shared {
    pub layers_folder: PathBuf,
    pub config: CacheConfig,
    pub in_use: Mutex<HashMap<Digest, InUse>>,
    pub flush: FlushQueue,
    /// Serializes evictions.
    pub evicting: Mutex<()>,
    /// What the layer files take, roughly: measured at start and at every eviction, added to by writes.
    pub usage_bytes: AtomicU64,
    /// Whether the file system can punch holes.
    pub can_punch: bool,
    /// Set while eviction could not get below the limit, so that it is said once.
    pub over_limit: AtomicBool,
    started: Instant,
}

impl Cache {
    /// Opens the cache under `root`, making it if need be.
    ///
    /// # Errors
    /// [`CacheError::Locked`] when another process has it; failures of the file system.
    pub fn open(root: &Path, config: CacheConfig) -> Result<Self, CacheError> {
        let layers_folder = root.join("layers");
        std::fs::create_dir_all(&layers_folder).map_err(CacheError::io("create", &layers_folder))?;
        let root_lock = take_lock(root)?;
        let can_punch = probe_punch(root);
        if !can_punch {
            tracing::warn!(root = %root.display(), "the file system cannot punch holes: only whole layers are evicted");
        }
        let shared = Arc::new(Shared {
            layers_folder,
            config,
            in_use: Mutex::default(),
            flush: FlushQueue::default(),
            evicting: Mutex::default(),
            usage_bytes: AtomicU64::new(0),
            can_punch,
            over_limit: AtomicBool::new(false),
            started: Instant::now(),
        });
        super::evict::measure(&shared)?;
        let flusher = Flusher::start(shared.clone()).map_err(CacheError::io("start a thread for", root))?;
        Ok(Self { shared, _flusher: flusher, _root_lock: root_lock })
    }

    /// The layer's file, cut by `table`. All callers of one digest share one, with the table of the first.
    ///
    /// # Errors
    /// [`CacheError::Busy`] during an ingest of the layer; failures of the file system.
    pub fn layer(&self, digest: Digest, table: Arc<SpanTable>) -> Result<Arc<LayerFile>, CacheError> {
        let mut in_use = lock(&self.shared.in_use);
        match in_use.get(&digest) {
            Some(InUse::Ingest) => return Err(CacheError::Busy { digest }),
            Some(InUse::Open(file)) => {
                if let Some(file) = file.upgrade() {
                    return Ok(file);
                }
            }
            None => {}
        }
        let folder = self.shared.folder(digest);
        let file = Arc::new(LayerFile::open(digest, folder, table, self.shared.clone())?);
        in_use.insert(digest, InUse::Open(Arc::downgrade(&file)));
        Ok(file)
    }

    /// The diffID and length of a layer that is complete and proven on this disk.
    #[must_use]
    pub fn proven(&self, digest: Digest) -> Option<(Digest, LayerOffset)> {
        let folder = self.shared.folder(digest);
        let state = LayerState::read(&folder)?;
        let (diff_id, length) = state.proven.zip(state.layer_bytes)?;
        let found = std::fs::metadata(folder.join("data")).ok()?.len();
        (found == length.get()).then_some((diff_id, length))
    }

    /// Begins to take in a layer as one stream; what was there of it goes.
    ///
    /// # Errors
    /// [`CacheError::Busy`] when the layer is open; failures of the file system.
    pub fn ingest(&self, digest: Digest) -> Result<IngestFile, CacheError> {
        let mut in_use = lock(&self.shared.in_use);
        match in_use.get(&digest) {
            Some(InUse::Ingest) => return Err(CacheError::Busy { digest }),
            Some(InUse::Open(file)) if file.strong_count() > 0 => return Err(CacheError::Busy { digest }),
            _ => {}
        }
        let file = IngestFile::create(digest, self.shared.folder(digest), self.shared.clone())?;
        in_use.insert(digest, InUse::Ingest);
        Ok(file)
    }

    /// Bytes that the layer files take on disk, roughly: exact after an eviction and at start.
    #[must_use]
    pub fn usage_bytes(&self) -> u64 {
        self.shared.usage_bytes.load(Ordering::Relaxed)
    }

    /// Evicts until the layer files take at most `target_bytes` or nothing more may go. Blocks. Returns what was freed.
    ///
    /// # Errors
    /// When the cache's folders cannot be read.
    pub fn shrink_to(&self, target_bytes: u64) -> Result<u64, CacheError> {
        super::evict::shrink_to(&self.shared, target_bytes)
    }

    /// Records everything written so far, durably.
    pub fn flush(&self) {
        super::flusher::flush_all(&self.shared);
    }
}

impl Shared {
    pub fn folder(&self, digest: Digest) -> PathBuf {
        self.layers_folder.join(digest.hex())
    }

    /// Seconds since the cache was opened.
    pub fn now_secs(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// A span was written; `waiting` of its layer's spans are not yet recorded.
    pub fn written(&self, file: &Arc<LayerFile>, bytes: u64, waiting: usize) {
        self.usage_bytes.fetch_add(bytes, Ordering::Relaxed);
        let hurry = waiting >= self.config.flush_spans;
        if !self.flush.add(file, hurry) {
            super::flusher::flush_one(file);
        }
    }
}

/// Removes what says that a layer's bytes are there, durably, before the bytes themselves change.
pub(super) fn forget(folder: &Path) -> Result<(), CacheError> {
    for name in ["state.json", "present"] {
        let path = folder.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CacheError::io("remove", &path)(error));
            }
            _ => {}
        }
    }
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(CacheError::io("sync", folder))
}

fn take_lock(root: &Path) -> Result<File, CacheError> {
    use rustix::fs::{FlockOperation, flock};
    let path = root.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(CacheError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CacheError::Locked { root: root.to_owned() }),
        Err(error) => Err(CacheError::io("lock", &path)(error.into())),
    }
}

/// Tries the system call on a file of its own: file systems without holes (some network and FUSE ones) say so only then.
fn probe_punch(root: &Path) -> bool {
    use rustix::fs::{FallocateFlags, fallocate};
    use std::io::Write as _;
    let path = root.join("probe");
    let tried = File::create(&path).and_then(|mut file| {
        file.write_all(&[1; 8192])?;
        Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096)?)
    });
    let removed = std::fs::remove_file(&path);
    tried.is_ok() && removed.is_ok()
}

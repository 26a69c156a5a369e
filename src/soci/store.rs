//! zTOCs and indexes on local disk: an OCI image layout, and which zTOC a layer has.
//!
//! ```text
//! ROOT/content/oci-layout
//! ROOT/content/index.json                 SOCI indexes that were made here
//! ROOT/content/blobs/sha256/HEX           zTOCs, indexes
//! ROOT/content/ztoc-by-layer/LAYER_HEX    "sha256:HEX SIZE SPAN_SIZE\n" of the layer's zTOC
//! ROOT/content/ingest/                    files being written
//! ```
//!
//! Several processes may use one store. A file appears under its name complete and durable, by rename, or not at all;
//! the only file that is read, changed and written again, `index.json`, is guarded by a lock on `oci-layout`. Methods
//! block on local disk.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::SociError;
use crate::registry::document::media_type;
use crate::registry::{BlobSource, RegistryError};
use crate::units::{BlobOffset, BlobRange, Digest, DigestHasher};

/// Files in `ingest/` that are older were left by a process that died.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Longest `index.json` and mapping file, in bytes.
const INDEX_LIMIT_BYTES: u64 = 64 << 20;

/// The zTOC that the store knows for a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordedZtoc {
    /// Digest of the zTOC.
    pub digest: Digest,
    /// Size of the zTOC.
    pub size: BlobOffset,
    /// Span size that it was built with, in bytes; `None` if unknown.
    pub span_size_bytes: Option<u64>,
}

/// The local store.
#[derive(Clone, Debug)]
pub struct Store {
    content: PathBuf,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> SociError {
    let path = path.to_owned();
    move |source| SociError::Store { path, source }
}

/// A file under construction; removed unless it was put in place.
struct Ingest {
    path: PathBuf,
    file: File,
    placed: bool,
}

impl Ingest {
    fn place(mut self, target: &Path) -> Result<(), SociError> {
        // Data before name: after a crash the name must not show a hole.
        self.file.sync_all().map_err(failed(&self.path))?;
        fs::rename(&self.path, target).map_err(failed(target))?;
        self.placed = true;
        let parent = target.parent().unwrap_or(target);
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed(parent))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.placed {
            // What stays behind is swept when it is a day old.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Store {
    /// Opens, or makes, the store under `root`, and sweeps what dead processes left.
    ///
    /// # Errors
    /// [`SociError::Store`].
    pub fn open(root: &Path) -> Result<Self, SociError> {
        let store = Self { content: root.join("content") };
        for dir in ["blobs/sha256", "ztoc-by-layer", "ingest"] {
            let dir = store.content.join(dir);
            fs::create_dir_all(&dir).map_err(failed(&dir))?;
        }
        let marker = store.content.join("oci-layout");
        if !marker.exists() {
            store.replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let _lock = store.lock()?;
        let index = store.content.join("index.json");
        if !index.exists() {
            store.replace(&index, empty_index().to_string().as_bytes())?;
        }
        store.sweep();
        Ok(store)
    }

    /// Where the blob with this digest is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.content.join("blobs").join("sha256").join(digest.hex())
    }

    /// Whether the blob is there with this size; its bytes are checked when they are read.
    #[must_use]
    pub fn contains(&self, digest: &Digest, size: BlobOffset) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|m| m.is_file() && m.len() == size.get())
    }

    /// Reads a blob and checks its digest. A blob that fails the check is removed, so that it can be fetched anew.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::Corrupt`].
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, SociError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).map_err(failed(&path))?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            return Ok(bytes);
        }
        // If it cannot be removed, the next read says the same again.
        drop(fs::remove_file(&path));
        Err(SociError::Corrupt { what: path.display().to_string(), expected: *digest, actual })
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// [`SociError::Store`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, SociError> {
        let digest = Digest::of(bytes);
        if !self.contains(&digest, BlobOffset::new(bytes.len() as u64)) {
            self.replace(&self.blob_path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Fetches a blob into the store, unless it is there. One attempt.
    ///
    /// # Errors
    /// [`SociError::Registry`], [`SociError::Store`]; [`SociError::Corrupt`] when the bytes are not those of the digest.
    pub async fn fetch(&self, source: &dyn BlobSource) -> Result<(), SociError> {
        let (digest, size) = (source.digest(), source.size());
        if self.contains(&digest, size) {
            return Ok(());
        }
        let Some(range) = BlobRange::new(BlobOffset::ZERO, size) else { return Ok(()) };
        let mut stream = source.open(range).await?;
        let mut ingest = self.ingest()?;
        let (mut hasher, mut got_bytes) = (DigestHasher::new(), 0_u64);
        while let Some(piece) = stream.bytes.next().await {
            let piece = piece?;
            got_bytes = got_bytes.saturating_add(piece.len() as u64);
            if got_bytes > size.get() {
                break;
            }
            hasher.update(&piece);
            // Pieces are small and go to the page cache; only the sync at the end waits for the disk.
            ingest.file.write_all(&piece).map_err(failed(&ingest.path))?;
        }
        if got_bytes != size.get() {
            let (url, expected_bytes) = (source.describe(), size.get());
            return Err(RegistryError::Truncated { url, got_bytes, expected_bytes }.into());
        }
        let actual = hasher.finish();
        if actual != digest {
            return Err(SociError::Corrupt { what: source.describe(), expected: digest, actual });
        }
        let target = self.blob_path(&digest);
        let placed = tokio::task::spawn_blocking(move || ingest.place(&target)).await;
        placed.map_err(|e| SociError::Store { path: self.blob_path(&digest), source: std::io::Error::other(e) })?
    }

    /// The zTOC recorded for a layer, if its blob is here.
    ///
    /// # Errors
    /// [`SociError::Store`] when the record exists and cannot be read. A record that makes no sense counts as none.
    pub fn ztoc_for(&self, layer: &Digest) -> Result<Option<RecordedZtoc>, SociError> {
        let path = self.content.join("ztoc-by-layer").join(layer.hex());
        let text = match read_text(&path, 4096) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path)(error)),
        };
        Ok(parse_record(&text).filter(|record| self.contains(&record.digest, record.size)))
    }

    /// Records the zTOC of a layer; its blob must be in the store. The last record counts.
    ///
    /// # Errors
    /// [`SociError::Store`].
    pub fn record_ztoc(&self, layer: &Digest, ztoc: &RecordedZtoc) -> Result<(), SociError> {
        let span_size = ztoc.span_size_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        let line = format!("{} {} {span_size}\n", ztoc.digest, ztoc.size);
        self.replace(&self.content.join("ztoc-by-layer").join(layer.hex()), line.as_bytes())
    }

    /// Stores a SOCI index document and lists it in `index.json`.
    ///
    /// # Errors
    /// [`SociError::Store`]; [`SociError::StoreDocument`] when `index.json` is damaged.
    pub fn put_index(&self, artifact_type: &str, bytes: &[u8]) -> Result<Digest, SociError> {
        let digest = self.put(bytes)?;
        let _lock = self.lock()?;
        let path = self.content.join("index.json");
        let text = read_text(&path, INDEX_LIMIT_BYTES).map_err(failed(&path))?;
        let damaged = |reason: String| SociError::StoreDocument { path: path.clone(), reason };
        let mut index: Value = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        let list = index.get_mut("manifests").and_then(Value::as_array_mut);
        let list = list.ok_or_else(|| damaged("no list of manifests".to_owned()))?;
        let name = digest.to_string();
        if !list.iter().any(|entry| entry.get("digest").and_then(Value::as_str) == Some(&name)) {
            list.push(json!({
                "mediaType": media_type::OCI_MANIFEST, "digest": name, "size": bytes.len(),
                "artifactType": artifact_type,
            }));
            self.replace(&path, index.to_string().as_bytes())?;
        }
        Ok(digest)
    }

    fn ingest(&self) -> Result<Ingest, SociError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = self.content.join("ingest").join(name);
        // A dead process of the same number may have left the same name; its file is worthless.
        let file = File::create(&path).map_err(failed(&path))?;
        Ok(Ingest { path, file, placed: false })
    }

    /// Puts a whole file in place, durably.
    fn replace(&self, target: &Path, bytes: &[u8]) -> Result<(), SociError> {
        let mut ingest = self.ingest()?;
        ingest.file.write_all(bytes).map_err(failed(&ingest.path))?;
        ingest.place(target)
    }

    /// Held while `index.json` is changed; released when dropped.
    fn lock(&self) -> Result<File, SociError> {
        let path = self.content.join("oci-layout");
        let file = File::open(&path).map_err(failed(&path))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|e| failed(&path)(e.into()))?;
        Ok(file)
    }

    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.content.join("ingest")) else { return };
        let now = SystemTime::now();
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|m| m.modified());
            if modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > STALE)) {
                // Another process may sweep at the same time.
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

fn empty_index() -> Value {
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []})
}

fn read_text(path: &Path, limit_bytes: u64) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limit_bytes).read_to_string(&mut text)?;
    Ok(text)
}

fn parse_record(text: &str) -> Option<RecordedZtoc> {
    let mut words = text.strip_suffix('\n')?.split(' ');
    let (digest, size, span_size) = (words.next()?, words.next()?, words.next()?);
    let span_size_bytes = if span_size == "-" { None } else { Some(span_size.parse().ok()?) };
    let size = BlobOffset::new(size.parse().ok()?);
    Some(RecordedZtoc { digest: digest.parse().ok()?, size, span_size_bytes })
}

#[cfg(test)]
#[path = "tests/store.rs"]
mod tests;

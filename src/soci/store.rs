//! zTOCs and indexes on local disk: an OCI image layout, and a database of what is in it.
//!
//! ```text
//! ROOT/content/oci-layout
//! ROOT/content/lock                       held by who changes the store
//! ROOT/content/index.json                 SOCI indexes and their images
//! ROOT/content/blobs/sha256/HEX           zTOCs, indexes
//! ROOT/content/ztoc-by-layer/LAYER_HEX    "sha256:HEX SIZE SPAN_SIZE\n" of each zTOC that was built of the layer
//! ROOT/content/ingest/                    files being written
//! ROOT/store.db                           the database, made of the files above whenever it is absent or damaged
//! ```
//!
//! Several processes may use one store. A file appears under its name complete and durable, by rename, or not at all.
//! What changes more than one blob holds the lock, and goes in an order in which a crash leaves at worst something that
//! nobody refers to: blob, then `index.json` or layer file, then row; when removing, the row goes first and the blob
//! last. Methods block on local disk: `async` code calls them by `spawn_blocking`, and no transaction waits for a
//! network.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use self::database::{BUSY_LIMIT, Database, Opened};
use self::entry::Entry;
use self::layout::{Layout, failed};
use self::records::{missing, to_ms};
use self::rows::NewArtifact;
use self::steps::step;
use super::{SociError, SociIndex};
use crate::registry::document::media_type;
use crate::registry::{BlobSource, RegistryError};
use crate::registry::{ImageSource, LayoutName};
use crate::units::{BlobOffset, BlobRange, Digest, DigestHasher, u64_from_usize};
use futures_util::StreamExt;

mod access;
mod collect;
mod database;
mod entry;
mod layout;
mod locks;
mod lookup;
mod rebuild;
mod records;
mod rows;
mod steps;

pub use records::{
    ArtifactKind, IndexFilter, IndexRecord, IndexedImage, PrefetchRecord, Rebuilt, RecordedZtoc, Removed, SetBy,
    ZtocRecord,
};

/// Longest index document that is stored: what registries take as a manifest.
pub const MAX_INDEX_BYTES: u64 = 4 << 20;
/// How long a zTOC is kept although no index lists it yet: longer than any index takes to be made.
const LEASE: Duration = Duration::from_secs(3600);

/// The local store.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    database: Database,
    opened: Mutex<Option<Opened>>,
}

/// An index that comes into the store.
#[derive(Clone, Debug)]
pub struct NewIndex<'a> {
    /// The document, as it came.
    pub bytes: &'a [u8],
    /// Its image. `None`: a v1 index says it itself.
    pub image: Option<IndexedImage>,
    /// Where it came from; empty for what was made here, whose zTOCs must be in the store.
    pub location: &'a str,
}

impl Store {
    /// Opens, or makes, the store under `root`, and sweeps what dead processes left. A database that is absent or
    /// damaged is made from the files.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::StoreDocument`], [`SociError::Locked`], [`SociError::LaterDatabase`],
    /// [`SociError::Database`].
    pub fn open(root: &Path) -> Result<Self, SociError> {
        Self::open_within(root, BUSY_LIMIT)
    }

    fn open_within(root: &Path, busy_limit: Duration) -> Result<Self, SociError> {
        let layout = Layout::open(root.join("content"))?;
        let database = Database { path: root.join("store.db"), busy_limit };
        let store = Self { inner: Arc::new(Inner { layout, database, opened: Mutex::new(None) }) };
        store.query(|_| Ok(()))?;
        Ok(store)
    }

    /// Where the blob with this digest is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.layout.blob_path(digest)
    }

    /// Whether the blob is there with this size; its bytes are checked when they are read.
    #[must_use]
    pub fn contains(&self, digest: &Digest, size: BlobOffset) -> bool {
        self.inner.layout.contains(digest, size)
    }

    /// Reads a blob and checks its digest. A blob that fails the check is removed, so that it can be fetched anew.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::Corrupt`].
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, SociError> {
        self.inner.layout.read(digest)
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// [`SociError::Store`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, SociError> {
        self.inner.layout.put(bytes)
    }

    /// Stores what `write` writes, under its digest: for what is too long to be held in memory.
    ///
    /// # Errors
    /// [`SociError::Store`].
    pub fn put_written(
        &self,
        write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<(Digest, BlobOffset), SociError> {
        let mut ingest = self.inner.layout.ingest()?;
        let mut out = Hashed { file: &ingest.file, hasher: DigestHasher::new(), bytes: 0 };
        write(&mut out).map_err(failed(&ingest.path))?;
        let (digest, size) = (out.hasher.finish(), BlobOffset::new(out.bytes));
        ingest.file.flush().map_err(failed(&ingest.path))?;
        if self.contains(&digest, size) {
            self.inner.layout.touch(&digest);
        } else {
            ingest.place(&self.blob_path(&digest))?;
        }
        Ok((digest, size))
    }

    /// The blobs' place, for whoever copies them elsewhere.
    #[must_use]
    pub fn source(&self) -> ImageSource {
        ImageSource::Layout { dir: self.content_dir(), name: LayoutName::Only }
    }

    /// The OCI layout that holds the blobs.
    #[must_use]
    pub fn content_dir(&self) -> PathBuf {
        self.inner.layout.dir()
    }

    /// A directory for files without a name, on the disk of the store.
    #[must_use]
    pub fn scratch_dir(&self) -> PathBuf {
        self.inner.layout.ingest_dir()
    }

    /// Fetches a blob into the store, unless it is there. One attempt.
    ///
    /// # Errors
    /// [`SociError::Registry`], [`SociError::Store`]; [`SociError::Corrupt`] when the bytes are not those of the digest.
    pub async fn fetch(&self, source: &dyn BlobSource) -> Result<(), SociError> {
        let (digest, size) = (source.digest(), source.size());
        if self.contains(&digest, size) {
            self.inner.layout.touch(&digest);
            return Ok(());
        }
        let Some(range) = BlobRange::new(BlobOffset::ZERO, size) else { return Ok(()) };
        let mut stream = source.open(range).await?;
        let mut ingest = self.inner.layout.ingest()?;
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

    /// Runs a blocking call on a thread that may block.
    ///
    /// # Errors
    /// What the call gives; [`SociError::Store`] when the runtime ends meanwhile.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Self) -> Result<T, SociError> + Send + 'static,
    ) -> Result<T, SociError> {
        let store = self.clone();
        let path = self.inner.database.path.clone();
        let done = tokio::task::spawn_blocking(move || call(&store)).await;
        done.map_err(|e| SociError::Store { path, source: std::io::Error::other(e) })?
    }

    /// Records the zTOC that was built of a layer's own bytes; its blob must be in the store. The last record counts.
    /// For an hour it is kept although no index lists it.
    ///
    /// # Errors
    /// [`SociError::NotInStore`] without its blob, [`SociError::Store`], [`SociError::Locked`].
    pub fn record_ztoc(&self, layer: &Digest, ztoc: &RecordedZtoc) -> Result<(), SociError> {
        let layout = &self.inner.layout;
        let lock = layout.lock()?;
        if !layout.contains(&ztoc.digest, ztoc.size) {
            return Err(missing("zTOC", ztoc.digest));
        }
        let mut known = layout.ztocs_of(layer)?;
        known.retain(|old| old.digest != ztoc.digest);
        known.push(*ztoc);
        layout.set_ztocs_of(&lock, layer, &known)?;
        step("record: layer file")?;
        let now = SystemTime::now();
        let artifact = NewArtifact {
            digest: ztoc.digest,
            kind: ArtifactKind::Ztoc,
            size: ztoc.size.get(),
            media_type: super::ZTOC_TYPE,
            location: "",
            created_at_ms: to_ms(now),
        };
        self.change(&lock, |db| {
            rows::add_artifact(db, &artifact)?;
            rows::record_ztoc(db, layer, ztoc)?;
            rows::lease(db, &ztoc.digest, to_ms(now + LEASE))
        })
    }

    /// Stores an index that was made here; the document says its image, if it is a v1 index. See
    /// [`Self::put_index_of`].
    ///
    /// # Errors
    /// As [`Self::put_index_of`]; [`SociError::Index`] when the document is of another type.
    pub fn put_index(&self, artifact_type: &str, bytes: &[u8]) -> Result<Digest, SociError> {
        let actual = rows::kind_of(&SociIndex::parse(bytes)?).artifact_type();
        if actual != artifact_type {
            return Err(SociError::Index { reason: format!("it is of the type {actual}, not {artifact_type}") });
        }
        self.put_index_of(&NewIndex { bytes, image: None, location: "" })
    }

    /// Stores an index as its raw bytes, lists it in `index.json`, and maps its image to it.
    ///
    /// # Errors
    /// [`SociError::Index`] for what is no index, [`SociError::NotInStore`] when a part of an index that was made here is
    /// not in the store, [`SociError::Store`], [`SociError::StoreDocument`], [`SociError::Locked`].
    pub fn put_index_of(&self, new: &NewIndex<'_>) -> Result<Digest, SociError> {
        let index = SociIndex::parse(new.bytes)?;
        let size = u64_from_usize(new.bytes.len());
        if size > MAX_INDEX_BYTES {
            let reason = format!("it has {size} bytes; at most {MAX_INDEX_BYTES} are stored");
            return Err(SociError::Index { reason });
        }
        let made_here = new.location.is_empty();
        let set_by = if made_here { SetBy::Create } else { SetBy::Registry };
        let image = new.image.clone().or_else(|| rebuild::subject(&index, set_by));
        let layout = &self.inner.layout;
        let lock = layout.lock()?;
        if let Some(part) = rebuild::missing_parts(layout, &index).first().filter(|_| made_here) {
            return Err(missing("zTOC", *part));
        }
        let kind = rows::kind_of(&index);
        let digest = layout.put(new.bytes)?;
        step("index: blob")?;
        let created_at_ms = to_ms(SystemTime::now());
        let artifact_type = kind.artifact_type().to_owned();
        let location = new.location;
        let entry =
            Entry { digest, size, artifact_type, location: location.to_owned(), created_at_ms, image: image.clone() };
        layout.list(&lock, &entry)?;
        step("index: listed")?;
        let artifact =
            NewArtifact { digest, kind, size, media_type: media_type::OCI_MANIFEST, location, created_at_ms };
        self.change(&lock, |db| {
            rows::add_index(db, &artifact, &index)?;
            image.iter().try_for_each(|image| rows::set_image(db, &digest, image))
        })?;
        Ok(digest)
    }
}

/// A file, and the digest of what is written to it.
struct Hashed<'a> {
    file: &'a std::fs::File,
    hasher: DigestHasher,
    bytes: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.bytes += u64_from_usize(written);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
#[path = "tests/store.rs"]
mod tests;

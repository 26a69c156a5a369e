//! The files of the store: blobs, `index.json`, the layer files. They are the truth; the database is made of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::entry::{Entry, digest_of};
use super::locks::holders;
use super::records::{IndexedImage, RecordedZtoc};
use super::steps::step;
use crate::registry::document::media_type;
use crate::soci::SociError;
use crate::units::{BlobOffset, Digest};

/// Files in `ingest/` that are older were left by a process that died.
pub(super) const STALE: Duration = Duration::from_secs(24 * 3600);
/// Longest `index.json` and layer file, in bytes.
const INDEX_LIMIT_BYTES: u64 = 64 << 20;
/// How long the store's lock is waited for. It is held for moments, but for the whole of a rebuild.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// How often it is tried: flock has no time limit of its own.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// A blob's time of last use is not written more often.
const TOUCH_PAUSE: Duration = Duration::from_secs(600);

/// Held while the store is changed; released when dropped.
pub(super) struct Locked {
    _file: File,
}

/// A file under construction; removed unless it was put in place.
pub(super) struct Ingest {
    pub path: PathBuf,
    pub file: File,
    placed: bool,
}

impl Ingest {
    pub fn place(mut self, target: &Path) -> Result<(), SociError> {
        // Data before name: after a crash the name must not show a hole.
        self.file.sync_all().map_err(failed(&self.path))?;
        step("file: written")?;
        fs::rename(&self.path, target).map_err(failed(target))?;
        self.placed = true;
        sync_dir(target.parent().unwrap_or(target))
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

/// The folder `content/`.
#[derive(Debug)]
pub(super) struct Layout {
    content: PathBuf,
}

pub(super) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> SociError {
    let path = path.to_owned();
    move |source| SociError::Store { path, source }
}

fn sync_dir(dir: &Path) -> Result<(), SociError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
}

impl Layout {
    /// Opens, or makes, the folder.
    pub fn open(content: PathBuf) -> Result<Self, SociError> {
        let layout = Self { content };
        for dir in ["blobs/sha256", "ztoc-by-layer", "ingest"] {
            let dir = layout.content.join(dir);
            fs::create_dir_all(&dir).map_err(failed(&dir))?;
        }
        let marker = layout.content.join("oci-layout");
        if !marker.exists() {
            layout.replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let index = layout.index_path();
        if !index.exists() {
            let _lock = layout.lock()?;
            // Another process may have made it meanwhile, and written to it.
            if !index.exists() {
                layout.replace(&index, empty_index().to_string().as_bytes())?;
            }
        }
        layout.sweep_ingest();
        Ok(layout)
    }

    pub fn blobs_dir(&self) -> PathBuf {
        self.content.join("blobs").join("sha256")
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_dir().join(digest.hex())
    }

    fn index_path(&self) -> PathBuf {
        self.content.join("index.json")
    }

    fn layer_path(&self, layer: &Digest) -> PathBuf {
        self.content.join("ztoc-by-layer").join(layer.hex())
    }

    /// Locks the store against other writers. The locked file is nobody's data, so nobody replaces it.
    pub fn lock(&self) -> Result<Locked, SociError> {
        self.lock_within(LOCK_LIMIT)
    }

    pub fn lock_within(&self, limit: Duration) -> Result<Locked, SociError> {
        let path = self.content.join("lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed(&path))?;
        let since = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(&path)(error.into())),
            }
            if since.elapsed() >= limit {
                let holder = holders(&[&path]);
                return Err(SociError::Locked { path, holder, waited_s: limit.as_secs() });
            }
            std::thread::sleep(LOCK_PAUSE);
        }
    }

    pub fn contains(&self, digest: &Digest, size: BlobOffset) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|m| m.is_file() && m.len() == size.get())
    }

    /// Size and time of last use of a blob.
    pub fn blob_state(&self, digest: &Digest) -> Option<(u64, SystemTime)> {
        let m = fs::metadata(self.blob_path(digest)).ok().filter(fs::Metadata::is_file)?;
        Some((m.len(), m.modified().ok()?))
    }

    /// Notes that a blob is used. It is a hint for the sweep: failing to note it is no error.
    pub fn touch(&self, digest: &Digest) {
        let now = SystemTime::now();
        let recent = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < TOUCH_PAUSE);
        if self.blob_state(digest).is_some_and(|(_, at)| !recent(at)) {
            drop(File::options().append(true).open(self.blob_path(digest)).and_then(|file| file.set_modified(now)));
        }
    }

    /// Reads a blob and checks its digest. A blob that fails the check is removed, so that it can be fetched anew.
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

    pub fn put(&self, bytes: &[u8]) -> Result<Digest, SociError> {
        let digest = Digest::of(bytes);
        if self.contains(&digest, BlobOffset::new(bytes.len() as u64)) {
            self.touch(&digest);
        } else {
            self.replace(&self.blob_path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Removes a blob and says how many bytes that freed.
    pub fn remove_blob(&self, digest: &Digest) -> Result<u64, SociError> {
        let path = self.blob_path(digest);
        let size = fs::metadata(&path).map_or(0, |m| m.len());
        match fs::remove_file(&path) {
            Ok(()) => Ok(size),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    pub fn dir(&self) -> PathBuf {
        self.content.clone()
    }

    pub fn ingest_dir(&self) -> PathBuf {
        self.content.join("ingest")
    }

    pub fn ingest(&self) -> Result<Ingest, SociError> {
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

    fn sweep_ingest(&self) {
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

    /// The descriptors of `index.json`, as they stand there: also those of others.
    pub fn descriptors(&self) -> Result<Vec<Value>, SociError> {
        let (_, list) = self.read_index()?;
        Ok(list)
    }

    /// Keeps the descriptors that `keep` accepts.
    pub fn retain(&self, _lock: &Locked, keep: impl Fn(&Value) -> bool) -> Result<usize, SociError> {
        let (index, list) = self.read_index()?;
        let before = list.len();
        let kept: Vec<Value> = list.into_iter().filter(|entry| keep(entry)).collect();
        let dropped = before - kept.len();
        if dropped > 0 {
            self.write_index(index, kept)?;
        }
        Ok(dropped)
    }

    /// Lists an index, in the place of an entry about the same index and image.
    pub fn list(&self, _lock: &Locked, entry: &Entry) -> Result<(), SociError> {
        let (index, mut list) = self.read_index()?;
        let new = entry.to_json();
        if list.contains(&new) {
            return Ok(());
        }
        let image = entry.image.as_ref();
        list.retain(|old| {
            let same_index = digest_of(old) == Some(entry.digest);
            let Some(old) = Entry::from_json(old).filter(|_| same_index) else { return true };
            // An entry without an image says nothing more than one with it.
            old.image.as_ref().is_some_and(|old| {
                let key = |image: &IndexedImage| (image.manifest, image.image_ref.clone(), image.set_by);
                image.is_none_or(|new| key(old) != key(new))
            })
        });
        if image.is_some() || !list.iter().any(|old| digest_of(old) == Some(entry.digest)) {
            list.push(new);
        }
        self.write_index(index, list)
    }

    fn read_index(&self) -> Result<(Value, Vec<Value>), SociError> {
        let path = self.index_path();
        let text = read_text(&path, INDEX_LIMIT_BYTES).map_err(failed(&path))?;
        let damaged = |reason: String| SociError::StoreDocument { path: path.clone(), reason };
        let mut index: Value = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match index.get_mut("manifests").map(Value::take) {
            Some(Value::Array(list)) => Ok((index, list)),
            // Go writes an empty list as null.
            Some(Value::Null) => Ok((index, Vec::new())),
            _ => Err(damaged("no list of manifests".to_owned())),
        }
    }

    fn write_index(&self, mut index: Value, list: Vec<Value>) -> Result<(), SociError> {
        if let Some(index) = index.as_object_mut() {
            index.insert("manifests".to_owned(), Value::Array(list));
        }
        self.replace(&self.index_path(), index.to_string().as_bytes())
    }

    /// The zTOCs that were built of a layer, the last one last. Lines that make no sense are left out.
    pub fn ztocs_of(&self, layer: &Digest) -> Result<Vec<RecordedZtoc>, SociError> {
        let path = self.layer_path(layer);
        match read_text(&path, INDEX_LIMIT_BYTES) {
            Ok(text) => Ok(text.split_inclusive('\n').filter_map(parse_record).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// Writes which zTOCs were built of a layer.
    pub fn set_ztocs_of(&self, _lock: &Locked, layer: &Digest, ztocs: &[RecordedZtoc]) -> Result<(), SociError> {
        let path = self.layer_path(layer);
        if !ztocs.is_empty() {
            let text: String = ztocs.iter().map(format_record).collect();
            return self.replace(&path, text.as_bytes());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    /// The layers of which zTOCs were built here.
    pub fn layers(&self) -> Result<Vec<Digest>, SociError> {
        digests_in(&self.content.join("ztoc-by-layer"))
    }

    /// All blobs.
    pub fn blobs(&self) -> Result<Vec<Digest>, SociError> {
        digests_in(&self.blobs_dir())
    }
}

/// Files whose names are digests, in order.
fn digests_in(dir: &Path) -> Result<Vec<Digest>, SociError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let name = entry.map_err(failed(dir))?.file_name();
        found.extend(name.to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

fn empty_index() -> Value {
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []})
}

fn read_text(path: &Path, limit_bytes: u64) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limit_bytes).read_to_string(&mut text)?;
    Ok(text)
}

fn format_record(record: &RecordedZtoc) -> String {
    let span_size = record.span_size_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    format!("{} {} {span_size}\n", record.digest, record.size)
}

pub(super) fn parse_record(line: &str) -> Option<RecordedZtoc> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let (digest, size, span_size) = (words.next()?, words.next()?, words.next()?);
    let span_size_bytes = if span_size == "-" { None } else { Some(span_size.parse().ok()?) };
    let size = BlobOffset::new(size.parse().ok()?);
    Some(RecordedZtoc { digest: digest.parse().ok()?, size, span_size_bytes })
}

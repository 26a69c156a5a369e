//! The load orders that a node keeps: one file for each image and label, bounded in number and bytes.
//!
//! The files are all there is. Each appears whole and durable, under `MANIFEST_HEX.LABEL.json`; its time of modification is
//! its time of last use. Beside it lies its excerpt, if it has one, under the same name with `.excerpt`. Orders that were recorded by themselves go before those that somebody named.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{AUTOMATIC_LABEL, Candidate, LoadOrder, MAX_DOCUMENT_BYTES, OrderError, check_label};
use crate::units::Digest;

/// A file that is being made is an hour old only when nobody makes it any more.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// How much is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShelfLimits {
    /// Orders.
    pub number: usize,
    /// Bytes of their documents.
    pub bytes: u64,
}

/// Where a node keeps load orders.
#[derive(Clone, Debug)]
pub struct Shelf {
    dir: PathBuf,
    limits: ShelfLimits,
}

/// A load order that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The image's manifest.
    pub image: Digest,
    /// Its label.
    pub label: String,
    /// Size of the document and of the excerpt.
    pub size_bytes: u64,
    /// When it was written, or used last.
    pub used: SystemTime,
}

impl Shelf {
    /// The shelf in `dir`, which is made when something is put there.
    #[must_use]
    pub fn new(dir: PathBuf, limits: ShelfLimits) -> Self {
        Self { dir, limits }
    }

    /// The file of an order.
    #[must_use]
    pub fn path(&self, image: &Digest, label: &str) -> PathBuf {
        self.dir.join(format!("{}.{label}.json", image.hex()))
    }

    /// Where the excerpt of an order is.
    #[must_use]
    pub fn excerpt_path(&self, image: &Digest, label: &str) -> PathBuf {
        self.dir.join(format!("{}.{label}.excerpt", image.hex()))
    }

    /// The directory, in which `put` wants new excerpts.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps an order in the place of the one with its image and label. Others go when there are too many. `excerpt` is the file
    /// with its excerpt, which is moved; without one the order loses the excerpt that it names, unless that is the one that is kept.
    ///
    /// # Errors
    /// [`OrderError`] when it is none, or cannot be written; the former one stays then.
    pub fn put(&self, order: &LoadOrder, excerpt: Option<&Path>) -> Result<PathBuf, OrderError> {
        let mut order = order.clone();
        let beside = self.excerpt_path(&order.image, &order.label);
        if excerpt.is_none() {
            let before = self.read(&order.image, &order.label).ok().and_then(|before| before.excerpt);
            if order.excerpt != before {
                order.excerpt = None;
            }
        }
        let bytes = order.to_bytes()?;
        let path = self.path(&order.image, &order.label);
        let failed = |source| OrderError::Io { path: path.clone(), source };
        fs::create_dir_all(&self.dir).map_err(failed)?;
        // Named after the process and the order: two that write the same one must not share a file.
        let new = self.dir.join(format!(".{}.{}.{}", std::process::id(), order.image.short(), order.label));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            // An order with another one's excerpt is no harm: its frames are checked.
            excerpt.map_or(Ok(()), |excerpt| fs::rename(excerpt, &beside))?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&new);
            failed(source)
        })?;
        if order.excerpt.is_none() {
            let _ = fs::remove_file(&beside);
        }
        self.trim(&path)?;
        Ok(path)
    }

    /// The order of an image with this label.
    ///
    /// # Errors
    /// [`OrderError`] when it is not there, or no order of this image.
    pub fn read(&self, image: &Digest, label: &str) -> Result<LoadOrder, OrderError> {
        check_label(label)?;
        let path = self.path(image, label);
        let order = read_file(&path)?.of_image(*image)?;
        // Used just now; where that cannot be written down it goes earlier than it should.
        if let Ok(file) = File::open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(order)
    }

    /// All orders, the one used last first.
    ///
    /// # Errors
    /// [`OrderError::Io`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kept>, OrderError> {
        let failed = |source| OrderError::Io { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut kept: Vec<Kept> = entries.flatten().filter_map(|entry| of_entry(&entry)).collect();
        kept.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.label.cmp(&b.label)));
        Ok(kept)
    }

    /// The orders of an image that can be read, and what is known of each; one that cannot is told with its error.
    ///
    /// # Errors
    /// [`OrderError::Io`] when the directory cannot be read.
    pub fn of_image(&self, image: &Digest) -> Result<Vec<(Candidate, LoadOrder)>, OrderError> {
        let of_image = self.list()?.into_iter().filter(|kept| kept.image == *image);
        let read = of_image.filter_map(|kept| {
            let order = read_file(&self.path(image, &kept.label)).and_then(|order| order.of_image(*image));
            match order {
                Ok(order) => Some((order.candidate(), order)),
                Err(error) => {
                    tracing::warn!(image = %image.short(), label = kept.label, %error, "a load order that is kept here is ignored");
                    None
                }
            }
        });
        Ok(read.collect())
    }

    /// Removes an order; whether there was one.
    ///
    /// # Errors
    /// [`OrderError::Io`].
    pub fn remove(&self, image: &Digest, label: &str) -> Result<bool, OrderError> {
        check_label(label)?;
        let path = self.path(image, label);
        let _ = fs::remove_file(self.excerpt_path(image, label));
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(OrderError::Io { path, source }),
        }
    }

    /// Removes what is too much, but never what was written just now; and what a crash left of files that were being made.
    fn trim(&self, new: &Path) -> Result<(), OrderError> {
        let is_old = |entry: &fs::DirEntry| {
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            modified.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > ABANDONED_AFTER)
        };
        let unfinished = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in unfinished.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".")).filter(is_old) {
            let _ = fs::remove_file(entry.path());
        }
        let mut kept = self.list()?;
        // The first to go is the last one: those without a name of their own, then what was not used for the longest time.
        kept.sort_by_key(|order| order.label == AUTOMATIC_LABEL);
        let (mut number, mut bytes) = (0, 0_u64);
        kept.sort_by_key(|order| self.path(&order.image, &order.label) != new);
        for order in kept {
            number += 1;
            bytes = bytes.saturating_add(order.size_bytes);
            let path = self.path(&order.image, &order.label);
            if (number > self.limits.number || bytes > self.limits.bytes) && path != new {
                self.remove(&order.image, &order.label)?;
                bytes -= order.size_bytes;
                number -= 1;
            }
        }
        Ok(())
    }
}

impl LoadOrder {
    /// What a choice is made by.
    #[must_use]
    pub fn candidate(&self) -> Candidate {
        let (label, entrypoint) = (self.label.clone(), self.entrypoint.clone());
        Candidate { label, entrypoint, created_at_ms: self.created_at_ms }
    }

    /// Reads a document from a file.
    ///
    /// # Errors
    /// As [`LoadOrder::parse`], and [`OrderError::Io`].
    pub fn read(path: &Path) -> Result<Self, OrderError> {
        read_file(path)
    }
}

fn read_file(path: &Path) -> Result<LoadOrder, OrderError> {
    let failed = |source| OrderError::Io { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_DOCUMENT_BYTES {
        return Err(OrderError::TooLarge { bytes, limit: MAX_DOCUMENT_BYTES });
    }
    LoadOrder::parse(&fs::read(path).map_err(failed)?)
}

fn of_entry(entry: &fs::DirEntry) -> Option<Kept> {
    let name = entry.file_name().into_string().ok()?;
    let (hex, label) = name.strip_suffix(".json")?.split_once('.')?;
    check_label(label).ok()?;
    let image = format!("sha256:{hex}").parse().ok()?;
    let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
    let excerpt_bytes = fs::metadata(entry.path().with_extension("excerpt")).map_or(0, |excerpt| excerpt.len());
    let size_bytes = metadata.len() + excerpt_bytes;
    Some(Kept { image, label: label.to_owned(), size_bytes, used: metadata.modified().ok()? })
}

#[cfg(test)]
mod tests {
    use super::super::document::tests::example;
    use super::*;

    fn shelf(dir: &tempfile::TempDir, number: usize, bytes: u64) -> Shelf {
        Shelf::new(dir.path().join("orders"), ShelfLimits { number, bytes })
    }

    fn named(image: &[u8], label: &str) -> LoadOrder {
        LoadOrder { image: Digest::of(image), label: label.to_owned(), ..example() }
    }

    fn labels(shelf: &Shelf) -> Vec<String> {
        let mut labels: Vec<String> = shelf.list().expect("a list").into_iter().map(|kept| kept.label).collect();
        labels.sort();
        labels
    }

    fn aged(shelf: &Shelf, order: &LoadOrder, age_s: u64) {
        let path = shelf.put(order, None).expect("written");
        let then = SystemTime::now() - std::time::Duration::from_secs(age_s);
        File::open(path).expect("the file").set_modified(then).expect("a time");
    }

    #[test]
    fn what_was_put_is_read_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = shelf(&dir, 10, 1 << 20);
        assert_eq!(shelf.list().expect("nothing"), []);
        let order = named(b"i", "web.v-1_x");
        shelf.put(&order, None).expect("written");
        assert_eq!(shelf.read(&order.image, "web.v-1_x").expect("read"), order);
        assert_eq!(shelf.of_image(&order.image).expect("listed"), [(order.candidate(), order.clone())]);
        assert_eq!(shelf.of_image(&Digest::of(b"other")).expect("listed"), []);
        assert!(shelf.read(&order.image, "../x").is_err());
        assert!(shelf.remove(&order.image, "web.v-1_x").expect("removed"));
        assert!(!shelf.remove(&order.image, "web.v-1_x").expect("gone"));
        assert!(matches!(shelf.read(&order.image, "web.v-1_x"), Err(OrderError::Io { .. })));
    }

    #[test]
    fn the_oldest_go_and_those_without_a_name_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = shelf(&dir, 3, 1 << 20);
        aged(&shelf, &named(b"i", "a"), 100);
        aged(&shelf, &named(b"i", AUTOMATIC_LABEL), 1);
        aged(&shelf, &named(b"i", "b"), 50);
        shelf.put(&named(b"i", "c"), None).expect("written");
        assert_eq!(labels(&shelf), ["a", "b", "c"]);
        shelf.put(&named(b"i", "d"), None).expect("written");
        assert_eq!(labels(&shelf), ["b", "c", "d"]);
        let tight = self::shelf(&dir, 3, 1);
        tight.put(&named(b"i", AUTOMATIC_LABEL), None).expect("written");
        assert_eq!(labels(&tight), [AUTOMATIC_LABEL]);
    }

    #[test]
    fn foreign_and_damaged_files_are_passed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = shelf(&dir, 10, 1 << 20);
        let order = named(b"i", "good");
        shelf.put(&order, None).expect("written");
        let at = |name: &str| dir.path().join("orders").join(name);
        fs::write(at("README"), "x").expect("written");
        fs::write(at("12.web.json"), "x").expect("written");
        fs::write(shelf.path(&order.image, "bad"), "{}").expect("written");
        fs::write(at(".excerpt-new"), "x").expect("written");
        fs::write(at(".excerpt-old"), "x").expect("written");
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        File::options().write(true).open(at(".excerpt-old")).expect("it").set_modified(long_ago).expect("a time");
        shelf.put(&order, None).expect("written");
        assert!(at(".excerpt-new").exists() && !at(".excerpt-old").exists(), "what a crash left goes");
        fs::copy(shelf.path(&order.image, "good"), shelf.path(&Digest::of(b"j"), "good")).expect("copied");
        let found = shelf.of_image(&order.image).expect("listed");
        assert_eq!(found.len(), 1);
        assert_eq!(shelf.of_image(&Digest::of(b"j")).expect("listed"), []);
        assert!(matches!(shelf.read(&Digest::of(b"j"), "good"), Err(OrderError::OtherImage { .. })));
    }
}

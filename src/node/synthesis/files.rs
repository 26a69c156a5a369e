//! What a synthesized image leaves on disk: its metadata, which frontends read, and its translation table and spans, by which
//! the next daemon takes over a device without making the image again, or reading what nobody has changed.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::seal::Seal;
use super::{ChainLayer, SynthesisError};
use crate::erofs::{Image, Space};
use crate::frontend::ZERO_HOLE_BYTES;
use crate::node::paths::Paths;
use crate::spans::SpanTable;
use crate::units::{Digest, LayerOffset};

/// Paths of the files. The writer's bytes are part of the name: a newer sociblk never rewrites a file that a device
/// still shows.
struct ImageFiles {
    metadata: PathBuf,
    space: PathBuf,
    spans: PathBuf,
}

impl ImageFiles {
    fn new(paths: &Paths, name: &str, metadata: Digest) -> Self {
        let path = |kind| paths.meta_dir().join(format!("{name}.{}.{kind}", metadata.short()));
        Self { metadata: path("erofs"), space: path("space"), spans: path("spans") }
    }
}

/// What saves a takeover the reading of zTOC and metadata: that both are right, and what the zTOC says of spans.
#[derive(Debug)]
pub(super) struct Memo {
    /// Of which zTOC.
    pub ztoc_digest: Digest,
    /// The zTOC document.
    pub ztoc: Seal,
    /// The metadata file.
    pub metadata: Seal,
    /// The zTOC's spans.
    pub table: SpanTable,
}

impl Memo {
    fn to_bytes(&self) -> Vec<u8> {
        let parts: [&[u8]; 4] =
            [self.ztoc_digest.as_bytes(), &self.ztoc.to_bytes(), &self.metadata.to_bytes(), &self.table.to_bytes()];
        parts.concat()
    }

    /// `None` for what is damaged or of another version: it is only worth the time that it saves.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk()?;
        let (ztoc, rest) = rest.split_first_chunk()?;
        let (metadata, table) = rest.split_first_chunk()?;
        Some(Self {
            ztoc_digest: Digest::from_bytes(*digest),
            ztoc: Seal::from_bytes(ztoc),
            metadata: Seal::from_bytes(metadata),
            table: SpanTable::from_bytes(table).ok()?,
        })
    }
}

/// Keeps a memo of an image, for the next daemon. That it could not is no reason to fail.
pub(super) fn remember(paths: &Paths, name: &str, metadata_digest: Digest, memo: &Memo) {
    let path = ImageFiles::new(paths, name, metadata_digest).spans;
    let bytes = memo.to_bytes();
    if std::fs::read(&path).ok().as_ref() == Some(&bytes) {
        return;
    }
    if let Err(error) = place(&path, &bytes, 0) {
        tracing::warn!(path = %path.display(), %error, "the next takeover of this layer will take longer");
    }
}

/// The memo of an image, if there is one.
pub(super) fn recall(paths: &Paths, name: &str, metadata_digest: Digest) -> Option<Memo> {
    Memo::from_bytes(&std::fs::read(ImageFiles::new(paths, name, metadata_digest).spans).ok()?)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SynthesisError {
    let path = path.to_owned();
    move |source| SynthesisError::Io { path, source }
}

/// Writes the files of an image where they are absent or not what they should be, and opens the metadata.
pub(super) fn keep(
    paths: &Paths,
    name: &str,
    image: &Image,
    metadata_digest: Digest,
    layer_size: LayerOffset,
) -> Result<File, SynthesisError> {
    let files = ImageFiles::new(paths, name, metadata_digest);
    let space = image.space.to_bytes(layer_size);
    if std::fs::read(&files.space).ok().as_ref() != Some(&space) {
        place(&files.space, &space, 0).map_err(io_error(&files.space))?;
    }
    if let Ok(file) = open_metadata(&files.metadata, image.metadata.len() as u64, metadata_digest, None) {
        return Ok(file);
    }
    place(&files.metadata, &image.metadata, ZERO_HOLE_BYTES).map_err(io_error(&files.metadata))?;
    File::open(&files.metadata).map_err(io_error(&files.metadata))
}

/// Opens the files of an image that an earlier process kept. Metadata that `sealed` fits are not read.
pub(super) fn find(
    paths: &Paths,
    name: &str,
    metadata_digest: Digest,
    layer: &ChainLayer,
    layer_size: LayerOffset,
    sealed: Option<Seal>,
) -> Result<(File, Space), SynthesisError> {
    let files = ImageFiles::new(paths, name, metadata_digest);
    let space = std::fs::read(&files.space).map_err(io_error(&files.space))?;
    let space = Space::from_bytes(&space, layer_size)
        .map_err(|source| SynthesisError::Erofs { layer: layer.digest, source })?;
    let metadata = open_metadata(&files.metadata, space.metadata_len(), metadata_digest, sealed);
    Ok((metadata.map_err(io_error(&files.metadata))?, space))
}

/// Removes the files of images that nobody shows: `shown` has names and metadata digests.
pub fn sweep<'a>(paths: &Paths, shown: impl Iterator<Item = (&'a str, Digest)>) -> io::Result<()> {
    let keep: HashSet<PathBuf> = shown
        .flat_map(|(name, metadata)| {
            let files = ImageFiles::new(paths, name, metadata);
            [files.metadata, files.space, files.spans]
        })
        .collect();
    for entry in std::fs::read_dir(paths.meta_dir())? {
        let path = entry?.path();
        if !keep.contains(&path) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn open_metadata(path: &Path, metadata_bytes: u64, digest: Digest, sealed: Option<Seal>) -> io::Result<File> {
    let file = File::open(path)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "not the metadata that the device shows");
    if Some(file.metadata()?.len()) != metadata_bytes.checked_add(ZERO_HOLE_BYTES) {
        return Err(damaged());
    }
    if sealed.is_some_and(|seal| seal.fits(&file)) {
        return Ok(file);
    }
    let mut bytes = vec![0; usize::try_from(metadata_bytes).map_err(|_| damaged())?];
    file.read_exact_at(&mut bytes, 0)?;
    if Digest::of(&bytes) == digest { Ok(file) } else { Err(damaged()) }
}

/// Writes a file under another name and renames it. Without fsync: after a crash of the machine no device stands that
/// needs it, and a torn file is recognized and written again.
fn place(path: &Path, bytes: &[u8], hole_bytes: u64) -> io::Result<()> {
    // Several mounts may make the same layer at the same time, each with a file of its own until the rename.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let tmp = path.with_extension(format!("tmp{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    let written = (|| {
        let file = File::create(&tmp)?;
        file.write_all_at(bytes, 0)?;
        file.set_len(bytes.len() as u64 + hole_bytes)?;
        std::fs::rename(&tmp, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_keeps_what_is_shown_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temp dir");
        let paths = Paths::new(dir.path().to_owned());
        std::fs::create_dir(paths.meta_dir()).expect("folder");
        let shown = Digest::of(b"shown");
        let files = ImageFiles::new(&paths, "a", shown);
        let other = ImageFiles::new(&paths, "a", Digest::of(b"other writer"));
        let stale = paths.meta_dir().join("b.tmp77-1");
        for path in [&files.metadata, &files.space, &files.spans, &other.metadata, &other.space, &other.spans, &stale] {
            place(path, b"x", 0).expect("written");
        }
        sweep(&paths, [("a", shown)].into_iter()).expect("swept");
        let mut left: Vec<_> =
            std::fs::read_dir(paths.meta_dir()).expect("list").map(|e| e.expect("entry").path()).collect();
        left.sort();
        assert_eq!(left, [files.metadata, files.space, files.spans]);
    }

    #[test]
    fn metadata_is_taken_only_whole_and_unchanged() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a.erofs");
        place(&path, b"metadata", ZERO_HOLE_BYTES).expect("written");
        let digest = Digest::of(b"metadata");
        let open = |bytes, digest| open_metadata(&path, bytes, digest, None);
        assert!(open(8, digest).is_ok());
        assert!(open(7, digest).is_err() && open(u64::MAX, digest).is_err());
        assert!(open(8, Digest::of(b"other")).is_err());

        // What is sealed is believed, as long as it is what was sealed.
        let seal = Seal::of(&open(8, digest).expect("opens")).expect("sealed");
        assert!(open_metadata(&path, 8, Digest::of(b"other"), Some(seal)).is_ok());
        assert!(open_metadata(&path, 7, digest, Some(seal)).is_err());
        place(&path, b"METADATA", ZERO_HOLE_BYTES).expect("written");
        assert!(open_metadata(&path, 8, digest, Some(seal)).is_err());
    }
}

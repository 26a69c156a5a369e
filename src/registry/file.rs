//! A blob in a local file: of an OCI layout, or a bare layer file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::{BlobSource, BlobStream, RegistryError};
use crate::units::{BlobOffset, BlobRange, Digest, DigestHasher, Offset};

/// Bytes per read: large enough that a thread hop per read does not show.
const PIECE_BYTES: u64 = 256 << 10;

/// A blob in a file that is opened once.
pub(super) struct FileBlob {
    file: Arc<File>,
    path: PathBuf,
    digest: Digest,
    size: BlobOffset,
    /// Where in the file the blob begins.
    start: u64,
    /// Length of the file.
    file_bytes: u64,
}

/// Runs blocking file work; a panic in it comes back as an I/O error.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(RegistryError::Io { path: path.to_owned(), source: std::io::Error::other(error.to_string()) })
        }
    }
}

fn open(path: &Path) -> Result<(File, u64), RegistryError> {
    let io = |source| RegistryError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    Ok((file, metadata.len()))
}

impl FileBlob {
    /// Opens a file that must be `size` bytes long and should have `digest`, which is not checked here.
    pub(super) async fn open(path: PathBuf, digest: Digest, size: BlobOffset) -> Result<Self, RegistryError> {
        blocking(&path.clone(), move || {
            let (file, actual_bytes) = open(&path)?;
            if actual_bytes != size.get() {
                return Err(RegistryError::FileChanged { path, expected_bytes: size.get(), actual_bytes });
            }
            Ok(Self { file: Arc::new(file), path, digest, size, start: 0, file_bytes: actual_bytes })
        })
        .await
    }

    /// Opens the part of a file that begins at `start` and must be `size` bytes long; it is `length` bytes long.
    pub(super) async fn open_part(
        path: PathBuf,
        start: u64,
        length: u64,
        digest: Digest,
        size: BlobOffset,
    ) -> Result<Self, RegistryError> {
        blocking(&path.clone(), move || {
            let (file, file_bytes) = open(&path)?;
            if length != size.get() || start.checked_add(length).is_none_or(|end| end > file_bytes) {
                return Err(RegistryError::FileChanged { path, expected_bytes: size.get(), actual_bytes: length });
            }
            Ok(Self { file: Arc::new(file), path, digest, size, start, file_bytes })
        })
        .await
    }

    fn unchanged(&self) -> Result<(), RegistryError> {
        let io = |source| RegistryError::Io { path: self.path.clone(), source };
        let actual_bytes = self.file.metadata().map_err(io)?.len();
        if actual_bytes == self.file_bytes {
            return Ok(());
        }
        Err(RegistryError::FileChanged { path: self.path.clone(), expected_bytes: self.file_bytes, actual_bytes })
    }
}

/// Digest, size and first bytes (at most 16) of a file.
pub(super) async fn measure(path: &Path) -> Result<(Digest, BlobOffset, Vec<u8>), RegistryError> {
    let owned = path.to_owned();
    blocking(path, move || {
        let (file, _) = open(&owned)?;
        let (mut hasher, mut at, mut head) = (DigestHasher::new(), 0_u64, Vec::new());
        let mut piece = vec![0; 1 << 20];
        loop {
            let io = |source| RegistryError::Io { path: owned.clone(), source };
            let n = file.read_at(&mut piece, at).map_err(io)?;
            let Some(bytes) = piece.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
            if at == 0 {
                head.extend_from_slice(&bytes[..n.min(16)]);
            }
            hasher.update(bytes);
            at += n as u64;
        }
        Ok((hasher.finish(), BlobOffset::new(at), head))
    })
    .await
}

impl BlobSource for FileBlob {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> BlobOffset {
        self.size
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        Box::pin(async move {
            if range.end() > self.size {
                return Err(RegistryError::WrongRange {
                    url: self.describe(),
                    asked: range,
                    blob_bytes: self.size.get(),
                    answered: "the range ends beyond the file".to_owned(),
                });
            }
            self.unchanged()?;
            let (start, expected_bytes) = (self.start, self.file_bytes);
            let state = Some((Arc::clone(&self.file), self.path.clone(), range.start()));
            let bytes = stream::unfold(state, move |state| async move {
                let (file, path, at) = state?;
                let left = range.end().bytes_since(at).filter(|left| *left > 0)?;
                let want = left.min(PIECE_BYTES);
                let read = {
                    let (file, path) = (Arc::clone(&file), path.clone());
                    blocking(&path.clone(), move || {
                        let mut piece = vec![0; usize::try_from(want).unwrap_or(0)];
                        match file.read_exact_at(&mut piece, start + at.get()) {
                            Ok(()) => Ok(Bytes::from(piece)),
                            Err(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                                let actual_bytes = file.metadata().map_or(0, |m| m.len());
                                Err(RegistryError::FileChanged { path, expected_bytes, actual_bytes })
                            }
                            Err(source) => Err(RegistryError::Io { path, source }),
                        }
                    })
                    .await
                };
                match (read, at.checked_add(want)) {
                    (Ok(piece), Some(next)) => Some((Ok(piece), Some((file, path, next)))),
                    (Ok(_), None) => None,
                    (Err(error), _) => Some((Err(error), None)),
                }
            });
            Ok(BlobStream { starts_at: range.start(), bytes: bytes.boxed() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> BlobRange {
        BlobRange::new(BlobOffset::new(start), BlobOffset::new(end)).expect("ordered")
    }

    async fn read(blob: &FileBlob, range: BlobRange) -> Result<Vec<u8>, RegistryError> {
        let mut stream = BlobSource::open(blob, range).await?;
        let mut all = Vec::new();
        while let Some(piece) = stream.bytes.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn ranges_of_a_file_and_its_digest() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("blob");
        let data: Vec<u8> = (0..700_000_u32).map(|i| i.to_le_bytes()[1]).collect();
        std::fs::write(&path, &data).expect("written");
        let (digest, size, head) = measure(&path).await.expect("measured");
        assert_eq!((digest, size.get(), &head[..]), (Digest::of(&data), 700_000, &data[..16]));
        let blob = FileBlob::open(path.clone(), digest, size).await.expect("opened");
        for (start, end) in [(0, 700_000), (1, 300_001), (5, 5), (699_999, 700_000)] {
            assert_eq!(read(&blob, range(start, end)).await.expect("read"), data[start as usize..end as usize]);
        }
        assert!(matches!(read(&blob, range(0, 700_001)).await, Err(RegistryError::WrongRange { .. })));
    }

    #[tokio::test]
    async fn a_file_that_changed_its_size_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("blob");
        std::fs::write(&path, b"0123456789").expect("written");
        let size = BlobOffset::new(10);
        let blob = FileBlob::open(path.clone(), Digest::of(b""), size).await.expect("opened");
        let mut early = BlobSource::open(&blob, range(0, 10)).await.expect("still whole");
        std::fs::write(&path, b"012345").expect("written");
        let error = early.bytes.next().await.expect("an item").expect_err("cut while it was read");
        assert!(matches!(error, RegistryError::FileChanged { actual_bytes: 6, .. }), "{error}");
        let error = read(&blob, range(0, 2)).await.expect_err("changed");
        assert!(matches!(error, RegistryError::FileChanged { actual_bytes: 6, .. }), "{error}");
        assert!(matches!(
            FileBlob::open(path, Digest::of(b""), size).await,
            Err(RegistryError::FileChanged { expected_bytes: 10, .. })
        ));
        let missing = FileBlob::open(dir.path().join("none"), Digest::of(b""), size).await;
        assert!(missing.is_err_and(|e| e.is_not_found()));
        assert!(FileBlob::open(dir.path().to_owned(), Digest::of(b""), size).await.is_err(), "a directory");
    }
}

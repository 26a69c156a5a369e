//! A zTOC while it is built, and when it is finished: nearly all of it are 32 KiB of history for each span, which wait on
//! disk, or in memory where that is asked for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::spans::ztoc::ZtocFrame;
use crate::units::u64_from_usize;

/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// The records of the checkpoints found so far.
#[derive(Debug)]
pub(super) enum Spool {
    Memory(Vec<u8>),
    /// A file without a name: it is gone when the process is.
    File {
        file: File,
        dir: PathBuf,
    },
}

impl Spool {
    /// In memory, or in a file in `dir`.
    pub(super) fn new(dir: Option<&Path>) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let Some(dir) = dir else { return Ok(Self::Memory(Vec::new())) };
        let name = format!("spool-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Self::File { file, dir: dir.to_owned() })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(all) => {
                all.extend_from_slice(bytes);
                Ok(())
            }
            Self::File { file, .. } => file.write_all(bytes),
        }
    }

    /// Where the bytes are, for messages.
    pub(super) fn place(&self) -> PathBuf {
        match self {
            Self::Memory(_) => PathBuf::new(),
            Self::File { dir, .. } => dir.clone(),
        }
    }
}

/// A finished zTOC.
#[derive(Debug)]
pub struct ZtocDocument {
    frame: ZtocFrame,
    spool: Spool,
}

impl ZtocDocument {
    pub(super) fn new(frame: ZtocFrame, spool: Spool) -> Self {
        Self { frame, spool }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        u64_from_usize(self.frame.head.len())
            .saturating_add(u64_from_usize(self.frame.checkpoint_bytes))
            .saturating_add(u64_from_usize(self.frame.tail.len()))
    }

    /// Writes it, needing little memory.
    ///
    /// # Errors
    /// When `out` fails, or the file that holds its checkpoints cannot be read.
    pub fn write_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.frame.head)?;
        match &mut self.spool {
            Spool::Memory(records) => out.write_all(records)?,
            Spool::File { file, .. } => {
                file.seek(SeekFrom::Start(0))?;
                let mut left = self.frame.checkpoint_bytes;
                let mut piece = vec![0; COPY_BYTES.min(left)];
                while left > 0 {
                    let now = piece.len().min(left);
                    let part = piece.get_mut(..now).unwrap_or_default();
                    file.read_exact(part)?;
                    out.write_all(part)?;
                    left -= now;
                }
            }
        }
        out.write_all(&self.frame.tail)
    }

    /// The whole document in memory.
    ///
    /// # Errors
    /// When the file that holds its checkpoints cannot be read.
    pub fn into_bytes(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.frame.head);
        bytes.reserve_exact(self.frame.checkpoint_bytes + self.frame.tail.len());
        match self.spool {
            Spool::Memory(records) => bytes.extend(records),
            Spool::File { mut file, .. } => {
                file.seek(SeekFrom::Start(0))?;
                let len = u64_from_usize(self.frame.checkpoint_bytes);
                file.take(len).read_to_end(&mut bytes)?;
            }
        }
        bytes.extend(self.frame.tail);
        Ok(bytes)
    }
}

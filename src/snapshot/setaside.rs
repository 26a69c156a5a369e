//! A database that cannot be read is no reason not to start: it is set aside, with the directories that it knew.
//!
//! Nothing of it is lost or touched: containers that run go on, on directories under another name, and layers that they
//! stand on stay shown for as long as what was set aside lies there. Why, and what containerd makes of it:
//! docs/decisions/snapshot-database.md.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::ErrorCode;

use super::SnapshotError;
use super::store::Store;

/// What follows the name of a file that was set aside; then the time in seconds.
const SUFFIX: &str = ".set-aside-";

/// Opens the database in `root`; one that is damaged, foreign or of another version goes first.
///
/// # Errors
/// When that does not help either: no space, no permission, somebody else has it open.
pub fn open(root: &Path) -> Result<Store, SnapshotError> {
    let path = root.join("snapshots.db");
    let error = match Store::open(&path) {
        Err(error) if unreadable(&error) => error,
        opened => return opened,
    };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The directories first: until the database has gone, too, this is done again at the next start.
    for name in ["snapshots", "snapshots.db-wal", "snapshots.db-shm", "snapshots.db"] {
        let (from, to) = (root.join(name), free_name(root, name, since.as_secs()));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => done.map_err(|source| SnapshotError::Io { path: from, source })?,
        }
    }
    tracing::error!(
        %error,
        "the database of snapshots cannot be read; it and its directories are set aside (*{SUFFIX}{}), and an empty one \
         is begun: remove the images of this snapshotter from containerd and pull them again",
        since.as_secs()
    );
    Store::open(&path)
}

/// Whether directories that were set aside lie in `root`.
pub fn any(root: &Path) -> bool {
    let prefix = format!("snapshots{SUFFIX}");
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
}

fn unreadable(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::ForeignDatabase { .. } => true,
        SnapshotError::Database { source, .. } => {
            matches!(source.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
        }
        _ => false,
    }
}

fn free_name(root: &Path, name: &str, seconds: u64) -> PathBuf {
    let first = root.join(format!("{name}{SUFFIX}{seconds}"));
    let others = (1..).map(|n: u64| root.join(format!("{name}{SUFFIX}{seconds}-{n}")));
    std::iter::once(first.clone()).chain(others).find(|path| path.symlink_metadata().is_err()).unwrap_or(first)
}

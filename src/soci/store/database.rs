//! The connection to `store.db`: opening, checking, setting aside, and what SQLite's errors mean.
//!
//! Rules of SQLite that this keeps (sqlite.org/wal.html, sqlite.org/howtocorrupt.html): a transaction that will write
//! begins as a writer (`BEGIN IMMEDIATE`), since a reader cannot wait for its promotion; switching to WAL does not wait
//! for others either, so only the holder of the store's lock does it; nobody opens the file but SQLite, since closing
//! any descriptor of it drops the process's locks; a file that others may have open is replaced only by the
//! holder of that lock, and everybody looks whether it is still the same file before each use.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::layout::{Locked, failed};
use super::locks::holders;
use super::steps::step;
use crate::database::{Check, Format, Found, write_ahead};
use crate::soci::SociError;

/// How long a lock of SQLite's is waited for.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// The page cache is kept small: questions are few, and the daemon has one connection for all its life.
pub(super) const FORMAT: Format = Format {
    // "sbk1"
    application_id: 0x7362_6b31,
    version: 2,
    schema: SCHEMA,
    cache_kib: 256,
    check: Check::Pages,
};

/// Digests are texts, so that people can ask with any SQLite tool. `docs/INDEX.md` explains the tables.
const SCHEMA: &str = "
CREATE TABLE artifacts (
    digest          TEXT PRIMARY KEY NOT NULL,
    kind            TEXT NOT NULL CHECK (kind IN ('ztoc', 'index-v1', 'index-v2', 'index-own', 'prefetch')),
    size_bytes      INTEGER NOT NULL CHECK (size_bytes >= 0),
    media_type      TEXT NOT NULL,
    artifact_type   TEXT NOT NULL,
    location        TEXT NOT NULL,
    created_at_ms   INTEGER NOT NULL,
    leased_until_ms INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE layer_ztocs (
    number          INTEGER PRIMARY KEY,
    layer           TEXT NOT NULL,
    ztoc            TEXT NOT NULL REFERENCES artifacts (digest) ON DELETE CASCADE,
    span_size_bytes INTEGER,
    UNIQUE (layer, ztoc)
) STRICT;
CREATE INDEX layer_ztocs_by_ztoc ON layer_ztocs (ztoc);
CREATE TABLE index_parts (
    index_digest     TEXT NOT NULL REFERENCES artifacts (digest) ON DELETE CASCADE,
    position         INTEGER NOT NULL,
    part             TEXT NOT NULL,
    layer            TEXT NOT NULL,
    layer_media_type TEXT NOT NULL,
    span_size_bytes  INTEGER,
    PRIMARY KEY (index_digest, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_parts_by_part ON index_parts (part);
CREATE INDEX index_parts_by_layer ON index_parts (layer);
CREATE TABLE images (
    number       INTEGER PRIMARY KEY,
    manifest     TEXT NOT NULL,
    index_digest TEXT NOT NULL REFERENCES artifacts (digest) ON DELETE CASCADE,
    image_ref    TEXT NOT NULL,
    platform     TEXT NOT NULL,
    set_by       TEXT NOT NULL CHECK (set_by IN ('user', 'create', 'registry')),
    UNIQUE (manifest, index_digest, image_ref, set_by)
) STRICT;
CREATE INDEX images_by_index ON images (index_digest);
CREATE INDEX images_by_ref ON images (image_ref);
";

/// Why a connection cannot be had, or a statement cannot be run.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The file is not there, or is empty: it must be made.
    Absent,
    /// The file is no database, or a broken one: it must be set aside and made anew.
    Damaged(String),
    /// The file is of a later version.
    Later(i64),
    /// Anything else, also that it is locked.
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => match error {
                // Values that our own schema and code cannot have written.
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..) => Self::Damaged(error.to_string()),
                error => Self::Sql(error),
            },
        }
    }
}

/// An open file and which one it is.
#[derive(Debug)]
pub(super) struct Opened {
    pub connection: Connection,
    identity: Identity,
}

/// Device and inode of a file.
pub(super) type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Where the database is, and what the store's lock is for it.
#[derive(Debug)]
pub(super) struct Database {
    pub path: PathBuf,
    /// How long a lock of SQLite's is waited for.
    pub busy_limit: Duration,
}

impl Database {
    /// Opens the existing file and checks it.
    pub fn open(&self) -> Result<Opened, Trouble> {
        let Some(before) = identity(&self.path) else { return Err(Trouble::Absent) };
        if let Some(reason) = self.unusable_file() {
            return Err(Trouble::Damaged(reason));
        }
        let connection = FORMAT.connect(&self.path, false, self.busy_limit)?;
        // Somebody who replaced it meanwhile holds the store's lock; ask again.
        if identity(&self.path) != Some(before) {
            return Err(Trouble::Absent);
        }
        Self::check(&connection)?;
        Ok(Opened { connection, identity: before })
    }

    /// Which file is at the path.
    pub fn identity(&self) -> Option<Identity> {
        identity(&self.path)
    }

    /// Whether the file that is open is still the one at the path.
    pub fn is_current(&self, opened: &Opened) -> bool {
        identity(&self.path) == Some(opened.identity)
    }

    /// What keeps the file from ever being opened; `None` for a file as it should be. Looks at it without opening it.
    fn unusable_file(&self) -> Option<String> {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| !m.is_file()) {
            return Some("not a regular file".to_owned());
        }
        let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
        match rustix::fs::access(&self.path, access) {
            // A file system that is read-only, or another user's file, is not repaired by another file.
            Err(rustix::io::Errno::IO) => Some("the disk cannot read it".to_owned()),
            _ => None,
        }
    }

    fn check(connection: &Connection) -> Result<(), Trouble> {
        match FORMAT.found(connection)? {
            // A process died before it had made the tables.
            Found::Empty => return Err(Trouble::Absent),
            Found::Ours => {}
            Found::OtherVersion(later) if later > FORMAT.version => return Err(Trouble::Later(later)),
            Found::OtherVersion(earlier) => return Err(Trouble::Damaged(format!("of an earlier version ({earlier})"))),
            Found::Foreign => return Err(Trouble::Damaged("a database of something else".to_owned())),
        }
        FORMAT.sickness(connection)?.map_or(Ok(()), |sickness| Err(Trouble::Damaged(sickness)))
    }

    /// Makes the database, filled by `fill`, in one transaction. The caller has seen that there is none, and holds the
    /// store's lock.
    pub fn create(
        &self,
        _lock: &Locked,
        fill: impl FnOnce(&Transaction<'_>) -> Result<(), SociError>,
    ) -> Result<Opened, SociError> {
        let error = |e: rusqlite::Error| self.describe(e.into());
        let mut connection = FORMAT.connect(&self.path, true, self.busy_limit).map_err(error)?;
        write_ahead(&connection).map_err(error)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        FORMAT.create(&transaction).map_err(error)?;
        fill(&transaction)?;
        transaction.commit().map_err(error)?;
        let identity = identity(&self.path).ok_or_else(|| failed(&self.path)(std::io::ErrorKind::NotFound.into()))?;
        Ok(Opened { connection, identity })
    }

    /// Where a damaged file is put.
    pub fn aside_path(&self) -> PathBuf {
        self.with_suffix(".damaged")
    }

    /// Puts a damaged file out of the way, in the place of the one before.
    pub fn set_aside(&self, _lock: &Locked) -> Result<(), SociError> {
        let aside = self.aside_path();
        if aside.is_dir() {
            std::fs::remove_dir_all(&aside).map_err(failed(&aside))?;
        }
        std::fs::rename(&self.path, &aside).map_err(failed(&self.path))?;
        step("aside: renamed")?;
        // The log goes second: one that is left behind by a crash is discarded, as belonging to an empty database.
        for suffix in ["-wal", "-shm"] {
            let path = self.with_suffix(suffix);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn with_suffix(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// What to tell.
    pub fn describe(&self, trouble: Trouble) -> SociError {
        let path = self.path.clone();
        let source = match trouble {
            Trouble::Later(found) => return SociError::LaterDatabase { path, found, known: FORMAT.version },
            Trouble::Damaged(reason) => return SociError::StoreDocument { path, reason },
            Trouble::Absent => return failed(&path)(std::io::ErrorKind::NotFound.into()),
            Trouble::Sql(source) => source,
        };
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                let (wal, shm) = (self.with_suffix("-wal"), self.with_suffix("-shm"));
                let holder = holders(&[&path, &wal, &shm]);
                SociError::Locked { path, holder, waited_s: self.busy_limit.as_secs() }
            }
            Some(ErrorCode::DiskFull) => failed(&path)(std::io::ErrorKind::StorageFull.into()),
            _ => SociError::Database { path, source: Box::new(source) },
        }
    }
}

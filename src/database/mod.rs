//! Opening of our SQLite files: one way to connect, to tell whose a file is, to make its tables, and to look at its health.
//!
//! What becomes of a file that cannot be used is the matter of whoever owns it: an artifact store is set aside and made anew
//! from what it indexes, a snapshot database is set aside with its directories, a queue is left for a person to look at.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

/// What a file of ours is like.
#[derive(Debug)]
pub struct Format {
    /// `PRAGMA application_id`: marks the file as ours.
    pub application_id: i64,
    /// `PRAGMA user_version`: version of `schema`.
    pub version: i64,
    /// Makes the tables.
    pub schema: &'static str,
    /// Pages that one connection keeps in memory.
    pub cache_kib: u32,
    /// How well it is looked at before it is used.
    pub check: Check,
}

/// What is checked of a file before it is used: bytes that others may have changed must not be met in the middle of
/// something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Only whose it is.
    Owner,
    /// `PRAGMA quick_check`, too.
    Pages,
    /// And that every reference leads somewhere.
    References,
}

/// Whose a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It has no tables yet: just made, or whoever made it died before.
    Empty,
    /// Ours, of this version.
    Ours,
    /// Ours, of another version.
    OtherVersion(i64),
    /// Somebody else's.
    Foreign,
}

impl Format {
    /// Connects, and says how. A lock of SQLite's is waited for up to `busy_limit`. Without `create` the file must be there.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn connect(&self, path: &Path, create: bool, busy_limit: Duration) -> rusqlite::Result<Connection> {
        let create = if create { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(busy_limit)?;
        connection.execute_batch(&format!(
            "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; \
             PRAGMA synchronous = FULL; PRAGMA cache_size = -{};",
            self.cache_kib
        ))?;
        Ok(connection)
    }

    /// Whose the file is.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn found(&self, connection: &Connection) -> rusqlite::Result<Found> {
        let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let tables = number("SELECT count(*) FROM sqlite_schema")?;
        Ok(match (number("PRAGMA application_id")?, number("PRAGMA user_version")?, tables) {
            (0, 0, 0) => Found::Empty,
            (id, version, _) if id == self.application_id && version == self.version => Found::Ours,
            (id, version, _) if id == self.application_id => Found::OtherVersion(version),
            _ => Found::Foreign,
        })
    }

    /// What is wrong with the file, in one line; `None` when nothing is, as far as [`Format::check`] goes.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn sickness(&self, connection: &Connection) -> rusqlite::Result<Option<String>> {
        if self.check == Check::Owner {
            return Ok(None);
        }
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Ok(Some(verdict.replace('\n', " ")));
        }
        let dangling = self.check == Check::References && connection.prepare("PRAGMA foreign_key_check")?.exists([])?;
        Ok(dangling.then(|| "a row is missing that another one speaks of".to_owned()))
    }

    /// Makes the tables.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn create(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        transaction.execute_batch(self.schema)?;
        transaction.pragma_update(None, "application_id", self.application_id)?;
        transaction.pragma_update(None, "user_version", self.version)
    }

    /// Opens or (with `create`) makes a file that one process uses, and checks it. A file that is not ours is returned as it
    /// is, with the word for it.
    ///
    /// # Errors
    /// What SQLite says; for a sick file that it is corrupt, with what is wrong.
    pub fn open(&self, path: &Path, create: bool, busy_limit: Duration) -> rusqlite::Result<(Connection, Found)> {
        let mut connection = self.connect(path, create, busy_limit)?;
        write_ahead(&connection)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = self.found(&transaction)?;
        match found {
            Found::Empty => self.create(&transaction)?,
            Found::Ours => {
                if let Some(sickness) = self.sickness(&transaction)? {
                    return Err(corrupt(sickness));
                }
            }
            Found::OtherVersion(_) | Found::Foreign => {}
        }
        transaction.commit()?;
        Ok((connection, found))
    }
}

/// Switches to the write-ahead log. A file system without shared memory keeps its rollback journal, which is as safe.
///
/// # Errors
/// What SQLite says.
pub fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)).map(drop)
}

/// The error of a file that is corrupt.
#[must_use]
pub fn corrupt(what: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format {
        application_id: 7,
        version: 2,
        schema: "CREATE TABLE a (id INTEGER PRIMARY KEY); \
                 CREATE TABLE b (a INTEGER REFERENCES a (id));",
        cache_kib: 64,
        check: Check::References,
    };
    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn a_file_is_made_found_again_and_told_from_others() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("x.db");
        assert!(FORMAT.open(&path, false, LIMIT).is_err(), "it is not there");
        assert!(matches!(FORMAT.open(&path, true, LIMIT), Ok((_, Found::Empty))));
        let (connection, found) = FORMAT.open(&path, false, LIMIT).expect("there");
        assert_eq!(found, Found::Ours);
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("mode");
        assert_eq!(mode, "wal");
        drop(connection);
        for (format, want) in [
            (Format { version: 1, ..FORMAT }, Found::OtherVersion(2)),
            (Format { application_id: 8, ..FORMAT }, Found::Foreign),
        ] {
            assert_eq!(format.open(&path, true, LIMIT).expect("opened").1, want);
        }
    }

    #[test]
    fn each_check_finds_its_sickness() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("x.db");
        let (connection, _) = FORMAT.open(&path, true, LIMIT).expect("made");
        connection.execute_batch("PRAGMA foreign_keys = OFF; INSERT INTO b VALUES (1);").expect("a dangling row");
        drop(connection);
        let error = FORMAT.open(&path, true, LIMIT).expect_err("dangling").to_string();
        assert!(error.contains("another one speaks of"), "{error}");
        for check in [Check::Owner, Check::Pages] {
            assert!(Format { check, ..FORMAT }.open(&path, true, LIMIT).is_ok(), "{check:?}");
        }
        std::fs::write(&path, vec![b'x'; 8192]).expect("overwritten");
        let error = Format { check: Check::Owner, ..FORMAT }.open(&path, true, LIMIT).expect_err("no database");
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::NotADatabase));
    }
}

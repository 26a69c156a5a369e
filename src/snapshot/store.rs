//! The snapshots' own database, `ROOT/snapshots.db`: names, kinds, parents, labels, with the rules of containerd's
//! metadata store (core/snapshots/storage).
//!
//! SQLite in WAL mode, synced at every commit: containerd remembers what it was told was done. One process at a time
//! has it open, the daemon; a transaction never spans anything but local statements.

mod changes;
mod rows;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use self::rows::{Refusal, Table, all_labels, may_create, not_found, read, snapshot, unsigned, with_labels};
use super::SnapshotError;
use super::info::{Content, Kind, Labels, Snapshot, SnapshotId, Usage};
use super::labels::SNAPSHOT_REF;
use crate::database::{Check, Format, Found, corrupt};

/// How long a lock of SQLite's is waited for: somebody may look at the file with a tool.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

const FORMAT: Format = Format {
    // "sbs1"
    application_id: 0x7362_7331,
    version: 1,
    schema: SCHEMA,
    cache_kib: 1024,
    check: Check::References,
};

const SCHEMA: &str = "
CREATE TABLE snapshots (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    parent     INTEGER REFERENCES snapshots (id),
    kind       TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    owner      TEXT UNIQUE,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    inodes     INTEGER NOT NULL DEFAULT 0,
    bytes      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX snapshots_by_parent ON snapshots (parent);
CREATE TABLE labels (
    snapshot INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (snapshot, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_by_value ON labels (key, value);
CREATE TABLE origins (
    snapshot INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (snapshot, key)
) STRICT, WITHOUT ROWID;
";

const COLUMNS: &str = "s.id, s.name, p.name, s.kind, s.owner, s.created_ns, s.updated_ns \
     FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent";

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// A snapshot to be made.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// Key, or name for one that is committed at once.
    pub name: &'a str,
    /// Name of the parent; empty for none.
    pub parent: &'a str,
    /// What it is for.
    pub kind: Kind,
    /// Where its files are.
    pub content: Content,
    /// Its labels.
    pub labels: &'a Labels,
}

impl Store {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// [`SnapshotError::Database`], [`SnapshotError::ForeignDatabase`].
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let opened = FORMAT.open(path, true, BUSY_LIMIT);
        let (connection, found) = opened.map_err(|source| SnapshotError::Database { path: path.to_owned(), source })?;
        match found {
            Found::Empty | Found::Ours => {}
            Found::OtherVersion(_) | Found::Foreign => {
                return Err(SnapshotError::ForeignDatabase { path: path.to_owned() });
            }
        }
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    fn run<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal>) -> Result<T, SnapshotError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let result = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        })();
        result.map_err(|refusal| match refusal {
            Refusal::Rule(error) => error,
            Refusal::Sql(source) => SnapshotError::Database { path: self.path.clone(), source },
        })
    }

    /// Whether [`Self::create`] would be refused.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn check_new(&self, name: &str, parent: &str) -> Result<(), SnapshotError> {
        self.run(|transaction| may_create(transaction, name, parent))
    }

    /// A snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn get(&self, name: &str) -> Result<Snapshot, SnapshotError> {
        self.run(|transaction| read(transaction, name)?.ok_or_else(|| not_found(name).into()))
    }

    /// A snapshot and those below it, the nearest first.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn chain(&self, name: &str) -> Result<Vec<Snapshot>, SnapshotError> {
        self.run(|transaction| {
            let mut chain: Vec<Snapshot> = Vec::new();
            let mut next = name.to_owned();
            while !next.is_empty() {
                let snapshot = read(transaction, &next)?.ok_or_else(|| not_found(&next))?;
                if chain.iter().any(|above| above.id == snapshot.id) {
                    return Err(corrupt(format!("snapshot {name} is its own parent")).into());
                }
                next.clone_from(&snapshot.info.parent);
                chain.push(snapshot);
            }
            Ok(chain)
        })
    }

    /// The committed snapshot of an image layer: of those labelled with this chain ID, the one on `parent`.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub fn find_layer(&self, chain_id: &str, parent: &str) -> Result<Option<Snapshot>, SnapshotError> {
        self.run(|transaction| {
            let sql = format!(
                "SELECT {COLUMNS} JOIN labels l ON l.snapshot = s.id AND l.key = ? AND l.value = ? \
                 WHERE s.kind = 'committed' AND coalesce(p.name, '') = ? LIMIT 1"
            );
            let mut statement = transaction.prepare(&sql)?;
            let found = statement.query_row([SNAPSHOT_REF, chain_id, parent], snapshot).optional()?;
            Ok(found.map(|found| with_labels(transaction, found)).transpose()?)
        })
    }

    /// All snapshots, by name.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub fn all(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        self.run(|transaction| {
            let mut statement = transaction.prepare(&format!("SELECT {COLUMNS} ORDER BY s.name"))?;
            let mut found = statement.query_map([], snapshot)?.collect::<Result<Vec<_>, _>>()?;
            let mut labels = all_labels(transaction, Table::Labels)?;
            let mut origins = all_labels(transaction, Table::Origins)?;
            for snapshot in &mut found {
                snapshot.info.labels = labels.remove(&snapshot.id).unwrap_or_default();
                if let Content::Layer { origin, .. } = &mut snapshot.content {
                    *origin = origins.remove(&snapshot.id).unwrap_or_default();
                }
            }
            Ok(found)
        })
    }

    /// Runs `work` on the numbers of all snapshots; meanwhile none is made and none goes.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub fn with_ids<T>(&self, work: impl FnOnce(&HashSet<SnapshotId>) -> T) -> Result<T, SnapshotError> {
        self.run(|transaction| {
            let mut statement = transaction.prepare("SELECT id FROM snapshots")?;
            let ids = statement.query_map([], |row| Ok(SnapshotId(row.get(0)?)))?.collect::<Result<_, _>>()?;
            Ok(work(&ids))
        })
    }

    /// What a snapshot took when it was committed.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn usage(&self, name: &str) -> Result<Usage, SnapshotError> {
        self.run(|transaction| {
            let found = transaction
                .query_row("SELECT inodes, bytes FROM snapshots WHERE name = ?", [name], |row| {
                    Ok(Usage { inodes: unsigned(row.get(0)?), bytes: unsigned(row.get(1)?) })
                })
                .optional()?;
            found.ok_or_else(|| not_found(name).into())
        })
    }
}

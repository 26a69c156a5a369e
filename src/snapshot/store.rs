//! The snapshots' own database, `ROOT/snapshots.db`: names, kinds, parents, labels, with the rules of containerd's
//! metadata store (core/snapshots/storage).
//!
//! SQLite in WAL mode, synced at every commit: containerd remembers what it was told was done. One process at a time
//! has it open, the daemon; a transaction never spans anything but local statements.

mod rows;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use self::rows::{
    Refusal, Table, all_labels, committed, damaged, may_create, not_found, read, row_of, signed, snapshot, to_ns,
    unsigned, with_labels, write_labels,
};
use super::SnapshotError;
use super::info::{Content, Info, Kind, Labels, Snapshot, SnapshotId, Usage};
use super::labels::SNAPSHOT_REF;

/// Marks the file as ours: "sbs1".
const APPLICATION_ID: i64 = 0x7362_7331;
/// Version of [`SCHEMA`].
const SCHEMA_VERSION: i64 = 1;
/// How long a lock of SQLite's is waited for: somebody may look at the file with a tool.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

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
        let opened = (|| {
            let mut connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_LIMIT)?;
            connection.execute_batch(
                "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA synchronous = FULL; \
                 PRAGMA foreign_keys = ON; PRAGMA cache_size = -1024;",
            )?;
            let _mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let number = |sql| transaction.query_row(sql, [], |row| row.get::<_, i64>(0));
            let found = (
                number("PRAGMA application_id")?,
                number("PRAGMA user_version")?,
                number("SELECT count(*) FROM sqlite_schema")?,
            );
            if found == (0, 0, 0) {
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            // Foreign bytes in our tables must not be met later, in the middle of something.
            let health: String = transaction.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if health != "ok" {
                return Err(damaged(health));
            }
            if transaction.prepare("PRAGMA foreign_key_check")?.exists([])? {
                return Err(damaged("a parent or a snapshot of labels is missing".to_owned()));
            }
            transaction.commit()?;
            Ok((connection, found))
        })();
        let (connection, found) = opened.map_err(|source| SnapshotError::Database { path: path.to_owned(), source })?;
        match found {
            (0, 0, 0) | (APPLICATION_ID, SCHEMA_VERSION, _) => {}
            _ => return Err(SnapshotError::ForeignDatabase { path: path.to_owned() }),
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

    /// Makes a snapshot. `place` makes what it needs on disk; where that fails, there is no snapshot. What it made stays
    /// when the database fails afterwards, and is in the way of nobody: see [`super::directories::Directories`].
    ///
    /// # Errors
    /// [`SnapshotError::Exists`], [`SnapshotError::NoParent`], [`SnapshotError::ParentNotCommitted`]; those of `place`.
    pub fn create(
        &self,
        new: &New<'_>,
        place: impl FnOnce(SnapshotId) -> Result<(), SnapshotError>,
    ) -> Result<Snapshot, SnapshotError> {
        self.run(|transaction| {
            may_create(transaction, new.name, new.parent)?;
            let parent = row_of(transaction, new.parent)?.map(|parent| parent.id.0);
            let now = to_ns(SystemTime::now());
            let (owner, origin) = match &new.content {
                Content::Directory => (None, None),
                Content::Layer { owner, origin } => (Some(owner), Some(origin)),
            };
            transaction.execute(
                "INSERT INTO snapshots (name, parent, kind, owner, created_ns, updated_ns) VALUES (?, ?, ?, ?, ?, ?)",
                params![new.name, parent, new.kind.word(), owner, now, now],
            )?;
            let id = transaction.last_insert_rowid();
            write_labels(transaction, Table::Labels, id, new.labels)?;
            if let Some(origin) = origin {
                write_labels(transaction, Table::Origins, id, origin)?;
            }
            place(SnapshotId(id))?;
            read(transaction, new.name)?.ok_or_else(|| not_found(new.name).into())
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
                    return Err(damaged(format!("snapshot {name} is its own parent")).into());
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

    /// Says with which labels a layer is to be brought back from now on.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn set_origin(&self, name: &str, origin: &Labels) -> Result<(), SnapshotError> {
        self.run(|transaction| {
            let row = row_of(transaction, name)?.ok_or_else(|| not_found(name))?;
            Ok(write_labels(transaction, Table::Origins, row.id.0, origin)?)
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

    /// Makes an active snapshot a committed one under a name of its own. Labels are only those given here. One without
    /// a parent may get one now (`parent`, empty for none).
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::NotActive`], [`SnapshotError::Exists`],
    /// [`SnapshotError::CannotUpdate`] for another parent than it has, [`SnapshotError::NoParent`],
    /// [`SnapshotError::ParentNotCommitted`].
    pub fn commit(
        &self,
        key: &str,
        name: &str,
        parent: &str,
        labels: &Labels,
        usage: Usage,
    ) -> Result<(), SnapshotError> {
        if name.is_empty() {
            return Err(SnapshotError::NoName);
        }
        self.run(|transaction| {
            if row_of(transaction, name)?.is_some() {
                return Err(SnapshotError::Exists { name: name.to_owned() }.into());
            }
            let Snapshot { id: SnapshotId(id), info, .. } = read(transaction, key)?.ok_or_else(|| not_found(key))?;
            if info.kind != Kind::Active {
                return Err(SnapshotError::NotActive { name: key.to_owned() }.into());
            }
            if !parent.is_empty() && info.parent != parent {
                if !info.parent.is_empty() {
                    let (name, field) = (key.to_owned(), "parent".to_owned());
                    return Err(SnapshotError::CannotUpdate { name, field }.into());
                }
                let parent = committed(transaction, parent)?;
                transaction.execute("UPDATE snapshots SET parent = ? WHERE id = ?", [parent.0, id])?;
            }
            let now = to_ns(SystemTime::now());
            transaction.execute(
                "UPDATE snapshots SET name = ?, kind = 'committed', created_ns = ?, updated_ns = ?, inodes = ?, bytes = ? \
                 WHERE id = ?",
                params![name, now, now, signed(usage.inodes), signed(usage.bytes), id],
            )?;
            Ok(write_labels(transaction, Table::Labels, id, labels)?)
        })
    }

    /// Forgets a snapshot without children and says which it was.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::HasChildren`].
    pub fn remove(&self, name: &str) -> Result<Snapshot, SnapshotError> {
        self.run(|transaction| {
            let snapshot = read(transaction, name)?.ok_or_else(|| not_found(name))?;
            let children: i64 =
                transaction
                    .query_row("SELECT count(*) FROM snapshots WHERE parent = ?", [snapshot.id.0], |row| row.get(0))?;
            if children > 0 {
                return Err(SnapshotError::HasChildren { name: name.to_owned() }.into());
            }
            transaction.execute("DELETE FROM snapshots WHERE id = ?", [snapshot.id.0])?;
            Ok(snapshot)
        })
    }

    /// Changes labels: all of them without `fields`, else those that `fields` name (`labels`, `labels.KEY`). An empty
    /// value removes a label.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::CannotUpdate`].
    pub fn update(&self, name: &str, wanted: &Labels, fields: &[String]) -> Result<Info, SnapshotError> {
        self.run(|transaction| {
            let mut snapshot = read(transaction, name)?.ok_or_else(|| not_found(name))?;
            let labels = &mut snapshot.info.labels;
            if fields.is_empty() || fields.iter().any(|field| field == "labels") {
                labels.clone_from(wanted);
            }
            for field in fields.iter().filter(|field| *field != "labels") {
                let Some(key) = field.strip_prefix("labels.") else {
                    return Err(SnapshotError::CannotUpdate { name: name.to_owned(), field: field.clone() }.into());
                };
                match wanted.get(key) {
                    Some(value) => labels.insert(key.to_owned(), value.clone()),
                    None => labels.remove(key),
                };
            }
            labels.retain(|_, value| !value.is_empty());
            snapshot.info.updated = SystemTime::now();
            transaction.execute(
                "UPDATE snapshots SET updated_ns = ? WHERE id = ?",
                params![to_ns(snapshot.info.updated), snapshot.id.0],
            )?;
            write_labels(transaction, Table::Labels, snapshot.id.0, &snapshot.info.labels)?;
            Ok(snapshot.info)
        })
    }
}

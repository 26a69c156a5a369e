//! Rows of the tables, and the rules that look at them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::COLUMNS;
use crate::snapshot::SnapshotError;
use crate::snapshot::info::{Content, Info, Kind, Labels, Snapshot, SnapshotId};

/// Why a transaction is given up.
pub(super) enum Refusal {
    Rule(SnapshotError),
    Sql(rusqlite::Error),
}

impl From<SnapshotError> for Refusal {
    fn from(error: SnapshotError) -> Self {
        Self::Rule(error)
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

pub(super) fn not_found(name: &str) -> SnapshotError {
    SnapshotError::NotFound { name: name.to_owned() }
}

/// What rules look at.
pub(super) struct RowHead {
    pub(super) id: SnapshotId,
    pub(super) kind: Kind,
}

pub(super) fn row_of(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<RowHead>> {
    transaction
        .prepare("SELECT id, kind FROM snapshots WHERE name = ?")?
        .query_row([name], |row| Ok(RowHead { id: SnapshotId(row.get(0)?), kind: kind(&row.get::<_, String>(1)?) }))
        .optional()
}

/// The row of one that may be a parent.
pub(super) fn committed(transaction: &Transaction<'_>, name: &str) -> Result<SnapshotId, Refusal> {
    match row_of(transaction, name)? {
        None => Err(SnapshotError::NoParent { parent: name.to_owned() }.into()),
        Some(row) if row.kind == Kind::Committed => Ok(row.id),
        Some(_) => Err(SnapshotError::ParentNotCommitted { parent: name.to_owned() }.into()),
    }
}

pub(super) fn may_create(transaction: &Transaction<'_>, name: &str, parent: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(SnapshotError::NoName.into());
    }
    if !parent.is_empty() {
        committed(transaction, parent)?;
    }
    match row_of(transaction, name)? {
        Some(_) => Err(SnapshotError::Exists { name: name.to_owned() }.into()),
        None => Ok(()),
    }
}

pub(super) fn read(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<Snapshot>> {
    let mut statement = transaction.prepare(&format!("SELECT {COLUMNS} WHERE s.name = ?"))?;
    let found = statement.query_row([name], snapshot).optional()?;
    found.map(|found| with_labels(transaction, found)).transpose()
}

/// A row; its labels are not in it.
pub(super) fn snapshot(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    let layer = |owner| Content::Layer { owner, origin: Labels::new() };
    Ok(Snapshot {
        id: SnapshotId(row.get(0)?),
        info: Info {
            name: row.get(1)?,
            parent: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
            kind: kind(&row.get::<_, String>(3)?),
            labels: Labels::new(),
            created: from_ns(row.get(5)?),
            updated: from_ns(row.get(6)?),
        },
        content: row.get::<_, Option<String>>(4)?.map_or(Content::Directory, layer),
    })
}

/// The two tables of labels: see [`Content::Layer`].
#[derive(Clone, Copy)]
pub(super) enum Table {
    Labels,
    Origins,
}

impl Table {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Origins => "origins",
        }
    }
}

pub(super) fn with_labels(transaction: &Transaction<'_>, mut snapshot: Snapshot) -> rusqlite::Result<Snapshot> {
    snapshot.info.labels = labels(transaction, Table::Labels, snapshot.id)?;
    if let Content::Layer { origin, .. } = &mut snapshot.content {
        *origin = labels(transaction, Table::Origins, snapshot.id)?;
    }
    Ok(snapshot)
}

pub(super) fn labels(transaction: &Transaction<'_>, table: Table, id: SnapshotId) -> rusqlite::Result<Labels> {
    let sql = format!("SELECT key, value FROM {} WHERE snapshot = ?", table.name());
    let mut statement = transaction.prepare(&sql)?;
    statement.query_map([id.0], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

pub(super) fn all_labels(transaction: &Transaction<'_>, table: Table) -> rusqlite::Result<HashMap<SnapshotId, Labels>> {
    let mut all: HashMap<SnapshotId, Labels> = HashMap::new();
    let mut statement = transaction.prepare(&format!("SELECT snapshot, key, value FROM {}", table.name()))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        all.entry(SnapshotId(row.get(0)?)).or_default().insert(row.get(1)?, row.get(2)?);
    }
    Ok(all)
}

/// Replaces a snapshot's labels. Those with an empty value are none, as containerd has it.
pub(super) fn write_labels(
    transaction: &Transaction<'_>,
    table: Table,
    id: i64,
    labels: &Labels,
) -> rusqlite::Result<()> {
    let table = table.name();
    transaction.prepare(&format!("DELETE FROM {table} WHERE snapshot = ?"))?.execute([id])?;
    let mut statement = transaction.prepare(&format!("INSERT INTO {table} (snapshot, key, value) VALUES (?, ?, ?)"))?;
    for (key, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
        statement.execute(params![id, key, value])?;
    }
    Ok(())
}

/// The words are checked by the schema.
pub(super) fn kind(word: &str) -> Kind {
    match word {
        "view" => Kind::View,
        "active" => Kind::Active,
        _ => Kind::Committed,
    }
}

pub(super) fn to_ns(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) fn from_ns(ns: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unsigned(ns))
}

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

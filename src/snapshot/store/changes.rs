//! What changes the tables.

use std::time::SystemTime;

use rusqlite::params;

use super::rows::{Table, committed, may_create, not_found, read, row_of, signed, to_ns, write_labels};
use super::{New, Store};
use crate::snapshot::SnapshotError;
use crate::snapshot::info::{Content, Info, Kind, Labels, Snapshot, SnapshotId, Usage};

impl Store {
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

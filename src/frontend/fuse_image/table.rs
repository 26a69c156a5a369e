//! The files that the session serves: names, inode numbers, and who holds them open.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Backend, FuseError};

/// Inode number of the directory (fixed by FUSE).
pub(super) const ROOT_INODE: u64 = 1;

/// One served image. Its inode number is never used again, so nothing the kernel still caches of a removed image can be
/// taken for another one's.
pub(super) struct Image {
    pub(super) inode: u64,
    pub(super) size_bytes: u64,
    pub(super) backend: Arc<dyn Backend>,
}

struct Row {
    name: OsString,
    image: Arc<Image>,
    opens: u64,
}

#[derive(Default)]
struct Rows {
    by_inode: BTreeMap<u64, Row>,
    by_name: HashMap<OsString, u64>,
    last_inode: u64,
}

/// All served images. The lock is held for look-ups only, never across I/O or a call into a backend.
#[derive(Default)]
pub(super) struct Table {
    rows: Mutex<Rows>,
    released: Condvar,
}

impl Table {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        // A panic under this lock cannot leave a half-made change that matters more than going on serving.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image under a free name.
    pub(super) fn add(&self, name: &OsStr, backend: Arc<dyn Backend>) -> Result<(), FuseError> {
        let bytes = name.as_bytes();
        if bytes.is_empty()
            || bytes.len() > 255
            || bytes.contains(&b'/')
            || bytes.contains(&0)
            || name == "."
            || name == ".."
        {
            return Err(FuseError::BadName { name: name.to_owned() });
        }
        let size_bytes = backend.size().get();
        let mut rows = self.rows();
        if rows.by_name.contains_key(name) {
            return Err(FuseError::Exists { name: name.to_owned() });
        }
        let inode = rows.last_inode.max(ROOT_INODE) + 1;
        rows.last_inode = inode;
        let image = Arc::new(Image { inode, size_bytes, backend });
        rows.by_inode.insert(inode, Row { name: name.to_owned(), image, opens: 0 });
        rows.by_name.insert(name.to_owned(), inode);
        Ok(())
    }

    /// Takes an image out, waiting up to `patience` for the kernel to close it.
    pub(super) fn remove(&self, name: &OsStr, patience: Duration) -> Result<(), FuseError> {
        let busy = |rows: &mut Rows| {
            rows.by_name.get(name).and_then(|inode| rows.by_inode.get(inode)).is_some_and(|row| row.opens > 0)
        };
        let (mut rows, _) =
            self.released.wait_timeout_while(self.rows(), patience, busy).unwrap_or_else(PoisonError::into_inner);
        if busy(&mut rows) {
            return Err(FuseError::Busy { name: name.to_owned() });
        }
        let inode = rows.by_name.remove(name).ok_or_else(|| FuseError::NotFound { name: name.to_owned() })?;
        rows.by_inode.remove(&inode);
        Ok(())
    }

    /// Waits up to `patience` until no image is open.
    pub(super) fn wait_unused(&self, patience: Duration) -> Result<(), FuseError> {
        let (rows, _) = self
            .released
            .wait_timeout_while(self.rows(), patience, |rows| rows.by_inode.values().any(|row| row.opens > 0))
            .unwrap_or_else(PoisonError::into_inner);
        match rows.by_inode.values().find(|row| row.opens > 0) {
            Some(row) => Err(FuseError::Busy { name: row.name.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn by_name(&self, name: &OsStr) -> Option<Arc<Image>> {
        let rows = self.rows();
        let inode = rows.by_name.get(name)?;
        rows.by_inode.get(inode).map(|row| Arc::clone(&row.image))
    }

    pub(super) fn by_inode(&self, inode: u64) -> Option<Arc<Image>> {
        self.rows().by_inode.get(&inode).map(|row| Arc::clone(&row.image))
    }

    /// Counts an open; `false` when the image has gone.
    pub(super) fn open(&self, inode: u64) -> bool {
        self.rows().by_inode.get_mut(&inode).map(|row| row.opens += 1).is_some()
    }

    pub(super) fn release(&self, inode: u64) {
        if let Some(row) = self.rows().by_inode.get_mut(&inode) {
            row.opens = row.opens.saturating_sub(1);
        }
        self.released.notify_all();
    }

    /// Names and inode numbers after inode `after`, in inode order.
    pub(super) fn list_after(&self, after: u64, limit: usize) -> Vec<(u64, OsString)> {
        let from = after.saturating_add(1);
        self.rows().by_inode.range(from..).take(limit).map(|(inode, row)| (*inode, row.name.clone())).collect()
    }

    /// Drops all images, and with them what the session holds of their backends.
    pub(super) fn clear(&self) {
        let mut rows = self.rows();
        rows.by_inode.clear();
        rows.by_name.clear();
    }
}

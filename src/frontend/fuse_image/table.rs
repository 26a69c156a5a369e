//! The files that the session serves: names and inode numbers.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Backend, FuseError};
use crate::sys::fuse::ROOT_ID;

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
}

#[derive(Default)]
struct Rows {
    by_inode: BTreeMap<u64, Row>,
    by_name: HashMap<OsString, u64>,
    last_inode: u64,
}

impl Rows {
    fn insert(&mut self, name: &OsStr, inode: u64, backend: Arc<dyn Backend>) -> Result<(), FuseError> {
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
        if self.by_name.contains_key(name) {
            return Err(FuseError::Exists { name: name.to_owned() });
        }
        self.last_inode = self.last_inode.max(inode);
        let image = Arc::new(Image { inode, size_bytes: backend.size().get(), backend });
        self.by_inode.insert(inode, Row { name: name.to_owned(), image });
        self.by_name.insert(name.to_owned(), inode);
        Ok(())
    }
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

    /// Adds an image under a free name; returns its inode number.
    pub(super) fn add(&self, name: &OsStr, backend: Arc<dyn Backend>) -> Result<u64, FuseError> {
        let mut rows = self.rows();
        let inode = rows.last_inode.max(ROOT_ID) + 1;
        rows.insert(name, inode, backend)?;
        Ok(inode)
    }

    /// Adds an image that an earlier server of this connection had under `inode`.
    pub(super) fn restore(&self, name: &OsStr, inode: u64, backend: Arc<dyn Backend>) -> Result<(), FuseError> {
        let mut rows = self.rows();
        if inode <= ROOT_ID || rows.by_inode.contains_key(&inode) {
            return Err(FuseError::Exists { name: name.to_owned() });
        }
        rows.insert(name, inode, backend)
    }

    /// The highest inode number that was ever given.
    pub(super) fn last_inode(&self) -> u64 {
        self.rows().last_inode
    }

    /// Numbers from a place of this connection's own: should an image ever be asked for over a connection that is not
    /// its own, it is not there, instead of being another one.
    pub(super) fn choose_inodes(&self) {
        const ROOM: u64 = 1 << 32;
        let random = RandomState::new().build_hasher().finish();
        self.skip_inodes((random / ROOM).saturating_mul(ROOM) >> 2);
    }

    /// Numbers up to this one are never given again.
    pub(super) fn skip_inodes(&self, last: u64) {
        let mut rows = self.rows();
        rows.last_inode = rows.last_inode.max(last);
    }

    pub(super) fn inode_of(&self, name: &OsStr) -> Option<u64> {
        self.rows().by_name.get(name).copied()
    }

    /// Takes an image out.
    pub(super) fn remove(&self, name: &OsStr) {
        let mut rows = self.rows();
        if let Some(inode) = rows.by_name.remove(name) {
            rows.by_inode.remove(&inode);
        }
    }

    /// The kernel has closed a file.
    pub(super) fn released(&self) {
        self.released.notify_all();
    }

    /// Waits until the kernel closes a file, at most for `limit`.
    pub(super) fn await_release(&self, limit: Duration) {
        drop(self.released.wait_timeout(self.rows(), limit).unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn by_name(&self, name: &OsStr) -> Option<Arc<Image>> {
        let rows = self.rows();
        let inode = rows.by_name.get(name)?;
        rows.by_inode.get(inode).map(|row| Arc::clone(&row.image))
    }

    pub(super) fn by_inode(&self, inode: u64) -> Option<Arc<Image>> {
        self.rows().by_inode.get(&inode).map(|row| Arc::clone(&row.image))
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

//! What the session serves: names and inode numbers.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Content, FuseError};
use crate::sys::fuse::ROOT_ID;

/// One name. Its numbers are never used again, so nothing the kernel still caches of what was removed can be taken for
/// something else.
struct Row {
    name: OsString,
    content: Content,
}

#[derive(Default)]
struct Rows {
    /// By the first of its numbers.
    by_first: BTreeMap<u64, Row>,
    by_name: HashMap<OsString, u64>,
    last_inode: u64,
}

impl Rows {
    fn insert(&mut self, name: &OsStr, first: u64, content: Content) -> Result<(), FuseError> {
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
        let taken = || FuseError::Exists { name: name.to_owned() };
        let last = first.checked_add(content.served().number_limit().saturating_sub(1)).ok_or_else(taken)?;
        let below = self.by_first.range(..=last).next_back();
        let free = below.is_none_or(|(at, row)| at.saturating_add(row.content.served().number_limit()) <= first);
        if first <= ROOT_ID || !free {
            return Err(taken());
        }
        self.last_inode = self.last_inode.max(last);
        self.by_first.insert(first, Row { name: name.to_owned(), content });
        self.by_name.insert(name.to_owned(), first);
        Ok(())
    }
}

/// All that is served. The lock is held for look-ups only, never across I/O or a call into a backend.
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

    /// Adds a content under a free name; returns the first of its inode numbers.
    pub(super) fn add(&self, name: &OsStr, content: Content) -> Result<u64, FuseError> {
        let mut rows = self.rows();
        let first = rows.last_inode.max(ROOT_ID) + 1;
        rows.insert(name, first, content)?;
        Ok(first)
    }

    /// Adds what an earlier server of this connection had under numbers from `first` on.
    pub(super) fn restore(&self, name: &OsStr, first: u64, content: Content) -> Result<(), FuseError> {
        self.rows().insert(name, first, content)
    }

    /// The highest inode number that was ever given.
    pub(super) fn last_inode(&self) -> u64 {
        self.rows().last_inode
    }

    /// Numbers from a place of this connection's own, with room for `2^room_bits` of them: should one ever be asked for
    /// over a connection that is not its own, it is not there, instead of being another one.
    pub(super) fn choose_inodes(&self, room_bits: u32) {
        let random = RandomState::new().build_hasher().finish();
        // Below 2^62: nobody takes them for negative.
        self.skip_inodes(random >> 2 >> room_bits << room_bits);
    }

    /// Numbers up to this one are never given again.
    pub(super) fn skip_inodes(&self, last: u64) {
        let mut rows = self.rows();
        rows.last_inode = rows.last_inode.max(last);
    }

    /// The inode that a name means.
    pub(super) fn inode_of(&self, name: &OsStr) -> Option<u64> {
        self.by_name(name).map(|(first, content)| first + content.served().root())
    }

    /// Takes a name out.
    pub(super) fn remove(&self, name: &OsStr) {
        let mut rows = self.rows();
        if let Some(first) = rows.by_name.remove(name) {
            rows.by_first.remove(&first);
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

    /// What a name means, and its first number.
    pub(super) fn by_name(&self, name: &OsStr) -> Option<(u64, Content)> {
        let rows = self.rows();
        let first = *rows.by_name.get(name)?;
        rows.by_first.get(&first).map(|row| (first, row.content.clone()))
    }

    /// What an inode belongs to, and the first number of that.
    pub(super) fn find(&self, inode: u64) -> Option<(u64, Content)> {
        let rows = self.rows();
        let (first, row) = rows.by_first.range(..=inode).next_back()?;
        (inode - first < row.content.served().number_limit()).then(|| (*first, row.content.clone()))
    }

    /// First numbers, names and contents after number `after`, in their order.
    pub(super) fn list_after(&self, after: u64, limit: usize) -> Vec<(u64, OsString, Content)> {
        let from = after.saturating_add(1);
        let rows = self.rows();
        let rows = rows.by_first.range(from..).take(limit);
        rows.map(|(first, row)| (*first, row.name.clone(), row.content.clone())).collect()
    }

    /// Drops everything, and with it what the session holds of backends.
    pub(super) fn clear(&self) {
        let mut rows = self.rows();
        rows.by_first.clear();
        rows.by_name.clear();
    }
}

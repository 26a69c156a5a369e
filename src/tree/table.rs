//! (directory, name) to dentry number: the one hash table of a growing tree.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::node::{Dentry, InodeId, Names};

/// Open addressing over dentry numbers; a key is found by looking at the dentry. Nothing is ever removed: a name that
/// changes its meaning keeps its dentry and gets another inode. The hasher has a random key, since names are foreign.
#[derive(Default)]
pub(super) struct Table {
    /// 0 is free, else dentry number + 1.
    slots: Vec<u32>,
    used: usize,
    hasher: RandomState,
}

impl Table {
    fn hash(&self, parent: InodeId, name: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(parent.0);
        hasher.write(name);
        hasher.finish()
    }

    /// The slot that holds the key, or the free one where it belongs.
    fn slot(&self, dentries: &[Dentry], names: &Names, parent: InodeId, name: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        // Truncation is fine: any bits of the hash will do.
        #[allow(clippy::cast_possible_truncation)]
        let mut at = self.hash(parent, name) as usize & mask;
        loop {
            let Some(number) = self.slots[at].checked_sub(1) else { return at };
            let dentry = &dentries[number as usize];
            if dentry.parent == parent && names.get(dentry.name) == name {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    /// The dentry of this name.
    pub(super) fn find(&self, dentries: &[Dentry], names: &Names, parent: InodeId, name: &[u8]) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let at = self.slot(dentries, names, parent, name);
        self.slots[at].checked_sub(1).map(|number| number as usize)
    }

    /// Enters the last of `dentries`, whose name must be new.
    pub(super) fn enter_last(&mut self, dentries: &[Dentry], names: &Names) {
        let Some(last) = dentries.len().checked_sub(1) else { return };
        if self.slots.len() < (self.used + 1) * 2 {
            self.slots = vec![0; (self.slots.len() * 2).max(1024)];
            for number in 0..last {
                self.put(dentries, names, number);
            }
        }
        self.put(dentries, names, last);
        self.used += 1;
    }

    fn put(&mut self, dentries: &[Dentry], names: &Names, number: usize) {
        let dentry = &dentries[number];
        let at = self.slot(dentries, names, dentry.parent, names.get(dentry.name));
        // The number of dentries is bounded by the number of inodes and links, each a u32.
        self.slots[at] = u32::try_from(number + 1).unwrap_or(u32::MAX);
    }
}

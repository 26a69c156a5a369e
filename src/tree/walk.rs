//! From names to directories of a growing tree.

use smallvec::SmallVec;

use super::TreeError;
use super::build::Builder;
use super::error::shown;
use super::node::{Body, Inode, InodeId, NameRef};
use super::path::{MAX_DEPTH, MAX_NAME_BYTES, WHITEOUT, clean};

/// Symbolic links followed on the way to one entry's directory; Linux gives up after as many (ELOOP).
const MAX_SYMLINK_HOPS: u32 = 40;

/// Path components walked because of symbolic links, over all entries. Real layers need a few per entry at most; the
/// limit keeps a hostile table of contents from costing minutes.
const MAX_SYMLINK_STEPS: u64 = 1 << 26;

/// The directory of the entry before, by its text as it stands in the tar: neighbours mostly share it.
pub(super) struct LastDir {
    text: Vec<u8>,
    dir: InodeId,
}

/// Whether a walk makes the directories that are missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Refuse,
}

impl Builder {
    /// The directory and the last name of an entry, making missing directories; `None` for the root.
    pub(super) fn locate<'n>(&mut self, full: &'n [u8]) -> Result<Option<(InodeId, &'n [u8])>, TreeError> {
        let trimmed = full.strip_suffix(b"/").unwrap_or(full);
        let cut = trimmed.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        let (dir_text, name) = trimmed.split_at(cut);
        let plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        if plain
            && name.len() <= MAX_NAME_BYTES
            && let Some(last) = &self.last_dir
            && last.text == dir_text
        {
            return Ok(Some((last.dir, name)));
        }
        let parts = clean(full)?;
        let Some((&name, dirs)) = parts.split_last() else { return Ok(None) };
        if dirs.iter().any(|d| d.starts_with(WHITEOUT)) {
            // Something inside of what is itself bookkeeping (`.wh..wh.plnk/`): no directory is made for it, and the
            // name given back is one without a meaning.
            return Ok(Some((InodeId::ROOT, WHITEOUT)));
        }
        let dir = self.walk(dirs, full, Missing::Make)?.unwrap_or(InodeId::ROOT);
        if plain {
            self.last_dir = Some(LastDir { text: dir_text.to_vec(), dir });
        }
        Ok(Some((dir, name)))
    }

    /// The inode of a name, following symbolic links in its directories but not the name itself.
    pub(super) fn find(&mut self, full: &[u8]) -> Result<Option<InodeId>, TreeError> {
        let parts = clean(full)?;
        let Some((&name, dirs)) = parts.split_last() else { return Ok(Some(InodeId::ROOT)) };
        Ok(self.walk(dirs, full, Missing::Refuse)?.and_then(|dir| self.child(dir, name)))
    }

    fn walk(&mut self, dirs: &[&[u8]], full: &[u8], missing: Missing) -> Result<Option<InodeId>, TreeError> {
        let mut at: SmallVec<[InodeId; 16]> = SmallVec::new();
        for (i, name) in dirs.iter().enumerate() {
            let here = at.last().copied().unwrap_or(InodeId::ROOT);
            if let Some(child) = self.child(here, name)
                && let Body::Symlink { target } = self.inodes[child.index()].body
            {
                return self.walk_links(at, target, &dirs[i + 1..], full, missing);
            }
            let Some(next) = self.step(here, name, missing)? else { return Ok(None) };
            at.push(next);
        }
        Ok(Some(at.last().copied().unwrap_or(InodeId::ROOT)))
    }

    /// Goes on with a walk that has met a symbolic link: the link counts from the layer's root and cannot leave it,
    /// as when containerd unpacks.
    fn walk_links(
        &mut self,
        mut at: SmallVec<[InodeId; 16]>,
        target: NameRef,
        rest: &[&[u8]],
        full: &[u8],
        missing: Missing,
    ) -> Result<Option<InodeId>, TreeError> {
        let mut todo: Vec<Vec<u8>> = rest.iter().rev().map(|part| part.to_vec()).collect();
        let mut hops = 0;
        self.enter_target(target, &mut at, &mut todo);
        while let Some(part) = todo.pop() {
            self.symlink_steps += 1;
            if self.symlink_steps > MAX_SYMLINK_STEPS {
                return Err(TreeError::TooManySymlinks { path: shown(full) });
            }
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ if part.len() > MAX_NAME_BYTES => {
                    return Err(TreeError::NameTooLong { path: shown(full), len_bytes: part.len() });
                }
                _ => {}
            }
            let here = at.last().copied().unwrap_or(InodeId::ROOT);
            if let Some(child) = self.child(here, &part)
                && let Body::Symlink { target } = self.inodes[child.index()].body
            {
                hops += 1;
                if hops >= MAX_SYMLINK_HOPS {
                    return Err(TreeError::TooManySymlinks { path: shown(full) });
                }
                self.enter_target(target, &mut at, &mut todo);
                continue;
            }
            if at.len() >= MAX_DEPTH {
                return Err(TreeError::TooDeep { path: shown(full) });
            }
            let Some(next) = self.step(here, &part, missing)? else { return Ok(None) };
            at.push(next);
        }
        Ok(Some(at.last().copied().unwrap_or(InodeId::ROOT)))
    }

    fn enter_target(&self, target: NameRef, at: &mut SmallVec<[InodeId; 16]>, todo: &mut Vec<Vec<u8>>) {
        let target = self.names.get(target);
        if target.starts_with(b"/") {
            at.clear();
        }
        todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
    }

    /// One directory down. What is there but no directory gives way when directories are to be made: the entry that
    /// needs it came later.
    fn step(&mut self, here: InodeId, name: &[u8], missing: Missing) -> Result<Option<InodeId>, TreeError> {
        match self.child(here, name) {
            Some(child) if self.inodes[child.index()].is_dir() => Ok(Some(child)),
            _ if missing == Missing::Refuse => Ok(None),
            _ => {
                let made = self.new_inode(Inode::IMPLIED_DIR)?;
                self.enter(here, name, made)?;
                Ok(Some(made))
            }
        }
    }
}

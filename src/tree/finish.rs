//! Closes a growing tree: late hard links, whiteouts, order.

use super::build::Builder;
use super::error::shown;
use super::node::{Body, Dentry, Inode, InodeId, NameRef, NodeKind};
use super::xattr::Xattr;
use super::{Tree, TreeError};
use crate::units::u64_from_usize;

/// What overlayfs needs on a directory that hides the same directory of the layers below.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// What makes overlayfs filter whiteouts out of the listing of a directory that it does not merge
/// (kernel-notes/overlay-whiteouts.md).
const ORIGIN: (&[u8], &[u8]) = (b"trusted.overlay.origin", b"");

impl Builder {
    pub(super) fn finish(mut self) -> Result<Tree, TreeError> {
        self.join_waiting_links()?;
        self.place_whiteouts()?;
        Ok(self.into_order())
    }

    /// Gives every name of a link that came before its target the target's inode.
    fn join_waiting_links(&mut self) -> Result<(), TreeError> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut found = Vec::with_capacity(waiting.len());
        for link in &waiting {
            let error_names = || (shown(&link.path), shown(&link.target));
            let mut target = self.find(&link.target)?;
            // A chain visits each waiting link once at most; a longer one runs in a circle.
            let mut steps = 0;
            let inode = loop {
                let Some(inode) = target else {
                    let (path, target) = error_names();
                    return Err(TreeError::LinkTargetMissing { path, target });
                };
                match self.inodes[inode.index()].body {
                    Body::Waiting { link: next } => {
                        steps += 1;
                        let next = waiting.get(next as usize).filter(|_| steps <= MAX_LINK_CHAIN.min(waiting.len()));
                        let Some(next) = next else {
                            let (path, target) = error_names();
                            return Err(TreeError::LinkCycle { path, target });
                        };
                        target = self.find(&next.target)?;
                    }
                    Body::Dir { .. } => {
                        let (path, target) = error_names();
                        return Err(TreeError::LinkToDirectory { path, target });
                    }
                    _ => break inode,
                }
            };
            found.push((link.inode, inode));
        }
        if found.is_empty() {
            return Ok(());
        }
        // In the order of creation, hence sorted by the waiting inode.
        for dentry in &mut self.dentries {
            if let Ok(at) = found.binary_search_by_key(&dentry.inode, |&(waiting, _)| waiting) {
                dentry.inode = found[at].1;
            }
        }
        Ok(())
    }

    fn place_whiteouts(&mut self) -> Result<(), TreeError> {
        let whiteouts = std::mem::take(&mut self.whiteouts);
        // A whiteout hides the layers below only. Where the layer has a directory of that name itself, hiding means
        // that nothing below shows through: the directory is opaque. Must be known before the next step.
        let mut to_place: Vec<(InodeId, NameRef)> = Vec::with_capacity(whiteouts.len());
        for whiteout in whiteouts {
            let name = self.names.get(whiteout.name);
            match self.child(whiteout.parent, name) {
                None => to_place.push((whiteout.parent, whiteout.name)),
                Some(own) => {
                    let own = &mut self.inodes[own.index()];
                    own.opaque |= own.is_dir();
                    self.omissions.idle_whiteouts += u64::from(!own.is_dir());
                }
            }
        }
        for (parent, name) in to_place {
            let name = self.names.get(name).to_vec();
            if self.inodes[parent.index()].opaque {
                self.omissions.idle_whiteouts += 1;
            } else if self.child(parent, &name).is_none() {
                let inode = self.new_inode(Inode::WHITEOUT)?;
                self.enter(parent, &name, inode)?;
                self.inodes[parent.index()].holds_whiteout = true;
            }
        }
        Ok(())
    }

    /// Numbers what can be reached from the root in path order and drops the rest.
    fn into_order(mut self) -> Tree {
        let mut by_dir = ByDir::new(self.inodes.len(), &self.dentries);
        let mut new_ids = vec![UNSEEN; self.inodes.len()];
        let mut inodes: Vec<Inode> = Vec::new();
        let mut dentries: Vec<Dentry> = Vec::with_capacity(self.dentries.len());
        let mut dirs = vec![(InodeId::ROOT, InodeId::ROOT)];
        while let Some((old, parent)) = dirs.pop() {
            let id = InodeId(number(inodes.len()));
            new_ids[old.index()] = id.0;
            let children = by_dir.children_mut(old);
            children.sort_unstable_by(|&a, &b| {
                let name = |d: u32| self.names.get(self.dentries[d as usize].name);
                name(a).cmp(name(b))
            });
            let (first, count) = (number(dentries.len()), number(children.len()));
            inodes.push(Inode { body: Body::Dir { parent, first, count }, nlink: 2, ..self.inodes[old.index()] });
            for &child in &*children {
                let child = self.dentries[child as usize];
                dentries.push(Dentry { parent: id, ..child });
                let inode = self.inodes[child.inode.index()];
                if inode.is_dir() {
                    inodes[id.index()].nlink += 1;
                    continue;
                }
                let seen = &mut new_ids[child.inode.index()];
                if *seen == UNSEEN {
                    *seen = number(inodes.len());
                    inodes.push(Inode { nlink: 0, ..inode });
                }
                inodes[*seen as usize].nlink += 1;
            }
            // The first subdirectory is taken next.
            let subdirs = children.iter().rev().map(|&child| self.dentries[child as usize].inode);
            dirs.extend(subdirs.filter(|child| self.inodes[child.index()].is_dir()).map(|child| (child, id)));
        }
        for dentry in &mut dentries {
            dentry.inode = InodeId(new_ids[dentry.inode.index()]);
        }
        for inode in &mut inodes {
            if !inode.opaque && !inode.holds_whiteout {
                continue;
            }
            let mut set: Vec<Xattr> = self.xattrs.set(inode.xattrs).cloned().collect();
            let marks = [(inode.opaque, OPAQUE), (inode.holds_whiteout, ORIGIN)];
            set.extend(marks.iter().filter(|(on, _)| *on).map(|(_, (name, value))| Xattr::new(name, value)));
            inode.xattrs = self.xattrs.intern(set);
        }
        self.omissions.bare_whiteouts = u64_from_usize(inodes.iter().filter(|i| is_bare_whiteout(i)).count());
        let xattrs = self.xattrs.without_lookup();
        Tree { inodes, dentries, names: self.names, xattrs, omissions: self.omissions }
    }
}

/// Longest chain of hard links that come before their targets. Real tars have none; the limit keeps a hostile layer of
/// n such links from costing n² steps.
const MAX_LINK_CHAIN: usize = 1000;

/// No new number yet.
const UNSEEN: u32 = u32::MAX;

/// Counts in a tree stay below [`super::TreeOptions::max_inodes`], a u32.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn is_bare_whiteout(inode: &Inode) -> bool {
    inode.kind() == NodeKind::Char && matches!(inode.body, Body::Char { major: 0, minor: 0 })
}

/// Dentry numbers grouped by directory: one counting sort instead of a list per directory.
struct ByDir {
    starts: Vec<u32>,
    dentries: Vec<u32>,
}

impl ByDir {
    fn new(inode_count: usize, dentries: &[Dentry]) -> Self {
        let mut starts = vec![0_u32; inode_count + 1];
        for dentry in dentries {
            starts[dentry.parent.index() + 1] += 1;
        }
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut next = starts.clone();
        let mut grouped = vec![0; dentries.len()];
        for (i, dentry) in dentries.iter().enumerate() {
            let slot = &mut next[dentry.parent.index()];
            grouped[*slot as usize] = number(i);
            *slot += 1;
        }
        Self { starts, dentries: grouped }
    }

    fn children_mut(&mut self, dir: InodeId) -> &mut [u32] {
        let (from, to) = (self.starts[dir.index()] as usize, self.starts[dir.index() + 1] as usize);
        &mut self.dentries[from..to]
    }
}

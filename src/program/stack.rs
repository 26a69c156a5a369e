//! Paths of an image, looked up through its layers as overlayfs would show them.

use std::cell::Cell;
use std::collections::VecDeque;

use super::MAX_PATH_BYTES;
use crate::tree::{NodeKind, NodeView, Tree};
use crate::units::{LayerRange, u64_from_usize};

/// Symbolic links in one path, as Linux allows them (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Names that are looked up in directories of layers before nothing is found any more. An image with a hundred layers and a large
/// program takes some hundred thousand, one with ten layers and a large program in Python some millions.
const MAX_STEPS: u64 = 20_000_000;

/// The trees of an image's layers.
pub struct Stack {
    /// The lowest first; `None` for layers of which nothing is known.
    trees: Vec<Option<Tree>>,
    steps_left: Cell<u64>,
}

/// A regular file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its layer, counted from the lowest.
    pub layer: usize,
    /// Its bytes there; none of an empty file.
    pub data: Option<LayerRange>,
    /// Its directory, without symbolic links and without a leading `/`.
    pub dir: Vec<u8>,
    /// Its name there.
    pub name: Vec<u8>,
}

impl Stack {
    /// Of trees, the lowest first.
    #[must_use]
    pub fn new(trees: Vec<Option<Tree>>) -> Self {
        Self { trees, steps_left: Cell::new(MAX_STEPS) }
    }

    /// The regular file that a path leads to, symbolic links followed. Paths are those of the root directory, with or
    /// without a leading `/`.
    #[must_use]
    pub fn file(&self, path: &[u8]) -> Option<Place> {
        let (layer, node, mut at) = self.walk(path)?;
        let name = at.pop().filter(|_| node.kind() == NodeKind::File)?;
        Some(Place { layer, data: node.data(), dir: at.join(&b'/'), name })
    }

    /// Whether a path leads to a directory.
    pub(super) fn is_dir(&self, path: &[u8]) -> bool {
        self.walk(path).is_some_and(|(_, node, _)| node.kind() == NodeKind::Dir)
    }

    /// Whether so much was looked up that the rest should be kept for what has been found.
    #[must_use]
    pub fn is_tired(&self) -> bool {
        self.steps_left.get() < MAX_STEPS / 4
    }

    fn spend(&self, steps: usize) -> Option<()> {
        let steps = u64_from_usize(steps);
        let left = self.steps_left.get().checked_sub(steps);
        self.steps_left.set(left.unwrap_or(0));
        left.map(drop)
    }

    /// What a path leads to, its layer, and the names that lead there without symbolic links.
    fn walk(&self, path: &[u8]) -> Option<(usize, NodeView<'_>, Vec<Vec<u8>>)> {
        if path.len() > MAX_PATH_BYTES || self.steps_left.get() == 0 {
            return None;
        }
        let mut left: VecDeque<Vec<u8>> = parts(path).collect();
        self.spend(left.len())?;
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut found = None;
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == b".." {
                at.pop();
                found = None;
                continue;
            }
            at.push(name);
            let (layer, node) = self.look(&at)?;
            found = Some((layer, node));
            match node.kind() {
                NodeKind::Dir => {}
                NodeKind::File if left.is_empty() => {}
                NodeKind::Symlink if links < MAX_LINKS => {
                    links += 1;
                    let target = node.target().filter(|target| target.len() <= MAX_PATH_BYTES)?;
                    if target.starts_with(b"/") {
                        at.clear();
                    } else {
                        at.pop();
                    }
                    let parts: Vec<_> = parts(target).collect();
                    self.spend(parts.len())?;
                    for part in parts.into_iter().rev() {
                        left.push_front(part);
                    }
                    found = None;
                }
                _ => return None,
            }
        }
        let (layer, node) = found.or_else(|| self.look(&at))?;
        Some((layer, node, at))
    }

    /// The topmost layer that shows a path, unless something above hides it. Symbolic links are not followed.
    fn look(&self, path: &[Vec<u8>]) -> Option<(usize, NodeView<'_>)> {
        for (layer, tree) in self.trees.iter().enumerate().rev() {
            let Some(tree) = tree else { continue };
            let mut node = Some(tree.root());
            let mut hides = false;
            for (depth, name) in path.iter().enumerate() {
                let Some(dir) = node else { break };
                self.spend(1)?;
                hides |= dir.is_opaque();
                node = dir.child(name);
                if depth + 1 < path.len() && node.is_some_and(|node| node.kind() != NodeKind::Dir) {
                    return None;
                }
            }
            match node {
                Some(node) if node.kind() == NodeKind::Whiteout => return None,
                Some(node) => return Some((layer, node)),
                None if hides => return None,
                None => {}
            }
        }
        None
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}

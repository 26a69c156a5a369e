//! Table tests, and random logs played against a slow model.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::spans::{EntryKind, ModTime, TocEntry};
use crate::units::LayerRange;

/// An entry of mode 0640 (directories 0750), owned by `uid`:7.
fn entry(name: &str, kind: EntryKind, linkname: &str, uid: u32) -> TocEntry<'static> {
    TocEntry {
        name: Cow::Owned(name.as_bytes().to_vec()),
        kind,
        data: LayerRange::from_len(LayerOffset::new(512), if kind == EntryKind::Reg { 5 } else { 0 }).expect("range"),
        linkname: Cow::Owned(linkname.as_bytes().to_vec()),
        mode: if kind == EntryKind::Dir { 0o750 } else { 0o640 },
        uid,
        gid: 7,
        uname: Cow::Borrowed(b""),
        gname: Cow::Borrowed(b""),
        mtime: ModTime { secs: -5, nanos: 6 },
        devmajor: 1,
        devminor: 3,
        pax: vec![],
    }
}

fn file(name: &str) -> TocEntry<'static> {
    entry(name, EntryKind::Reg, "", 1)
}

fn dir(name: &str) -> TocEntry<'static> {
    entry(name, EntryKind::Dir, "", 2)
}

fn link(name: &str, target: &str) -> TocEntry<'static> {
    entry(name, EntryKind::Hardlink, target, 3)
}

fn symlink(name: &str, target: &str) -> TocEntry<'static> {
    entry(name, EntryKind::Symlink, target, 4)
}

fn with_xattr(mut entry: TocEntry<'static>, name: &str, value: &'static [u8]) -> TocEntry<'static> {
    entry.pax.push((Cow::Owned(format!("SCHILY.xattr.{name}").into_bytes()), Cow::Borrowed(value)));
    entry
}

fn options() -> TreeOptions {
    TreeOptions::new(LayerOffset::new(1 << 20))
}

fn build(entries: Vec<TocEntry<'static>>) -> Result<Tree, TreeError> {
    Tree::build(entries.into_iter().map(Ok::<_, Infallible>), options())
}

fn tree(entries: Vec<TocEntry<'static>>) -> Tree {
    build(entries).expect("a tree")
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.walk().map(|(path, _)| String::from_utf8(path).expect("UTF-8")).collect()
}

fn kind(tree: &Tree, path: &str) -> Option<NodeKind> {
    tree.lookup(path.as_bytes()).map(|n| n.kind())
}

fn xattr(tree: &Tree, path: &str, name: &str) -> Option<Vec<u8>> {
    tree.lookup(path.as_bytes())?.xattrs().find(|x| *x.name == *name.as_bytes()).map(|x| x.value.to_vec())
}

#[test]
fn an_empty_layer_is_a_root_of_0755() {
    let tree = tree(vec![]);
    let root = tree.root();
    assert_eq!((root.mode(), root.uid(), root.nlink(), tree.inode_count()), (0o755, 0, 2, 1));
    assert!(!root.is_implied());
}

#[test]
fn missing_parents_are_made_and_known_as_implied() {
    let tree = tree(vec![file("a/b/c"), dir("a/")]);
    let b = tree.lookup(b"a/b").expect("b");
    assert_eq!((b.mode(), b.uid(), b.mtime(), b.nlink()), (0o755, 0, ModTime::default(), 2));
    assert_eq!(tree.implied_dirs(), [b"/a/b".to_vec()]);
    assert_eq!(tree.lookup(b"a").map(|a| (a.mode(), a.nlink())), Some((0o750, 3)));
}

#[test]
fn the_last_entry_of_a_name_wins_and_directories_merge() {
    let tree = tree(vec![
        dir("."),
        dir("d"),
        file("d/kept"),
        entry("d", EntryKind::Dir, "", 9),
        file("gone/inner"),
        file("gone"),
        file("up"),
        file("up/child"),
        entry("f", EntryKind::Reg, "", 5),
        entry("f", EntryKind::Fifo, "", 6),
    ]);
    assert_eq!(paths(&tree), ["/", "/d", "/d/kept", "/f", "/gone", "/up", "/up/child"]);
    assert_eq!(tree.root().uid(), 2);
    assert_eq!(tree.lookup(b"d").map(|d| d.uid()), Some(9));
    assert_eq!((kind(&tree, "gone"), kind(&tree, "up")), (Some(NodeKind::File), Some(NodeKind::Dir)));
    assert_eq!(kind(&tree, "f"), Some(NodeKind::Fifo));
}

#[test]
fn hard_links_join_names_wherever_their_target_stands() {
    let tree = tree(vec![
        link("early", "./late"),
        link("earlier", "early"),
        file("late"),
        link("x/self", "late"),
        file("v"),
        link("old", "v"),
        symlink("v", "elsewhere"),
        link("v2", "v"),
    ]);
    let id = |p: &str| tree.lookup(p.as_bytes()).expect("present").id();
    assert!(id("early") == id("late") && id("earlier") == id("late") && id("x/self") == id("late"));
    assert_eq!(tree.lookup(b"late").map(|n| (n.nlink(), n.uid())), Some((4, 1)));
    assert_eq!((kind(&tree, "old"), kind(&tree, "v2")), (Some(NodeKind::File), Some(NodeKind::Symlink)));
    assert_eq!(id("v"), id("v2"));
}

#[test]
fn bad_entries_end_in_errors_that_name_them() {
    let mut beyond = file("big");
    beyond.data = LayerRange::from_len(LayerOffset::new(512), 1 << 20).expect("range");
    let mut wide = entry("dev", EntryKind::Char, "", 0);
    wide.devmajor = 4096;
    for (entries, want) in [
        (vec![link("a", "b")], r#""a": its target "b" is not in this layer"#),
        (vec![link("a", "b"), link("b", "a")], r#""a": following its target "b""#),
        (vec![link("a", "a")], r#""a": following its target "a""#),
        (vec![dir("d"), link("a", "d")], r#""a": its target "d" is a directory"#),
        (vec![link("a", "d"), dir("d")], r#""a": its target "d" is a directory"#),
        (vec![beyond], r#""big": its data [512, 1049088) reach beyond the layer of 1048576 bytes"#),
        (vec![wide], r#""dev": device 4096:3"#),
        (vec![symlink("s", "")], r#""s": a symbolic link needs a target"#),
        (vec![symlink("s", &"t".repeat(4096))], "1 to 4095 bytes"),
        (vec![file(&"n".repeat(256))], "a name of 256 bytes"),
        (vec![file(&".wh.".repeat(80))], "a name of 320 bytes"),
        (vec![file("a\0")], "zero byte"),
        (vec![symlink("a", "b"), symlink("b", "a"), file("a/f")], "too many symbolic links"),
    ] {
        let error = build(entries).expect_err(want).to_string();
        assert!(error.contains(want), "{error:?} should contain {want:?}");
    }
    let few = TreeOptions { max_inodes: 3, ..options() };
    let entries = ["a", "b", "c"].map(|n| Ok::<_, Infallible>(file(n)));
    assert!(matches!(Tree::build(entries, few), Err(TreeError::TooManyInodes { limit: 3 })));
    let failing = [Err::<TocEntry<'_>, _>("flatbuffer ends early")];
    assert!(matches!(Tree::build(failing, options()), Err(TreeError::Entries { .. })));
}

#[test]
fn whiteouts_hide_lower_names_only() {
    let tree = tree(vec![
        file("d/.wh.gone"),
        file("d/.wh.own"),
        file("d/own"),
        file("o/.wh.idle"),
        file("o/.wh..wh..opq"),
        file("o/new"),
        file(".wh.dir"),
        file("dir/inner"),
        file(".wh."),
        file(".wh..wh.plnk/1.2"),
        file(".wh..wh.aufs"),
        dir("n/.wh.typed"),
    ]);
    assert_eq!(paths(&tree), ["/", "/d", "/d/gone", "/d/own", "/dir", "/dir/inner", "/n", "/n/typed", "/o", "/o/new"]);
    let gone = tree.lookup(b"d/gone").expect("whiteout");
    assert_eq!((gone.kind(), gone.mode(), gone.device(), gone.uid()), (NodeKind::Whiteout, 0, Some((0, 0)), 0));
    assert_eq!(xattr(&tree, "d", "trusted.overlay.origin"), Some(vec![]));
    assert_eq!(xattr(&tree, "o", "trusted.overlay.origin"), None);
    for (dir, opaque) in [("o", true), ("dir", true), ("d", false), ("n", false), ("/", false)] {
        assert_eq!(xattr(&tree, dir, "trusted.overlay.opaque"), opaque.then(|| b"y".to_vec()), "{dir}");
    }
    let omissions = tree.omissions();
    assert_eq!((omissions.ignored_entries, omissions.idle_whiteouts), (3, 2));
}

#[test]
fn an_image_cannot_give_orders_to_overlayfs() {
    let tree = tree(vec![
        with_xattr(with_xattr(dir("d"), "trusted.overlay.redirect", b"/etc"), "user.mine", b"1"),
        with_xattr(file("f"), "system.other", b"x"),
        entry("zero", EntryKind::Char, "", 0),
    ]);
    assert_eq!(tree.lookup(b"d").map(|d| d.xattrs().len()), Some(1));
    assert_eq!(xattr(&tree, "d", "user.mine"), Some(b"1".to_vec()));
    let omissions = tree.omissions();
    assert_eq!((omissions.overlay_xattrs, omissions.inexpressible_xattrs, omissions.bare_whiteouts), (1, 1, 0));
}

#[test]
fn directories_behind_symbolic_links_of_the_same_layer_are_followed_within_the_layer() {
    let tree = tree(vec![
        symlink("lib", "usr/lib"),
        file("lib/a"),
        symlink("abs", "/usr/./lib"),
        file("abs/b"),
        symlink("out", "../../../usr"),
        file("out/lib/c"),
        link("hard", "lib/a"),
        file("lib/a"),
    ]);
    assert_eq!(
        paths(&tree),
        ["/", "/abs", "/hard", "/lib", "/out", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/b", "/usr/lib/c"]
    );
    assert_eq!(tree.lookup(b"lib").and_then(|l| l.target()), Some(&b"usr/lib"[..]));
}

#[test]
fn implied_directories_take_what_the_nearest_lower_layer_has() {
    let base = tree(vec![with_xattr(dir("a"), "user.k", b"v"), dir("a/b"), dir("hidden"), dir("replaced")]);
    let middle = tree(vec![dir("a/b/x"), file(".wh.hidden"), file("replaced"), file("o/.wh..wh..opq")]);
    let mut middle_inherited = middle.clone();
    assert!(middle_inherited.inherit(|path| attributes_below([&base], path)).is_some());
    let mut top = tree(vec![file("a/b/f"), file("a/.wh.x"), file("hidden/f"), file("replaced/f"), file("o/f")]);
    let alone = top.clone();
    let digest = top.inherit(|path| attributes_below([&middle_inherited, &base], path));
    let mode = |p: &str| top.lookup(p.as_bytes()).map(|n| (n.mode(), n.uid()));
    assert_eq!((mode("a"), mode("a/b")), (Some((0o750, 2)), Some((0o750, 2))));
    assert_eq!(xattr(&top, "a", "user.k"), Some(b"v".to_vec()));
    assert_eq!(xattr(&top, "a", "trusted.overlay.origin"), Some(vec![]));
    for dir in ["hidden", "replaced", "o"] {
        assert_eq!(mode(dir), Some((0o755, 0)), "{dir}");
    }
    assert_eq!(xattr(&top, "o", "trusted.overlay.opaque"), None);
    let mut again = alone.clone();
    assert_eq!(again.inherit(|path| attributes_below([&middle_inherited, &base], path)), digest);
    assert_eq!(alone.clone().inherit(|_| None), None);
    assert_ne!(alone.clone().inherit(|path| attributes_below([&middle], path)), digest);
}

/// What a path means in the slow model.
#[derive(Clone, Debug, PartialEq)]
enum Model {
    Dir {
        uid: u32,
        opaque: bool,
        origin: bool,
    },
    /// `group`: the entry that made the inode.
    Other {
        kind: NodeKind,
        group: usize,
    },
    Whiteout,
}

#[derive(Clone, Default)]
struct SlowTree {
    nodes: BTreeMap<String, Model>,
    whiteouts: BTreeMap<String, ()>,
}

impl SlowTree {
    fn remove_below(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|p, _| p != path && !p.starts_with(&below));
        self.whiteouts.retain(|p, ()| !p.starts_with(&below));
    }

    fn add(&mut self, number: usize, e: &TocEntry<'_>) -> Result<(), ()> {
        let name = String::from_utf8(e.name.to_vec()).expect("UTF-8");
        let parts: Vec<&str> = name.split('/').collect();
        let (last, dirs) = parts.split_last().expect("a name");
        let mut parent = String::new();
        for part in dirs {
            parent = format!("{parent}/{part}");
            if !matches!(self.nodes.get(&parent), Some(Model::Dir { .. })) {
                self.nodes.insert(parent.clone(), Model::Dir { uid: 0, opaque: false, origin: false });
            }
        }
        let path = format!("{parent}/{last}");
        if *last == ".wh..wh..opq" {
            if let Some(Model::Dir { opaque, .. }) = self.nodes.get_mut(&parent) {
                *opaque = true;
            }
        } else if let Some(hidden) = last.strip_prefix(".wh.") {
            self.whiteouts.insert(format!("{parent}/{hidden}"), ());
        } else if e.kind == EntryKind::Hardlink {
            let target = format!("/{}", String::from_utf8(e.linkname.to_vec()).expect("UTF-8"));
            match self.nodes.get(&target).cloned() {
                Some(other @ Model::Other { .. }) if target != path => {
                    self.remove_below(&path);
                    self.nodes.insert(path, other);
                }
                Some(Model::Other { .. }) => {}
                _ => return Err(()),
            }
        } else if e.kind == EntryKind::Dir {
            let opaque = matches!(self.nodes.get(&path), Some(Model::Dir { opaque: true, .. }));
            self.nodes.insert(path, Model::Dir { uid: e.uid, opaque, origin: false });
        } else {
            let kind = if e.kind == EntryKind::Reg { NodeKind::File } else { NodeKind::Fifo };
            self.remove_below(&path);
            self.nodes.insert(path, Model::Other { kind, group: number });
        }
        Ok(())
    }

    fn finish(mut self) -> BTreeMap<String, Model> {
        for path in self.whiteouts.keys() {
            if let Some(Model::Dir { opaque, .. }) = self.nodes.get_mut(path) {
                *opaque = true;
            }
        }
        for path in self.whiteouts.keys() {
            let parent = &path[..path.rfind('/').expect("a slash")];
            if self.nodes.contains_key(path) || matches!(self.nodes.get(parent), Some(Model::Dir { opaque: true, .. }))
            {
                continue;
            }
            if let Some(Model::Dir { origin, .. }) = self.nodes.get_mut(parent) {
                *origin = true;
            }
            self.nodes.insert(path.clone(), Model::Whiteout);
        }
        self.nodes
    }
}

fn random_entries() -> impl Strategy<Value = Vec<TocEntry<'static>>> {
    let part = prop::sample::select(vec!["a", "b", "c"]);
    let dirs = prop::collection::vec(part.clone(), 0..3);
    let last = prop::sample::select(vec!["a", "b", "c", "a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq"]);
    let kind = prop::sample::select(vec![EntryKind::Reg, EntryKind::Dir, EntryKind::Fifo, EntryKind::Hardlink]);
    let target = prop::collection::vec(part, 1..3);
    let one = (dirs, last, kind, target).prop_map(|(dirs, last, kind, target)| {
        let name = dirs.iter().copied().chain([last]).collect::<Vec<_>>().join("/");
        entry(&name, kind, &target.join("/"), 0)
    });
    // Markers directly in the root would need a root in the model: keep them one level down.
    let one = one.prop_filter("marker in the root", |e| !e.name.starts_with(b".wh."));
    prop::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn random_logs_give_what_the_slow_model_gives(entries in random_entries()) {
        let mut slow = SlowTree::default();
        let mut kept = Vec::new();
        for (number, mut e) in entries.into_iter().enumerate() {
            e.uid = u32::try_from(number).expect("few") + 1;
            // Links without a file as target are judged in the table tests.
            let mut next = slow.clone();
            if next.add(number, &e).is_ok() {
                slow = next;
                kept.push(e);
            }
        }
        let groups: Vec<usize> = kept.iter().map(|e| e.uid as usize - 1).collect();
        let tree = tree(kept);
        let mut nlinks: BTreeMap<InodeId, u32> = BTreeMap::new();
        let got: BTreeMap<String, Model> = tree
            .walk()
            .skip(1)
            .map(|(path, node)| {
                let path = String::from_utf8(path).expect("UTF-8");
                let model = match node.kind() {
                    NodeKind::Dir => Model::Dir {
                        uid: node.uid(),
                        opaque: xattr(&tree, &path, "trusted.overlay.opaque").is_some(),
                        origin: xattr(&tree, &path, "trusted.overlay.origin").is_some(),
                    },
                    NodeKind::Whiteout => Model::Whiteout,
                    kind => {
                        *nlinks.entry(node.id()).or_default() += 1;
                        Model::Other { kind, group: node.uid() as usize - 1 }
                    }
                };
                (path, model)
            })
            .collect();
        prop_assert_eq!(got, slow.finish());
        for node in tree.inodes() {
            if let Some(&count) = nlinks.get(&node.id()) {
                prop_assert_eq!(count, node.nlink());
                prop_assert!(groups.contains(&(node.uid() as usize - 1)));
            }
        }
    }
}

//! Layers stacked by overlayfs: what an upper layer hides, what its directories look like.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::MetadataExt;

use sociblk::erofs::BlockSize;
use sociblk::spans::{EntryKind, TocEntry};
use sociblk::tree::{Tree, TreeOptions, attributes_below};
use sociblk::units::LayerOffset;

use crate::hard_cases::entry;
use crate::support::{self, Mount, Scratch, missing, skipped, write_image, write_tree};

#[test]
fn an_upper_layer_hides_the_right_names_of_a_lower_one() {
    let name = "an_upper_layer_hides_the_right_names_of_a_lower_one";
    if let Some(what) = missing("erofs").or_else(|| missing("overlay")) {
        return skipped(name, &what);
    }
    let scratch = Scratch::new();
    let corpus = support::shipped_corpus();
    let mut lowers = Vec::new();
    for (layer, dir) in [("upper-whiteouts.tar.gz", "upper"), ("edge-pax.tar.gz", "lower")] {
        let image = scratch.path(&format!("{dir}.image"));
        write_image(&corpus.join(layer), BlockSize::B4096, &image);
        lowers.push(Mount::erofs(&image, &scratch.dir(dir)));
    }
    // Alone: an upper layer shown through overlayfs must not list its own whiteouts either.
    let alone = Mount::overlay(&[lowers[0].dir(), &scratch.dir("nothing")], &scratch.dir("alone"));
    assert_eq!(support::names(&alone.dir().join("bin")), [""; 0]);
    drop(alone);

    let merged = Mount::overlay(&[lowers[0].dir(), lowers[1].dir()], &scratch.dir("merged"));
    let root = merged.dir();
    let list = |dir: &str| support::names(&root.join(dir));
    assert_eq!(list("bin"), ["abs-link", "dangling", "tool"]);
    assert_eq!(list("implicit"), ["new"]);
    assert!(!list("").contains(&"tmp".to_owned()));
    assert!(root.join("dev").is_file());
    assert_eq!(list("empty"), ["now-a-dir"]);
    assert_eq!(fs::read(root.join("one")).expect("one"), b"2");
    assert_eq!(list("opaque-after"), ["child"]);
    assert_eq!(list("late-parent"), ["child"]);
    for hidden in ["bin/alias", "bin/link", "tmp", "implicit/parents"] {
        assert!(root.join(hidden).symlink_metadata().is_err(), "{hidden}");
    }
    drop(merged);
    // Mounts end in the reverse order of their making.
    while lowers.pop().is_some() {}
}

fn tree(entries: Vec<TocEntry<'static>>) -> Tree {
    let options = TreeOptions::new(LayerOffset::ZERO);
    Tree::build(entries.into_iter().map(Ok::<_, Infallible>), options).expect("a tree")
}

fn pipes(names: &[&str]) -> Vec<TocEntry<'static>> {
    names.iter().map(|name| entry(*name, EntryKind::Fifo)).collect()
}

#[test]
fn markers_of_every_place_hide_what_they_should_and_nothing_else() {
    let name = "markers_of_every_place_hide_what_they_should_and_nothing_else";
    if let Some(what) = missing("erofs").or_else(|| missing("overlay")) {
        return skipped(name, &what);
    }
    let mut base = pipes(&["own/x", "own/sub/x", "opaque/x", "opaque/in/c", "kept/a/b/c", "kept/a/b/d", "gone/x"]);
    base.push(entry("kept", EntryKind::Dir));
    base.push(entry("kept/a", EntryKind::Dir));
    let base = tree(base);
    let mut upper = tree(pipes(&[
        ".wh.own",
        "own/new",
        "own/sub/new",
        "opaque/in/.wh.c",
        "opaque/in/new",
        "opaque/.wh..wh..opq",
        "kept/a/b/.wh.c",
        ".wh.gone",
        "alone/.wh.nothing",
        "alone/here",
        "alone/deeper/.wh.nothing",
    ]));
    assert!(upper.inherit(|path| attributes_below([&base], path)).is_some());
    let scratch = Scratch::new();
    for form in [BlockSize::B4096, BlockSize::B512] {
        let image = |tree: &Tree, name: &str| {
            let path = scratch.path(name);
            // Not the same bytes for both: their digest makes the identity of the file system.
            write_tree(tree, name.as_bytes(), form, &path);
            Mount::erofs(&path, &scratch.dir(&format!("{name}.mnt")))
        };
        let (lower, upper) = (image(&base, "base"), image(&upper, "upper"));
        let merged = Mount::overlay(&[upper.dir(), lower.dir()], &scratch.dir("merged"));
        for (dir, want) in [
            ("", &["alone", "kept", "opaque", "own"][..]),
            ("own", &["new", "sub"]),
            ("own/sub", &["new"]),
            ("opaque", &["in"]),
            ("opaque/in", &["new"]),
            ("kept/a/b", &["d"]),
            ("alone", &["deeper", "here"]),
            ("alone/deeper", &[]),
        ] {
            assert_eq!(support::names(&merged.dir().join(dir)), want, "{dir:?}");
        }
        let stat = |dir: &str| fs::metadata(merged.dir().join(dir)).expect("stat");
        for dir in ["kept", "kept/a"] {
            assert_eq!((stat(dir).mode() & 0o7777, stat(dir).uid(), stat(dir).mtime()), (0o6751, 70_000, -3), "{dir}");
        }
        assert_eq!((stat("alone").mode() & 0o7777, stat("alone").uid(), stat("alone").mtime()), (0o755, 0, 0));
        drop(merged);
    }
}

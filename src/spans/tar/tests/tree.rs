//! Python's tarfile as a foreign judge: `NAME.tree.json` holds the tree that it finds in each layer of the corpus.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::units::Digest;

/// The absolute, normalized form of a path in a tar.
fn normal(name: &[u8]) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let name = std::str::from_utf8(name).expect("names of the corpus are UTF-8");
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => parts.truncate(parts.len().saturating_sub(1)),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn describe(entry: &TocEntry<'_>, tar: &[u8]) -> Value {
    let kind = match entry.kind {
        EntryKind::Hardlink => return json!({"type": "hardlink", "target": normal(&entry.linkname)}),
        EntryKind::Reg => "file",
        other => other.as_str(),
    };
    let mut value = json!({"type": kind, "mode": entry.mode & 0o7777, "uid": entry.uid, "gid": entry.gid});
    let range = entry.data.start().get()..entry.data.end().get();
    let data = &tar[usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small")];
    match entry.kind {
        EntryKind::Reg => {
            value["size"] = json!(data.len());
            value["sha256"] = json!(Digest::of(data).hex());
        }
        EntryKind::Symlink => value["target"] = json!(std::str::from_utf8(&entry.linkname).expect("UTF-8")),
        EntryKind::Char | EntryKind::Block => {
            value["major"] = json!(entry.devmajor);
            value["minor"] = json!(entry.devminor);
        }
        EntryKind::Dir | EntryKind::Fifo | EntryKind::Hardlink => {}
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let xattrs: BTreeMap<String, String> =
        entry.xattrs().map(|(name, value)| (text(name), hex::encode(value))).collect();
    if !xattrs.is_empty() {
        value["xattrs"] = json!(xattrs);
    }
    value
}

/// The tree of one layer: the last entry of a path wins, whiteouts are listed as such.
fn tree(entries: &[TocEntry<'_>], tar: &[u8]) -> BTreeMap<String, (Value, i64)> {
    let mut tree = BTreeMap::new();
    for entry in entries {
        let path = normal(&entry.name);
        let (parent, base) = path.rsplit_once('/').expect("absolute");
        match base.strip_prefix(".wh.") {
            Some(".wh..opq") => continue,
            Some(hidden) => tree.insert(format!("{parent}/{hidden}"), (json!({"type": "whiteout"}), 0)),
            None => tree.insert(path.clone(), (describe(entry, tar), entry.mtime.secs)),
        };
    }
    tree
}

#[test]
fn trees_are_those_of_python() {
    for file in corpus::ztocs() {
        let layer = corpus::layer_of(&file.name);
        let judge = corpus::tree_of(&layer.name);
        let tar = inflate(layer);
        let toc = index(&tar).unwrap_or_else(|e| panic!("{}: {e}", file.name));
        let ours = tree(&toc.entries, &tar);
        let mut theirs: Value = serde_json::from_slice(&judge.bytes).expect("JSON");
        let theirs = theirs["entries"].as_object_mut().expect("entries");
        assert_eq!(ours.len(), theirs.len(), "{}", file.name);
        for (path, (entry, secs)) in ours {
            let want = theirs.get_mut(&path).unwrap_or_else(|| panic!("{}: {path} is not in the tree", file.name));
            let mtime = want.as_object_mut().and_then(|want| want.remove("mtime")).and_then(|mtime| mtime.as_f64());
            // Python rounds times to double precision.
            assert!(mtime.is_none_or(|mtime| mtime.floor() == secs as f64), "{}: {path}", file.name);
            assert_eq!(&entry, want, "{}: {path}", file.name);
        }
    }
}

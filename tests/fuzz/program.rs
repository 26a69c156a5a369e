//! Any bytes as the program of an image, as its interpreter and as its libraries: no panic, parts of what is there, the same
//! twice, and no more reads than so few files can be worth.
#![no_main]

use std::convert::Infallible;
use std::io;

use libfuzzer_sys::fuzz_target;
use sociblk::program::{Command, Contents, Stack, Wanted, needed};
use sociblk::spans::{EntryKind, ModTime, TocEntry};
use sociblk::tree::{Tree, TreeOptions};
use sociblk::units::{LayerOffset, LayerRange};

/// Reads of one file: its first bytes, a script, and what `object` may have.
const MOST_READS: usize = 70;
const CONFIG: &[u8] =
    br#"{"config":{"Entrypoint":["/run","tool","python3.1","/a.py","-m","a:b"],"Env":["LD_LIBRARY_PATH=/lib"]}}"#;
/// Names that fuzzing finds its way to, and which part of the input each file is: from so many eighths on.
const FILES: [(&[u8], u64); 10] = [
    (b"run", 0),
    (b"bin/sh", 1),
    (b"usr/bin/tool", 2),
    (b"lib64/ld-linux-x86-64.so.2", 3),
    (b"lib/libc.so.6", 4),
    (b"lib/a", 0),
    (b"usr/bin/python3.1", 7),
    (b"a.py", 5),
    (b"usr/lib/python3.1/a.py", 6),
    (b"usr/lib/python3.1/a/__init__.py", 4),
];

struct Bytes<'a> {
    bytes: &'a [u8],
    reads: usize,
}

impl Contents for Bytes<'_> {
    fn read(&mut self, layer: usize, range: LayerRange) -> io::Result<Vec<u8>> {
        assert_eq!(layer, 0);
        self.reads += 1;
        let (from, to) = (range.start().get() as usize, range.end().get() as usize);
        Ok(self.bytes.get(from..to).expect("only what is there is read").to_vec())
    }
}

fn entry(name: &'static [u8], data: LayerRange) -> TocEntry<'static> {
    TocEntry {
        name: name.into(),
        kind: EntryKind::Reg,
        data,
        linkname: (&b""[..]).into(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        uname: (&b""[..]).into(),
        gname: (&b""[..]).into(),
        mtime: ModTime { secs: 0, nanos: 0 },
        devmajor: 0,
        devminor: 0,
        pax: Vec::new(),
    }
}

fn wanted(bytes: &[u8]) -> Option<Vec<Wanted>> {
    let len = bytes.len() as u64;
    let end = LayerOffset::new(len);
    let entries = FILES
        .iter()
        .filter_map(|(name, eighth)| Some(entry(name, LayerRange::new(LayerOffset::new(len / 8 * eighth), end)?)));
    let tree = Tree::build(entries.map(Ok::<_, Infallible>), TreeOptions::new(end)).ok()?;
    let mut contents = Bytes { bytes, reads: 0 };
    let found = needed(&Stack::new(vec![Some(tree)]), &Command::of_config(CONFIG), &mut contents);
    assert!(contents.reads <= FILES.len() * MOST_READS, "{} reads", contents.reads);
    Some(found)
}

fuzz_target!(|bytes: &[u8]| {
    let Some(found) = wanted(bytes) else { return };
    assert!(found.iter().all(|part| part.layer == 0 && part.range.end().get() <= bytes.len() as u64));
    assert_eq!(Some(found), wanted(bytes));
});

//! One byte for the kind of request, then its bytes; and EROFS metadata with some of them overwritten: there is an answer to
//! everything, no longer than asked for.

#![no_main]

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sociblk::erofs::{BlockSize, Image, Metadata, WriterOptions};
use sociblk::frontend::fuse_fs::{Answer, FileFacts, FileName, FileTree, Totals, answer};
use sociblk::spans::{EntryKind, ModTime, TocEntry};
use sociblk::tree::{Tree, TreeOptions};
use sociblk::units::{LayerOffset, LayerRange};

/// Metadata of a small layer.
fn metadata() -> &'static [u8] {
    static METADATA: OnceLock<Vec<u8>> = OnceLock::new();
    METADATA.get_or_init(|| {
        let entry = |name: &'static str, kind: EntryKind| TocEntry {
            name: Cow::Borrowed(name.as_bytes()),
            kind,
            data: LayerRange::from_len(LayerOffset::new(512), 0).expect("empty"),
            linkname: Cow::Borrowed(b"etc"),
            mode: 0o644,
            uid: 1,
            gid: 2,
            uname: Cow::Borrowed(b""),
            gname: Cow::Borrowed(b""),
            mtime: ModTime::default(),
            devmajor: 0,
            devminor: 0,
            pax: vec![(Cow::Borrowed(&b"SCHILY.xattr.user.a"[..]), Cow::Borrowed(&b"value"[..]))],
        };
        let entries = [
            entry("etc/passwd", EntryKind::Reg),
            entry("etc/.wh.gone", EntryKind::Reg),
            entry("link", EntryKind::Symlink),
        ];
        let layer_size = LayerOffset::new(4096);
        let tree = Tree::build(entries.into_iter().map(Ok::<_, Infallible>), TreeOptions::new(layer_size));
        let options = WriterOptions { block_size: BlockSize::B4096, uuid: [1; 16], layer_size };
        Image::build(&tree.expect("a tree"), &options).expect("an image").metadata
    })
}

struct Files(Metadata<Vec<u8>>);

impl FileTree for Files {
    fn root(&self) -> u64 {
        self.0.root()
    }

    fn number_limit(&self) -> u64 {
        self.0.number_limit()
    }

    fn facts(&self, inode: u64) -> Option<FileFacts> {
        let inode = self.0.inode(inode)?;
        Some(FileFacts {
            mode: inode.mode().into(),
            uid: inode.uid(),
            gid: inode.gid(),
            nlink: inode.nlink(),
            size_bytes: inode.size_bytes(),
            device: inode.device(),
            mtime: inode.mtime(),
            data_start: inode.data_start(),
        })
    }

    fn child(&self, dir: u64, name: &[u8]) -> Option<u64> {
        self.0.inode(dir)?.child(name)
    }

    fn list(&self, dir: u64, from: u64, each: &mut dyn FnMut(&FileName<'_>) -> bool) {
        for entry in self.0.inode(dir).into_iter().flat_map(|dir| dir.entries(from)) {
            if !each(&FileName { name: entry.name, inode: entry.inode, kind: entry.file_type, next: entry.next }) {
                return;
            }
        }
    }

    fn target(&self, inode: u64) -> Option<&[u8]> {
        self.0.inode(inode)?.target()
    }

    fn xattr(&self, inode: u64, name: &[u8]) -> Option<&[u8]> {
        self.0.inode(inode)?.xattr(name)
    }

    fn xattr_names(&self, inode: u64, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.0.inode(inode).into_iter().flat_map(|inode| inode.xattrs()).for_each(|x| each(x.prefix, x.rest));
    }

    fn totals(&self) -> Totals {
        Totals { block_bytes: 4096, blocks: self.0.block_count(), inodes: self.0.inode_count() }
    }
}

fuzz_target!(|input: (u8, u64, Vec<u8>, Vec<(u16, u8)>)| {
    let (opcode, inode, body, changes) = input;
    let mut bytes = metadata().to_vec();
    for (at, byte) in changes {
        if let Some(slot) = bytes.get_mut(usize::from(at)) {
            *slot = byte;
        }
    }
    let Ok(metadata) = Metadata::open(bytes) else { return };
    let limit = metadata.number_limit();
    let files = Files(metadata);
    for inode in [inode, inode % limit, files.root()] {
        if let Answer::Made(bytes) = answer(&files, opcode.into(), 1 << 40, inode, &body) {
            assert!(bytes.len() <= 1 << 20);
        }
    }
});

//! What is read back through [`Metadata`] is what the tree says; and damage never makes it panic.

use super::*;
use crate::tree::NodeView;

/// Walks tree and metadata side by side.
pub fn check(tree: &Tree, image: &Image) {
    let metadata = Metadata::open(&image.metadata[..]).expect("metadata of ours");
    assert_eq!(metadata.inode_count(), tree.inode_count() as u64);
    assert_eq!(metadata.block_count() * metadata.block_bytes(), image.space.device_size().get());
    let mut numbers = BTreeMap::new();
    check_inode(&metadata, metadata.root(), metadata.root(), &tree.root(), image, &mut numbers);
    assert_eq!(numbers.len(), tree.inode_count());
}

fn check_inode(
    metadata: &Metadata<&[u8]>,
    number: u64,
    parent: u64,
    node: &NodeView<'_>,
    image: &Image,
    numbers: &mut BTreeMap<u64, u32>,
) {
    assert!(number < metadata.number_limit());
    assert_eq!(*numbers.entry(number).or_insert(node.id().number()), node.id().number(), "one number, two inodes");
    let inode = metadata.inode(number).expect("an inode");
    assert_eq!((inode.uid(), inode.gid(), inode.nlink()), (node.uid(), node.gid(), node.nlink()));
    assert_eq!((inode.mode() & 0o7777, inode.mtime()), (node.mode(), (node.mtime().secs, node.mtime().nanos)));
    assert_eq!((inode.is_dir(), inode.is_file()), (node.kind() == NodeKind::Dir, node.kind() == NodeKind::File));
    assert_eq!(inode.target(), node.target());
    let device = node.device().unwrap_or((0, 0));
    assert_eq!((inode.device() >> 8 & 0xfff, inode.device() & 0xff | inode.device() >> 12 & 0xfff00), device);
    let xattrs: BTreeMap<Vec<u8>, Vec<u8>> =
        inode.xattrs().map(|x| ([x.prefix, x.rest].concat(), x.value.to_vec())).collect();
    let want: BTreeMap<Vec<u8>, Vec<u8>> = node.xattrs().map(|x| (x.name.to_vec(), x.value.to_vec())).collect();
    assert_eq!(xattrs, want);
    for (name, value) in &want {
        assert_eq!(inode.xattr(name), Some(&value[..]));
    }
    assert_eq!((inode.xattr(b"user.not-there"), inode.xattr(b"")), (None, None));
    if let Some(data) = node.data().filter(|d| !d.is_empty()) {
        let start = inode.data_start().expect("a file").get();
        let pieces: Vec<Piece> = image.space.pieces(range(start, inode.size_bytes())).expect("in range").collect();
        assert_eq!(pieces, [Piece::Layer(data)]);
    }
    if !inode.is_dir() {
        assert_eq!((inode.entries(0).count(), inode.child(b".")), (0, None));
        return;
    }
    let entries: Vec<EntryView<'_>> = inode.entries(0).collect();
    assert!(entries.is_sorted_by(|a, b| a.name < b.name && a.next < b.next));
    // From any position on, a listing goes on where it stopped.
    for (at, entry) in entries.iter().enumerate() {
        assert!(inode.entries(entry.next).eq(entries[at + 1..].iter().copied()));
    }
    let names: Vec<&[u8]> = entries.iter().map(|e| e.name).filter(|n| ![&b"."[..], b".."].contains(n)).collect();
    assert_eq!(names, node.children().map(|(name, _)| name).collect::<Vec<_>>());
    assert_eq!((inode.child(b"."), inode.child(b"..")), (Some(number), Some(parent)));
    for (name, child) in node.children() {
        let found = inode.child(name).expect("every name is found");
        assert!(entries.iter().any(|e| e.name == name && e.inode == found));
        assert_eq!(inode.child(&[name, &b"\x01"[..]].concat()), None);
        check_inode(metadata, found, number, &child, image, numbers);
    }
}

/// Looks at everything that can be reached from any number.
fn look(bytes: &[u8]) {
    let Ok(metadata) = Metadata::open(bytes) else { return };
    for number in 0..metadata.number_limit() + 2 {
        let Some(inode) = metadata.inode(number) else { continue };
        let seen = inode.entries(0).take(1000).count() + inode.xattrs().take(1000).count();
        assert!(seen <= 2000 && inode.target().is_none_or(|t| t.len() <= bytes.len()));
        let _ = (inode.child(b"a"), inode.xattr(b"user.a"), inode.entries(u64::MAX).next(), inode.entries(13).next());
    }
}

proptest! {
    #[test]
    fn damage_never_makes_it_panic(
        entries in random_entries(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let (tree, size) = tree_of(entries, &[1]);
        let mut bytes = image_of(&tree, BlockSize::B4096, size).metadata;
        look(&bytes[..cut.index(bytes.len())]);
        for (at, byte) in changes {
            // Behind the magic, so that it goes on being looked at.
            let at = 1028 + at.index(bytes.len() - 1028);
            bytes[at] = byte;
        }
        look(&bytes);
    }
}

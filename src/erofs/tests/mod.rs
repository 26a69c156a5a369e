//! Random trees through the writer and back through an independent reader; the address space against a byte-wise
//! model; fixed bytes for the test layers.

mod reader;
mod view;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::spans::ztoc::Ztoc;
use crate::spans::{EntryKind, ModTime, TocEntry};
use crate::tree::{NodeKind, TreeOptions};
use crate::units::{DeviceOffset, DeviceRange};
use reader::Reader;

const FORMS: [BlockSize; 2] = [BlockSize::B4096, BlockSize::B512];

fn options(block_size: BlockSize, layer_size: u64) -> WriterOptions {
    let layer_size = LayerOffset::new(layer_size);
    WriterOptions { block_size, uuid: image_uuid(&Digest::of(b"layer"), None, block_size), layer_size }
}

fn entry(name: String, kind: EntryKind) -> TocEntry<'static> {
    TocEntry {
        name: Cow::Owned(name.into_bytes()),
        kind,
        data: LayerRange::from_len(LayerOffset::ZERO, 0).expect("range"),
        linkname: Cow::Borrowed(b""),
        mode: 0o644,
        uid: 0,
        gid: 0,
        uname: Cow::Borrowed(b""),
        gname: Cow::Borrowed(b""),
        mtime: ModTime::default(),
        devmajor: 0,
        devminor: 0,
        pax: vec![],
    }
}

/// Puts the files' data one behind the other, as a tar does, and builds a tree. Gives the layer's size as well.
fn tree_of(mut entries: Vec<TocEntry<'static>>, sizes: &[u64]) -> (Tree, u64) {
    let mut at = 512_u64;
    for (entry, &size) in entries.iter_mut().zip(sizes.iter().cycle()) {
        let size = if entry.kind == EntryKind::Reg { size } else { 0 };
        entry.data = LayerRange::from_len(LayerOffset::new(at), size).expect("range");
        at = (at + size).next_multiple_of(512) + 512;
    }
    let tree_options = TreeOptions::new(LayerOffset::new(at));
    (Tree::build(entries.into_iter().map(Ok::<_, Infallible>), tree_options).expect("a tree"), at)
}

fn image_of(tree: &Tree, form: BlockSize, layer_size: u64) -> Image {
    Image::build(tree, &options(form, layer_size)).expect("an image")
}

fn range(start: u64, len: u64) -> DeviceRange {
    DeviceRange::from_len(DeviceOffset::new(start), len).expect("range")
}

/// Reads the image back and compares it with the tree, inode by inode.
fn check(tree: &Tree, form: BlockSize, layer_size: u64) {
    let image = image_of(tree, form, layer_size);
    view::check(tree, &image);
    let (reader, root, inodes, blocks) = Reader::open(&image.metadata);
    assert_eq!(inodes, tree.inode_count() as u64);
    assert_eq!(u64::from(blocks) * form.bytes(), image.space.device_size().get());
    let mut got = BTreeMap::new();
    reader.walk(root, root, "", &mut got);
    let mut nids = BTreeMap::new();
    let mut count = 0;
    for (path, node) in tree.walk() {
        count += 1;
        let path = String::from_utf8(path).expect("UTF-8");
        let stat = got.get(&path).unwrap_or_else(|| panic!("{path} is missing"));
        let kind = match node.kind() {
            NodeKind::File => 0o100_000,
            NodeKind::Dir => 0o040_000,
            NodeKind::Symlink => 0o120_000,
            NodeKind::Char | NodeKind::Whiteout => 0o020_000,
            NodeKind::Block => 0o060_000,
            NodeKind::Fifo => 0o010_000,
        };
        assert_eq!(stat.mode, kind | node.mode(), "{path}");
        assert_eq!((stat.uid, stat.gid, stat.nlink), (node.uid(), node.gid(), node.nlink()), "{path}");
        assert_eq!(stat.mtime, (node.mtime().secs, node.mtime().nanos), "{path}");
        assert_eq!(stat.target.as_deref(), node.target(), "{path}");
        let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = node.xattrs().map(|x| (x.name.to_vec(), x.value.to_vec())).collect();
        assert_eq!(stat.xattrs, xattrs, "{path}");
        assert_eq!(*nids.entry(node.id()).or_insert(stat.nid), stat.nid, "{path}: names of one inode");
        if let Some((major, minor)) = node.device() {
            assert_eq!((stat.u >> 8 & 0xfff, stat.u & 0xff | stat.u >> 12 & 0xfff00), (major, minor), "{path}");
        }
        if let Some(data) = node.data().filter(|d| !d.is_empty()) {
            assert_eq!(stat.size, data.len_bytes(), "{path}");
            let start = u64::from(stat.u) * form.bytes();
            let pieces: Vec<Piece> = image.space.pieces(range(start, stat.size)).expect("in range").collect();
            assert_eq!(pieces, [Piece::Layer(data)], "{path}");
            let back: Vec<_> = image.space.device_ranges(data).collect();
            assert_eq!(back, [(data, range(start, stat.size))], "{path}");
        }
    }
    assert_eq!(count, got.len());
    let distinct: std::collections::BTreeSet<u64> = nids.values().copied().collect();
    assert_eq!(distinct.len(), nids.len(), "two inodes in one place");
}

fn random_entries() -> impl Strategy<Value = Vec<TocEntry<'static>>> {
    let name = prop_oneof![
        "[ab]{1,2}/[!+.a-c-]{1,3}",
        "[ab]{1,2}/[a-z]{200,250}",
        "d/[a-z]{1,60}",
        "[a-c]/[a-c]/[a-z]{1,9}",
        "[ab]{1,2}/\\.wh\\.[a-c]{1,2}",
        Just("a/.wh..wh..opq".to_owned()),
        Just("./".to_owned()),
    ];
    let kind = prop::sample::select(vec![
        EntryKind::Reg,
        EntryKind::Reg,
        EntryKind::Dir,
        EntryKind::Symlink,
        EntryKind::Char,
        EntryKind::Block,
        EntryKind::Fifo,
    ]);
    let xattrs = prop::collection::btree_map(
        prop::sample::select(vec![
            "user.a",
            "user.long-name-of-an-attribute",
            "security.capability",
            "trusted.t",
            "security.selinux",
        ]),
        prop_oneof![Just(vec![1_u8; 20]), prop::collection::vec(any::<u8>(), 0..700)],
        0..4,
    );
    let target = prop_oneof!["[a-z]{1,20}", "[a-z]{300,600}", "[a-z]{3900,4095}"];
    let attributes = (0..0o10000_u32, any::<u32>(), any::<u32>(), any::<i64>(), 0..1_000_000_000_u32);
    let device = (0..4096_u32, 0..1_048_576_u32);
    let one = (name, kind, xattrs, target, attributes, device).prop_map(
        |(name, kind, xattrs, target, (mode, uid, gid, secs, nanos), (devmajor, devminor))| TocEntry {
            linkname: if kind == EntryKind::Symlink { Cow::Owned(target.into_bytes()) } else { Cow::Borrowed(b"") },
            mode,
            uid,
            gid,
            mtime: ModTime { secs, nanos },
            devmajor,
            devminor,
            pax: xattrs
                .into_iter()
                .map(|(k, v)| (Cow::Owned(format!("SCHILY.xattr.{k}").into_bytes()), Cow::Owned(v)))
                .collect(),
            // Directories behind links are judged with the tree.
            ..entry(if kind == EntryKind::Symlink { name + "-link" } else { name }, kind)
        },
    );
    prop::collection::vec(one, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_trees_come_back_as_they_were(
        entries in random_entries(),
        sizes in prop::collection::vec(0..20_000_u64, 1..9),
    ) {
        let (tree, layer_size) = tree_of(entries, &sizes);
        for form in FORMS {
            check(&tree, form, layer_size);
        }
    }

    #[test]
    fn pieces_cover_every_range_as_a_bytewise_model_says(
        sizes in prop::collection::vec(0..9000_u64, 1..12),
        count in 0..20_usize,
        tail in 0..700_u64,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..20),
    ) {
        let (tree, layer_size) = tree_of((0..count).map(|i| entry(format!("f{i}"), EntryKind::Reg)).collect(), &sizes);
        let layer_size = layer_size + tail;
        for form in FORMS {
            let image = image_of(&tree, form, layer_size);
            // The last megabyte is zeros; a model of all bytes would be slow for nothing.
            let size = usize::try_from(image.space.device_size().get()).expect("small");
            let mut model: Vec<Option<(bool, u64)>> = vec![None; size];
            for (i, slot) in model.iter_mut().enumerate().take(image.metadata.len()) {
                *slot = Some((true, i as u64));
            }
            let mut place = |at: u64, data: LayerRange| {
                for k in 0..data.len_bytes() {
                    model[(at + k) as usize] = Some((false, data.start().get() + k));
                }
            };
            let metadata_bytes = image.metadata.len() as u64;
            if form == BlockSize::B512 {
                place(metadata_bytes, LayerRange::from_len(LayerOffset::ZERO, layer_size).expect("range"));
            } else {
                let mut files: Vec<LayerRange> = tree.inodes().filter_map(|n| n.data()).collect();
                files.sort_by_key(LayerRange::start);
                let mut at = metadata_bytes;
                for data in files.into_iter().filter(|d| !d.is_empty()) {
                    place(at, data);
                    at += data.len_bytes().next_multiple_of(4096);
                }
                prop_assert_eq!(at + (1 << 20), size as u64);
            }
            for (a, b) in &cuts {
                let (a, b) = (a.index(size + 1), b.index(size + 1));
                let (from, to) = (a.min(b), a.max(b));
                let mut at = from;
                for piece in image.space.pieces(range(from as u64, (to - from) as u64)).expect("in range") {
                    let len = usize::try_from(piece.len_bytes()).expect("small");
                    prop_assert!(len > 0);
                    for (k, want) in (0_u64..).zip(&model[at..at + len]) {
                        let got = match piece {
                            Piece::Metadata { offset_bytes, .. } => Some((true, offset_bytes + k)),
                            Piece::Layer(range) => Some((false, range.start().get() + k)),
                            Piece::Zeros { .. } => None,
                        };
                        prop_assert_eq!(got, *want);
                    }
                    at += len;
                }
                prop_assert_eq!(at, to);
            }
        }
    }
}

#[test]
fn requests_behind_the_end_are_refused() {
    let (tree, layer_size) = tree_of(vec![entry("f".to_owned(), EntryKind::Reg)], &[1]);
    let space = image_of(&tree, BlockSize::B4096, layer_size).space;
    let size = space.device_size().get();
    assert_eq!(size, 4096 * 2 + (1 << 20));
    assert!(space.pieces(range(size - 512, 512)).is_ok());
    assert!(matches!(space.pieces(range(size - 512, 513)), Err(ErofsError::OutOfRange { .. })));
}

#[test]
fn data_that_cannot_lie_in_a_tar_are_refused() {
    let at = |ranges: &[(u64, u64)]| {
        let entries = ranges.iter().enumerate().map(|(i, &(start, len))| {
            let mut e = entry(format!("f{i}"), EntryKind::Reg);
            e.data = LayerRange::from_len(LayerOffset::new(start), len).expect("range");
            Ok::<_, Infallible>(e)
        });
        Tree::build(entries, TreeOptions::new(LayerOffset::new(u64::MAX))).expect("a tree")
    };
    let build = |ranges: &[(u64, u64)], form, layer_size| Image::build(&at(ranges), &options(form, layer_size)).err();
    for form in FORMS {
        assert!(matches!(build(&[(512, 600), (1024, 1)], form, 4096), Some(ErofsError::Overlap { .. })));
        assert!(matches!(build(&[(512, 600)], form, 1111), Some(ErofsError::BeyondLayer { .. })));
        assert!(matches!(build(&[(512, 1 << 50)], form, 1 << 60), Some(ErofsError::TooManyBlocks { .. })));
        assert!(build(&[(512, 600), (2048, 0), (2048, 7)], form, 4096).is_none());
    }
    assert!(matches!(build(&[(513, 6)], BlockSize::B512, 4096), Some(ErofsError::Unaligned { .. })));
    assert!(build(&[(513, 6)], BlockSize::B4096, 4096).is_none());
    assert!(matches!(build(&[], BlockSize::B512, u64::MAX), Some(ErofsError::TooManyBlocks { .. })));
    // More than one row of the table for one file.
    let tree = at(&[(512, 5 << 30)]);
    let space = image_of(&tree, BlockSize::B4096, 6 << 30).space;
    let around: Vec<Piece> = space.pieces(range(4096 + (1 << 31) - 4096, 8192)).expect("in range").collect();
    let part = |start: u64| Piece::Layer(LayerRange::from_len(LayerOffset::new(start), 4096).expect("range"));
    assert_eq!(around, [part(512 + (1 << 31) - 4096), part(512 + (1 << 31))]);
}

#[test]
fn a_million_files_and_a_directory_of_fifty_thousand_have_an_image() {
    const FILES: usize = 1_000_000;
    let name = |i: usize| match i {
        0..50_000 => format!("usr/share/big/{i:07}-with-a-name-of-usual-length"),
        _ => format!("srv/{:03}/{i:07}.py", i % 997),
    };
    let entries = (0..FILES).map(|i| {
        let mut e = entry(name(i), EntryKind::Reg);
        e.data = LayerRange::from_len(LayerOffset::new(512 + i as u64 * 1024), 100).expect("range");
        Ok::<_, Infallible>(e)
    });
    let layer_size = 1024 * (FILES as u64 + 1);
    let tree = Tree::build(entries, TreeOptions::new(LayerOffset::new(layer_size))).expect("a tree");
    assert_eq!(tree.inode_count(), FILES + 1 + 3 + 1 + 997);
    for form in FORMS {
        let image = image_of(&tree, form, layer_size);
        assert!(image.metadata.len() < FILES * 150, "{} bytes of metadata", image.metadata.len());
        assert!(image.space.memory_bytes() < FILES as u64 * 24);
        let (reader, root, inodes, _) = Reader::open(&image.metadata);
        assert_eq!(inodes, tree.inode_count() as u64);
        let mut got = BTreeMap::new();
        reader.walk(root, root, "", &mut got);
        assert_eq!(got.len(), tree.inode_count());
        let last = &got[&format!("/{}", name(FILES - 1))];
        let data = tree.lookup(name(FILES - 1).as_bytes()).and_then(|n| n.data()).expect("a file");
        let pieces: Vec<Piece> =
            image.space.pieces(range(u64::from(last.u) * form.bytes(), 100)).expect("in range").collect();
        assert_eq!(pieces, [Piece::Layer(data)]);
    }
}

#[test]
fn an_attribute_of_many_files_is_written_once() {
    let files = |count: usize| {
        let entries = (0..count)
            .map(|i| {
                let mut e = entry(format!("f{i}"), EntryKind::Reg);
                e.pax.push((Cow::Borrowed(b"SCHILY.xattr.user.label"), Cow::Owned(vec![b'v'; 2000])));
                e
            })
            .collect();
        tree_of(entries, &[1])
    };
    let (tree, layer_size) = files(100);
    check(&tree, BlockSize::B4096, layer_size);
    assert!(image_of(&tree, BlockSize::B4096, layer_size).metadata.len() <= 5 * 4096);
}

#[test]
fn uuids_differ_by_layer_form_and_variant() {
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    let all = [
        image_uuid(&a, None, BlockSize::B4096),
        image_uuid(&b, None, BlockSize::B4096),
        image_uuid(&a, None, BlockSize::B512),
        image_uuid(&a, Some(&b), BlockSize::B4096),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(one[6] >> 4 == 8 && one[8] >> 6 == 2);
        assert!(!all[..i].contains(one));
    }
}

/// sha256 of the metadata of every test layer, in the 4096 and the 512 form. When these change, the bytes under
/// mounted devices change: raise [`WRITER_VERSION`] with them.
const GOLDEN: &[(&str, &str, &str)] = &[
    ("edge-gnu.tar.gz", "9943ec63cb68", "0e78a9702d55"),
    ("edge-pax.tar.gz", "384ded0cec4a", "d38769ba5026"),
    ("edge-ustar.tar.gz", "813840c854ed", "b54c885eab67"),
    ("empty.tar.gz", "e19a53b8c356", "bc1ae56e4b1e"),
    ("mixed-pigz-independent.tar.gz", "d0e21c89aab2", "4b0605cb8599"),
    ("mixed-zlib6.tar.gz", "d0e21c89aab2", "4b0605cb8599"),
    ("small-gzip-header-fields.tar.gz", "895aeea1fe9f", "204338456c32"),
    ("small-multimember.tar.gz", "895aeea1fe9f", "204338456c32"),
    ("small-stored.tar.gz", "895aeea1fe9f", "204338456c32"),
    ("upper-whiteouts.tar.gz", "3b68f74c5736", "7f65711ee90a"),
    ("zeros-96m.tar.gz", "4186d53c6f81", "5db546f24535"),
];

#[test]
fn the_same_layer_gives_the_same_bytes_as_ever() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut seen: Vec<(String, String, String)> = Vec::new();
    let mut layers: Vec<_> = std::fs::read_dir(&corpus)
        .expect("tests/corpus")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".ztoc") && !name.contains(".span-"))
        .collect();
    layers.sort();
    for name in layers {
        let bytes = std::fs::read(corpus.join(&name)).expect("zTOC");
        let ztoc = Ztoc::parse(&bytes).expect("zTOC parses");
        let tree = Tree::build(ztoc.entries(), TreeOptions::new(ztoc.layer_size())).expect("a tree");
        let digest = |form| {
            check(&tree, form, ztoc.layer_size().get());
            Digest::of(&image_of(&tree, form, ztoc.layer_size().get()).metadata).short()
        };
        seen.push((name.trim_end_matches(".ztoc").to_owned(), digest(BlockSize::B4096), digest(BlockSize::B512)));
    }
    let want: Vec<_> = GOLDEN.iter().map(|&(n, a, b)| (n.to_owned(), a.to_owned(), b.to_owned())).collect();
    assert_eq!(seen, want);
}

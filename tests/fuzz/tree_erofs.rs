//! Any log of entries as a tree and as an image in both forms: an error, or bytes that are the same the second time
//! and an address space without gaps.
#![no_main]

use std::convert::Infallible;

use libfuzzer_sys::fuzz_target;
use sociblk::erofs::{BlockSize, Image, Piece, WriterOptions};
use sociblk::spans::{EntryKind, ModTime, TocEntry};
use sociblk::tree::{Tree, TreeOptions, attributes_below};
use sociblk::units::{DeviceOffset, DeviceRange, LayerOffset, LayerRange, Offset};

const LAYER_BYTES: u64 = 1 << 24;

/// Small pieces of the input, in order; empty when it is used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        self.0.split_off(..len).unwrap_or_default()
    }
}

fn entry<'a>(input: &mut Input<'a>, at: &mut u64) -> TocEntry<'a> {
    let kind = match input.byte() % 8 {
        0 | 1 => EntryKind::Reg,
        2 => EntryKind::Dir,
        3 => EntryKind::Symlink,
        4 => EntryKind::Hardlink,
        5 => EntryKind::Char,
        6 => EntryKind::Block,
        _ => EntryKind::Fifo,
    };
    let size = if kind == EntryKind::Reg { u64::from(input.byte()) * 97 } else { 0 };
    // Now and then where no tar would put it.
    let shift = if input.byte() == 7 { 1 } else { 512 };
    let data = LayerRange::from_len(LayerOffset::new(*at), size).expect("small");
    *at = (*at + size).next_multiple_of(512) + shift;
    let numbers = [(); 4].map(|()| u32::from(input.byte()) << (input.byte() % 25));
    let mut pax = Vec::new();
    for _ in 0..input.byte() % 4 {
        let key = [&b"SCHILY.xattr."[..], input.bytes()].concat();
        pax.push((key.into(), input.bytes().into()));
    }
    TocEntry {
        name: input.bytes().into(),
        kind,
        data,
        linkname: input.bytes().into(),
        mode: numbers[0],
        uid: numbers[1],
        gid: numbers[1],
        uname: (&b""[..]).into(),
        gname: (&b""[..]).into(),
        mtime: ModTime { secs: i64::from(numbers[0]) - 1000, nanos: numbers[1] },
        devmajor: numbers[2],
        devminor: numbers[3],
        pax,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut at = 512;
    let mut entries = Vec::new();
    while !input.0.is_empty() {
        entries.push(entry(&mut input, &mut at));
    }
    let layer_size = LayerOffset::new(LAYER_BYTES);
    let entries = entries.into_iter().map(Ok::<_, Infallible>);
    let Ok(mut tree) = Tree::build(entries, TreeOptions::new(layer_size)) else { return };
    for (path, node) in tree.walk() {
        assert_eq!(tree.lookup(&path).map(|n| n.id()), Some(node.id()));
    }
    let below = tree.clone();
    tree.inherit(|path| attributes_below([&below], path));
    for block_size in [BlockSize::B4096, BlockSize::B512] {
        let options = WriterOptions { block_size, uuid: [1; 16], layer_size };
        let Ok(image) = Image::build(&tree, &options) else { continue };
        assert_eq!(image.metadata, Image::build(&tree, &options).expect("as before").metadata);
        let all = DeviceRange::new(DeviceOffset::ZERO, image.space.device_size()).expect("ordered");
        let mut at = DeviceOffset::ZERO;
        for piece in image.space.pieces(all).expect("in range") {
            if let Piece::Layer(range) = piece {
                assert!(range.end() <= layer_size);
            }
            at = at.checked_add(piece.len_bytes()).expect("in range");
        }
        assert_eq!(at, image.space.device_size());
    }
});

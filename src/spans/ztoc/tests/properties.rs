//! Round trips of arbitrary tables of contents, and arbitrary changes to documents.

use proptest::prelude::*;

use super::rewrite;
use crate::spans::ztoc::*;
use crate::spans::{ModTime, TocEntry, corpus};
use crate::units::{LayerRange, WINDOW_BYTES};

fn bytes() -> impl Strategy<Value = Cow<'static, [u8]>> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Cow::Owned)
}

pub fn any_entry() -> impl Strategy<Value = (TocEntry<'static>, u64)> {
    use crate::spans::EntryKind::{Block, Char, Dir, Fifo, Hardlink, Reg, Symlink};
    let kind = prop::sample::select(vec![Reg, Dir, Symlink, Hardlink, Char, Block, Fifo]);
    let number = || prop_oneof![Just(0_u32), any::<u32>()];
    let mtime = (-62_167_219_200_i64..253_402_300_800, 0_u32..1_000_000_000);
    let mtime = mtime.prop_map(|(secs, nanos)| ModTime { secs, nanos });
    let pax = prop::collection::btree_map(prop::collection::vec(any::<u8>(), 0..9), bytes(), 0..4);
    let pax = pax.prop_map(|map| map.into_iter().map(|(key, value)| (Cow::Owned(key), value)).collect());
    let texts = (bytes(), bytes(), bytes(), bytes());
    let numbers = (number(), number(), number(), number(), number());
    (texts, kind, numbers, mtime, pax, 0_u64..5000).prop_map(|(texts, kind, numbers, mtime, pax, size)| {
        let (name, linkname, uname, gname) = texts;
        let (mode, uid, gid, devmajor, devminor) = numbers;
        let data = LayerRange::from_len(LayerOffset::ZERO, 0).expect("empty");
        let entry =
            TocEntry { name, kind, data, linkname, mode, uid, gid, uname, gname, mtime, devmajor, devminor, pax };
        (entry, if kind == Reg { size } else { 0 })
    })
}

/// Lays entries out as a tar does; returns them with the size of the layer.
pub fn lay_out(entries: Vec<(TocEntry<'static>, u64)>) -> (Vec<TocEntry<'static>>, u64) {
    let mut position = 0;
    let place = |(mut entry, size): (TocEntry<'static>, u64)| {
        entry.data = LayerRange::from_len(LayerOffset::new(position + 512), size).expect("small");
        position = entry.data.end().get().next_multiple_of(512);
        entry
    };
    let entries = entries.into_iter().map(place).collect();
    (entries, position + 1024)
}

/// A plain tar's zTOC: no windows, so that most bytes mean something.
pub fn document(entries: &[TocEntry<'_>], layer_size: u64) -> Vec<u8> {
    let digests: Vec<_> = (0..layer_size.div_ceil(4096)).map(|i| Digest::of(&i.to_le_bytes())).collect();
    let parts = ZtocParts {
        build_tool: "test",
        compressed_size: BlobOffset::new(layer_size),
        uncompressed_size: LayerOffset::new(layer_size),
        entries,
        compression: Compression::Uncompressed,
        span_size: 4096,
        span_digests: &digests,
    };
    write(&parts, &[]).expect("fits together")
}

/// Reads all that can be read; whatever is read holds what it promises.
fn read_all(bytes: &[u8]) {
    let Ok(ztoc) = Ztoc::parse(bytes) else { return };
    let spans = ztoc.spans();
    let last = spans.get(SpanId(u32::try_from(spans.len() - 1).expect("few"))).expect("never empty");
    assert_eq!(last.blob.end(), spans.blob_size());
    assert!(last.layer.end() >= spans.layer_size());
    for (_, span) in spans.iter() {
        let window = span.window_at.map(|at| usize::try_from(at).expect("within the document"));
        assert!(window.is_none_or(|at| at + WINDOW_BYTES <= bytes.len()));
    }
    for entry in ztoc.entries().map_while(Result::ok) {
        assert!(entry.data.end() <= ztoc.layer_size());
        assert!(entry.pax.is_sorted_by(|(a, _), (b, _)| a < b));
    }
    let _ = ztoc.info();
}

proptest! {
    #[test]
    fn what_is_written_reads_back(entries in prop::collection::vec(any_entry(), 0..12)) {
        let (entries, layer_size) = lay_out(entries);
        let bytes = document(&entries, layer_size);
        let ztoc = Ztoc::parse(&bytes).expect("sound");
        let read: Vec<_> = ztoc.entries().collect::<Result<_, _>>().expect("sound");
        prop_assert_eq!(&read, &entries);
        prop_assert_eq!(rewrite(&bytes).expect("sound"), bytes);
    }

    #[test]
    fn changed_documents_never_panic(
        entries in prop::collection::vec(any_entry(), 0..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (entries, layer_size) = lay_out(entries);
        let mut bytes = document(&entries, layer_size);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.map_or(bytes.len(), |at| at.index(bytes.len())));
        read_all(&bytes);
    }
}

#[test]
fn changed_documents_of_soci_never_panic() {
    let small = ["edge-gnu.tar.gz.ztoc", "edge-pax.tar.gz.ztoc", "upper-whiteouts.tar.gz.ztoc"];
    for file in corpus::ztocs().into_iter().filter(|file| small.contains(&file.name.as_str())) {
        let ztoc = Ztoc::parse(&file.bytes).expect(&file.name);
        let Zinfo::Gzip { packed, .. } = ztoc.zinfo else { panic!("{} is of gzip", file.name) };
        let packed = packed.as_ptr_range();
        // Windows are not looked at here: all bytes but theirs, each with its high bit, its low bit, and all bits.
        let mut bytes = file.bytes.clone();
        for at in (0..bytes.len()).filter(|&at| !packed.contains(&std::ptr::from_ref(&file.bytes[at]))) {
            for flip in [0x80, 1, 0xff] {
                bytes[at] ^= flip;
                read_all(&bytes);
                bytes[at] ^= flip;
            }
        }
        for cut in (0..bytes.len()).step_by(97) {
            read_all(&bytes[..cut]);
        }
    }
}

//! zstd streams of every shape against libzstd's own whole-stream decoder, and damaged ones.

use std::io::Write as _;

use ::zstd::stream::raw::CParameter;
use proptest::prelude::*;

use super::*;
use crate::inflate::{Boundary, IndexError, InflateError, SpanInflater, Want};
use crate::spans::{Checkpoint, Compression, Span, SpanTable};
use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange, SpanId};

/// How a frame is made.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    content_size: bool,
    checksum: bool,
    window_log: Option<u32>,
}

fn frame(data: &[u8], shape: Shape) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).expect("memory");
    encoder.include_checksum(shape.checksum).expect("set");
    encoder.include_contentsize(shape.content_size).expect("set");
    if let Some(log) = shape.window_log {
        encoder.set_parameter(CParameter::WindowLog(log)).expect("set");
        encoder.set_parameter(CParameter::EnableLongDistanceMatching(true)).expect("set");
    }
    if shape.content_size {
        encoder.set_pledged_src_size(Some(data.len() as u64)).expect("set");
    }
    encoder.write_all(data).expect("memory");
    encoder.finish().expect("memory")
}

fn skippable(len: usize) -> Vec<u8> {
    let mut bytes = vec![0x50 + (len % 16) as u8, 0x2a, 0x4d, 0x18];
    bytes.extend((len as u32).to_le_bytes());
    // What would begin a frame elsewhere.
    bytes.extend(FRAME_MAGIC.iter().cycle().take(len));
    bytes
}

fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 60) as u8 + b'a'
        })
        .collect()
}

fn shape(bits: u8) -> Shape {
    Shape { content_size: bits & 1 != 0, checksum: bits & 2 != 0, window_log: (bits & 4 != 0).then_some(21) }
}

/// A blob of frames, and what it decodes to.
fn blob(parts: &[(u32, u8)]) -> (Vec<u8>, Vec<u8>) {
    let (mut blob, mut layer) = (Vec::new(), Vec::new());
    for (i, &(len, kind)) in parts.iter().enumerate() {
        if kind >= 8 {
            blob.extend(skippable(len as usize % 5000));
            continue;
        }
        let data = text(len as usize, i as u64);
        blob.extend(frame(&data, shape(kind)));
        layer.extend(data);
    }
    (blob, layer)
}

struct Indexed {
    layer: Vec<u8>,
    checkpoints: Vec<Checkpoint>,
    end: Result<(), IndexError>,
}

fn index(blob: &[u8], span_size: u64, piece: usize) -> Indexed {
    let mut layer = Vec::new();
    let mut sink = |bytes: &[u8]| {
        layer.extend_from_slice(bytes);
        Ok(())
    };
    let mut indexer = ZstdIndexer::new(span_size);
    let pushed = blob.chunks(piece.max(1)).try_for_each(|piece| indexer.push(piece, &mut sink));
    let end = pushed.and_then(|()| indexer.finish()).map(drop);
    let checkpoints = indexer.take_checkpoints();
    Indexed { layer, checkpoints, end }
}

fn table(blob: &[u8], layer: usize, checkpoints: &[Checkpoint]) -> SpanTable {
    let (blob_size, layer_size) = (BlobOffset::new(blob.len() as u64), LayerOffset::new(layer as u64));
    let spans = checkpoints.iter().enumerate().map(|(i, here)| {
        let next = checkpoints.get(i + 1);
        Span {
            blob: BlobRange::new(here.blob, next.map_or(blob_size, |n| n.blob)).expect("order"),
            layer: LayerRange::new(here.layer, next.map_or(layer_size, |n| n.layer)).expect("order"),
            bits: 0,
            digest: Digest::of(b""),
            window_at: None,
        }
    });
    SpanTable::new(Compression::Zstd, blob_size, layer_size, spans.collect()).expect("a sound table")
}

fn inflate(table: &SpanTable, blob: &[u8], id: u32, want: Want) -> Result<(Vec<u8>, bool), InflateError> {
    let span = table.get(SpanId(id)).expect("there");
    let part = &blob[span.blob.start().get() as usize..span.blob.end().get() as usize];
    let mut out = Vec::new();
    let mut sink = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok(())
    };
    let done = SpanInflater::new().inflate(table, SpanId(id), part, None, want, &mut sink)?;
    assert_eq!(done.bytes, out.len() as u64);
    Ok((out, done.end_of_layer))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn spans_are_pieces_of_the_whole_stream(
        parts in prop::collection::vec((0_u32..60_000, 0_u8..10), 1..14),
        span_size in prop::sample::select(vec![0_u64, 1, 20_000, 100_000, 4 << 20]),
        piece in prop::sample::select(vec![1_usize, 7, 4096, usize::MAX]),
    ) {
        let (blob, layer) = blob(&parts);
        prop_assert_eq!(&::zstd::decode_all(&*blob).expect("libzstd reads it"), &layer);
        let found = index(&blob, span_size, piece);
        prop_assert!(found.end.is_ok(), "{:?}", found.end);
        prop_assert!(found.layer == layer);
        let starts: Vec<u64> = found.checkpoints.iter().map(|c| c.layer.get()).collect();
        prop_assert_eq!(starts[0], 0);
        prop_assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= span_size.max(1)));
        // A span is as short as whole frames allow: without its last frame it is shorter than the span size.
        let mut ends = vec![0_u64];
        for &(len, kind) in parts.iter().filter(|(_, kind)| *kind < 8) {
            let _ = kind;
            ends.push(ends.last().expect("one") + u64::from(len));
        }
        for pair in starts.windows(2) {
            let before = ends.iter().rev().find(|end| **end < pair[1]).expect("0 at least");
            prop_assert!(before.saturating_sub(pair[0]) < span_size.max(1));
        }

        let table = table(&blob, layer.len(), &found.checkpoints);
        for (id, span) in table.iter() {
            let want = &layer[span.layer.start().get() as usize..span.layer.end().get() as usize];
            let (got, end) = inflate(&table, &blob, id.0, Want::Whole).expect("a good span");
            prop_assert!(got == want);
            prop_assert_eq!(end, id.index() + 1 == table.len());
            let some = want.len() as u64 / 2;
            let (first, end) = inflate(&table, &blob, id.0, Want::First(some)).expect("a good span");
            prop_assert!(first == want[..some as usize] && !end);
        }
    }

    #[test]
    fn any_bytes_end_in_an_error_or_the_layer(
        parts in prop::collection::vec((0_u32..3000, 0_u8..10), 1..5),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
        cut in any::<bool>(),
    ) {
        let (mut blob, layer) = blob(&parts);
        let at = at.index(blob.len());
        if cut {
            blob.truncate(at);
        } else {
            blob[at] ^= flip;
        }
        let found = index(&blob, 1000, 512);
        if found.end.is_ok() && cut {
            prop_assert!(layer.starts_with(&found.layer), "cut between frames");
        }
        let good = ::zstd::decode_all(&*blob);
        // The library's reader stops silently within a frame's first bytes, and within skippable frames.
        if found.end.is_ok() {
            prop_assert_eq!(good.expect("libzstd reads it, too"), found.layer);
        }
    }
}

#[test]
fn watching_notes_every_frame_at_the_wanted_places() {
    let (blob, layer) = blob(&[(100, 9), (5000, 0), (0, 1), (300, 8), (7000, 2)]);
    let mut indexer = ZstdIndexer::watching(vec![LayerOffset::ZERO, LayerOffset::new(4000), LayerOffset::new(5000)]);
    indexer.push(&blob, &mut |_| Ok(())).expect("good");
    assert_eq!(indexer.finish().expect("complete").layer_size.get(), layer.len() as u64);
    let found: Vec<Boundary> = indexer.take_boundaries();
    let at: Vec<u64> = found.iter().map(|b| b.layer.get()).collect();
    assert_eq!(at, [0, 0, 5000, 5000, 5000], "skippable and empty frames, too");
    assert!(indexer.take_checkpoints().is_empty());
}

#[test]
fn hostile_streams_are_refused_with_their_reason() {
    let good = frame(&text(1000, 1), Shape::default());
    // A frame header that asks for 2^k bytes of window: descriptor 0, then the window's byte.
    let window = |log: u8| [&FRAME_MAGIC[..], &[0, (log - 10) << 3], &[1, 0, 0]].concat();
    let dictionary = [&FRAME_MAGIC[..], &[1, 0x58, 7], &[1, 0, 0]].concat();
    let mut wrong_size = frame(&text(1000, 1), Shape { content_size: true, ..Shape::default() });
    // A single segment with two bytes of size, which is 256 less than it should be.
    assert_eq!(wrong_size[4] & 0xe0, 0x60);
    wrong_size[5] ^= 1;
    // Single segments that announce a length in one, two, four, or eight bytes, and hold an empty block.
    let empty = |descriptor: u8, length: &[u8]| [&FRAME_MAGIC[..], &[descriptor], length, &[1, 0, 0]].concat();
    let mut wrong_check = frame(&text(1000, 1), Shape { checksum: true, ..Shape::default() });
    *wrong_check.last_mut().expect("not empty") ^= 1;
    let reserved_block = [&FRAME_MAGIC[..], &[0, 0x58], &[0xff, 0xff, 0xff]].concat();
    for (what, bytes, want) in [
        ("another format", b"PK\x03\x04 zip".to_vec(), "no zstd frame"),
        ("a legacy frame", [&[0x27, 0xb5, 0x2f, 0xfd], &good[4..]].concat(), "no zstd frame"),
        ("garbage behind", [&good[..], b"garbage"].concat(), "neither another one nor zero padding"),
        ("zeros behind", [&good[..], &[0; 512]].concat(), "neither another one nor zero padding"),
        ("part of a magic number", [&good[..], &FRAME_MAGIC[..3]].concat(), "cut off"),
        ("cut off", good[..good.len() - 1].to_vec(), "cut off"),
        ("cut off in a skippable frame", skippable(100)[..50].to_vec(), "cut off"),
        ("a long window", window(28), "128 MiB"),
        ("the longest window", window(41), "128 MiB"),
        ("a dictionary", dictionary, "dictionary"),
        ("a wrong content size", wrong_size, "damaged zstd frame"),
        ("one byte announced, none there", empty(0x20, &[1]), "another length"),
        ("256 bytes announced, none there", empty(0x60, &[0, 0]), "another length"),
        ("2^24 bytes announced, none there", empty(0xa0, &[0, 0, 0, 1]), "another length"),
        ("2^16 bytes announced, none there", empty(0xe0, &[0, 0, 1, 0, 0, 0, 0, 0]), "another length"),
        ("a wrong checksum", wrong_check, "damaged zstd frame"),
        ("a reserved block type", reserved_block, "damaged zstd frame"),
    ] {
        let error = index(&bytes, 1000, 100).end.expect_err(what);
        assert!(error.to_string().contains(want), "{what}: {error}");
    }
    assert!(index(&window(27), 1000, 100).end.is_ok(), "128 MiB are not too long");
    for (descriptor, length) in [(0x20, 1), (0xa0, 4), (0xe0, 8)] {
        assert!(index(&empty(descriptor, &[0; 8][..length]), 1000, 1).end.is_ok(), "nothing announced, nothing there");
    }
    assert!(index(b"", 1000, 100).end.is_ok(), "no frame at all is an empty layer");
}

#[test]
fn a_span_gives_its_length_or_an_error() {
    let data = text(300_000, 3);
    let (first, second) = (frame(&data[..200_000], shape(0)), frame(&data[200_000..], shape(1)));
    let blob = [&first[..], &second].concat();
    let found = index(&blob, 100_000, 4096);
    assert_eq!(found.checkpoints.len(), 2);
    let sound = table(&blob, data.len(), &found.checkpoints);
    // Lies about where the second span begins, and about how long the layer is.
    let moved = |blob_by: i64, layer_by: i64| {
        let mut checkpoints = found.checkpoints.clone();
        let by = |at: u64, by: i64| at.checked_add_signed(by).expect("in range");
        checkpoints[1].blob = BlobOffset::new(by(checkpoints[1].blob.get(), blob_by));
        checkpoints[1].layer = LayerOffset::new(by(checkpoints[1].layer.get(), layer_by));
        table(&blob, data.len(), &checkpoints)
    };
    let error = |table: &SpanTable, id, want| inflate(table, &blob, id, want).expect_err("a lie").to_string();
    assert!(error(&moved(0, 1), 0, Want::Whole).contains("inflates to 200000 bytes where the zTOC says 200001"));
    assert!(error(&moved(0, -1), 0, Want::Whole).contains("inflates to 200000 bytes where the zTOC says 199999"));
    assert!(error(&moved(-1, 0), 0, Want::Whole).contains("does not end where its span does"));
    assert!(error(&moved(-1, 0), 1, Want::Whole).contains("no zstd frame"));
    assert!(error(&moved(1, 0), 0, Want::Whole).contains("does not end where its span does"));
    assert!(error(&moved(0, -1), 1, Want::Whole).contains("inflates to 100000 bytes where the zTOC says 100001"));
    let longer = table(&blob, data.len() + 1, &found.checkpoints);
    assert!(error(&longer, 1, Want::Whole).contains("inflates to 100000 bytes where the zTOC says 100001"));
    // A layer that goes on behind what the zTOC counts is whole all the same.
    let shorter = table(&blob, data.len() - 600, &found.checkpoints);
    assert_eq!(inflate(&shorter, &blob, 1, Want::Whole).expect("good"), (data[200_000..].to_vec(), true));
    assert_eq!(inflate(&sound, &blob, 1, Want::First(10)).expect("good"), (data[200_000..200_010].to_vec(), false));
    assert_eq!(inflate(&sound, &blob, 0, Want::First(0)).expect("good"), (Vec::new(), false));
}

#[test]
fn a_bomb_ends_at_the_spans_length() {
    let bomb = frame(&vec![0; 90 << 20], Shape::default());
    let found = index(&bomb, 1 << 20, 4096);
    assert_eq!((found.layer.len(), found.checkpoints.len()), (90 << 20, 1));
    let small = table(&bomb, 1000, &found.checkpoints);
    let mut seen = 0_u64;
    let mut sink = |bytes: &[u8]| {
        seen += bytes.len() as u64;
        Ok(())
    };
    let done = SpanInflater::new().inflate(&small, SpanId(0), &bomb, None, Want::Whole, &mut sink).expect("its tail");
    assert_eq!((done.bytes, done.end_of_layer), (1000 + crate::inflate::TAIL_LIMIT_BYTES, false));
    assert_eq!(seen, done.bytes);
}

//! The engines against each other and against miniz_oxide, over every span of many layers.

use std::io::Write;
use std::path::PathBuf;

use super::span::Job;
use super::*;
use crate::spans::ztoc::Ztoc;
use crate::spans::{Compression, Span};
use crate::units::{BlobRange, Digest, LayerRange, WINDOW_BYTES};

/// Reproducible bytes: text-like runs, binary-like noise and zeros, so that all kinds of blocks occur.
fn layer_bytes(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut out = Vec::with_capacity(len + 4096);
    while out.len() < len {
        let n = usize::try_from(next() % 3000).unwrap_or(0) + 1;
        match next() % 5 {
            0 => out.extend((0..n).map(|_| next().to_le_bytes()[0])),
            1 => out.extend(std::iter::repeat_n(0, n)),
            2 if !out.is_empty() => {
                let from = usize::try_from(next()).unwrap_or(0) % out.len();
                let piece = out[from..(from + n).min(out.len())].to_vec();
                out.extend_from_slice(&piece);
            }
            _ => out.extend((0..n).map(|_| b"etaoin shrdlu\n"[usize::try_from(next() % 14).unwrap_or(0)])),
        }
    }
    out.truncate(len);
    out
}

fn gzip_member(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// The slow obvious way: all members, one after the other, by another implementation.
fn oracle(blob: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(header) = gzip::header_bytes(&blob[at.min(blob.len())..]) {
        at += header;
        let mut state = miniz_oxide::inflate::core::DecompressorOxide::new();
        let mut member = vec![0; 256 * 1024];
        let mut made = 0;
        loop {
            let flags = miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let (status, n_in, n_out) =
                miniz_oxide::inflate::core::decompress(&mut state, &blob[at..], &mut member, made, flags);
            at += n_in;
            made += n_out;
            match status {
                miniz_oxide::inflate::TINFLStatus::Done => break,
                miniz_oxide::inflate::TINFLStatus::HasMoreOutput => member.resize(member.len() * 2, 0),
                other => panic!("oracle: {other:?} at {at}"),
            }
        }
        out.extend_from_slice(&member[..made]);
        at += gzip::TRAILER_BYTES;
    }
    out
}

/// A span with what inflating it needs, found by our own indexer.
struct Found {
    span: Span,
    window: Option<Box<[u8; WINDOW_BYTES]>>,
    next_bits: Option<u8>,
}

impl Found {
    fn job<'a>(&'a self, blob: &'a [u8], index: usize) -> Job<'a> {
        let range = usize::try_from(self.span.blob.start().get()).expect("small")
            ..usize::try_from(self.span.blob.end().get()).expect("small");
        Job {
            id: SpanId(u32::try_from(index).expect("few")),
            span: &self.span,
            next_bits: self.next_bits,
            blob: &blob[range],
            window: self.window.as_deref(),
        }
    }

    fn layer(&self) -> std::ops::Range<usize> {
        usize::try_from(self.span.layer.start().get()).expect("small")
            ..usize::try_from(self.span.layer.end().get()).expect("small")
    }
}

fn index(blob: &[u8], span_size: u64, piece: usize) -> (Vec<Found>, Vec<u8>) {
    let mut layer = Vec::new();
    let mut sink = |b: &[u8]| {
        layer.extend_from_slice(b);
        Ok(())
    };
    let mut indexer = Indexer::new(span_size).expect("memory");
    for piece in blob.chunks(piece) {
        indexer.push(piece, &mut sink).expect("good blob");
    }
    let end = indexer.finish(&mut sink).expect("good blob");
    assert_eq!(end.blob_size.get(), blob.len() as u64);
    assert_eq!(end.layer_size.get(), layer.len() as u64);
    let checkpoints = indexer.checkpoints();
    let found = checkpoints.iter().enumerate().map(|(i, c)| {
        let next = checkpoints.get(i + 1);
        let start = BlobOffset::new(c.blob.get() - u64::from(c.bits != 0));
        Found {
            span: Span {
                blob: BlobRange::new(start, next.map_or(end.blob_size, |n| n.blob)).expect("ordered"),
                layer: LayerRange::new(c.layer, next.map_or(end.layer_size, |n| n.layer)).expect("ordered"),
                bits: c.bits,
                digest: Digest::of(b""),
                window_at: None,
            },
            window: (i != 0).then(|| c.window.clone()),
            next_bits: next.map(|n| n.bits),
        }
    });
    (found.collect(), layer)
}

fn whole(inflater: &mut SpanInflater, job: &Job<'_>, want: Want) -> Result<(Vec<u8>, Inflated), InflateError> {
    let mut out = Vec::new();
    let inflated = inflater.run(job, want, &mut |b| {
        out.extend_from_slice(b);
        Ok(())
    })?;
    assert_eq!(inflated.bytes, out.len() as u64);
    Ok((out, inflated))
}

/// Every span of `blob` by every way, against the oracle. Adds up which bit offsets occurred.
fn check_layer(name: &str, blob: &[u8], span_size: u64, seen_bits: &mut [u32; 8]) -> usize {
    let expected = oracle(blob);
    let (found, layer) = index(blob, span_size, 50_000);
    assert!(layer == expected, "{name}: the indexer's layer differs");
    let mut inflater = SpanInflater::new();
    let mut fast = 0;
    for (i, f) in found.iter().enumerate() {
        let job = f.job(blob, i);
        let want = &expected[f.layer()];
        seen_bits[usize::from(f.span.bits)] += 1;
        let (out, inflated) = whole(&mut inflater, &job, Want::Whole).expect(name);
        assert!(out == want, "{name}: span {i} of size {span_size} differs");
        assert_eq!(inflated.end_of_layer, i + 1 == found.len(), "{name}: span {i}");
        fast += usize::from(inflater.in_one_piece(&job).is_some_and(|out| out == want));
        if f.next_bits.is_none() {
            let mut out = Vec::new();
            let mut sink = |b: &[u8]| {
                out.extend_from_slice(b);
                Ok(())
            };
            inflater.last_span(&job, &mut sink).expect(name);
            assert!(out == want, "{name}: the last span of size {span_size} differs piecewise");
        } else {
            let mut out = Vec::new();
            let mut sink = |b: &[u8]| {
                out.extend_from_slice(b);
                Ok(())
            };
            inflater.piecewise(&job, want.len() as u64, want.len() as u64 + 1, &mut sink).expect(name);
            assert!(out == want, "{name}: span {i} of size {span_size} differs piecewise");
        }
        for first in [0, 1, 4096, want.len() / 2, want.len().saturating_sub(1), want.len()] {
            let first = first.min(want.len());
            let (out, _) = whole(&mut inflater, &job, Want::First(first as u64)).expect(name);
            assert!(out == want[..first], "{name}: the first {first} of span {i} differ");
        }
    }
    fast
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut layers: Vec<_> = std::fs::read_dir(root.join("tests/corpus"))
        .expect("the corpus is part of the project")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "gz"))
        .map(|p| (p.display().to_string(), std::fs::read(&p).expect("readable")))
        .collect();
    layers.sort();
    layers
}

#[test]
fn inflaters_and_indexers_can_move_to_a_worker_thread() {
    fn is_send<T: Send>(_: &T) -> bool {
        true
    }
    assert!(is_send(&SpanInflater::new()));
    assert!(is_send(&Indexer::new(0).expect("memory")));
}

#[test]
fn every_span_of_the_corpus_is_the_same_by_all_engines() {
    let layers = corpus();
    assert!(layers.len() >= 10);
    for (name, blob) in layers {
        for span_size in [4 << 20, 256 << 10] {
            check_layer(&name, &blob, span_size, &mut [0; 8]);
        }
    }
}

/// All zTOCs that SOCI's own builder made of corpus layers, each with its layer blob.
fn foreign_ztocs() -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folders = [root.join("tests/corpus"), root.join("../shared/corpus/layers")];
    let files = folders.iter().filter_map(|f| std::fs::read_dir(f).ok()).flatten();
    let mut ztocs: Vec<_> =
        files.map(|e| e.expect("readable").path()).filter(|p| p.extension().is_some_and(|e| e == "ztoc")).collect();
    ztocs.sort();
    assert!(ztocs.len() >= 10, "the corpus is part of the project");
    let read = |p: PathBuf| {
        let layer = p.with_extension("");
        let layer = if layer.exists() { layer } else { layer.with_extension("") };
        (p.display().to_string(), std::fs::read(&p).expect("zTOC"), std::fs::read(layer).expect("layer"))
    };
    ztocs.into_iter().map(read).collect()
}

#[test]
fn spans_of_foreign_ztocs_make_up_the_layer() {
    let mut inflater = SpanInflater::new();
    for (name, document, blob) in foreign_ztocs() {
        let ztoc = Ztoc::parse(&document).expect(&name);
        let table = ztoc.spans();
        let expected = if table.compression() == Compression::Gzip { oracle(&blob) } else { blob.clone() };
        let mut layer = Vec::new();
        for (id, span) in table.iter() {
            let checkpoint = ztoc.checkpoint(id);
            let window = checkpoint.as_ref().filter(|_| span.window_at.is_some()).map(|c| &*c.window);
            let range = usize::try_from(span.blob.start().get()).expect("small")
                ..usize::try_from(span.blob.end().get()).expect("small");
            assert_eq!(layer.len() as u64, span.layer.start().get(), "{name}: span {id}");
            let mut sink = |b: &[u8]| {
                layer.extend_from_slice(b);
                Ok(())
            };
            let end = inflater.inflate(table, id, &blob[range], window, Want::Whole, &mut sink).expect(&name);
            assert_eq!(end.end_of_layer, id.index() + 1 == table.len(), "{name}: span {id}");
        }
        assert!(layer == expected, "{name}: the spans are not the layer");
        let wrong = inflater.inflate(table, SpanId(0), &[], None, Want::Whole, &mut |_| Ok(()));
        assert!(matches!(wrong, Err(InflateError::BlobLength { got_bytes: 0, .. })));
        let beyond = SpanId(u32::try_from(table.len()).expect("few"));
        let wrong = inflater.inflate(table, beyond, &[], None, Want::Whole, &mut |_| Ok(()));
        assert!(matches!(wrong, Err(InflateError::NoSuchSpan { .. })));
    }
}

#[test]
fn a_checkpoint_at_every_block_covers_all_bit_offsets() {
    let mut seen = [0; 8];
    for (level, seed) in [(0, 1), (1, 2), (6, 3), (9, 4)] {
        let blob = gzip_member(&layer_bytes(1_500_000, seed), level);
        for span_size in [0, 100_000] {
            let fast = check_layer(&format!("level {level}"), &blob, span_size, &mut seen);
            let spans = index(&blob, span_size, blob.len()).0.len();
            assert!(fast >= spans - 1, "level {level}: every span but the last must take the fast way");
        }
    }
    assert!(seen.iter().all(|&n| n > 0), "bit offsets seen: {seen:?}");
}

#[test]
fn spans_cross_members_and_padding_ends_the_layer() {
    let bytes = layer_bytes(700_000, 9);
    let mut blob = Vec::new();
    for (i, piece) in bytes.chunks(90_000).enumerate() {
        blob.extend(gzip_member(piece, if i % 2 == 0 { 6 } else { 0 }));
    }
    blob.extend(gzip_member(b"", 6));
    let twice = gzip_member(&bytes, 6).repeat(2);
    assert_eq!(check_layer("the same member twice", &twice, 1 << 40, &mut [0; 8]), 0);
    for span_size in [0, 50_000, 200_000, 4 << 20] {
        check_layer("members", &blob, span_size, &mut [0; 8]);
    }
    blob.extend([0; 777]);
    for span_size in [0, 200_000, 4 << 20] {
        check_layer("members, then zeros", &blob, span_size, &mut [0; 8]);
    }
}

#[test]
fn the_size_of_pieces_does_not_change_checkpoints() {
    let mut blob = gzip_member(&layer_bytes(400_000, 5), 6);
    blob.extend(gzip_member(&layer_bytes(100_000, 6), 6));
    let want = index(&blob, 60_000, blob.len()).0;
    for piece in [1, 7, 4096] {
        let got = index(&blob, 60_000, piece).0;
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(&want) {
            assert_eq!(g.span, w.span);
            assert!(g.window == w.window);
        }
    }
}

#[test]
fn the_last_span_may_go_on_beyond_the_declared_size_but_not_without_end() {
    let blob = gzip_member(&vec![7; usize::try_from(TAIL_LIMIT_BYTES).expect("small") + 4096], 1);
    let (mut found, _) = index(&blob, 1 << 40, blob.len());
    let span = &mut found[0].span;
    let declare = |span: &mut Span, bytes| {
        span.layer = LayerRange::from_len(LayerOffset::ZERO, bytes).expect("small");
    };
    let mut inflater = SpanInflater::new();
    for (declared, bytes, complete) in
        [(4096, TAIL_LIMIT_BYTES + 4096, true), (4095, TAIL_LIMIT_BYTES + 4095, false), (0, TAIL_LIMIT_BYTES, false)]
    {
        declare(span, declared);
        let job = Job { id: SpanId(0), span, next_bits: None, blob: &blob[10..], window: None };
        let (out, inflated) = whole(&mut inflater, &job, Want::Whole).expect("good");
        assert!(out.iter().all(|&b| b == 7));
        assert_eq!((inflated.bytes, inflated.end_of_layer), (bytes, complete), "declared {declared}");
    }
    declare(span, TAIL_LIMIT_BYTES + 4097);
    let job = Job { id: SpanId(0), span, next_bits: None, blob: &blob[10..], window: None };
    assert!(matches!(whole(&mut inflater, &job, Want::Whole), Err(InflateError::Length { .. })));
}

#[test]
fn a_damaged_tail_keeps_the_spans_own_bytes() {
    let bytes = layer_bytes(600_000, 11);
    let mut blob = gzip_member(&bytes, 6);
    let good = blob.len();
    let mut second = gzip_member(&layer_bytes(100_000, 12), 6);
    second[10] = 0x07;
    blob.extend(second);
    let (found, _) = index(&blob[..good], 1 << 40, good);
    let job = Job { id: SpanId(0), span: &found[0].span, next_bits: None, blob: &blob[10..], window: None };
    let (out, inflated) = whole(&mut SpanInflater::new(), &job, Want::Whole).expect("declared bytes are good");
    assert!(out == bytes && !inflated.end_of_layer);
}

#[test]
fn the_first_span_is_found_behind_header_fields_that_an_old_ztoc_does_not_know() {
    let bytes = layer_bytes(600_000, 13);
    let plain = gzip_member(&bytes, 6);
    let (mut found, _) = index(&plain, 1 << 17, plain.len());
    assert!(found.len() > 2);
    let plain_end = found[0].span.blob.end().get();
    for (flags, fields) in [
        (0, &b""[..]),
        (8, b"layer.tar\0"),
        (16, b"a comment\0"),
        (24, b"name\0comment\0"),
        (4, b"\x05\0abcde"),
        (30, b"\x05\0abcdename\0comment\0\x01\x02"),
    ] {
        let mut blob = plain[..10].to_vec();
        blob[3] = flags;
        blob.extend_from_slice(fields);
        blob.extend_from_slice(&plain[10..]);
        let end = BlobOffset::new(plain_end + fields.len() as u64);
        found[0].span.blob = BlobRange::new(BlobOffset::new(10), end).expect("ordered");
        let job = found[0].job(&blob, 0);
        let (out, _) = whole(&mut SpanInflater::new(), &job, Want::Whole).expect("found");
        assert!(out == bytes[found[0].layer()], "flags {flags}");
    }
}

#[test]
fn uncompressed_spans_are_copied() {
    let blob = layer_bytes(10_000, 17);
    let span = |end| Span {
        blob: BlobRange::new(BlobOffset::ZERO, BlobOffset::new(10_000)).expect("ordered"),
        layer: LayerRange::new(LayerOffset::ZERO, LayerOffset::new(end)).expect("ordered"),
        bits: 0,
        digest: Digest::of(b""),
        window_at: None,
    };
    for (declared, next_bits, want, expected) in [
        (10_000, Some(0), Want::Whole, Some(10_000)),
        (10_000, Some(0), Want::First(3), Some(3)),
        (9_000, None, Want::Whole, Some(10_000)),
        (9_000, None, Want::First(20_000), Some(9_000)),
        (10_001, None, Want::Whole, None),
        (10_001, Some(0), Want::Whole, None),
    ] {
        let span = span(declared);
        let job = Job { id: SpanId(0), span: &span, next_bits, blob: &blob, window: None };
        let mut out = Vec::new();
        let result = job.copy(want, &mut |b| {
            out.extend_from_slice(b);
            Ok(())
        });
        assert_eq!(result.ok().map(|i| i.bytes), expected);
        assert_eq!(out, &blob[..usize::try_from(expected.unwrap_or(0)).expect("small")]);
    }
}

#[test]
fn a_failing_sink_is_named_and_stops_the_work() {
    let blob = gzip_member(&layer_bytes(900_000, 19), 6);
    let (found, _) = index(&blob, 1 << 19, blob.len());
    for (i, f) in found.iter().enumerate() {
        let result =
            SpanInflater::new().run(&f.job(&blob, i), Want::Whole, &mut |_| Err(std::io::Error::other("disk full")));
        assert!(matches!(result, Err(InflateError::Sink { source, .. }) if source.to_string() == "disk full"));
    }
}

#[test]
fn damaged_blobs_end_in_an_error_that_says_where() {
    let good = gzip_member(&layer_bytes(500_000, 23), 6);
    let index_all = |blob: &[u8]| {
        let mut indexer = Indexer::new(1 << 17)?;
        indexer.push(blob, &mut |_| Ok(()))?;
        indexer.finish(&mut |_| Ok(()))
    };
    for cut in [0, 1, 9, 10, 100, good.len() / 2, good.len() - 8, good.len() - 1] {
        let error = index_all(&good[..cut]).expect_err("cut off");
        assert!(matches!(error, IndexError::CutOff { blob, .. } if blob.get() == cut as u64), "cut at {cut}: {error}");
    }
    for (tail, garbage_at) in [(&b"hello, world"[..], 0), (b"\0\0\0x", 3), (b"\x1f\x8b\x07\0\0\0\0\0\0\0", 0)] {
        let mut blob = good.clone();
        blob.extend_from_slice(tail);
        let error = index_all(&blob).expect_err("garbage");
        let want = (good.len() + garbage_at) as u64;
        assert!(matches!(error, IndexError::TrailingGarbage { blob } if blob.get() == want), "{error}");
    }
    let mut second = good.clone();
    second.extend(gzip_member(&layer_bytes(500_000, 37), 6));
    let at = good.len() + 60_000;
    second[at..at + 64].fill(0xff);
    let error = index_all(&second).expect_err("damaged");
    assert!(
        matches!(error, IndexError::Data { blob, layer, .. }
            if blob.get() >= at as u64 && blob.get() < second.len() as u64 && layer.get() > 500_000),
        "{error}"
    );
    let mut crc = good.clone();
    let at = crc.len() - 8;
    crc[at] ^= 1;
    assert!(matches!(index_all(&crc), Err(IndexError::Data { .. })));
    assert!(matches!(index_all(b"not gzip at all"), Err(IndexError::Data { blob, .. }) if blob.get() < 10));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    /// Whatever is done to a span's bytes, window, bit offset or declared length: no panic, and no other length than the
    /// declared one without an error.
    #[test]
    fn damaged_spans_never_give_a_wrong_length(
        which in 0usize..1000,
        edits in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::u8::ANY), 0..4),
        cut in proptest::option::of(proptest::num::usize::ANY),
        bits in proptest::option::of(0u8..8),
        next_bits in proptest::option::of(0u8..8),
        longer in -3i64..4,
        keep_window in proptest::bool::ANY,
    ) {
        static LAYER: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let mut blob = gzip_member(&layer_bytes(200_000, 29), 6);
            blob.extend(gzip_member(&layer_bytes(60_000, 31), 6));
            blob
        });
        let (mut found, _) = index(&LAYER, 30_000, LAYER.len());
        let i = which % found.len();
        let f = &mut found[i];
        let mut span_blob = f.job(&LAYER, i).blob.to_vec();
        if let Some(cut) = cut {
            span_blob.truncate(cut % (span_blob.len() + 1));
        }
        for (at, value) in edits {
            let at = at % span_blob.len().max(1);
            if let Some(b) = span_blob.get_mut(at) {
                *b = value;
            }
        }
        let len = f.span.layer.len_bytes().saturating_add_signed(longer);
        f.span.layer = LayerRange::from_len(f.span.layer.start(), len).expect("small");
        f.span.bits = bits.unwrap_or(f.span.bits);
        let last = f.next_bits.is_none();
        let job = Job {
            id: SpanId(u32::try_from(i).expect("few")),
            span: &f.span,
            next_bits: f.next_bits.map(|old| next_bits.unwrap_or(old)),
            blob: &span_blob,
            window: f.window.as_deref().filter(|_| keep_window),
        };
        let mut inflater = SpanInflater::new();
        if let Ok((out, _)) = whole(&mut inflater, &job, Want::Whole) {
            let got = out.len() as u64;
            proptest::prop_assert!(got == len || last && got > len);
        }
        if let Ok((out, _)) = whole(&mut inflater, &job, Want::First(1000)) {
            proptest::prop_assert_eq!(out.len() as u64, len.min(1000));
        }
    }
}

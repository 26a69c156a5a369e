//! Odd and damaged layers: the tail, old zTOCs, cut and changed bytes.

use super::*;

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
        let job = Job { id: SpanId(0), span, is_last: true, blob: &blob[10..], window: None };
        let (out, inflated) = whole(&mut inflater, &job, Want::Whole).expect("good");
        assert!(out.iter().all(|&b| b == 7));
        assert_eq!((inflated.bytes, inflated.end_of_layer), (bytes, complete), "declared {declared}");
    }
    declare(span, TAIL_LIMIT_BYTES + 4097);
    let job = Job { id: SpanId(0), span, is_last: true, blob: &blob[10..], window: None };
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
    let job = Job { id: SpanId(0), span: &found[0].span, is_last: true, blob: &blob[10..], window: None };
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
    for (declared, is_last, want, expected) in [
        (10_000, false, Want::Whole, Some(10_000)),
        (10_000, false, Want::First(3), Some(3)),
        (9_000, true, Want::Whole, Some(10_000)),
        (9_000, true, Want::First(20_000), Some(9_000)),
        (10_001, true, Want::Whole, None),
        (10_001, false, Want::Whole, None),
    ] {
        let span = span(declared);
        let job = Job { id: SpanId(0), span: &span, is_last, blob: &blob, window: None };
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
        let mut indexer = Indexer::new(1 << 17);
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
        let last = f.is_last;
        let job = Job {
            id: SpanId(u32::try_from(i).expect("few")),
            span: &f.span,
            is_last: f.is_last,
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

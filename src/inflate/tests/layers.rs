//! Good layers, whatever way a span is read.

use super::*;
use crate::spans::corpus::{self, CorpusFile};
use crate::spans::ztoc::Ztoc;

#[test]
fn inflaters_and_indexers_can_move_to_a_worker_thread() {
    fn is_send<T: Send>(_: &T) -> bool {
        true
    }
    assert!(is_send(&SpanInflater::new()));
    assert!(is_send(&Indexer::new(0)));
}

#[test]
fn every_span_of_the_corpus_is_what_others_make_of_it() {
    let layers = corpus();
    assert!(layers.len() >= 10);
    for (name, blob) in layers {
        for span_size in [4 << 20, 256 << 10] {
            check_layer(&name, &blob, span_size, &mut [0; 8]);
        }
    }
}

#[test]
fn spans_of_foreign_ztocs_make_up_the_layer() {
    let mut inflater = SpanInflater::new();
    for CorpusFile { name, bytes: document } in corpus::ztocs() {
        let blob = corpus::layer_of(&name).bytes;
        let ztoc = Ztoc::parse(&document).expect(&name);
        let table = ztoc.spans();
        let expected = if table.compression() == Compression::Gzip { oracle(&blob) } else { blob.clone() };
        let mut layer = Vec::new();
        for (id, span) in table.iter() {
            let checkpoint = ztoc.checkpoint(id);
            let window = checkpoint.as_ref().filter(|_| span.window_at.is_some()).and_then(|c| c.window.as_deref());
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
            check_layer(&format!("level {level}"), &blob, span_size, &mut seen);
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
    check_layer("the same member twice", &twice, 1 << 40, &mut [0; 8]);
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

//! Any bytes as deflate data behind a gzip header, in pieces of a size that the first byte tells: what zlib-rs says, and every
//! block boundary is a place from which the rest can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sociblk::inflate::{DataFault, IndexError, Indexer, SpanInflater, Want};
use sociblk::spans::ztoc::{Ztoc, ZtocParts, write};
use sociblk::spans::{Checkpoint, Compression};
use sociblk::units::{BlobOffset, Digest, LayerOffset};
use zlib_rs::{Inflate, InflateFlush, Status};

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
const LIMIT_BYTES: usize = 1 << 20;

enum End {
    Complete { consumed: usize },
    CutOff,
    Bad,
}

/// What zlib-rs makes of raw deflate data; `None` when it is more than the limit.
fn zlib(raw: &[u8]) -> Option<(Vec<u8>, End)> {
    let mut decoder = Inflate::new(false, 15);
    let mut out = vec![0; LIMIT_BYTES];
    let status = decoder.decompress(raw, &mut out, InflateFlush::NoFlush);
    let (consumed, made) = (decoder.total_in() as usize, decoder.total_out() as usize);
    let end = match status {
        Ok(Status::StreamEnd) => End::Complete { consumed },
        _ if made == LIMIT_BYTES => return None,
        Ok(_) => End::CutOff,
        Err(_) => End::Bad,
    };
    out.truncate(made);
    Some((out, end))
}

fn index(blob: &[u8], piece: usize) -> (Vec<u8>, Vec<Checkpoint>, Result<LayerOffset, IndexError>) {
    let mut layer = Vec::new();
    let mut sink = |bytes: &[u8]| {
        layer.extend_from_slice(bytes);
        Ok(())
    };
    let mut indexer = Indexer::new(0);
    // Each piece in memory of its own, so that the address sanitizer sees a read beyond its end.
    let pushed = blob.chunks(piece).try_for_each(|piece| indexer.push(&Box::<[u8]>::from(piece), &mut sink));
    let end = pushed.and_then(|()| indexer.finish(&mut sink)).map(|end| end.layer_size);
    (layer, indexer.take_checkpoints(), end)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&size, raw)) = bytes.split_first() else { return };
    let piece = if size == 0 { usize::MAX } else { usize::from(size) };
    let Some((expected, end)) = zlib(raw) else { return };
    let mut blob = [&HEADER, raw].concat();
    let End::Complete { consumed } = end else {
        let (layer, _, error) = index(&blob, piece);
        match (end, error.expect_err("no complete stream")) {
            (End::CutOff, IndexError::CutOff { .. }) => assert!(layer == expected),
            (End::Bad, IndexError::Data { layer, .. }) => assert_eq!(layer.get(), expected.len() as u64),
            // A code length code without code words: we refuse it where it ends; zlib reads a length of 0 from each bit
            // that follows, at most 286 + 30, and misses the end-of-block symbol then.
            (End::CutOff, IndexError::Data { layer, source: DataFault::PrecodeCode, .. }) => {
                assert_eq!(layer.get(), expected.len() as u64);
                let longer = [raw, &[0; (286 + 30_usize).div_ceil(8)]].concat();
                let refused = zlib(&longer).is_some_and(|(out, end)| out == expected && matches!(end, End::Bad));
                assert!(refused, "a good code length code was refused");
            }
            (_, error) => panic!("{error}"),
        }
        return;
    };
    blob.truncate(HEADER.len() + consumed);
    blob.extend_from_slice(&crc32fast::hash(&expected).to_le_bytes());
    blob.extend_from_slice(&(expected.len() as u32).to_le_bytes());
    let (layer, checkpoints, size) = index(&blob, piece);
    assert_eq!(size.expect("a complete stream").get(), expected.len() as u64);
    assert!(layer == expected);

    if checkpoints.len() > 40 {
        return;
    }
    let parts = ZtocParts {
        build_tool: "fuzz",
        compressed_size: BlobOffset::new(blob.len() as u64),
        uncompressed_size: LayerOffset::new(expected.len() as u64),
        entries: &[],
        compression: Compression::Gzip,
        span_size: 0,
        span_digests: &vec![Digest::of(b""); checkpoints.len()],
    };
    let document = write(&parts, &checkpoints).expect("a zTOC can be written");
    let ztoc = Ztoc::parse(&document).expect("and read");
    let mut inflater = SpanInflater::new();
    for (id, span) in ztoc.spans().iter() {
        let from = |bytes: u64| usize::try_from(bytes).expect("small");
        let blob = &blob[from(span.blob.start().get())..from(span.blob.end().get())];
        let window = span.window_at.and_then(|_| ztoc.checkpoint(id)).and_then(|checkpoint| checkpoint.window);
        let mut out = Vec::new();
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        inflater.inflate(ztoc.spans(), id, blob, window.as_deref(), Want::Whole, &mut sink).expect("a good span");
        assert!(out == expected[from(span.layer.start().get())..from(span.layer.end().get())]);
    }
});

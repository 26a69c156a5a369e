//! Any bytes as a zstd stream, in pieces of a size that the first byte tells: what is taken is what libzstd's own reader makes
//! of it, and every span gives its part of the layer.
#![no_main]

use std::io::Read as _;

use libfuzzer_sys::fuzz_target;
use sociblk::inflate::{SpanInflater, Want, ZstdIndexer};
use sociblk::spans::Compression;
use sociblk::spans::ztoc::{Ztoc, ZtocParts, write};
use sociblk::units::{BlobOffset, Digest, LayerOffset};

const LIMIT_BYTES: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((&size, blob)) = bytes.split_first() else { return };
    // No frame at all is an empty layer, as for containerd's reader; libzstd's waits for the first.
    if blob.is_empty() {
        return;
    }
    let piece = if size == 0 { usize::MAX } else { usize::from(size) };
    let mut layer = Vec::new();
    let mut sink = |bytes: &[u8]| {
        layer.extend_from_slice(bytes);
        if layer.len() > LIMIT_BYTES { Err(std::io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    };
    let mut indexer = ZstdIndexer::new(u64::from(size) * 16);
    // Each piece in memory of its own, so that the address sanitizer sees a read beyond its end.
    let pushed = blob.chunks(piece).try_for_each(|piece| indexer.push(&Box::<[u8]>::from(piece), &mut sink));
    let Ok(end) = pushed.and_then(|()| indexer.finish()) else { return };
    assert_eq!((end.layer_size.get(), end.blob_size.get()), (layer.len() as u64, blob.len() as u64));
    let mut expected = Vec::new();
    zstd::Decoder::new(blob).expect("memory").read_to_end(&mut expected).expect("libzstd takes it, too");
    assert!(layer == expected);

    let checkpoints = indexer.take_checkpoints();
    if checkpoints.is_empty() || checkpoints.len() > 100 {
        return;
    }
    let parts = ZtocParts {
        build_tool: "fuzz",
        compressed_size: BlobOffset::new(blob.len() as u64),
        uncompressed_size: LayerOffset::new(layer.len() as u64),
        entries: &[],
        compression: Compression::Zstd,
        span_size: 0,
        span_digests: &vec![Digest::of(b""); checkpoints.len()],
    };
    let document = write(&parts, &checkpoints).expect("a zTOC can be written");
    let ztoc = Ztoc::parse(&document).expect("and read");
    let mut inflater = SpanInflater::new();
    for (id, span) in ztoc.spans().iter() {
        let from = |bytes: u64| usize::try_from(bytes).expect("small");
        let blob = &blob[from(span.blob.start().get())..from(span.blob.end().get())];
        let mut out = Vec::new();
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        inflater.inflate(ztoc.spans(), id, blob, None, Want::Whole, &mut sink).expect("a good span");
        assert!(out == layer[from(span.layer.start().get())..from(span.layer.end().get())]);
    }
});

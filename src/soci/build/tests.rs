//! Whether what is built is what SOCI builds, and what becomes of bad layers.

use std::io::Write;
use std::path::PathBuf;

use super::*;
use crate::spans::corpus as layers;
use crate::spans::ztoc::Ztoc;

const SOCI: &str = "AWS SOCI CLI v0.2";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn options(span_size_bytes: u64) -> BuildOptions {
    BuildOptions {
        span_size_bytes,
        build_tool: SOCI.to_owned(),
        blob_digest: true,
        diff_id: true,
        ..BuildOptions::default()
    }
}

/// Builds from pieces; gives also the layer that the sink got.
fn build(blob: &[u8], options: BuildOptions, piece: usize) -> Result<(Built, Vec<u8>), BuildError> {
    let mut layer = Vec::new();
    let mut sink = |b: &[u8]| {
        layer.extend_from_slice(b);
        Ok(())
    };
    let mut builder = ZtocBuilder::new(options, detect_compression(blob)?)?;
    for piece in blob.chunks(piece) {
        builder.push(piece, &mut sink)?;
    }
    let built = builder.finish(&mut sink)?;
    Ok((built, layer))
}

fn corpus(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)).expect("own corpus")
}

#[test]
fn ztocs_are_byte_for_byte_what_socis_builder_makes() {
    let dir = tempfile::tempdir().expect("temp dir");
    for ztoc in layers::ztocs() {
        let layer = layers::layer_of(&ztoc.name);
        let file = dir.path().join("layer");
        std::fs::write(&file, &layer.bytes).expect("written");
        let span_size = Ztoc::parse(&ztoc.bytes).expect("SOCI's own").span_size();
        let built = build_file(&file, options(span_size), &mut |_| ()).expect("a good layer");
        assert!(built.ztoc == ztoc.bytes, "{} differs from what SOCI makes", ztoc.name);
        assert_eq!(built.blob_digest, Some(Digest::of(&layer.bytes)));
        assert_eq!(built.blob_size.get(), layer.bytes.len() as u64);
    }
}

#[test]
fn pieces_do_not_matter_and_the_sink_gets_the_whole_layer() {
    for name in ["small-multimember.tar.gz", "edge-pax.tar.gz", "small-stored.tar.gz"] {
        let blob = corpus(name);
        let (want, layer) = build(&blob, options(50_000), blob.len()).expect("good");
        assert_eq!(want.diff_id, Some(Digest::of(&layer)));
        assert_eq!(want.layer_size.get(), layer.len() as u64);
        for piece in [1, 1000, 65_537] {
            let (got, got_layer) = build(&blob, options(50_000), piece).expect("good");
            assert!(got.ztoc == want.ztoc, "{name} in pieces of {piece}");
            assert!(got_layer == layer, "{name} in pieces of {piece}");
        }
        // The layer as a plain tar has the same table of contents.
        for piece in [777, layer.len()] {
            let (plain, plain_layer) = build(&layer, options(50_000), piece).expect("good");
            assert!(plain_layer == layer);
            assert_eq!(plain.blob_digest, plain.diff_id);
            assert_eq!(plain.entry_count, want.entry_count);
            let ztoc = Ztoc::parse(&plain.ztoc).expect("our own");
            for (id, span) in ztoc.spans().iter() {
                let range = usize::try_from(span.blob.start().get()).expect("small")
                    ..usize::try_from(span.blob.end().get()).expect("small");
                assert_eq!(Digest::of(&layer[range]), span.digest, "{name} as plain tar, span {id}");
            }
        }
    }
}

#[test]
fn every_span_size_gives_a_ztoc_that_is_accepted() {
    for name in ["small-multimember.tar.gz", "small-stored.tar.gz", "small-gzip-header-fields.tar.gz", "empty.tar.gz"] {
        let blob = corpus(name);
        for span_size in [0, 1, 40_000, 1 << 20, i64::MAX as u64] {
            let (built, _) = build(&blob, options(span_size), 9000).expect("good");
            let ztoc = Ztoc::parse(&built.ztoc).expect(name);
            assert_eq!(ztoc.spans().len(), built.span_count);
            for (id, span) in ztoc.spans().iter() {
                let range = usize::try_from(span.blob.start().get()).expect("small")
                    ..usize::try_from(span.blob.end().get()).expect("small");
                assert_eq!(Digest::of(&blob[range]), span.digest, "{name}, span {id} of size {span_size}");
            }
        }
    }
}

/// A zstd blob as zstd:chunked has it: a skippable frame first, frames of so many bytes, skippable ones last.
fn zstd(layer: &[u8], frame_bytes: usize) -> Vec<u8> {
    let skippable = |text: &[u8]| [b"\x53\x2a\x4d\x18", &(text.len() as u32).to_le_bytes()[..], text].concat();
    let frames = layer.chunks(frame_bytes).flat_map(|part| ::zstd::encode_all(part, 3).expect("memory"));
    let blob = skippable(b"first").into_iter().chain(frames).chain(skippable(b"manifest")).chain(skippable(b""));
    blob.collect()
}

#[test]
fn a_zstd_layer_has_the_same_table_of_contents_under_other_spans() {
    for name in ["small-multimember.tar.gz", "edge-pax.tar.gz", "upper-whiteouts.tar.gz", "empty.tar.gz"] {
        let gzip_blob = corpus(name);
        let (of_gzip, layer) = build(&gzip_blob, options(50_000), gzip_blob.len()).expect("good");
        let entries = |document: &[u8]| -> Vec<_> {
            let ztoc = Ztoc::parse(document).expect("our own");
            ztoc.entries().map(|entry| entry.expect("sound").into_owned()).collect()
        };
        for frame_bytes in [30_000, usize::MAX] {
            let blob = zstd(&layer, frame_bytes);
            let (want, got_layer) = build(&blob, options(50_000), blob.len()).expect("good");
            assert!(got_layer == layer);
            assert_eq!((want.compression, want.diff_id), (Compression::Zstd, of_gzip.diff_id));
            assert_eq!((want.blob_digest, want.blob_size.get()), (Some(Digest::of(&blob)), blob.len() as u64));
            assert_eq!(entries(&want.ztoc), entries(&of_gzip.ztoc), "{name}");
            for piece in [1, 2, 3, 5, 1000] {
                let (got, _) = build(&blob, options(50_000), piece).expect("good");
                assert!(got.ztoc == want.ztoc, "{name} in pieces of {piece}");
            }
            let ztoc = Ztoc::parse(&want.ztoc).expect("our own");
            assert_eq!(ztoc.info().expect("sound").compression, Some(Compression::Zstd));
            let multiple = layer.len() > 120_000 && frame_bytes == 30_000;
            assert_eq!(ztoc.spans().len() > 1, multiple, "{name} in frames of {frame_bytes}");
            for (id, span) in ztoc.spans().iter() {
                let range = usize::try_from(span.blob.start().get()).expect("small")
                    ..usize::try_from(span.blob.end().get()).expect("small");
                assert_eq!(Digest::of(&blob[range]), span.digest, "{name}, span {id}");
            }
        }
    }
}

#[test]
fn bad_zstd_layers_are_named_for_what_they_are() {
    let (_, layer) = build(&corpus("small-stored.tar.gz"), options(1 << 20), 4096).expect("good");
    let good = zstd(&layer, 10_000);
    for cut in [4, 14, good.len() / 2, good.len() - 1] {
        match build(&good[..cut], options(1 << 20), 4096) {
            Err(BuildError::Index(IndexError::CutOff { blob, .. })) => assert_eq!(blob.get(), cut as u64),
            other => panic!("cut at {cut}: {:?}", other.map(|_| ())),
        }
    }
    let garbage = [&good[..], b"<html>"].concat();
    match build(&garbage, options(1 << 20), 4096) {
        Err(BuildError::Index(IndexError::TrailingGarbage { blob })) => assert_eq!(blob.get(), good.len() as u64),
        other => panic!("garbage: {:?}", other.map(|_| ())),
    }
    let not_a_tar = ::zstd::encode_all(&[b'x'; 5000][..], 3).expect("memory");
    assert!(matches!(build(&not_a_tar, options(1 << 20), 4096), Err(BuildError::Tar(_))));
}

#[test]
fn the_default_options_are_our_own_name_and_socis_span_size() {
    let blob = corpus("edge-ustar.tar.gz");
    let (built, _) = build(&blob, BuildOptions::default(), blob.len()).expect("good");
    let ztoc = Ztoc::parse(&built.ztoc).expect("our own");
    assert_eq!(ztoc.build_tool(), concat!("sociblk v", env!("CARGO_PKG_VERSION")));
    assert_eq!(ztoc.span_size(), 4 << 20);
    assert_eq!((built.blob_digest, built.diff_id), (None, None));
}

#[test]
fn bad_layers_are_named_for_what_they_are() {
    let good = corpus("small-stored.tar.gz");
    let unsupported = |blob: &[u8], want: &str| match build(blob, options(1 << 20), 4096) {
        Err(BuildError::UnsupportedCompression { name }) => assert_eq!(name, want),
        other => panic!("{want}: {:?}", other.map(|_| ())),
    };
    unsupported(b"\xfd7zXZ\0", "xz");
    unsupported(b"BZh91AY", "bzip2");

    for cut in [2, 12, good.len() / 2, good.len() - 1] {
        match build(&good[..cut], options(1 << 20), 4096) {
            Err(BuildError::Index(IndexError::CutOff { blob, .. })) => assert_eq!(blob.get(), cut as u64),
            other => panic!("cut at {cut}: {:?}", other.map(|_| ())),
        }
    }
    let mut garbage = good.clone();
    garbage.extend_from_slice(b"<html>");
    match build(&garbage, options(1 << 20), 4096) {
        Err(BuildError::Index(IndexError::TrailingGarbage { blob })) => assert_eq!(blob.get(), good.len() as u64),
        other => panic!("garbage: {:?}", other.map(|_| ())),
    }
    let mut wrong_crc = good.clone();
    let at = wrong_crc.len() - 8;
    wrong_crc[at] ^= 1;
    let error = build(&wrong_crc, options(1 << 20), 4096).map(|_| ()).expect_err("wrong checksum");
    assert!(matches!(&error, BuildError::Index(e @ IndexError::Data { .. }) if e.to_string().contains("check")));

    for not_a_tar in [gzip(&[b'x'; 5000]), vec![b'x'; 5000]] {
        assert!(matches!(build(&not_a_tar, options(1 << 20), 4096), Err(BuildError::Tar(_))));
    }
    assert!(matches!(build(&[0; 1024], options(0), 4096), Err(BuildError::SpanSize)));
    let missing = build_file("/nonexistent/layer".as_ref(), options(1), &mut |_| ()).map(|_| ());
    assert!(matches!(missing, Err(BuildError::Read { path, .. }) if path.ends_with("layer")));
}

#[test]
fn a_failing_sink_is_named_with_its_offset() {
    let blob = corpus("small-stored.tar.gz");
    let mut builder = ZtocBuilder::new(options(1 << 20), Compression::Gzip).expect("memory");
    let mut first_bytes = None;
    let mut sink = |piece: &[u8]| {
        if first_bytes.is_some() {
            return Err(io::Error::other("disk full"));
        }
        first_bytes = Some(piece.len() as u64);
        Ok(())
    };
    match builder.push(&blob, &mut sink) {
        Err(BuildError::Sink { layer, source }) => {
            assert_eq!(source.to_string(), "disk full");
            assert_eq!(Some(layer.get()), first_bytes);
        }
        other => panic!("{other:?}"),
    }
}

//! zTOCs of SOCI's own builder, documents made wrong on purpose, and round trips.

use super::*;
use crate::spans::{TocEntry, corpus};

/// Reads a document and writes it again from what was read.
fn rewrite(bytes: &[u8]) -> Result<Vec<u8>, ZtocError> {
    let ztoc = Ztoc::parse(bytes)?;
    let entries: Vec<TocEntry<'_>> = ztoc.entries().collect::<Result<_, _>>()?;
    let checkpoints: Vec<Checkpoint> = ztoc.spans().iter().filter_map(|(id, _)| ztoc.checkpoint(id)).collect();
    let span_digests: Vec<Digest> = ztoc.spans().iter().map(|(_, span)| span.digest).collect();
    let parts = ZtocParts {
        build_tool: &ztoc.build_tool(),
        compressed_size: ztoc.blob_size(),
        uncompressed_size: ztoc.layer_size(),
        entries: &entries,
        compression: ztoc.spans().compression(),
        span_size: ztoc.span_size(),
        checkpoints: &checkpoints,
        span_digests: &span_digests,
    };
    Ok(write(&parts).expect("what was read can be written"))
}

#[test]
fn what_soci_wrote_is_written_again_byte_for_byte() {
    for file in corpus::ztocs() {
        let rewritten = rewrite(&file.bytes).unwrap_or_else(|e| panic!("{}: {e:?}", file.name));
        assert!(rewritten == file.bytes, "{}: other bytes", file.name);
    }
}

#[test]
fn digests_of_soci_are_those_of_the_blob_ranges() {
    for file in corpus::ztocs() {
        let layer = corpus::layer_of(&file.name);
        let ztoc = Ztoc::parse(&file.bytes).expect(&file.name);
        assert_eq!(ztoc.blob_size().get(), layer.bytes.len() as u64, "{}", file.name);
        for (id, span) in ztoc.spans().iter() {
            let range = usize::try_from(span.blob.start().get()).expect("small")
                ..usize::try_from(span.blob.end().get()).expect("small");
            assert_eq!(Digest::of(&layer.bytes[range]), span.digest, "{} span {id}", file.name);
            let window = span.window_at.map(|at| usize::try_from(at).expect("small"));
            let window = window.map(|at| &file.bytes[at..at + crate::units::WINDOW_BYTES]);
            let checkpoint = ztoc.checkpoint(id).filter(|_| id != SpanId(0));
            assert_eq!(window, checkpoint.as_ref().map(|c| c.window.as_slice()), "{} span {id}", file.name);
        }
    }
}

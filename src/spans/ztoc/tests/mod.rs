//! zTOCs of SOCI's own builder.

mod forgery;
mod judge;
mod properties;

use super::*;
use crate::spans::{TocEntry, corpus};
use crate::units::WINDOW_BYTES;

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
        span_digests: &span_digests,
    };
    Ok(write(&parts, &checkpoints).expect("what was read can be written"))
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
            let window = window.map(|at| &file.bytes[at..at + WINDOW_BYTES]);
            let checkpoint = ztoc.checkpoint(id).filter(|_| id != SpanId(0));
            assert_eq!(
                window,
                checkpoint.as_ref().and_then(|c| c.window.as_ref()).map(|w| w.as_slice()),
                "{} span {id}",
                file.name
            );
        }
    }
}

#[test]
fn parts_that_do_not_fit_together_are_not_written() {
    let digest = [Digest::of(b"")];
    let sound = ZtocParts {
        build_tool: "test",
        compressed_size: BlobOffset::new(1024),
        uncompressed_size: LayerOffset::new(1024),
        entries: &[],
        compression: Compression::Uncompressed,
        span_size: 4096,
        span_digests: &digest,
    };
    assert!(write(&sound, &[]).is_ok());
    for parts in [
        ZtocParts { span_digests: &[], ..sound },
        ZtocParts { span_size: 0, ..sound },
        ZtocParts { span_size: 100, ..sound },
        ZtocParts { compression: Compression::Gzip, ..sound },
    ] {
        assert!(matches!(write(&parts, &[]), Err(WriteError::SpanCount { .. })));
    }
    let parts = ZtocParts { uncompressed_size: LayerOffset::new(u64::MAX), ..sound };
    assert_eq!(write(&parts, &[]), Err(WriteError::Number));
}

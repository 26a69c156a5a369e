//! Any bytes as a zTOC: an error, or a table that keeps its promises and can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sociblk::spans::Compression;
use sociblk::spans::ztoc::{Ztoc, ZtocParts, write};
use sociblk::units::{SpanId, WINDOW_BYTES};

fuzz_target!(|bytes: &[u8]| {
    let Ok(ztoc) = Ztoc::parse(bytes) else { return };
    let spans = ztoc.spans();
    let is_gzip = spans.compression() == Compression::Gzip;
    let mut previous_end = 0;
    for (_, span) in spans.iter() {
        assert_eq!(span.layer.start().get(), previous_end, "spans leave no gap");
        previous_end = span.layer.end().get();
        assert!(span.blob.end() <= spans.blob_size());
        assert!(span.window_at.is_none_or(|at| is_gzip && at + WINDOW_BYTES as u64 <= bytes.len() as u64));
    }
    assert!(previous_end >= spans.layer_size().get());

    let Ok(entries) = ztoc.entries().collect::<Result<Vec<_>, _>>() else { return };
    assert!(entries.iter().all(|entry| entry.data.end() <= ztoc.layer_size()));
    let checkpoints: Vec<_> = (0..spans.len()).filter_map(|i| ztoc.checkpoint(SpanId(i as u32))).collect();
    let span_digests: Vec<_> = spans.iter().map(|(_, span)| span.digest).collect();
    let parts = ZtocParts {
        build_tool: &ztoc.build_tool(),
        compressed_size: ztoc.blob_size(),
        uncompressed_size: ztoc.layer_size(),
        entries: &entries,
        compression: spans.compression(),
        span_size: ztoc.span_size(),
        span_digests: &span_digests,
    };
    let written = write(&parts, &checkpoints).expect("what was read can be written");
    let again = Ztoc::parse(&written).expect("what was written can be read");
    assert_eq!(again.entries().collect::<Result<Vec<_>, _>>().expect("the same entries"), entries);
});

//! Spans whose bytes come bit by bit.

use super::*;
use crate::spans::corpus::{self, CorpusFile};
use crate::spans::ztoc::Ztoc;

/// What comes out when the bytes come in pieces of random lengths.
fn arriving(
    table: &SpanTable,
    id: SpanId,
    blob: &[u8],
    window: Option<&[u8; WINDOW_BYTES]>,
    random: &mut Random,
) -> Option<Vec<u8>> {
    let mut span = ArrivingSpan::new(table, id, window)?;
    let mut here = 0;
    while here < blob.len() {
        let most = if random.below(3) == 0 { 20 } else { 90_000 };
        here = (here + random.below(most)).min(blob.len());
        span.advance(&blob[..here]);
    }
    span.finish()
}

#[test]
fn a_span_that_arrives_in_pieces_is_what_it_is_as_a_whole() {
    let (mut inflater, mut random) = (SpanInflater::new(), Random(77));
    let mut checked = 0;
    for CorpusFile { name, bytes: document } in corpus::ztocs() {
        let blob = corpus::layer_of(&name).bytes;
        let ztoc = Ztoc::parse(&document).expect(&name);
        let table = ztoc.spans();
        for (id, span) in table.iter() {
            let checkpoint = ztoc.checkpoint(id);
            let window = checkpoint.as_ref().filter(|_| span.window_at.is_some()).and_then(|c| c.window.as_deref());
            let range = usize::try_from(span.blob.start().get()).expect("small")
                ..usize::try_from(span.blob.end().get()).expect("small");
            let bytes = &blob[range];
            if !ArrivingSpan::is_possible(table, id) {
                assert!(ArrivingSpan::new(table, id, window).is_none(), "{name}: span {id}");
                continue;
            }
            let mut whole = Vec::new();
            let mut sink = |b: &[u8]| {
                whole.extend_from_slice(b);
                Ok(())
            };
            inflater.inflate(table, id, bytes, window, Want::Whole, &mut sink).expect(&name);
            assert!(arriving(table, id, bytes, window, &mut random).as_ref() == Some(&whole), "{name}: span {id}");
            let part = &bytes[..bytes.len() / 2];
            assert_eq!(arriving(table, id, part, window, &mut random), None, "{name}: half of span {id}");
            // Wrong bytes are found by the digest, not here; but what is handed out has the right length, or nothing is.
            let wrong: Vec<u8> = bytes.iter().map(|b| b ^ 0x10).collect();
            let made = arriving(table, id, &wrong, window, &mut random);
            assert!(made.is_none_or(|made| made.len() == whole.len()), "{name}: span {id}, damaged");
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked} spans only");
}

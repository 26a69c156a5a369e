//! Tars of the corpus against SOCI's zTOCs, and tars made wrong on purpose.

use std::io::Read as _;

use super::*;
use crate::spans::corpus::{self, CorpusFile};
use crate::spans::ztoc::Ztoc;

fn inflate(layer: CorpusFile) -> Vec<u8> {
    if !layer.name.ends_with(".gz") {
        return layer.bytes;
    }
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(layer.bytes.as_slice()).read_to_end(&mut tar).expect(&layer.name);
    tar
}

fn index(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<TarToc, TarError> {
    let mut indexer = TarIndexer::new();
    for piece in pieces {
        indexer.feed(piece.as_ref())?;
    }
    indexer.finish()
}

#[test]
fn entries_and_end_are_those_of_soci() {
    for file in corpus::ztocs() {
        let tar = inflate(corpus::layer_of(&file.name));
        let toc = index([&tar]).unwrap_or_else(|e| panic!("{}: {e}", file.name));
        let ztoc = Ztoc::parse(&file.bytes).expect(&file.name);
        assert_eq!(toc.end, ztoc.layer_size(), "{}", file.name);
        let entries: Vec<_> = ztoc.entries().map(|entry| entry.expect(&file.name)).collect();
        assert_eq!(toc.entries.len(), entries.len(), "{}", file.name);
        for (ours, theirs) in toc.entries.iter().zip(&entries) {
            assert_eq!(ours, theirs, "{}", file.name);
        }
    }
}

//! Tars of the corpus against SOCI's zTOCs.

mod forged;
mod tree;

use std::io::Read as _;

use proptest::prelude::*;

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

fn index(tar: &[u8]) -> Result<TarToc, TarError> {
    let mut indexer = TarIndexer::new();
    indexer.feed(tar)?;
    indexer.finish()
}

#[test]
fn entries_and_end_are_those_of_soci() {
    for file in corpus::ztocs() {
        let tar = inflate(corpus::layer_of(&file.name));
        let toc = index(&tar).unwrap_or_else(|e| panic!("{}: {e}", file.name));
        let ztoc = Ztoc::parse(&file.bytes).expect(&file.name);
        assert_eq!(toc.end, ztoc.layer_size(), "{}", file.name);
        let entries: Vec<_> = ztoc.entries().map(|entry| entry.expect(&file.name)).collect();
        assert_eq!(toc.entries.len(), entries.len(), "{}", file.name);
        for (ours, theirs) in toc.entries.iter().zip(&entries) {
            assert_eq!(ours, theirs, "{}", file.name);
        }
    }
}

/// A tar with PAX headers of all sorts, and one with GNU's.
fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    let read = || ["edge-pax.tar.gz", "edge-gnu.tar.gz"].map(|name| inflate(corpus::layer_of(name))).to_vec();
    SAMPLES.get_or_init(read)
}

/// Makes the checksum right that a header around `at` would have, so that a change is not found by it.
fn reseal(tar: &mut [u8], at: usize) {
    let start = at - at % BLOCK_BYTES;
    if let Some(block) = tar.get_mut(start..start + BLOCK_BYTES) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        sample in any::<prop::sample::Index>(),
        sizes in prop::collection::vec(prop_oneof![1_usize..4, 500_usize..520, 1_usize..5000], 1..40),
    ) {
        let tar = sample.get(samples());
        let mut indexer = TarIndexer::new();
        let mut rest = tar.as_slice();
        for size in sizes.iter().cycle() {
            let (piece, behind) = rest.split_at(rest.len().min(*size));
            indexer.feed(piece).expect("sound");
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(indexer.finish(), index(tar));
    }

    #[test]
    fn changed_tars_never_panic_and_keep_to_their_bytes(
        sample in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut tar = sample.get(samples()).clone();
        tar.truncate(cut.index(tar.len()));
        for (at, value) in changes {
            if !tar.is_empty() {
                let at = at.index(tar.len());
                tar[at] = value;
                reseal(&mut tar, at);
            }
        }
        if let Ok(toc) = index(&tar) {
            prop_assert!(toc.end.get() <= u64_from_usize(tar.len()));
            prop_assert!(toc.entries.iter().all(|entry| entry.data.end() <= toc.end));
        }
    }
}

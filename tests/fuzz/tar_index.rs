//! Any bytes as a tar, whole and in pieces of a size that the first byte tells: the same error or the same table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sociblk::spans::tar::{TarError, TarIndexer, TarToc};

fn index<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<TarToc, TarError> {
    let mut indexer = TarIndexer::new();
    for piece in pieces {
        indexer.feed(piece)?;
    }
    indexer.finish()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&size, tar)) = bytes.split_first() else { return };
    let tar = with_checksums(tar);
    let whole = index(std::iter::once(tar.as_slice()));
    assert_eq!(whole, index(tar.chunks(usize::from(size) + 1)));
    if let Ok(toc) = whole {
        assert!(toc.end.get() <= tar.len() as u64);
        assert!(toc.entries.iter().all(|entry| entry.data.end() <= toc.end));
    }
});

/// Puts the right checksum into every block that says "ustar", so that changes reach what lies behind the checksum.
fn with_checksums(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

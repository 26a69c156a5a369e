//! What one process synthesized, another takes up: without the layers below, byte for byte, or not at all.

use std::path::Path;

use super::*;
use crate::units::{DeviceOffset, DeviceRange};

fn corpus_layer(name: &str) -> ChainLayer {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let blob = std::fs::read(corpus.join(name)).expect("corpus");
    let ztoc = corpus.join(format!("{name}.span-256k.ztoc"));
    let digest = Digest::of(&blob);
    ChainLayer {
        key: digest,
        digest,
        blob_size: BlobOffset::new(blob.len() as u64),
        ztoc_digest: Digest::of(&std::fs::read(&ztoc).expect("corpus")),
        ztoc,
    }
}

#[test]
fn an_image_is_taken_up_again_without_the_layers_below() {
    let root = tempfile::tempdir().expect("root");
    let paths = Paths::new(root.path().to_owned());
    std::fs::create_dir_all(paths.meta_dir()).expect("folder");
    let layer = corpus_layer("mixed-zlib6.tar.gz");
    let made = synthesize(&paths, std::slice::from_ref(&layer)).expect("synthesized").remove(0);

    let again = restore(&paths, &made.name, made.metadata_digest, &layer).expect("restored");
    assert_eq!(*again.table, *made.table);
    assert_eq!(again.space.metadata_len(), made.space.metadata_len());
    let whole = DeviceRange::new(DeviceOffset::ZERO, made.space.device_size()).expect("range");
    assert!(again.space.pieces(whole).expect("pieces").eq(made.space.pieces(whole).expect("pieces")));

    let other = restore(&paths, &made.name, Digest::of(b"another writer"), &layer);
    assert!(matches!(other, Err(SynthesisError::Io { .. })), "{other:?}");
    let foreign = ChainLayer { blob_size: BlobOffset::new(1), ..layer.clone() };
    let foreign = restore(&paths, &made.name, made.metadata_digest, &foreign);
    assert!(matches!(foreign, Err(SynthesisError::BlobSize { .. })), "{foreign:?}");

    for entry in std::fs::read_dir(paths.meta_dir()).expect("list") {
        let path = entry.expect("entry").path();
        let whole = std::fs::read(&path).expect("read");
        let mut damaged = whole.clone();
        damaged[whole.len().min(1100) - 1] ^= 1;
        std::fs::write(&path, &damaged).expect("damaged");
        assert!(restore(&paths, &made.name, made.metadata_digest, &layer).is_err(), "{}", path.display());
        std::fs::write(&path, &whole).expect("repaired");
    }
    assert!(restore(&paths, &made.name, made.metadata_digest, &layer).is_ok());
}

//! What one process synthesized, another takes up: without the layers below, byte for byte, or not at all.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::spans::Span;
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
        // The kernel's clock for files goes by milliseconds, which is no time here.
        let file = File::options().write(true).open(&path).expect("opens");
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("touched");
        let again = restore(&paths, &made.name, made.metadata_digest, &layer);
        // What only saves time is made anew.
        match path.extension().is_some_and(|kind| kind == "spans") {
            true => assert_eq!(*again.expect("restored").table, *made.table),
            false => assert!(again.is_err(), "{}", path.display()),
        }
        std::fs::write(&path, &whole).expect("repaired");
    }
    assert!(restore(&paths, &made.name, made.metadata_digest, &layer).is_ok());
}

#[test]
fn what_nobody_changed_is_not_read_again() {
    let root = tempfile::tempdir().expect("root");
    let paths = Paths::new(root.path().to_owned());
    std::fs::create_dir_all(paths.meta_dir()).expect("folder");
    let mut layer = corpus_layer("mixed-zlib6.tar.gz");
    let ztoc = root.path().join("ztoc");
    std::fs::copy(&layer.ztoc, &ztoc).expect("copied");
    layer.ztoc = ztoc;
    let made = synthesize(&paths, std::slice::from_ref(&layer)).expect("synthesized").remove(0);
    let recalled = || files::recall(&paths, &made.name, made.metadata_digest).expect("a memo");
    let restored = || restore(&paths, &made.name, made.metadata_digest, &layer).expect("restored").table;
    assert_eq!(recalled().table, *made.table);

    // Other spans in the memo: who shows them has not read the zTOC.
    let spans = made.table.iter().map(|(_, span)| Span { digest: Digest::of(b"other"), ..span.clone() }).collect();
    let (compression, blob_size) = (made.table.compression(), made.table.blob_size());
    let other = SpanTable::new(compression, blob_size, made.table.layer_size(), spans).expect("a table");
    let keep = |memo: Memo| files::remember(&paths, &made.name, made.metadata_digest, &memo);
    keep(Memo { table: other.clone(), ..recalled() });
    assert_eq!(*restored(), other);

    // Of another zTOC.
    keep(Memo { table: other.clone(), ztoc_digest: Digest::of(b"another"), ..recalled() });
    assert_eq!(*restored(), *made.table);
    assert_eq!(recalled().table, *made.table, "it is kept anew");

    // Somebody has touched the zTOC since; then somebody has changed it.
    keep(Memo { table: other, ..recalled() });
    let mut bytes = std::fs::read(&layer.ztoc).expect("read");
    let touch = |ago_s| {
        let file = File::options().write(true).open(&layer.ztoc).expect("opens");
        file.set_modified(SystemTime::now() - Duration::from_secs(ago_s)).expect("touched");
    };
    touch(60);
    assert_eq!(*restored(), *made.table);
    bytes[40] ^= 1;
    std::fs::write(&layer.ztoc, &bytes).expect("changed");
    touch(120);
    let refused = restore(&paths, &made.name, made.metadata_digest, &layer);
    assert!(matches!(refused, Err(SynthesisError::Damaged { .. })), "{refused:?}");
}

use std::fs;

use serde_json::{Value, json};

use super::layout::STALE;
use super::*;
use crate::registry::document::media_type;
use crate::registry::{Client, ClientConfig, ImageSource};
use crate::soci::{Kind, Subject, V1_TYPE, V2_TYPE, ZtocEntry};
use crate::testkit::registry::{Fault, TestRegistry};

#[path = "store/collect.rs"]
mod collect;
#[path = "store/trouble.rs"]
mod trouble;

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    (dir, store)
}

fn ingest_is_empty(dir: &Path) -> bool {
    fs::read_dir(dir.join("content/ingest")).expect("the directory").next().is_none()
}

/// A v1 index of an image with these zTOCs, which are put into the store; the layer of `b"x"` is `b"layer of x"`.
pub(super) fn index_of(store: &Store, image: &[u8], ztocs: &[&[u8]]) -> Vec<u8> {
    let ztocs = ztocs.iter().map(|ztoc| {
        store.put(ztoc).expect("stored");
        ztoc_entry(ztoc)
    });
    document(image, ztocs.collect())
}

pub(super) fn layer_of(ztoc: &[u8]) -> Digest {
    Digest::of(&[b"layer of ", ztoc].concat())
}

pub(super) fn ztoc_entry(ztoc: &[u8]) -> ZtocEntry {
    ZtocEntry {
        digest: Digest::of(ztoc),
        size: BlobOffset::new(ztoc.len() as u64),
        layer_digest: layer_of(ztoc),
        layer_media_type: "application/x-layer".into(),
        span_size_bytes: Some(1 << 22),
        disable_xattrs: false,
    }
}

pub(super) fn document(image: &[u8], ztocs: Vec<ZtocEntry>) -> Vec<u8> {
    let subject = Subject {
        media_type: media_type::OCI_MANIFEST.into(),
        digest: Digest::of(image),
        size: BlobOffset::new(image.len() as u64),
    };
    let kind = Kind::V1 { subject: Some(subject) };
    let index = SociIndex { kind, ztocs, prefetch: Vec::new(), build_tool: "test".into() };
    index.to_bytes().expect("an index")
}

pub(super) fn listed(dir: &Path) -> Vec<Value> {
    let bytes = fs::read(dir.join("content/index.json")).expect("index.json");
    let index: Value = serde_json::from_slice(&bytes).expect("JSON");
    index["manifests"].as_array().expect("a list").clone()
}

#[test]
fn a_store_is_an_oci_layout() {
    let (dir, store) = open();
    let layout = fs::read_to_string(dir.path().join("content/oci-layout")).expect("the marker");
    assert_eq!(layout, r#"{"imageLayoutVersion":"1.0.0"}"#);
    let index = index_of(&store, b"image", &[b"ztoc"]);
    let digest = store.put_index(V1_TYPE, &index).expect("stored");
    assert_eq!(store.put_index(V1_TYPE, &index).expect("stored again"), digest);
    let again = Store::open(dir.path()).expect("opened again");
    assert_eq!(again.read(&digest).expect("kept"), index);
    let listed = listed(dir.path());
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["digest"], digest.to_string());
    assert_eq!(listed[0]["artifactType"], V1_TYPE);
    assert_eq!(listed[0]["annotations"]["com.amazon.soci.image-manifest-digest"], Digest::of(b"image").to_string());
    assert!(ingest_is_empty(dir.path()));
}

#[test]
fn what_is_no_index_or_lacks_a_part_is_refused() {
    let (dir, store) = open();
    let index = document(b"image", vec![ztoc_entry(b"absent")]);
    let no_index = |bytes: &[u8], artifact_type: &str| match store.put_index(artifact_type, bytes) {
        Err(SociError::Index { reason }) => reason,
        other => panic!("{other:?}"),
    };
    no_index(b"{}", V1_TYPE);
    no_index(b"not JSON", V1_TYPE);
    assert!(no_index(&index, V2_TYPE).contains("v1+json"));
    let long = [index.clone(), vec![b' '; MAX_INDEX_BYTES as usize]].concat();
    assert!(no_index(&long, V1_TYPE).contains("at most"));
    let error = store.put_index(V1_TYPE, &index).expect_err("a part is missing");
    assert!(matches!(error, SociError::NotInStore { digest, .. } if digest == Digest::of(b"absent")), "{error}");
    let foreign = NewIndex { bytes: &index, image: None, location: "registry.example/app" };
    let digest = store.put_index_of(&foreign).expect("parts of foreign indexes come later");
    let known = store.indexes_of(&Digest::of(b"image")).expect("asked");
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].digest, known[0].location.as_str()), (digest, "registry.example/app"));
    assert_eq!(known[0].image.as_ref().map(|image| image.set_by), Some(SetBy::Registry));
    assert_eq!(listed(dir.path()).len(), 1);
}

#[test]
fn a_damaged_index_is_named_and_not_overwritten() {
    let (dir, store) = open();
    let path = dir.path().join("content/index.json");
    let index = index_of(&store, b"image", &[b"ztoc"]);
    for damage in ["{", "{\"manifests\": 7}", "{}"] {
        fs::write(&path, damage).expect("written");
        let error = store.put_index(V1_TYPE, &index).expect_err("damaged").to_string();
        assert!(error.contains("index.json"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("kept"), damage);
    }
}

#[test]
fn damaged_blobs_are_found_and_removed() {
    let (_dir, store) = open();
    let digest = store.put(b"some bytes").expect("stored");
    fs::write(store.blob_path(&digest), b"some bytez").expect("written");
    assert!(matches!(store.read(&digest), Err(SociError::Corrupt { .. })));
    assert!(!store.contains(&digest, BlobOffset::new(10)), "removed, to be fetched anew");
    assert!(matches!(store.read(&digest), Err(SociError::Store { .. })));
}

#[test]
fn a_layers_ztoc_is_remembered_as_long_as_its_blob_is_there() {
    let (_dir, store) = open();
    let layer = Digest::of(b"layer");
    assert_eq!(store.ztoc_for(&layer).expect("none"), None);
    for (bytes, span_size_bytes) in [(&b"ztoc 1"[..], Some(4 << 20)), (b"ztoc 22", None)] {
        let (digest, size) = (store.put(bytes).expect("stored"), BlobOffset::new(bytes.len() as u64));
        let record = RecordedZtoc { digest, size, span_size_bytes };
        store.record_ztoc(&layer, &record).expect("recorded");
        assert_eq!(store.ztoc_for(&layer).expect("known"), Some(record), "the last record counts");
        assert_eq!(store.ztoc_for(&Digest::of(b"other")).expect("none"), None);
    }
    let remove = |ztoc: &[u8]| fs::remove_file(store.blob_path(&Digest::of(ztoc))).expect("removed");
    remove(b"ztoc 22");
    let record = store.ztoc_for(&layer).expect("asked").expect("the one before");
    assert_eq!(record.digest, Digest::of(b"ztoc 1"));
    remove(b"ztoc 1");
    assert_eq!(store.ztoc_for(&layer).expect("none"), None);
}

#[test]
fn records_that_make_no_sense_count_as_none() {
    let d = Digest::of(b"");
    use super::layout::parse_record;
    for text in
        ["", "\n", "x 1 2\n", &format!("{d}\n"), &format!("{d} 1\n"), &format!("{d} -1 2\n"), &format!("{d} 1 2")]
    {
        assert_eq!(parse_record(text), None, "{text:?}");
    }
    let record = parse_record(&format!("{d} 12 -\n")).expect("a record");
    assert_eq!((record.digest, record.size.get(), record.span_size_bytes), (d, 12, None));
}

#[test]
fn writers_in_parallel_lose_nothing() {
    let (dir, _) = open();
    std::thread::scope(|scope| {
        for i in 0..8_u8 {
            let dir = dir.path();
            scope.spawn(move || {
                let store = Store::open(dir).expect("a store");
                for j in 0..4_u8 {
                    let index = index_of(&store, &[i, j], &[b"the same for all"]);
                    store.put_index(V1_TYPE, &index).expect("stored");
                }
            });
        }
    });
    assert_eq!(listed(dir.path()).len(), 32);
    let store = Store::open(dir.path()).expect("a store");
    assert_eq!(store.indexes(&IndexFilter::default()).expect("listed").len(), 32);
    assert_eq!(store.ztocs(None, None).expect("listed").len(), 1);
    assert!(ingest_is_empty(dir.path()));
}

#[test]
fn what_dead_processes_left_is_swept_after_a_day() {
    let (dir, store) = open();
    let (old, new) = (dir.path().join("content/ingest/1-1"), dir.path().join("content/ingest/1-2"));
    for path in [&old, &new] {
        fs::write(path, b"half a").expect("written");
    }
    let day_ago = SystemTime::now() - STALE - Duration::from_secs(1);
    fs::File::options().write(true).open(&old).and_then(|file| file.set_modified(day_ago)).expect("aged");
    drop(store);
    Store::open(dir.path()).expect("opened");
    assert!(!old.exists() && new.exists());
}

#[tokio::test]
async fn fetched_blobs_are_checked() {
    let registry = TestRegistry::start();
    let (dir, store) = open();
    let source: ImageSource = format!("{}/a:b", registry.host()).parse().expect("a reference");
    let digest = registry.put_blob(b"a ztoc");
    let blob = |digest, size| {
        let client = Client::new(ClientConfig::default());
        let source = source.clone();
        async move { client.blob(&source, digest, BlobOffset::new(size)).await.expect("a blob") }
    };
    for fault in [Fault::ChangedBytes, Fault::CutAfter(3), Fault::Html] {
        registry.fail(fault.clone());
        store.fetch(blob(digest, 6).await.as_ref()).await.expect_err("spoiled");
        assert!(!store.contains(&digest, BlobOffset::new(6)) && ingest_is_empty(dir.path()), "{fault:?}");
        registry.heal();
    }
    assert!(store.fetch(blob(digest, 7).await.as_ref()).await.is_err(), "the index lies about the size");
    assert!(store.fetch(blob(digest, 5).await.as_ref()).await.is_err(), "the index lies about the size");
    store.fetch(blob(digest, 6).await.as_ref()).await.expect("fetched");
    assert_eq!(store.read(&digest).expect("there"), b"a ztoc");
    registry.clear_requests();
    store.fetch(blob(digest, 6).await.as_ref()).await.expect("there already");
    assert!(registry.requests().is_empty());
}

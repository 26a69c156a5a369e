use super::*;
use crate::registry::{Client, ClientConfig, ImageSource};
use crate::testkit::registry::{Fault, TestRegistry};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    (dir, store)
}

fn ingest_is_empty(dir: &Path) -> bool {
    fs::read_dir(dir.join("content/ingest")).expect("the directory").next().is_none()
}

#[test]
fn a_store_is_an_oci_layout() {
    let (dir, store) = open();
    let layout = fs::read_to_string(dir.path().join("content/oci-layout")).expect("the marker");
    assert_eq!(layout, r#"{"imageLayoutVersion":"1.0.0"}"#);
    let digest = store.put_index("application/x", b"index").expect("stored");
    assert_eq!(store.put_index("application/x", b"index").expect("stored again"), digest);
    let again = Store::open(dir.path()).expect("opened again");
    assert_eq!(again.read(&digest).expect("kept"), b"index");
    let index: Value =
        serde_json::from_slice(&fs::read(dir.path().join("content/index.json")).expect("index.json")).expect("JSON");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1));
    assert_eq!(index["manifests"][0]["digest"], digest.to_string());
    assert!(ingest_is_empty(dir.path()));
}

#[test]
fn a_damaged_index_is_named_and_not_overwritten() {
    let (dir, store) = open();
    let path = dir.path().join("content/index.json");
    fs::write(&path, "{").expect("written");
    let error = store.put_index("application/x", b"index").expect_err("damaged").to_string();
    assert!(error.contains("index.json"), "{error}");
    assert_eq!(fs::read_to_string(&path).expect("kept"), "{");
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
    fs::remove_file(store.blob_path(&Digest::of(b"ztoc 22"))).expect("removed");
    assert_eq!(store.ztoc_for(&layer).expect("none"), None);
}

#[test]
fn records_that_make_no_sense_count_as_none() {
    let d = Digest::of(b"");
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
                    store.put_index("application/x", &[i, j]).expect("stored");
                    store.put(b"the same for all").expect("stored");
                }
            });
        }
    });
    let index: Value =
        serde_json::from_slice(&fs::read(dir.path().join("content/index.json")).expect("index.json")).expect("JSON");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(32));
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
    File::options().write(true).open(&old).and_then(|file| file.set_modified(day_ago)).expect("aged");
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

//! Layers without an index, and both ways of filling over HTTP.

use std::sync::atomic::{AtomicU64, Ordering};

use super::tests::{Bench, Fault, Sample, Scripted, fast, many_spans};
use super::*;
use crate::cache::{Cache, CacheConfig};
use crate::registry::{BlobSource, Client, ClientConfig, ImageSource};
use crate::spans::ztoc::Ztoc;
use crate::testkit::registry::{Fault as HttpFault, TestRegistry};
use crate::units::{LayerOffset, u64_from_usize};

fn config() -> IngestConfig {
    IngestConfig {
        piece_bytes: 700_000,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(5),
        ..IngestConfig::default()
    }
}

/// Takes in the sample from `source` and compares everything that comes of it.
fn check(sample: &Sample, source: Arc<dyn BlobSource>, what: &str) {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), CacheConfig::default()).expect("cache");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let heard = Arc::new(AtomicU64::new(0));
    let progress = heard.clone();
    let progress = Box::new(move |at: BlobOffset| progress.store(at.get(), Ordering::Relaxed));
    let diff_id = Digest::of(&sample.tar);
    let done = runtime.block_on(ingest(Some(&cache), source, Some(diff_id), config(), progress));
    let done = done.unwrap_or_else(|e| panic!("{what}: {e}"));
    let length = LayerOffset::new(u64_from_usize(sample.tar.len()));
    assert_eq!((done.diff_id, done.layer_size), (diff_id, length), "{what}");
    assert_eq!(heard.load(Ordering::Relaxed), u64_from_usize(sample.blob.len()), "{what}");
    assert_eq!(cache.proven(Digest::of(&sample.blob)), Some((diff_id, length)), "{what}");
    let table = Arc::new(Ztoc::parse(&done.ztoc.into_bytes().expect("memory")).expect("our own").spans().clone());
    let file = cache.layer(Digest::of(&sample.blob), table).expect("layer");
    assert!(file.is_proven());
    assert!(std::fs::read(file.path()).expect("read") == sample.tar, "{what}: wrong bytes");
}

#[test]
fn a_layer_is_taken_in_whatever_goes_wrong_once() {
    let sample = many_spans();
    for faults in [
        &[][..],
        &[Fault::Busy, Fault::CutAfter(0), Fault::CutAfter(100_000), Fault::CutAfter(650_000)],
        &[Fault::None, Fault::IgnoreRange, Fault::IgnoreRange, Fault::IgnoreRange, Fault::CutAfter(2_000_000)],
    ] {
        check(sample, Scripted::new(sample.blob.clone(), faults), &format!("{faults:?}"));
    }
    let source = Scripted::new(sample.blob.clone(), &[]);
    check(sample, source.clone(), "no fault");
    assert_eq!(source.requested_bytes(), u64_from_usize(sample.blob.len()), "each byte once");
}

#[test]
fn what_is_not_the_layer_leaves_nothing_behind() {
    let sample = many_spans();
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), CacheConfig::default()).expect("cache");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let run = |source: Arc<dyn BlobSource>, diff_id| {
        let error = runtime.block_on(ingest(Some(&cache), source, Some(diff_id), config(), Box::new(|_| {})));
        let left: Vec<_> = std::fs::read_dir(root.path().join("layers")).expect("list").collect();
        assert!(left.is_empty(), "{left:?}");
        error.expect_err("must fail")
    };
    let source = || Scripted::new(sample.blob.clone(), &[]);
    let error = run(source(), Digest::of(b"other"));
    assert!(matches!(&error, IngestError::DiffId { .. }), "{error}");
    let gone = Scripted::new(sample.blob.clone(), &[Fault::None, Fault::NotFound]);
    let error = run(gone, Digest::of(&sample.tar));
    assert!(error.to_string().contains("not found"), "{error}");
    let corrupt = Scripted::new(sample.blob.clone(), &[Fault::None, Fault::Corrupt]);
    let error = run(corrupt, Digest::of(&sample.tar));
    assert!(matches!(&error, IngestError::Build { .. } | IngestError::BlobDigest { .. }), "{error}");
}

/// The sample's blob in a registry on loopback, through the real client.
fn over_http(registry: &TestRegistry, sample: &Sample) -> Arc<dyn BlobSource> {
    let digest = registry.put_blob(&sample.blob);
    let image: ImageSource = format!("{}/some/image:tag", registry.host()).parse().expect("a reference");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let size = BlobOffset::new(u64_from_usize(sample.blob.len()));
    let client = Client::new(ClientConfig::default());
    runtime.block_on(client.blob(&image, digest, size)).expect("a source")
}

#[test]
fn over_http_faults_are_survived_lazily_and_in_one_stream() {
    let sample = many_spans();
    for fault in [
        HttpFault::Status { code: 503, retry_after: None },
        HttpFault::CutAfter(100_000),
        HttpFault::IgnoreRange,
        HttpFault::ChangedBytes,
        HttpFault::Chunked,
    ] {
        let registry = TestRegistry::start();
        let ways: &[bool] = if matches!(fault, HttpFault::ChangedBytes) { &[true] } else { &[true, false] };
        for lazily in ways {
            registry.fail(fault.clone()).on("/blobs/").after(1).times(1);
            let source = over_http(&registry, sample);
            if *lazily {
                let bench = Bench::new(sample, source, fast());
                bench.read(sample, 4_000_000, 4_000_010).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
                bench.read(sample, 0, sample.table.layer_size().get()).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
                bench.wait_until("proven", || bench.file.is_proven());
            } else {
                check(sample, source, &format!("{fault:?}"));
            }
        }
    }
}

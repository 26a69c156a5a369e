use std::collections::BTreeSet;

use super::*;
use crate::registry::{BackoffConfig, ClientConfig, ImageSource};
use crate::testkit::registry::{Fault, TestRegistry};

const KIND: &str = "application/vnd.example.kind";

fn client() -> Client {
    let backoff = BackoffConfig { retries: Some(0), ..BackoffConfig::default() };
    Client::new(ClientConfig { backoff, ..ClientConfig::default() })
}

/// A file's bytes, where they are.
async fn of_file(path: &std::path::Path, data: &[u8]) -> Upload {
    std::fs::write(path, data).expect("written");
    let (source, size) = (ImageSource::LayerFile(path.to_owned()), BlobOffset::new(data.len() as u64));
    Upload::Source(client().blob(&source, Digest::of(data), size).await.expect("opened"))
}

fn target(registry: &TestRegistry) -> ImageRef {
    format!("{}/team/app:1", registry.host()).parse().expect("a reference")
}

fn artifact(kind: &str, subject: Digest, salt: &str) -> Bytes {
    let document = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [], "annotations": {"salt": salt},
        "config": {"mediaType": kind, "digest": Digest::of(b"{}").to_string(), "size": 2},
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": subject.to_string(), "size": 1},
    });
    document.to_string().into()
}

#[tokio::test]
async fn blobs_are_uploaded_once_from_memory_or_file() {
    let registry = TestRegistry::start();
    let image = target(&registry);
    let dir = tempfile::tempdir().expect("a directory");
    let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    for (upload, bytes) in [
        (Upload::Bytes(Bytes::from_static(b"small")), &b"small"[..]),
        (of_file(&dir.path().join("blob"), &data).await, &data[..]),
    ] {
        let digest = Digest::of(bytes);
        client().push_blob(&image, digest, &upload).await.expect("uploaded");
        assert_eq!(registry.blob(&digest).expect("stored"), bytes);
        registry.clear_requests();
        client().push_blob(&image, digest, &upload).await.expect("there already");
        let methods: Vec<_> = registry.requests().into_iter().map(|r| r.method).collect();
        assert_eq!(methods, ["HEAD"]);
    }
    let lie = client().push_blob(&image, Digest::of(b"other"), &Upload::Bytes(Bytes::from_static(b"small"))).await;
    assert!(lie.is_err(), "the registry checks the digest");
}

#[tokio::test]
async fn pushing_asks_for_a_token_that_may_push() {
    let registry = TestRegistry::start();
    registry.require_bearer(None, 2);
    let upload = Upload::Bytes(Bytes::from_static(b"x"));
    client().push_blob(&target(&registry), Digest::of(b"x"), &upload).await.expect("renewed in the middle");
    assert!(registry.tokens_issued() >= 2);
    let tokens = registry.requests().into_iter().filter(|r| r.path == "/token");
    for request in tokens {
        assert!(request.query.contains("pull%2Cpush"), "{request:?}");
    }
}

#[tokio::test]
async fn referrers_by_endpoint_and_by_fallback_tag() {
    for api in [true, false] {
        let registry = TestRegistry::start();
        registry.referrers_api(api);
        let image = target(&registry);
        let source = ImageSource::Registry(image.clone());
        let subject = Digest::of(b"the image");
        assert_eq!(client().referrers(&source, subject, KIND).await.expect("none yet"), []);
        let mut pushed = BTreeSet::new();
        for (kind, salt) in [(KIND, "1"), (KIND, "2"), ("application/other", "3")] {
            let bytes = artifact(kind, subject, salt);
            let done = client().push_manifest(&image, None, media_type::OCI_MANIFEST, &bytes).await.expect("pushed");
            assert_eq!((done.digest, done.lists_referrer), (Digest::of(&bytes), api));
            if !api {
                let entry = json!({
                    "mediaType": media_type::OCI_MANIFEST, "digest": done.digest.to_string(),
                    "size": bytes.len(), "artifactType": kind,
                });
                for _ in 0..2 {
                    client().add_to_fallback_tag(&image, subject, entry.clone()).await.expect("listed");
                }
            }
            if kind == KIND {
                pushed.insert(done.digest);
            }
        }
        let found = client().referrers(&source, subject, KIND).await.expect("listed");
        assert_eq!(found.iter().map(|d| d.digest).collect::<BTreeSet<_>>(), pushed, "api: {api}");
        assert_eq!(found.len(), 2);
        assert_eq!(client().referrers(&source, Digest::of(b"another"), KIND).await.expect("none"), []);
    }
}

#[tokio::test]
async fn a_fallback_tag_that_is_no_index_is_left_alone() {
    let registry = TestRegistry::start();
    registry.referrers_api(false);
    let (image, subject) = (target(&registry), Digest::of(b"the image"));
    for foreign in ["[]", r#"{"schemaVersion":2,"manifests":{}}"#] {
        registry.put_manifest("team/app", Some(&fallback_tag(&subject)), media_type::OCI_INDEX, foreign);
        let error = client().add_to_fallback_tag(&image, subject, json!({"digest": "x"})).await.expect_err("no index");
        assert!(matches!(error, RegistryError::Document { .. }), "{error}");
        assert!(client().referrers(&ImageSource::Registry(image.clone()), subject, KIND).await.is_err());
    }
}

/// Many clients list an artifact each under the same fallback tag, all at once: none is lost.
async fn listed_at_once(conditional: bool) {
    const CLIENTS: usize = 24;
    let registry = TestRegistry::start();
    registry.referrers_api(false);
    registry.conditional_writes(conditional);
    let image = target(&registry);
    let subject = Digest::of(b"subject");
    let jobs = (0..CLIENTS).map(|number| {
        let (image, bytes) = (image.clone(), artifact(KIND, subject, &number.to_string()));
        tokio::spawn(async move {
            // A client for each: what one knows of the others' writes goes through the registry alone.
            let client = client();
            client.push_manifest(&image, None, media_type::OCI_MANIFEST, &bytes).await.expect("pushed");
            let digest = Digest::of(&bytes).to_string();
            let entry = json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": bytes.len(), "artifactType": KIND});
            client.add_to_fallback_tag(&image, subject, entry).await.expect("listed");
            digest
        })
    });
    let mut wanted = BTreeSet::new();
    for job in jobs.collect::<Vec<_>>() {
        wanted.insert(job.await.expect("no panic"));
    }
    let source = ImageSource::Registry(image);
    let found = client().referrers(&source, subject, KIND).await.expect("a list");
    assert_eq!(found.iter().map(|d| d.digest.to_string()).collect::<BTreeSet<_>>(), wanted);
    assert_eq!(found.len(), CLIENTS, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fallback_tag_loses_nothing_under_concurrent_pushes() {
    listed_at_once(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_the_registry_knows_conditional_writes() {
    listed_at_once(true).await;
}

#[tokio::test]
async fn a_tag_that_others_keep_overwriting_is_said_so_only_after_many_tries() {
    let registry = TestRegistry::start();
    registry.referrers_api(false);
    let image = target(&registry);
    let subject = Digest::of(b"subject");
    // Entity tags that are no digests: the registry refuses every condition, and takes what comes without one.
    registry.fail(Fault::Status { code: 412, retry_after: None }).method("PUT").on("/manifests/sha256-").times(1);
    let entry = json!({"digest": Digest::of(b"a").to_string()});
    client().add_to_fallback_tag(&image, subject, entry).await.expect("listed without a condition");
    let tag = registry.manifest("team/app", &fallback_tag(&subject)).expect("there");
    assert!(String::from_utf8_lossy(&tag).contains(&Digest::of(b"a").to_string()));
}

#[tokio::test]
async fn an_upload_that_is_cut_off_anywhere_is_made_again() {
    let data: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&data);
    let dir = tempfile::tempdir().expect("a directory");
    let upload = of_file(&dir.path().join("blob"), &data).await;
    let retrying = || {
        let first = Duration::from_millis(1);
        let backoff = BackoffConfig { first, longest: first, retries: Some(2) };
        Client::new(ClientConfig { backoff, ..ClientConfig::default() })
    };
    for cut in [0, 1, 1000, 65_536, 159_999, 160_000] {
        let registry = TestRegistry::start();
        let image = target(&registry);
        registry.fail(Fault::DropUploadAfter(cut)).method("PUT").on("/blobs/uploads/").times(1);
        retrying().push_blob(&image, digest, &upload).await.unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        assert_eq!(registry.blob(&digest).expect("stored"), data, "cut at {cut}");

        let dead = TestRegistry::start();
        dead.fail(Fault::DropUploadAfter(cut)).method("PUT").on("/blobs/uploads/");
        let error = retrying().push_blob(&target(&dead), digest, &upload).await.expect_err("never");
        assert!(error.is_transient(), "{error}");
        assert_eq!(dead.blob(&digest), None);
    }
}

#[tokio::test]
async fn blobs_come_from_another_repository_or_registry() {
    let (from, to) = (TestRegistry::start(), TestRegistry::start());
    let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = from.put_blob(&data);
    let source = ImageSource::Registry(target(&from));
    let retrying = Client::new(ClientConfig {
        backoff: BackoffConfig { first: Duration::from_millis(1), longest: Duration::from_millis(1), retries: Some(3) },
        ..ClientConfig::default()
    });
    let blob = retrying.blob(&source, digest, BlobOffset::new(data.len() as u64)).await.expect("a blob");
    // The source breaks twice in the middle; the upload does not notice.
    from.fail(Fault::CutAfter(100_001)).on("/blobs/").times(2);
    let sent = retrying.push_blob(&target(&to), digest, &Upload::Source(blob)).await.expect("copied");
    assert_eq!((sent, to.blob(&digest).expect("there")), (Sent::Uploaded, data.clone().into()));
    let puts = to.requests().iter().filter(|r| r.method == "PUT").count();
    assert_eq!(puts, 1, "one upload");

    to.strict("team/app");
    let other: ImageRef = format!("{}/team/other:1", to.host()).parse().expect("a reference");
    let upload = Upload::Bytes(data.clone().into());
    to.clear_requests();
    let sent = retrying.push_blob_from(&other, digest, &upload, Some("team/app")).await.expect("mounted");
    assert_eq!(sent, Sent::Mounted);
    assert!(to.requests().iter().all(|r| r.method != "PUT"), "no byte moved");
    let third: ImageRef = format!("{}/team/third:1", to.host()).parse().expect("a reference");
    let sent = retrying.push_blob_from(&third, digest, &upload, Some("team/none")).await.expect("uploaded");
    assert_eq!(sent, Sent::Uploaded);
}

#[tokio::test]
async fn a_source_that_lies_gets_nothing_in() {
    let (from, to) = (TestRegistry::start(), TestRegistry::start());
    let digest = Digest::of(b"what the manifest says");
    from.put_blob_as(digest, b"what the registry has.");
    let source = ImageSource::Registry(target(&from));
    let blob = client().blob(&source, digest, BlobOffset::new(22)).await.expect("a blob");
    assert!(client().push_blob(&target(&to), digest, &Upload::Source(blob)).await.is_err());
    assert_eq!(to.blob(&digest), None);
}

use std::collections::BTreeSet;

use super::*;
use crate::registry::{BackoffConfig, ClientConfig, ImageSource};
use crate::testkit::registry::TestRegistry;

const KIND: &str = "application/vnd.example.kind";

fn client() -> Client {
    let backoff = BackoffConfig { retries: Some(0), ..BackoffConfig::default() };
    Client::new(ClientConfig { backoff, ..ClientConfig::default() })
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
    std::fs::write(dir.path().join("blob"), &data).expect("written");
    for (upload, bytes) in [
        (Upload::Bytes(Bytes::from_static(b"small")), &b"small"[..]),
        (Upload::File(dir.path().join("blob")), &data[..]),
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
    let missing = Upload::File(dir.path().join("none"));
    assert!(client().push_blob(&image, Digest::of(b"x"), &missing).await.expect_err("no file").is_not_found());
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

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::registry::document::media_type;
use crate::registry::{BackoffConfig, ImageSource, Platform};
use crate::testkit::registry::{Fault, TestRegistry};
use crate::units::BlobOffset;

fn config(docker: Option<&Path>) -> ClientConfig {
    ClientConfig {
        docker_config: docker.map(|dir| dir.join("config.json")),
        head_limit: Duration::from_secs(5),
        backoff: BackoffConfig { first: Duration::from_millis(1), longest: Duration::from_millis(5), retries: Some(3) },
        ..ClientConfig::default()
    }
}

fn login(registry: &TestRegistry, entry: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let text = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, registry.host());
    std::fs::write(dir.path().join("config.json"), text).expect("written");
    dir
}

const ACCOUNT: &str = r#"{"username":"user","password":"p:ss"}"#;

async fn resolve(registry: &TestRegistry, client: &Client) -> Result<crate::registry::Image, RegistryError> {
    let source: ImageSource = format!("{}/team/app:1", registry.host()).parse().expect("a reference");
    client.resolve(&source, &Platform::new("linux", "amd64", "")).await
}

fn registry() -> TestRegistry {
    let registry = TestRegistry::start();
    registry.put_image("team/app", "1", &[(b"layer", Digest::of(b"tar"))]);
    registry
}

#[tokio::test]
async fn basic_credentials() {
    let registry = registry();
    registry.require_basic("user", "p:ss");
    let good = login(&registry, ACCOUNT);
    resolve(&registry, &Client::new(config(Some(good.path())))).await.expect("the right password");
    let wrong = login(&registry, r#"{"username":"user","password":"hunter2"}"#);
    for docker in [Some(wrong.path()), None] {
        registry.clear_requests();
        let error = resolve(&registry, &Client::new(config(docker))).await.expect_err("refused");
        assert!(error.is_auth() && !error.is_transient(), "{error}");
        let text = error.to_string();
        assert!(text.contains("docker login") && !text.contains("hunter2"), "{text}");
        assert!(registry.requests().len() <= 2, "a refusal is not tried again and again");
    }
}

#[tokio::test]
async fn bearer_tokens_anonymous_by_password_and_by_identity_token() {
    let registry = registry();
    registry.require_bearer(None, 1000);
    resolve(&registry, &Client::new(config(None))).await.expect("anonymous");
    let asked = registry.requests().into_iter().find(|r| r.path == "/token").expect("a token request");
    assert_eq!(asked.query, "service=test%2C+quoted&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!(registry.tokens_issued(), 1, "one token for manifest and config");

    registry.require_bearer(Some(("user", "p:ss")), 1000);
    let account = login(&registry, ACCOUNT);
    resolve(&registry, &Client::new(config(Some(account.path())))).await.expect("by password");
    assert!(resolve(&registry, &Client::new(config(None))).await.expect_err("no account").is_auth());

    registry.require_bearer(Some(("user", "refresh")), 1000);
    let identity = login(&registry, r#"{"identitytoken":"refresh"}"#);
    resolve(&registry, &Client::new(config(Some(identity.path())))).await.expect("by identity token");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    for (lifetime_s, asked) in [(0, 1), (300, 2)] {
        let registry = registry();
        // A second request with the same token would be refused.
        registry.require_bearer(None, 1);
        registry.token_lifetime(lifetime_s);
        resolve(&registry, &Client::new(config(None))).await.expect("renewed");
        let requests = registry.requests();
        let configs = requests.iter().filter(|request| request.path.contains("/blobs/")).count();
        assert_eq!((configs, registry.tokens_issued()), (asked, 2), "{lifetime_s} s: {requests:?}");
    }
}

#[tokio::test]
async fn a_token_that_ends_mid_way_is_renewed_once() {
    for refusal in [401, 403] {
        let registry = registry();
        registry.require_bearer_refusing(None, 3, refusal);
        let client = Client::new(config(None));
        let image = resolve(&registry, &client).await.expect("resolved");
        let layer = &image.layers[0];
        let blob = client.blob(&image.source, layer.digest, layer.size).await.expect("a blob");
        let whole = crate::units::BlobRange::new(BlobOffset::ZERO, layer.size).expect("ordered");
        for _ in 0..6 {
            blob.open(whole).await.expect("renewed");
        }
        assert_eq!(registry.tokens_issued(), 3, "{refusal}");

        registry.require_bearer_refusing(None, 0, refusal);
        registry.expire_tokens();
        registry.clear_requests();
        let error = blob.open(whole).await.err().expect("no token serves");
        assert!(error.is_auth(), "{error}");
        assert_eq!(registry.requests().len(), 3, "refused, token, refused: {:?}", registry.requests());
    }
}

#[tokio::test]
async fn readers_that_fail_together_renew_once() {
    let registry = registry();
    registry.require_bearer(None, 1000);
    let client = Client::new(config(None));
    let image = resolve(&registry, &client).await.expect("resolved");
    registry.expire_tokens();
    let layer = &image.layers[0];
    let blob = client.blob(&image.source, layer.digest, layer.size).await.expect("a blob");
    let whole = crate::units::BlobRange::new(BlobOffset::ZERO, layer.size).expect("ordered");
    for result in futures_util::future::join_all((0..16).map(|_| blob.open(whole))).await {
        result.expect("renewed");
    }
    assert_eq!(registry.tokens_issued(), 2);
}

#[tokio::test]
async fn a_token_server_is_held_to_the_same_rules() {
    let registry = registry();
    registry.require_bearer(None, 1000);
    for (fault, auth) in [
        (Fault::Html, true),
        (Fault::Status { code: 401, retry_after: None }, true),
        (Fault::Status { code: 403, retry_after: None }, true),
        (Fault::Status { code: 404, retry_after: None }, false),
    ] {
        registry.fail(fault.clone()).on("/token");
        let error = resolve(&registry, &Client::new(config(None))).await.expect_err("no token");
        assert_eq!(error.is_auth(), auth, "{fault:?}: {error}");
        registry.heal();
    }
    registry.fail(Fault::Status { code: 503, retry_after: None }).on("/token").times(2);
    resolve(&registry, &Client::new(config(None))).await.expect("a busy token server is asked again");
}

#[tokio::test]
async fn documents_are_asked_for_again_when_that_can_help() {
    let registry = registry();
    for fault in [
        Fault::Status { code: 503, retry_after: Some(0) },
        Fault::Status { code: 429, retry_after: None },
        Fault::CutAfter(10),
    ] {
        registry.fail(fault.clone()).on("/manifests/").times(2);
        resolve(&registry, &Client::new(config(None))).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        registry.heal();
    }
    registry.fail(Fault::Status { code: 500, retry_after: None });
    registry.clear_requests();
    let error = resolve(&registry, &Client::new(config(None))).await.expect_err("down");
    assert!(error.is_transient(), "{error}");
    assert_eq!(registry.requests().len(), 4, "one try and three retries");
    registry.heal();
    registry.fail(Fault::Status { code: 404, retry_after: None });
    registry.clear_requests();
    assert!(resolve(&registry, &Client::new(config(None))).await.expect_err("gone").is_not_found());
    assert_eq!(registry.requests().len(), 1, "what is not there is not asked for again");
}

#[tokio::test]
async fn documents_have_limits_and_digests() {
    let registry = registry();
    let client = Client::new(ClientConfig { manifest_limit_bytes: 100, ..config(None) });
    let error = resolve(&registry, &client).await.expect_err("too long");
    assert!(matches!(error, RegistryError::TooLong { limit_bytes: 100, .. }), "{error}");
    registry.fail(Fault::Chunked);
    let error = resolve(&registry, &client).await.expect_err("too long without a length");
    assert!(matches!(error, RegistryError::TooLong { .. }), "{error}");
    registry.heal();

    for on in ["/manifests/", "/blobs/"] {
        registry.fail(Fault::ChangedBytes).on(on);
        let error = resolve(&registry, &Client::new(config(None))).await.expect_err("changed");
        assert!(matches!(error, RegistryError::WrongDigest { .. }), "{on}: {error}");
        registry.heal();
    }
    registry.fail(Fault::Html).on("/manifests/");
    let error = resolve(&registry, &Client::new(config(None))).await.expect_err("a web page");
    assert!(matches!(error, RegistryError::WebPage { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_by_digest_has_that_digest() {
    let registry = TestRegistry::start();
    let digest = registry.put_image("team/app", "1", &[]);
    let other = registry.manifest("team/app", "1").expect("the manifest").to_vec();
    let wanted = Digest::of(b"something else");
    registry.put_manifest("team/app", Some(&wanted.to_string()), media_type::OCI_MANIFEST, &other);
    let client = Client::new(config(None));
    let source: ImageSource = format!("{}/team/app@{wanted}", registry.host()).parse().expect("a reference");
    let error = client.resolve(&source, &Platform::host()).await.expect_err("a lying registry");
    assert!(
        matches!(&error, RegistryError::WrongDigest { expected, actual, .. } if *expected == wanted && *actual == digest),
        "{error}"
    );
}

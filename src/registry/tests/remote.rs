use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::*;
use crate::registry::{BackoffConfig, ClientConfig, ImageSource, Phase};
use crate::testkit::registry::{Fault, TestRegistry};

/// A registry with one blob, and a client with short limits.
struct World {
    registry: TestRegistry,
    data: Vec<u8>,
    blob: Arc<dyn BlobSource>,
}

fn config() -> ClientConfig {
    ClientConfig {
        head_limit: Duration::from_millis(300),
        idle_limit: Duration::from_millis(300),
        backoff: BackoffConfig { first: Duration::from_millis(1), longest: Duration::from_millis(5), retries: Some(3) },
        ..ClientConfig::default()
    }
}

async fn world() -> World {
    let registry = TestRegistry::start();
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = registry.put_blob(&data);
    let source: ImageSource = format!("{}/a/b:t", registry.host()).parse().expect("a reference");
    let size = BlobOffset::new(data.len() as u64);
    let blob = Client::new(config()).blob(&source, digest, size).await.expect("a blob");
    World { registry, data, blob }
}

fn range(start: u64, end: u64) -> BlobRange {
    BlobRange::new(BlobOffset::new(start), BlobOffset::new(end)).expect("ordered")
}

impl World {
    /// Start of the stream, its bytes, and the error that ended it.
    async fn read(&self, start: u64, end: u64) -> Result<(u64, Vec<u8>, Option<RegistryError>), RegistryError> {
        let mut stream = self.blob.open(range(start, end)).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.bytes.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) => {
                    assert!(stream.bytes.next().await.is_none(), "nothing follows an error");
                    return Ok((stream.starts_at.get(), bytes, Some(error)));
                }
            }
        }
        Ok((stream.starts_at.get(), bytes, None))
    }

    async fn read_well(&self, start: u64, end: u64) {
        let (starts_at, bytes, error) = self.read(start, end).await.expect("opened");
        assert!(error.is_none(), "{error:?}");
        assert_eq!(starts_at, start);
        assert!(bytes == self.data[start as usize..end as usize], "the bytes of [{start}, {end})");
    }

    /// The error of opening the range 1000..2000 with this fault.
    async fn refuse(&self, fault: Fault) -> RegistryError {
        self.registry.fail(fault.clone());
        let error = match self.read(1000, 2000).await {
            Err(error) => error,
            Ok((_, bytes, _)) => panic!("{fault:?} gave {} bytes", bytes.len()),
        };
        self.registry.heal();
        self.read_well(1000, 2000).await;
        error
    }
}

#[tokio::test]
async fn ranges_come_over_one_connection() {
    let world = world().await;
    for (start, end) in [(0, 1), (5, 100), (399_999, 400_000), (0, 400_000), (7, 7), (100_000, 300_000)] {
        world.read_well(start, end).await;
    }
    let requests = world.registry.requests();
    assert_eq!(requests.len(), 5, "an empty range asks nothing");
    assert!(requests.iter().all(|r| r.connection == requests[0].connection), "{requests:?}");
    assert_eq!(requests[1].range.as_deref(), Some("bytes=5-99"));
    assert_eq!(requests[3].range, None, "the whole blob needs no range");
}

#[tokio::test]
async fn a_range_beyond_the_blob_never_leaves_the_machine() {
    let world = world().await;
    assert!(matches!(world.read(0, 400_001).await, Err(RegistryError::WrongRange { .. })));
    assert!(world.registry.requests().is_empty());
}

#[tokio::test]
async fn a_server_that_ignores_ranges_gives_the_whole_blob_from_0() {
    let world = world().await;
    world.registry.fail(Fault::IgnoreRange);
    let (starts_at, bytes, error) = world.read(1000, 2000).await.expect("opened");
    assert!(error.is_none() && starts_at == 0 && bytes == world.data);
}

#[tokio::test]
async fn chunked_answers_are_read_and_too_long_ones_refused() {
    let world = world().await;
    world.registry.fail(Fault::Chunked).times(2);
    world.read_well(1000, 2000).await;
    world.read_well(0, 400_000).await;
    world.registry.fail(Fault::ChunkedExtra(10));
    let (_, bytes, error) = world.read(0, 400_000).await.expect("opened");
    assert!(matches!(error, Some(RegistryError::WrongSize { .. })), "{error:?}");
    assert!(bytes.len() <= world.data.len());
}

#[tokio::test]
async fn a_body_that_ends_early_ends_with_an_error() {
    let world = world().await;
    world.registry.fail(Fault::CutAfter(400)).times(1);
    let (_, bytes, error) = world.read(1000, 2000).await.expect("opened");
    assert_eq!(bytes, world.data[1000..1400]);
    assert!(error.as_ref().is_some_and(RegistryError::is_transient), "{error:?}");
    world.read_well(1000, 2000).await;
}

#[tokio::test]
async fn answers_to_another_question_are_refused() {
    let world = world().await;
    for (fault, transient) in [
        (Fault::ShiftedContentRange(1), false),
        (Fault::ContentRangeTotal(7), false),
        (Fault::NoContentRange, false),
        (Fault::ContentLength(999), false),
        (Fault::ContentLength(100_000), false),
        (Fault::Html, false),
        (Fault::ContentEncoding, false),
        (Fault::RedirectLoop, false),
        (Fault::RedirectTo("http://192.0.2.1/blob".into()), false),
        (Fault::RedirectTo("ftp://127.0.0.1/blob".into()), false),
        (Fault::RedirectTo("http://".into()), false),
        (Fault::Status { code: 404, retry_after: None }, false),
        (Fault::Status { code: 416, retry_after: None }, false),
        (Fault::Status { code: 401, retry_after: None }, false),
        (Fault::Status { code: 403, retry_after: None }, false),
        (Fault::Status { code: 301, retry_after: None }, false),
        (Fault::Status { code: 204, retry_after: None }, false),
        (Fault::Status { code: 429, retry_after: Some(7) }, true),
        (Fault::Status { code: 500, retry_after: None }, true),
        (Fault::Status { code: 503, retry_after: None }, true),
        (Fault::Stall, true),
    ] {
        let error = world.refuse(fault.clone()).await;
        assert_eq!(error.is_transient(), transient, "{fault:?}: {error}");
        assert!(error.to_string().contains(world.registry.host()), "{fault:?}: {error} does not name the URL");
        match (&fault, &error) {
            (Fault::Html, RegistryError::WebPage { content_type, .. }) => assert!(content_type.contains("text/html")),
            (Fault::Html, _) => panic!("{error}"),
            (Fault::Status { code: 404, .. }, _) => assert!(error.is_not_found()),
            (Fault::Status { code: 401 | 403, .. }, _) => assert!(error.is_auth()),
            (Fault::Status { code: 429, .. }, _) => assert_eq!(error.retry_after(), Some(Duration::from_secs(7))),
            (Fault::Stall, _) => {
                assert!(matches!(error, RegistryError::Timeout { phase: Phase::ResponseHead, .. }), "{error}");
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_body_that_pauses_too_long_is_given_up_and_a_slow_one_is_not() {
    let world = world().await;
    world.registry.fail(Fault::StallAfter(100)).times(1);
    let (_, bytes, error) = world.read(1000, 2000).await.expect("opened");
    assert_eq!(bytes.len(), 100);
    assert!(matches!(error, Some(RegistryError::Timeout { phase: Phase::Body, .. })), "{error:?}");
    world.registry.heal();
    world.registry.fail(Fault::Drip { bytes: 100, pause: Duration::from_millis(1) });
    world.read_well(1000, 2000).await;
}

#[tokio::test]
async fn a_server_without_tls_is_told_from_one_that_is_down() {
    let world = world().await;
    world.registry.fail(Fault::RedirectTo(format!("https://{}/blob", world.registry.storage_host())));
    match world.read(1000, 2000).await.expect_err("no TLS there") {
        #[allow(clippy::print_stderr, reason = "a skipped test must be seen")]
        RegistryError::Setup { source } => {
            eprintln!("SKIPPED: a_server_without_tls_is_told_from_one_that_is_down: no CA certificates: {source}");
        }
        error => {
            assert!(!error.is_transient(), "{error:?}");
            assert!(error.to_string().contains("insecure_hosts"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_closed_port_is_transient() {
    let world = world().await;
    let blob = Arc::clone(&world.blob);
    drop(world);
    let error = blob.open(range(0, 1)).await.err().expect("nobody listens");
    assert!(matches!(error, RegistryError::Transport { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_redirect_is_followed_once_and_remembered_until_it_ends() {
    let world = world().await;
    world.registry.require_basic("user", "pass");
    let dir = tempfile::tempdir().expect("a directory");
    let docker = dir.path().join("config.json");
    let host = world.registry.host().to_owned();
    std::fs::write(&docker, format!(r#"{{"auths":{{"{host}":{{"username":"user","password":"pass"}}}}}}"#))
        .expect("written");
    let client = Client::new(ClientConfig { docker_config: Some(docker), ..config() });
    let source: ImageSource = format!("{host}/a/b:t").parse().expect("a reference");
    let blob = client.blob(&source, world.blob.digest(), world.blob.size()).await.expect("a blob");
    let world = World { blob, ..world };
    world.registry.redirect_blobs(true);

    world.read_well(10, 20).await;
    world.read_well(20, 30).await;
    let to_storage =
        |requests: &[crate::testkit::registry::Request]| requests.iter().map(|r| r.storage).collect::<Vec<_>>();
    let requests = world.registry.requests();
    assert_eq!(to_storage(&requests), [false, false, true, true], "refusal, redirect, storage; then storage at once");
    assert!(requests.iter().filter(|r| r.storage).all(|r| r.authorization.is_none()), "no credentials to storage");
    assert!(requests.iter().filter(|r| r.storage).all(|r| r.query == "signature=secret"));

    for code in [400, 401, 403, 404, 410] {
        world.registry.clear_requests();
        world.registry.fail(Fault::Status { code, retry_after: None }).at_storage().times(1);
        world.read_well(30, 40).await;
        assert_eq!(to_storage(&world.registry.requests()), [true, false, true], "{code} sends back to the registry");
    }
    world.registry.fail(Fault::Status { code: 503, retry_after: None }).at_storage().times(1);
    let error = world.read(30, 40).await.expect_err("storage is overloaded");
    assert!(error.is_transient() && !error.to_string().contains("secret"), "{error}");
    world.read_well(30, 40).await;

    world.registry.fail(Fault::Status { code: 403, retry_after: None }).at_storage();
    let error = world.read(30, 40).await.expect_err("storage refuses even a fresh URL");
    assert!(error.is_auth() && !error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn readers_in_parallel_get_connections_of_their_own() {
    let world = world().await;
    world.registry.fail(Fault::Drip { bytes: 200, pause: Duration::from_millis(1) });
    let reads = (0..8_u64).map(|i| world.read_well(i * 1000, (i + 1) * 1000));
    futures_util::future::join_all(reads).await;
    let connections: std::collections::HashSet<_> = world.registry.requests().iter().map(|r| r.connection).collect();
    assert!(connections.len() > 1, "a slow answer must not hold up another");
}

#[test]
fn content_ranges() {
    for (text, want) in [
        ("bytes 0-9/10", Some((0, 9, Some(10)))),
        ("bytes 5-5/*", Some((5, 5, None))),
        ("bytes */10", None),
        ("bytes 5-/10", None),
        ("items 0-9/10", None),
        ("bytes 0-99999999999999999999/10", None),
        ("bytes -1-9/10", None),
    ] {
        assert_eq!(parse_content_range(text), want, "{text}");
    }
}

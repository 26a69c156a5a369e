//! Chains of hosts against registries that fail on command.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::*;
use crate::registry::{BlobSource, ClientConfig, ImageSource, LayerDescriptor, Mirror, Platform};
use crate::testkit::registry::{Fault, TestRegistry};
use crate::units::{BlobOffset, BlobRange};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry that nobody runs (RFC 2606), described by a `hosts.toml` that names test registries.
struct World {
    dir: tempfile::TempDir,
    mirror: TestRegistry,
    origin: TestRegistry,
    layer: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (mirror, origin) = (TestRegistry::start(), TestRegistry::start());
        let layer: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        for registry in [&mirror, &origin] {
            registry.put_image("a/b", "t", &[(&layer, Digest::of(b"tar"))]);
        }
        let world = Self { dir, mirror, origin, layer };
        world.describe("");
        world
    }

    /// The mirror first, with `more` keys, then the registry.
    fn describe(&self, more: &str) {
        let (mirror, origin) = (self.mirror.host(), self.origin.host());
        self.write(&format!("server = \"http://{origin}\"\n[host.\"http://{mirror}\"]\n{more}\n"));
    }

    fn write(&self, text: &str) {
        let dir = self.dir.path().join("reg.example");
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("hosts.toml"), text).expect("a file");
    }

    fn config(&self) -> ClientConfig {
        config(vec![self.dir.path().to_owned()])
    }

    fn client(&self) -> Client {
        Client::new(self.config())
    }

    async fn resolve(&self, client: &Client) -> Result<crate::registry::Image, RegistryError> {
        client.resolve(&source(), &"linux/amd64".parse::<Platform>().expect("a platform")).await
    }

    async fn blob(&self, client: &Client) -> Arc<dyn BlobSource> {
        let size = BlobOffset::new(self.layer.len() as u64);
        client.blob(&source(), Digest::of(&self.layer), size).await.expect("a blob")
    }

    fn forget_requests(&self) {
        self.mirror.clear_requests();
        self.origin.clear_requests();
    }
}

fn config(hosts_dirs: Vec<PathBuf>) -> ClientConfig {
    ClientConfig {
        hosts_dirs,
        head_limit: Duration::from_millis(1500),
        idle_limit: Duration::from_millis(1500),
        backoff: crate::registry::BackoffConfig {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
            retries: Some(1),
        },
        ..ClientConfig::default()
    }
}

fn source() -> ImageSource {
    "reg.example/a/b:t".parse().expect("a reference")
}

fn range(start: u64, end: u64) -> BlobRange {
    BlobRange::new(BlobOffset::new(start), BlobOffset::new(end)).expect("ordered")
}

async fn read(blob: &dyn BlobSource, asked: BlobRange) -> Result<Vec<u8>, RegistryError> {
    let mut stream = blob.open(asked).await?;
    assert_eq!(stream.starts_at, asked.start());
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

fn paths(registry: &TestRegistry) -> Vec<String> {
    registry.requests().into_iter().map(|request| request.path).collect()
}

#[tokio::test]
async fn the_mirror_serves_everything_and_is_told_for_whom() {
    let world = World::new();
    let client = world.client();
    let image = world.resolve(&client).await.expect("resolved");
    let LayerDescriptor { digest, size, .. } = image.layers[0].clone();
    let blob = client.blob(&source(), digest, size).await.expect("a blob");
    assert!(read(blob.as_ref(), range(10, 90)).await.expect("bytes") == world.layer[10..90]);
    client.referrers(&source(), image.manifest.expect("a manifest").digest, "x/y").await.expect("a list");
    assert_eq!(world.origin.requests(), []);
    let requests = world.mirror.requests();
    assert_eq!(requests.len(), 4);
    for request in requests {
        let namespace: Vec<_> = url::form_urlencoded::parse(request.query.as_bytes())
            .filter(|(key, _)| key == "ns")
            .map(|(_, value)| value.into_owned())
            .collect();
        assert_eq!(namespace, ["reg.example"], "{request:?}");
    }
}

#[tokio::test]
async fn a_registry_that_is_its_own_host_is_told_nothing() {
    let registry = TestRegistry::start();
    registry.put_image("a/b", "t", &[(b"x", Digest::of(b"tar"))]);
    let source = format!("{}/a/b:t", registry.host()).parse().expect("a reference");
    let client = Client::new(config(Vec::new()));
    client.resolve(&source, &"linux/amd64".parse().expect("a platform")).await.expect("resolved");
    assert!(registry.requests().iter().all(|request| request.query.is_empty()));
}

#[tokio::test]
async fn a_mirror_without_resolve_is_never_asked_what_a_tag_means() {
    let world = World::new();
    world.describe("capabilities = [\"pull\"]");
    // A mirror that would lie about it.
    world.mirror.put_image("a/b", "t", &[(b"evil", Digest::of(b"tar"))]);
    let image = world.resolve(&world.client()).await.expect("resolved");
    assert_eq!(image.layers[0].digest, Digest::of(&world.layer));
    assert_eq!(paths(&world.origin), ["/v2/a/b/manifests/t"]);
    assert!(paths(&world.mirror).iter().all(|path| path.contains("/blobs/")), "{:?}", paths(&world.mirror));
}

#[tokio::test]
async fn documents_pass_over_mirrors_that_fail_in_any_way() {
    for fault in [
        Fault::Status { code: 500, retry_after: None },
        Fault::Status { code: 404, retry_after: None },
        Fault::Status { code: 403, retry_after: None },
        Fault::ChangedBytes,
        Fault::CutAfter(3),
        Fault::Html,
        Fault::Stall,
        Fault::StallAfter(2),
        Fault::RedirectLoop,
        Fault::RedirectTo("http://10.255.255.1/".to_owned()),
    ] {
        let world = World::new();
        world.mirror.fail(fault.clone());
        let image = world.resolve(&world.client()).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(image.layers[0].digest, Digest::of(&world.layer), "{fault:?}");
    }
}

#[tokio::test]
async fn ranges_pass_over_mirrors_that_fail_in_any_way() {
    for fault in [
        Fault::Status { code: 503, retry_after: None },
        Fault::Status { code: 404, retry_after: None },
        Fault::IgnoreRange,
        Fault::ShiftedContentRange(1),
        Fault::ContentRangeTotal(7),
        Fault::NoContentRange,
        Fault::ContentEncoding,
        Fault::Html,
        Fault::Stall,
        // These begin well: the other host goes on where they stop.
        Fault::CutAfter(1000),
        Fault::StallAfter(1000),
    ] {
        let world = World::new();
        world.mirror.fail(fault.clone());
        let client = world.client();
        let blob = world.blob(&client).await;
        let bytes = read(blob.as_ref(), range(5000, 100_000)).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert!(bytes == world.layer[5000..100_000], "{fault:?}");
        let mid_way = matches!(fault, Fault::CutAfter(_) | Fault::StallAfter(_));
        let want = if mid_way { "bytes=6000-99999" } else { "bytes=5000-99999" };
        assert_eq!(world.origin.requests().last().and_then(|r| r.range.clone()).as_deref(), Some(want), "{fault:?}");
    }
}

#[tokio::test]
async fn a_mirror_that_is_gone_is_asked_last_from_then_on() {
    let world = World::new();
    let closed = TestRegistry::start().host().to_owned();
    world.write(&format!(
        "server = \"http://{}\"\n[host.\"http://{closed}\"]\n[host.\"http://{}\"]\n",
        world.origin.host(),
        world.mirror.host()
    ));
    let client = world.client();
    world.resolve(&client).await.expect("resolved");
    let chain = client.chain(&"reg.example/a/b".parse().expect("a reference")).expect("a chain");
    let order: Vec<_> =
        chain.with(Capabilities::PULL).expect("hosts").iter().map(|host| host.authority.clone()).collect();
    assert_eq!(order, [world.mirror.host(), world.origin.host(), &closed]);
}

#[tokio::test]
async fn a_mirror_that_ignores_ranges_serves_when_nobody_else_can() {
    let world = World::new();
    world.mirror.fail(Fault::IgnoreRange);
    world.origin.remove_blob(&Digest::of(&world.layer));
    let client = world.client();
    let blob = world.blob(&client).await;
    let stream = blob.open(range(5000, 100_000)).await.expect("opened");
    assert_eq!(stream.starts_at, BlobOffset::ZERO);
}

#[tokio::test]
async fn a_mirror_whose_bytes_were_wrong_is_asked_last() {
    let world = World::new();
    world.mirror.fail(Fault::ChangedBytes);
    let client = world.client();
    let blob = world.blob(&client).await;
    let wrong = read(blob.as_ref(), range(0, 1000)).await.expect("bytes");
    assert!(wrong != world.layer[..1000]);
    assert!(blob.reject(range(100, 200)), "there is another host");
    assert!(read(blob.as_ref(), range(0, 1000)).await.expect("bytes") == world.layer[..1000]);
    assert!(!blob.reject(range(100, 200)), "now there is none that is better");
}

#[tokio::test]
async fn when_every_host_fails_the_error_names_all_of_them() {
    let world = World::new();
    world.mirror.fail(Fault::Status { code: 500, retry_after: None });
    world.origin.remove_manifest("a/b", "t");
    let error = world.resolve(&world.client()).await.expect_err("nobody has it");
    let text = error.to_string();
    assert!(error.is_not_found() && !error.is_transient(), "{text}");
    for want in [world.mirror.host(), world.origin.host(), "500", "not found", "reg.example"] {
        assert!(text.contains(want), "{want}: {text}");
    }
    world.origin.fail(Fault::Status { code: 502, retry_after: None });
    let error = world.resolve(&world.client()).await.expect_err("nobody has it");
    assert!(error.is_transient() && !error.is_not_found(), "{error}");
}

#[tokio::test]
async fn uploads_go_to_the_first_host_that_takes_them() {
    let world = World::new();
    world.describe("capabilities = [\"pull\", \"resolve\", \"referrers\"]");
    let client = world.client();
    let image: ImageRef = "reg.example/a/b".parse().expect("a reference");
    let bytes = bytes::Bytes::from_static(b"{}");
    client.push_manifest(&image, Some("new"), MANIFEST, &bytes).await.expect("pushed");
    assert!(world.origin.manifest("a/b", "new").is_some() && world.mirror.requests().is_empty());
    world.write(&format!("server = \"http://{}\"\ncapabilities = [\"pull\"]\n", world.origin.host()));
    let error = world.client().push_manifest(&image, Some("new"), MANIFEST, &bytes).await.expect_err("nobody");
    assert!(error.to_string().contains("reg.example") && error.to_string().contains("push"), "{error}");
}

#[tokio::test]
async fn referrers_come_from_hosts_that_know_them() {
    let world = World::new();
    let client = world.client();
    let image = world.resolve(&client).await.expect("resolved");
    let subject = image.manifest.expect("a manifest").digest;
    let artifact = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"x/y","digest":"{0}","size":2}},"layers":[],"subject":{{"mediaType":"{MANIFEST}","digest":"{subject}","size":1}}}}"#,
        Digest::of(b"{}")
    );
    let digest = world.origin.put_manifest("a/b", None, MANIFEST, artifact);
    // The mirror has the endpoint and says: none. One without it is passed over.
    assert_eq!(client.referrers(&source(), subject, "x/y").await.expect("a list"), []);
    world.mirror.referrers_api(false);
    let found = client.referrers(&source(), subject, "x/y").await.expect("a list");
    assert_eq!(found.iter().map(|d| d.digest).collect::<Vec<_>>(), [digest]);
    world.describe("capabilities = [\"pull\", \"resolve\"]");
    world.mirror.referrers_api(true);
    world.forget_requests();
    let found = world.client().referrers(&source(), subject, "x/y").await.expect("a list");
    assert_eq!((found.len(), world.mirror.requests().len()), (1, 0));
}

#[tokio::test]
async fn headers_and_paths_of_a_host_are_used_and_redirects_see_no_headers() {
    let world = World::new();
    let mirror = world.mirror.host();
    world.write(&format!(
        "[host.\"http://{mirror}/v2\"]\noverride_path = true\n[host.\"http://{mirror}/v2\".header]\nauthorization = \"Bearer secret-token\"\n"
    ));
    world.mirror.redirect_blobs(true);
    let client = world.client();
    let blob = world.blob(&client).await;
    read(blob.as_ref(), range(0, 10)).await.expect("bytes");
    for request in world.mirror.requests() {
        let want = (!request.storage).then_some("Bearer secret-token");
        assert_eq!(request.authorization.as_deref(), want, "{request:?}");
    }
    assert_eq!(world.mirror.requests().iter().filter(|r| r.storage).count(), 1);
}

#[tokio::test]
async fn mirrors_of_the_settings_come_before_the_registry() {
    let world = World::new();
    world.write(&format!("server = \"http://{}\"", world.origin.host()));
    let mut config = world.config();
    let mirror = Mirror { host: world.mirror.host().to_owned(), insecure: true, request_limit: None };
    config.mirrors.insert("reg.example".to_owned(), vec![mirror]);
    let client = Client::new(config.clone());
    world.resolve(&client).await.expect("resolved");
    assert!(world.origin.requests().is_empty() && !world.mirror.requests().is_empty());
    config.mirrors.insert(
        "reg.example".to_owned(),
        vec![Mirror { host: "ftp://x".to_owned(), insecure: false, request_limit: None }],
    );
    let error = world.resolve(&Client::new(config)).await.expect_err("no host").to_string();
    assert!(error.contains("resolver.host.\"reg.example\"") && error.contains("ftp://x"), "{error}");
}

#[tokio::test]
async fn a_login_is_for_the_registry_itself_and_shows_nowhere() {
    let world = World::new();
    world.mirror.require_basic("me", "hunter2");
    world.origin.require_basic("me", "hunter2");
    let login = crate::registry::Login { user: "me".into(), password: crate::registry::Secret::new("hunter2".into()) };
    let config = ClientConfig { login: Some(login), ..world.config() };
    assert!(!format!("{config:?}").contains("hunter2"));
    world.resolve(&Client::new(config.clone())).await.expect("resolved");
    assert!(world.mirror.requests().iter().all(|request| request.authorization.is_none()));
    world.origin.require_basic("me", "changed");
    let error = world.resolve(&Client::new(config)).await.expect_err("refused");
    assert!(error.is_auth() && error.to_string().contains("--user"), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_description_that_cannot_be_used_is_an_error_until_one_was_good() {
    let world = World::new();
    world.write("server = 5");
    let client = world.client();
    let error = world.resolve(&client).await.expect_err("unusable");
    assert!(error.to_string().contains("reg.example/hosts.toml: line 1: server"), "{error}");
    assert!(matches!(error, RegistryError::Hosts(_)), "{error:?}");
    world.describe("");
    world.resolve(&client).await.expect("good again");
    world.write("server = 5");
    world.resolve(&client).await.expect("that of before stays");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    /// Whatever is done with a password, no error, log line or debug text has it.
    #[test]
    fn passwords_are_never_shown(password in "[!-~]{12,24}", status in 400_u16..600, user in "[a-z]{1,8}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (shown, log) = logged(|| runtime.block_on(async {
            let world = World::new();
            world.origin.require_bearer(Some((&user, "other")), 1);
            world.mirror.fail(Fault::Status { code: status, retry_after: None });
            let secret = crate::registry::Secret::new(password.clone());
            let login = crate::registry::Login { user: user.clone(), password: secret };
            let config = ClientConfig { login: Some(login), ..world.config() };
            let text = format!("{config:?}");
            let error = world.resolve(&Client::new(config)).await.expect_err("refused");
            format!("{text} {error} {error:?}")
        }));
        proptest::prop_assert!(!shown.contains(&password), "{shown}");
        proptest::prop_assert!(log.contains("passed over") && !log.contains(&password), "{log}");
    }
}

std::thread_local! {
    static LOG: std::cell::RefCell<Option<Vec<u8>>> = const { std::cell::RefCell::new(None) };
}

/// What `run` gives, and what this thread logged meanwhile, at all levels. By one subscriber for the whole process: what
/// tracing remembers of the interest in an event is the same for all threads.
fn logged<T>(run: impl FnOnce() -> T) -> (T, String) {
    use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
    static SUBSCRIBER: std::sync::Once = std::sync::Once::new();
    SUBSCRIBER.call_once(|| {
        let wanted = tracing_subscriber::filter::dynamic_filter_fn(|_, _| LOG.with_borrow(Option::is_some));
        let lines = tracing_subscriber::fmt::layer().with_writer(|| ThisThread).with_filter(wanted);
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines)).expect("the only one");
    });
    LOG.set(Some(Vec::new()));
    let result = run();
    (result, String::from_utf8_lossy(&LOG.take().unwrap_or_default()).into_owned())
}

struct ThisThread;

impl std::io::Write for ThisThread {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.iter_mut().for_each(|log| log.extend_from_slice(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// For [`super::tls_tests`]: a directory that describes `registry` by `text`.
pub(super) fn describe(dir: &Path, registry: &str, text: &str) -> ClientConfig {
    let at = dir.join(registry);
    std::fs::create_dir_all(&at).expect("a directory");
    std::fs::write(at.join("hosts.toml"), text).expect("a file");
    config(vec![dir.to_owned()])
}

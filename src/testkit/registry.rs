//! An image registry on loopback that serves from memory and fails on command.
//!
//! ```
//! use sociblk::testkit::registry::{Fault, TestRegistry};
//!
//! let registry = TestRegistry::start();
//! let layer = registry.put_blob(b"layer bytes");
//! // The next GET of the layer ends after 5 bytes of body, then all is well again.
//! registry.fail(Fault::CutAfter(5)).on("/blobs/").times(1);
//! let url = format!("http://{}/v2/any/repo/blobs/{layer}", registry.host());
//! assert!(url.starts_with("http://127.0.0.1:"));
//! assert_eq!(registry.requests().len(), 0);
//! ```
//!
//! - The server runs on a thread and a runtime of its own: tests may block, or bring any runtime. Dropping the
//!   [`TestRegistry`] closes its ports and its connections and joins the thread.
//! - Blobs are shared by all repositories; manifests belong to a repository. [`TestRegistry::put_image`] makes a whole
//!   image. What is pushed over HTTP lands in the same maps.
//! - [`TestRegistry::fail`] adds a rule: which requests (method GET, path contains), after how many, how often.
//!   The first rule that matches a request and is not used up decides.
//! - [`TestRegistry::require_basic`] and [`TestRegistry::require_bearer`] switch authentication on, with tokens that end after a number of
//!   uses. [`TestRegistry::redirect_blobs`] answers blobs with a redirect to a second port that knows no authentication.
//! - It is a conformance server of our own: it follows the OCI distribution specification 1.1 as far as this project uses it,
//!   with the referrers endpoint ([`TestRegistry::referrers_api`]) or without. [`TestRegistry::strict`] lets it refuse manifests
//!   whose parts are missing and keep the blobs of repositories apart, with mounts between them;
//!   [`TestRegistry::conditional_writes`] lets it know `If-Match` and `If-None-Match`.
//! - [`TestRegistry::requests`] is the log of all requests, in order of arrival, with the range of each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::units::Digest;

mod answer;
mod fault;
mod serve;

pub use fault::{Fault, Request};

struct Rule {
    fault: Fault,
    method: &'static str,
    path_contains: String,
    skip: u64,
    left: u64,
    storage: Option<bool>,
}

/// A rule that was added by [`TestRegistry::fail`]; by default it holds for every GET, always.
pub struct RuleBuilder<'a> {
    registry: &'a TestRegistry,
    index: usize,
}

impl RuleBuilder<'_> {
    fn edit(self, change: impl FnOnce(&mut Rule)) -> Self {
        if let Some(rule) = self.registry.state.lock().rules.get_mut(self.index) {
            change(rule);
        }
        self
    }

    /// Only requests whose path contains this text.
    pub fn on(self, path_contains: &str) -> Self {
        self.edit(|r| path_contains.clone_into(&mut r.path_contains))
    }

    /// Requests of this method instead of GETs.
    pub fn method(self, method: &'static str) -> Self {
        self.edit(|r| r.method = method)
    }

    /// Not the first `n` requests that match.
    pub fn after(self, n: u64) -> Self {
        self.edit(|r| r.skip = n)
    }

    /// Only for `n` requests.
    pub fn times(self, n: u64) -> Self {
        self.edit(|r| r.left = n)
    }

    /// Only at the second port, to which blobs are redirected.
    pub fn at_storage(self) -> Self {
        self.edit(|r| r.storage = Some(true))
    }
}

#[derive(Clone)]
enum Auth {
    Open,
    Basic { user: String, password: String },
    Bearer { account: Option<(String, String)>, uses: u64, refusal: u16 },
}

#[derive(Clone)]
struct Manifest {
    media_type: String,
    bytes: Bytes,
}

struct Inner {
    blobs: HashMap<Digest, Bytes>,
    manifests: HashMap<(String, String), Manifest>,
    rules: Vec<Rule>,
    requests: Vec<Request>,
    auth: Auth,
    tokens: HashMap<String, u64>,
    tokens_issued: u64,
    token_lifetime_s: u64,
    redirect_blobs: bool,
    referrers_api: bool,
    conditional_writes: bool,
    /// Which repository has which blob, where that counts.
    owned: Option<std::collections::HashSet<(String, Digest)>>,
    connections: u64,
}

struct State {
    inner: Mutex<Inner>,
    host: String,
    storage_host: String,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registry. See the module's page.
pub struct TestRegistry {
    state: Arc<State>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TestRegistry {
    /// Starts on two free ports of 127.0.0.1.
    ///
    /// # Panics
    /// When loopback has no free port or no thread can be made.
    #[must_use]
    pub fn start() -> Self {
        let listen = || {
            let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
            listener.set_nonblocking(true).expect("listeners can be made nonblocking");
            let host = listener.local_addr().expect("a bound listener has an address").to_string();
            (listener, host)
        };
        let ((registry, host), (storage, storage_host)) = (listen(), listen());
        let inner = Inner {
            blobs: HashMap::new(),
            manifests: HashMap::new(),
            rules: Vec::new(),
            requests: Vec::new(),
            auth: Auth::Open,
            tokens: HashMap::new(),
            tokens_issued: 0,
            token_lifetime_s: 300,
            redirect_blobs: false,
            referrers_api: true,
            conditional_writes: false,
            owned: None,
            connections: 0,
        };
        let state = Arc::new(State { inner: Mutex::new(inner), host, storage_host });
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("test-registry".into())
            .spawn({
                let state = Arc::clone(&state);
                move || serve::run(&state, registry, storage, stopped)
            })
            .expect("a thread for the test registry");
        Self { state, stop, thread: Some(thread) }
    }

    /// `127.0.0.1:PORT`, the registry part of a reference.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.state.host
    }

    /// `127.0.0.1:PORT` of the second port, to which blobs are redirected.
    #[must_use]
    pub fn storage_host(&self) -> &str {
        &self.state.storage_host
    }

    /// Adds a blob to all repositories.
    pub fn put_blob(&self, bytes: impl AsRef<[u8]>) -> Digest {
        let bytes = Bytes::copy_from_slice(bytes.as_ref());
        let digest = Digest::of(&bytes);
        self.state.lock().blobs.insert(digest, bytes);
        digest
    }

    /// Puts bytes under a digest that they need not have.
    pub fn put_blob_as(&self, digest: Digest, bytes: impl AsRef<[u8]>) {
        self.state.lock().blobs.insert(digest, Bytes::copy_from_slice(bytes.as_ref()));
    }

    /// Adds a manifest under its digest and, if given, a tag.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl AsRef<[u8]>,
    ) -> Digest {
        let bytes = Bytes::copy_from_slice(bytes.as_ref());
        let digest = Digest::of(&bytes);
        let manifest = Manifest { media_type: media_type.to_owned(), bytes };
        let mut inner = self.state.lock();
        if let Some(tag) = tag {
            inner.manifests.insert((repository.to_owned(), tag.to_owned()), manifest.clone());
        }
        inner.manifests.insert((repository.to_owned(), digest.to_string()), manifest);
        digest
    }

    /// Adds an image of gzip layers for linux/amd64: `layers` are (blob, sha256 of its tar). Returns the manifest's digest.
    pub fn put_image(&self, repository: &str, tag: &str, layers: &[(&[u8], Digest)]) -> Digest {
        self.put_image_with(repository, Some(tag), "amd64", layers, &serde_json::Map::new())
    }

    /// As [`TestRegistry::put_image`] for another architecture and with manifest annotations.
    pub fn put_image_with(
        &self,
        repository: &str,
        tag: Option<&str>,
        architecture: &str,
        layers: &[(&[u8], Digest)],
        annotations: &serde_json::Map<String, serde_json::Value>,
    ) -> Digest {
        let diff_ids: Vec<String> = layers.iter().map(|(_, diff_id)| diff_id.to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string();
        let config_digest = self.put_blob(&config);
        let layers: Vec<_> = layers
            .iter()
            .map(|(blob, _)| {
                let zstd = matches!(blob, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
                let compression = if zstd { "zstd" } else { "gzip" };
                serde_json::json!({
                    "mediaType": format!("application/vnd.oci.image.layer.v1.tar+{compression}"),
                    "digest": self.put_blob(blob).to_string(), "size": blob.len(),
                })
            })
            .collect();
        let mut manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(), "size": config.len(),
            },
            "layers": layers,
        });
        if let (false, Some(object)) = (annotations.is_empty(), manifest.as_object_mut()) {
            object.insert("annotations".into(), annotations.clone().into());
        }
        self.put_manifest(repository, tag, MANIFEST, manifest.to_string())
    }

    /// The manifest under a tag or digest.
    #[must_use]
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<Bytes> {
        self.state.lock().manifests.get(&(repository.to_owned(), reference.to_owned())).map(|m| m.bytes.clone())
    }

    /// Forgets a manifest under a tag or digest.
    pub fn remove_manifest(&self, repository: &str, reference: &str) {
        self.state.lock().manifests.remove(&(repository.to_owned(), reference.to_owned()));
    }

    /// The blob with this digest.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.state.lock().blobs.get(digest).cloned()
    }

    /// Forgets a blob.
    pub fn remove_blob(&self, digest: &Digest) {
        self.state.lock().blobs.remove(digest);
    }

    /// Adds a rule for GET requests.
    pub fn fail(&self, fault: Fault) -> RuleBuilder<'_> {
        let mut inner = self.state.lock();
        inner.rules.push(Rule {
            fault,
            method: "GET",
            path_contains: String::new(),
            skip: 0,
            left: u64::MAX,
            storage: None,
        });
        RuleBuilder { registry: self, index: inner.rules.len() - 1 }
    }

    /// Removes all rules.
    pub fn heal(&self) {
        self.state.lock().rules.clear();
    }

    /// From now on every request needs these basic credentials.
    pub fn require_basic(&self, user: &str, password: &str) {
        self.state.lock().auth = Auth::Basic { user: user.to_owned(), password: password.to_owned() };
    }

    /// From now on every request needs a token from `/token`, for which `account` is asked (anonymous: `None`). A token
    /// serves `uses` requests, then they are refused with 401.
    pub fn require_bearer(&self, account: Option<(&str, &str)>, uses: u64) {
        self.require_bearer_refusing(account, uses, 401);
    }

    /// As [`TestRegistry::require_bearer`]; requests with a token that ended are refused with `refusal`.
    pub fn require_bearer_refusing(&self, account: Option<(&str, &str)>, uses: u64, refusal: u16) {
        let account = account.map(|(user, password)| (user.to_owned(), password.to_owned()));
        self.state.lock().auth = Auth::Bearer { account, uses, refusal };
    }

    /// What `/token` says from now on about how long its tokens hold, in seconds. They hold by their uses all the same.
    pub fn token_lifetime(&self, lifetime_s: u64) {
        self.state.lock().token_lifetime_s = lifetime_s;
    }

    /// Makes all tokens end now.
    pub fn expire_tokens(&self) {
        self.state.lock().tokens.clear();
    }

    /// How many tokens `/token` gave.
    #[must_use]
    pub fn tokens_issued(&self) -> u64 {
        self.state.lock().tokens_issued
    }

    /// Whether blobs are answered with a redirect to the second port (off at first).
    pub fn redirect_blobs(&self, on: bool) {
        self.state.lock().redirect_blobs = on;
    }

    /// Whether the OCI 1.1 referrers endpoint exists (on at first).
    pub fn referrers_api(&self, on: bool) {
        self.state.lock().referrers_api = on;
    }

    /// Whether the blobs of repositories are kept apart, and manifests refused whose parts are missing (off at first). What
    /// is there belongs to `repository`.
    pub fn strict(&self, repository: &str) {
        let mut inner = self.state.lock();
        inner.owned = Some(inner.blobs.keys().map(|digest| (repository.to_owned(), *digest)).collect());
    }

    /// Whether manifests are written only if `If-Match` and `If-None-Match` allow it (off at first, as in most registries).
    pub fn conditional_writes(&self, on: bool) {
        self.state.lock().conditional_writes = on;
    }

    /// Names of a repository's manifests: tags and digests, sorted.
    #[must_use]
    pub fn manifest_names(&self, repository: &str) -> Vec<String> {
        let inner = self.state.lock();
        let names = inner.manifests.keys().filter(|(repo, _)| repo == repository).map(|(_, name)| name.clone());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.state.lock().requests.clear();
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic of the server thread already showed on stderr; the test that provoked it fails by itself.
            drop(thread.join());
        }
    }
}

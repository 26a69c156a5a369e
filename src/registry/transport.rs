//! Which connections a request goes over: HTTP/1.1 ones, or, where it is wanted and the server has it, one of HTTP/2 that
//! all share.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use url::{Origin, Url};

use super::{ClientConfig, Http2, RegistryError};

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Traffic {
    /// Tokens, manifests, configs, lists of artifacts, zTOCs: fetched whole, several side by side, by who waits for all of
    /// them.
    Document,
    /// Ranges of layers, which readers wait for beside background filling.
    Bulk,
    /// What is sent to a registry.
    Upload,
}

/// What one HTTP/2 answer may have under way: about what Linux lets a TCP connection have.
const STREAM_BYTES: u32 = 4 << 20;
/// The same of all answers on a connection together, which is also what a server can make us keep: one that nobody reads at
/// the moment must not stop the others.
const CONNECTION_BYTES: u32 = 8 << 20;
/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(60);
/// How long HTTP/1.1 is spoken to a server whose HTTP/2 gave trouble. Longer than [`IDLE`]: the connection that gave it is
/// gone by then.
const DOUBT: Duration = Duration::from_secs(300);
/// The same for a server that has no HTTP/2: what was found by asking for it cannot be used for layers.
const LACK: Duration = Duration::from_secs(3600);
/// Most servers that are remembered so: redirects may name any number of them.
const MAX_DOUBTED: usize = 64;

/// Connections to hosts that are spoken to alike.
#[derive(Debug)]
pub(super) struct Transport {
    tls: rustls::ClientConfig,
    connect_limit: Duration,
    /// Made when they are needed first: that of the other kind may never be.
    http1: OnceLock<reqwest::Client>,
    http2: OnceLock<reqwest::Client>,
}

impl Transport {
    pub(super) fn new(tls: rustls::ClientConfig, connect_limit: Duration) -> Self {
        Self { tls, connect_limit, http1: OnceLock::new(), http2: OnceLock::new() }
    }

    /// The connections for `http2`, which offers both versions, or for HTTP/1.1 alone.
    pub(super) fn client(&self, config: &ClientConfig, http2: bool) -> Result<reqwest::Client, RegistryError> {
        let made = if http2 { &self.http2 } else { &self.http1 };
        if let Some(client) = made.get() {
            return Ok(client.clone());
        }
        let mut tls = self.tls.clone();
        let mut builder = builder(self.connect_limit);
        if http2 {
            tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            // All requests share the connection: one that is dead must not take until their time limits to be found out,
            // one after the other.
            let silence = config.head_limit.min(config.idle_limit) / 3;
            builder = builder
                .http2_initial_stream_window_size(STREAM_BYTES)
                .http2_initial_connection_window_size(CONNECTION_BYTES)
                .http2_keep_alive_interval(silence)
                .http2_keep_alive_timeout(silence);
        } else {
            builder = builder.http1_only();
        }
        let client = build(builder.tls_backend_preconfigured(tls))?;
        Ok(made.get_or_init(|| client).clone())
    }
}

/// What all clients have in common.
fn builder(connect_limit: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("sociblk/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(connect_limit)
        .pool_idle_timeout(IDLE)
        .tcp_keepalive(Duration::from_secs(30))
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, RegistryError> {
    builder.build().map_err(|source| RegistryError::Setup { source })
}

/// For plain HTTP to this machine: no proxy, and no CA certificates, whose loading takes longer than a local mount.
pub(super) fn loopback(connect_limit: Duration) -> Result<reqwest::Client, RegistryError> {
    build(builder(connect_limit).http1_only().no_proxy().tls_certs_only([]))
}

/// Servers that HTTP/2 is not asked of for a while.
#[derive(Default)]
pub(super) struct Doubts(Mutex<HashMap<Origin, Instant>>);

impl Doubts {
    /// Whether a request may go over HTTP/2.
    pub(super) fn allow(&self, wanted: Http2, traffic: Traffic, url: &Url) -> bool {
        let wanted = match wanted {
            Http2::Off => false,
            Http2::Documents => traffic == Traffic::Document,
            Http2::All => traffic != Traffic::Upload,
        };
        // Over plain HTTP nobody says what the server speaks.
        wanted && url.scheme() == "https" && !self.doubted(url)
    }

    fn doubted(&self, url: &Url) -> bool {
        let doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.get(&url.origin()).is_some_and(|until| Instant::now() < *until)
    }

    /// HTTP/2 with this server broke off, or nothing came any more. All requests share the connection, so the next
    /// attempt must not.
    pub(super) fn trouble(&self, url: &Url) {
        tracing::debug!(host = url.host_str(), port = url.port(), "HTTP/2 gave trouble; HTTP/1.1 for a while");
        self.avoid(url, DOUBT);
    }

    /// The server chose HTTP/1.1.
    pub(super) fn lack(&self, url: &Url) {
        self.avoid(url, LACK);
    }

    fn avoid(&self, url: &Url, how_long: Duration) {
        let now = Instant::now();
        let mut doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.retain(|_, until| now < *until);
        if doubts.len() >= MAX_DOUBTED {
            doubts.clear();
        }
        doubts.insert(url.origin(), now + how_long);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http2_is_for_documents_over_tls_from_servers_that_gave_no_trouble() {
        let doubts = Doubts::default();
        let url = |text: &str| Url::parse(text).expect("a URL");
        let good = url("https://a.example/v2/");
        for (wanted, document, bulk) in
            [(Http2::Off, false, false), (Http2::Documents, true, false), (Http2::All, true, true)]
        {
            assert_eq!(doubts.allow(wanted, Traffic::Document, &good), document);
            assert_eq!(doubts.allow(wanted, Traffic::Bulk, &good), bulk);
            assert!(!doubts.allow(wanted, Traffic::Upload, &good));
            assert!(!doubts.allow(wanted, Traffic::Document, &url("http://a.example/v2/")));
        }
        doubts.trouble(&url("https://a.example/any?query"));
        assert!(!doubts.allow(Http2::All, Traffic::Document, &good));
        assert!(doubts.allow(Http2::All, Traffic::Document, &url("https://a.example:5000/v2/")));
        for port in 1..1000 {
            doubts.trouble(&url(&format!("https://b.example:{port}/")));
        }
        assert!(doubts.0.lock().expect("no panic").len() <= MAX_DOUBTED);
    }
}

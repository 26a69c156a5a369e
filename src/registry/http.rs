//! The HTTP library with our limits on it: no redirects, no retries, no hidden waiting.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Version};
use tracing::Instrument as _;
use url::{Host, Url};

use super::error::Phase;
use super::hosts::Endpoint;
use super::tls::TlsSettings;
use super::transport::{Doubts, Traffic, Transport, loopback};
use super::{ClientConfig, RegistryError};

/// Numbers of requests: log lines of one belong together.
static REQUESTS: AtomicU64 = AtomicU64::new(1);
/// An upload that is slower than this, on the whole, is given up.
const SLOWEST_UPLOAD_BYTES_PER_S: u64 = 64 << 10;

/// Sends single requests.
pub(super) struct Http {
    pub(super) config: ClientConfig,
    /// For plain HTTP to loopback.
    loopback: OnceLock<reqwest::Client>,
    /// For all else, shared by hosts that are spoken to alike.
    remote: Mutex<HashMap<(TlsSettings, u64, Duration), Weak<Transport>>>,
    doubts: Doubts,
}

/// A URL for people and logs: without query, fragment and user info, in which signatures and passwords hide.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail for URLs that cannot have user info, which then have none to hide.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// Whether packets to this host stay on the machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

impl Http {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self { config, loopback: OnceLock::new(), remote: Mutex::default(), doubts: Doubts::default() }
    }

    /// Whether plain HTTP is allowed to this place, on the way to or from `host`.
    pub(super) fn plain_allowed(&self, host: &Endpoint, url: &Url) -> bool {
        is_loopback(url) || self.config.is_insecure(url) || host.is_plainly(url)
    }

    fn client_for(&self, host: &Endpoint, url: &Url, http2: bool) -> Result<reqwest::Client, RegistryError> {
        if url.scheme() == "http" && is_loopback(url) {
            if let Some(client) = self.loopback.get() {
                return Ok(client.clone());
            }
            let client = loopback(self.config.connect_limit)?;
            return Ok(self.loopback.get_or_init(|| client).clone());
        }
        if let Some(transport) = host.transport.get() {
            return transport.client(&self.config, http2);
        }
        let transport = self.transport(host)?;
        host.transport.get_or_init(|| transport).client(&self.config, http2)
    }

    fn transport(&self, host: &Endpoint) -> Result<Arc<Transport>, RegistryError> {
        let key = (host.tls.clone(), host.stamp, host.connect_limit);
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transport) = remote.get(&key).and_then(Weak::upgrade) {
            return Ok(transport);
        }
        let tls = host.tls.client_config(&self.config.extra_ca_files)?;
        let transport = Arc::new(Transport::new(tls, host.connect_limit));
        remote.retain(|_, transport| transport.strong_count() > 0);
        remote.insert(key, Arc::downgrade(&transport));
        Ok(transport)
    }

    /// One request by the rules of `host`, one answer head, whatever its status.
    pub(super) async fn send(
        &self,
        host: &Endpoint,
        traffic: Traffic,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
    ) -> Result<Response, RegistryError> {
        if url.scheme() == "http" && !self.plain_allowed(host, url) {
            return Err(RegistryError::Redirect {
                url: shown(url),
                reason: "plain HTTP is only used for loopback, for hosts that hosts.toml names so, and for hosts in registry.insecure_hosts or --insecure".to_owned(),
            });
        }
        // A body makes the answer wait for the upload; the idle limit of the other side is then what ends it.
        let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0_u64);
        let slowest = Duration::from_secs(length / SLOWEST_UPLOAD_BYTES_PER_S);
        let limit = if body.is_some() { host.head_limit * 20 + slowest } else { host.head_limit };
        let what = method.clone();
        let http2 = self.doubts.allow(self.config.http2, traffic, url);
        let mut request = self.client_for(host, url, http2)?.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
        // Neither path nor query: what a registry signs, and where it gives out rights, is nothing for a log.
        let span = tracing::debug_span!("request", number, method = %what, host = url.host_str(), port = url.port());
        let began = Instant::now();
        let sent = tokio::time::timeout(limit, request.send().instrument(span.clone())).await;
        match &sent {
            Ok(Ok(response)) => {
                let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis());
                tracing::debug!(parent: &span, status, ms, version = ?response.version(), "answered");
                if http2 && response.version() != Version::HTTP_2 {
                    self.doubts.lack(url);
                }
            }
            Ok(Err(source)) if source.is_connect() => {}
            _ if http2 => self.doubts.trouble(url),
            _ => {}
        }
        match sent {
            Err(_) => Err(RegistryError::Timeout { url: shown(url), phase: Phase::ResponseHead, limit }),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) if source.is_timeout() && source.is_connect() => {
                Err(RegistryError::Timeout { url: shown(url), phase: Phase::Connect, limit: host.connect_limit })
            }
            Ok(Err(source)) => Err(failed(url, source)),
        }
    }

    /// The next piece of a body, within the idle limit; `None` at its end.
    pub(super) async fn chunk(&self, url: &Url, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
        self.chunk_within(self.config.idle_limit, url, response).await
    }

    /// The next piece of a body, within `limit`; `None` at its end.
    pub(super) async fn chunk_within(
        &self,
        limit: Duration,
        url: &Url,
        response: &mut Response,
    ) -> Result<Option<Bytes>, RegistryError> {
        let version = response.version();
        let piece = tokio::time::timeout(limit, response.chunk()).await;
        if version == Version::HTTP_2 && !matches!(piece, Ok(Ok(_))) {
            self.doubts.trouble(url);
        }
        match piece {
            Err(_) => Err(RegistryError::Timeout { url: shown(url), phase: Phase::Body, limit }),
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(source)) => Err(failed(url, source)),
        }
    }

    /// The whole body, if it is not longer than `limit_bytes`.
    pub(super) async fn body(
        &self,
        url: &Url,
        mut response: Response,
        limit_bytes: u64,
    ) -> Result<Bytes, RegistryError> {
        let too_long = || RegistryError::TooLong { what: shown(url), limit_bytes };
        if response.content_length().is_some_and(|length| length > limit_bytes) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(piece) = self.chunk(url, &mut response).await? {
            if body.len() as u64 + piece.len() as u64 > limit_bytes {
                return Err(too_long());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.into())
    }

    /// Turns a status that is no success into the error that it means. `host` is the registry.
    pub(super) async fn success(&self, host: &str, url: &Url, response: Response) -> Result<Response, RegistryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        if status == StatusCode::NOT_FOUND {
            return Err(RegistryError::NotFound { url: shown(url) });
        }
        let message = self.message(url, response).await;
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let words = if message.is_empty() { String::new() } else { format!(" ({message})") };
            return Err(RegistryError::Auth {
                host: host.to_owned(),
                what: shown(url),
                reason: format!(
                    "status {}{words}; run docker login {host}, or check the account's rights",
                    status.as_u16()
                ),
            });
        }
        Err(RegistryError::Status { url: shown(url), status: status.as_u16(), message, retry_after })
    }

    /// The registry's own words from an error's body, made short and printable.
    async fn message(&self, url: &Url, response: Response) -> String {
        let Ok(body) = self.body(url, response, 64 << 10).await else { return String::new() };
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(&body) else { return String::new() };
        let text = |key: &str| document.pointer(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let words = match (text("/errors/0/code"), text("/errors/0/message")) {
            (code, message) if code.is_empty() => message,
            (code, message) if message.is_empty() => code,
            (code, message) => format!("{code}: {message}"),
        };
        words.chars().filter(|c| !c.is_control()).take(300).collect()
    }
}

fn failed(url: &Url, source: reqwest::Error) -> RegistryError {
    // The library's own text would show the URL with its query.
    RegistryError::Transport { url: shown(url), source: source.without_url() }
}

/// `Retry-After` in seconds; the date form is rare and is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_named_hosts() {
        let insecure_hosts = vec!["dev.lan:5000".to_owned(), "any.lan".to_owned()];
        let config = ClientConfig { insecure_hosts, ..ClientConfig::default() };
        for (host, want) in [
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.8.9.1", "http://127.8.9.1/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("dev.lan:5000", "http://dev.lan:5000/v2"),
            ("dev.lan", "https://dev.lan/v2"),
            ("any.lan:81", "http://any.lan:81/v2"),
            ("10.0.0.1", "https://10.0.0.1/v2"),
            ("localhost.example.org", "https://localhost.example.org/v2"),
        ] {
            assert_eq!(config.base_url(host).expect(host).as_str(), want);
        }
    }

    #[test]
    fn shown_urls_hold_no_secrets() {
        let url = Url::parse("https://user:pw@s3.example/blob?X-Amz-Signature=secret#f").expect("a URL");
        assert_eq!(shown(&url), "https://s3.example/blob");
    }
}

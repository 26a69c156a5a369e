//! The two requests to the API server.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Certificate, Identity, Proxy, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::{Host, Url};

use super::KubernetesError;
use super::kubeconfig::Access;
use super::secrets::{Metadata, Name, Secret, TYPE};

/// Secrets in one answer.
const PAGE: &str = "500";
/// Longest answer with a page of secrets, in bytes: each may have a MiB, and few come near.
const PAGE_LIMIT_BYTES: usize = 128 << 20;
/// Longest event, in bytes: a secret has a MiB at most, which base64 and the rest make longer.
const EVENT_LIMIT_BYTES: usize = 4 << 20;
/// How long a connection may take to come up, and a page to arrive.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long the server is asked to watch, and how long it may be silent: longer, so that it is the one to end.
const WATCH_S: &str = "240";
const SILENCE_LIMIT: Duration = Duration::from_secs(300);

/// A connection to an API server.
pub(super) struct Api {
    client: reqwest::Client,
    secrets: Url,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    // Null when there is none.
    #[serde(default)]
    items: Option<Vec<Secret>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

#[derive(Deserialize)]
struct RawEvent {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusal {
    code: u16,
    message: String,
}

/// What happened, and the version that the cluster is at by now.
pub(super) enum Event {
    Put(Secret),
    Removed(Name),
    Nothing,
}

impl Api {
    pub(super) fn new(access: Access) -> Result<Self, KubernetesError> {
        let server = access.server.to_string();
        let setup = |source| KubernetesError::Setup { server: server.clone(), source };
        let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
        if let Some(token) = &access.token {
            let header = HeaderValue::try_from(format!("Bearer {token}"));
            let mut header = header.map_err(|_| KubernetesError::Answer {
                url: server.clone(),
                reason: "its token holds characters that no HTTP header can carry".to_owned(),
            })?;
            header.set_sensitive(true);
            headers.insert(AUTHORIZATION, header);
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("sociblk/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A token must not go where the server points to.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .tcp_keepalive(Duration::from_secs(30));
        if let Some(pem) = &access.authorities {
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(pem).map_err(setup)?);
        }
        if let Some(pem) = &access.identity {
            builder = builder.identity(Identity::from_pem(pem).map_err(setup)?);
        }
        if access.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        if let Some(proxy) = &access.proxy {
            builder = builder.proxy(Proxy::all(proxy.as_str()).map_err(setup)?);
        } else if is_loopback(&access.server) {
            builder = builder.no_proxy();
        }
        let mut secrets = access.server.clone();
        // It has a host, so it has a path.
        if let Ok(mut path) = secrets.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1", "secrets"]);
        }
        secrets.query_pairs_mut().append_pair("fieldSelector", &format!("type={TYPE}"));
        Ok(Self { client: builder.build().map_err(setup)?, secrets })
    }

    /// All secrets, and the version of the cluster that has them.
    pub(super) async fn list(&self) -> Result<(Vec<Secret>, String), KubernetesError> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let mut url = self.secrets.clone();
            url.query_pairs_mut().append_pair("limit", PAGE);
            if !next.is_empty() {
                url.query_pairs_mut().append_pair("continue", &next);
            }
            let page: List = in_time(&url, self.page(&url)).await?;
            all.extend(page.items.into_iter().flatten());
            if page.metadata.next.is_empty() {
                return Ok((all, page.metadata.resource_version));
            }
            next = page.metadata.next;
        }
    }

    async fn page(&self, url: &Url) -> Result<List, KubernetesError> {
        let mut response = self.get(url).await?;
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(|source| transport(url, source))? {
            if body.len() + piece.len() > PAGE_LIMIT_BYTES {
                return Err(odd(url, format!("longer than {PAGE_LIMIT_BYTES} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        // The parser's words may quote a secret.
        serde_json::from_slice(&body).map_err(|_| odd(url, "the answer is no list of secrets"))
    }

    /// What happens from `version` on.
    pub(super) async fn watch(&self, version: &str) -> Result<Events, KubernetesError> {
        let mut url = self.secrets.clone();
        url.query_pairs_mut()
            .append_pair("watch", "true")
            .append_pair("allowWatchBookmarks", "true")
            .append_pair("resourceVersion", version)
            .append_pair("timeoutSeconds", WATCH_S);
        let response = in_time(&url, self.get(&url)).await?;
        Ok(Events { url, response, buffer: BytesMut::new(), searched: 0 })
    }

    async fn get(&self, url: &Url) -> Result<Response, KubernetesError> {
        let sent = self.client.get(url.clone()).send().await;
        let mut response = sent.map_err(|source| transport(url, source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let mut body = BytesMut::new();
        while let Ok(Some(piece)) = response.chunk().await {
            body.extend_from_slice(&piece);
            if body.len() > EVENT_LIMIT_BYTES {
                break;
            }
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        Err(refused(url, status.as_u16(), &refusal.message))
    }
}

/// Events on their way: one JSON document a line.
pub(super) struct Events {
    url: Url,
    response: Response,
    buffer: BytesMut,
    /// How much of the buffer holds no end of a line.
    searched: usize,
}

impl Events {
    /// The next event with its version; `None` when the server has watched long enough.
    pub(super) async fn next(&mut self) -> Result<Option<(Event, String)>, KubernetesError> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| self.searched + end) {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                self.searched = 0;
                if !line.trim_ascii().is_empty() {
                    return self.event(&line).map(Some);
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.searched > EVENT_LIMIT_BYTES {
                return Err(odd(&self.url, format!("an event is longer than {EVENT_LIMIT_BYTES} bytes")));
            }
            match self.response.chunk().await.map_err(|source| transport(&self.url, source))? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }

    fn event(&self, line: &[u8]) -> Result<(Event, String), KubernetesError> {
        let event: RawEvent = self.read(serde_json::from_slice(line))?;
        Ok(match event.kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let secret: Secret = self.object(event.object)?;
                let version = secret.metadata.resource_version.clone();
                (Event::Put(secret), version)
            }
            "DELETED" => {
                let secret: Secret = self.object(event.object)?;
                (Event::Removed(secret.name()), secret.metadata.resource_version)
            }
            "ERROR" => {
                let refusal: Refusal = self.object(event.object)?;
                return Err(refused(&self.url, refusal.code, &refusal.message));
            }
            // Bookmarks, and what is yet to come.
            _ => {
                let metadata = event.object.get("metadata").cloned().unwrap_or_default();
                let metadata: Metadata = serde_json::from_value(metadata).unwrap_or_default();
                (Event::Nothing, metadata.resource_version)
            }
        })
    }

    fn object<T: DeserializeOwned>(&self, object: Value) -> Result<T, KubernetesError> {
        self.read(serde_json::from_value(object))
    }

    fn read<T>(&self, parsed: Result<T, serde_json::Error>) -> Result<T, KubernetesError> {
        parsed.map_err(|_| odd(&self.url, "an event is none of a watch"))
    }
}

async fn in_time<T>(url: &Url, step: impl Future<Output = Result<T, KubernetesError>>) -> Result<T, KubernetesError> {
    match tokio::time::timeout(ANSWER_LIMIT, step).await {
        Ok(done) => done,
        Err(_) => Err(KubernetesError::Timeout { url: shown(url), limit: ANSWER_LIMIT }),
    }
}

/// Without query and user info.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    // These fail for URLs that cannot have user info, which then have none to hide.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

fn odd(url: &Url, reason: impl Into<String>) -> KubernetesError {
    KubernetesError::Answer { url: shown(url), reason: reason.into() }
}

fn transport(url: &Url, source: reqwest::Error) -> KubernetesError {
    KubernetesError::Transport { url: shown(url), source: source.without_url() }
}

fn refused(url: &Url, status: u16, message: &str) -> KubernetesError {
    let message = message.chars().filter(|c| !c.is_control()).take(300).collect();
    KubernetesError::Status { url: shown(url), status, message }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

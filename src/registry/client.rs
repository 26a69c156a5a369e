//! Requests to a registry: with authorization, renewed once when it ends, and redirects followed by our own rules.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::auth::{Access, Authorizer};
use super::backoff::retry;
use super::challenge;
use super::hosts::{Capabilities, Chain, Chains, Endpoint};
use super::http::{Http, shown};
use super::stored::Connections;
use super::transport::Traffic;
use super::{ClientConfig, ImageRef, RegistryError};
use crate::units::Digest;

/// A registry client: connections, authorizations and limits, shared by all its clones. Needs a tokio runtime with time
/// and I/O; its connections belong to the runtime that used it first.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    http: Http,
    chains: Chains,
    authorizer: Authorizer,
    connections: Connections,
}

/// Most redirects in a row; as in Go's and curl's defaults, which registries are tested with.
const MAX_REDIRECTS: usize = 10;

/// Most renewals of the authorization for one request: more than there are credentials to try.
const MAX_RENEWALS: usize = 12;

/// An answer and where it came from.
pub(super) struct Answer {
    pub(super) response: Response,
    /// The last URL of the redirects.
    pub(super) url: Url,
    /// Whether `url` is another server than the registry; it then got no authorization.
    pub(super) foreign: bool,
}

/// A document as it came.
pub(super) struct RawDocument {
    pub(super) bytes: Bytes,
    pub(super) content_type: Option<String>,
    pub(super) digest: Digest,
}

impl Client {
    /// A client; makes no connection yet.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                http: Http::new(config),
                chains: Chains::default(),
                authorizer: Authorizer::default(),
                connections: Connections::default(),
            }),
        }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &ClientConfig {
        &self.inner.http.config
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.inner.connections
    }

    pub(super) fn http(&self) -> &Http {
        &self.inner.http
    }

    /// The hosts of the image's registry.
    pub(super) fn chain(&self, image: &ImageRef) -> Result<Arc<Chain>, RegistryError> {
        self.inner.chains.of(self.config(), image.registry(), image.host())
    }

    /// `https://HOST/v2/REPOSITORY/...` (or http) with `tail` as further path segments, at the host that uploads go to.
    pub(super) fn url(&self, image: &ImageRef, tail: &[&str]) -> Result<Url, RegistryError> {
        Ok(self.chain(image)?.for_pushes()?.url(image.repository(), tail))
    }

    /// Asks the hosts that may be asked for `wanted` one after the other until one does it. What keeps a host from it
    /// is logged, and is in the error when none is left.
    pub(super) async fn any_host<T, F, Fut>(
        &self,
        image: &ImageRef,
        wanted: Capabilities,
        ask: F,
    ) -> Result<T, RegistryError>
    where
        F: Fn(Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, RegistryError>>,
    {
        let mut failures = Failures::new(image);
        for host in self.chain(image)?.with(wanted)? {
            let patience = host.patience();
            let asked = ask(Arc::clone(&host)).await;
            patience.over();
            match asked {
                Ok(done) => {
                    host.went_well();
                    return Ok(done);
                }
                Err(error) => failures.add(&host, error),
            }
        }
        Err(failures.into_error())
    }

    /// As [`Client::request_at`], by the rules of the host that `start` is at. For uploads.
    pub(super) async fn request(
        &self,
        image: &ImageRef,
        access: Access,
        method: Method,
        start: Url,
        headers: &HeaderMap,
        body: impl Fn() -> Option<reqwest::Body>,
    ) -> Result<Answer, RegistryError> {
        let host = self.chain(image)?.asking(&start)?;
        self.request_at(&host, image, access, Traffic::Upload, method, start, headers, body).await
    }

    /// One request, one attempt: the authorization is renewed when it is refused, with one credential after the other
    /// while there are more; redirects are followed for reads. The status of the answer is the caller's.
    #[expect(clippy::too_many_arguments, reason = "these are what a request is made of")]
    pub(super) async fn request_at(
        &self,
        host: &Endpoint,
        image: &ImageRef,
        access: Access,
        traffic: Traffic,
        method: Method,
        start: Url,
        headers: &HeaderMap,
        body: impl Fn() -> Option<reqwest::Body>,
    ) -> Result<Answer, RegistryError> {
        let http = self.http();
        let mut grant = self.inner.authorizer.current(http, host, image, access).await;
        let (mut url, mut renewed, mut visited) = (host.in_its_scheme(start.clone()), 0, Vec::new());
        loop {
            let foreign = url.origin() != host.base().origin();
            // Only the host itself sees what its description has it sent.
            let mut all = if foreign { HeaderMap::new() } else { host.headers.clone() };
            headers.iter().for_each(|(name, value)| drop(all.insert(name, value.clone())));
            let mut headers = all;
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            // Only the registry itself sees the authorization, never where it redirects to.
            if let (false, Some(header)) = (foreign, &grant.header) {
                headers.insert(AUTHORIZATION, header.clone());
            }
            let response = match http.send(host, traffic, method.clone(), &url, headers, body()).await {
                Err(error) if host.falls_back(&error) => {
                    url = host.in_its_scheme(url);
                    continue;
                }
                sent => sent?,
            };
            let status = response.status();
            let refused =
                status == StatusCode::UNAUTHORIZED || (status == StatusCode::FORBIDDEN && grant.header.is_some());
            if refused && !foreign && renewed < MAX_RENEWALS {
                // What ended may be renewed with the first credentials again; what is new and refused, not.
                let from = if renewed == 0 { 0 } else { grant.next };
                renewed += 1;
                let offered = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
                let challenge = challenge::best(offered);
                if challenge.is_some() || grant.header.is_some() {
                    tracing::debug!(host = host.authority, status = status.as_u16(), "renewing the authorization");
                    let authorizer = &self.inner.authorizer;
                    if let Some(new) = authorizer.renew(http, host, image, access, &grant, challenge, from).await? {
                        grant = new;
                        continue;
                    }
                }
            }
            let follow = status.is_redirection()
                && status != StatusCode::NOT_MODIFIED
                && (method == Method::GET || method == Method::HEAD);
            if !follow {
                return Ok(Answer { response, url, foreign });
            }
            let next = redirect_target(&url, response.headers())?;
            let stuck = |reason: &str| RegistryError::Redirect { url: shown(&start), reason: reason.to_owned() };
            if next.scheme() == "http" && !http.plain_allowed(host, &next) {
                return Err(stuck(&format!(
                    "the registry redirects to {}; plain HTTP is only used for loopback and for hosts in registry.insecure_hosts or --insecure",
                    shown(&next)
                )));
            }
            visited.push(url);
            if visited.contains(&next) {
                return Err(stuck("the registry redirects in a circle"));
            }
            if visited.len() > MAX_REDIRECTS {
                return Err(stuck("the registry redirects more than 10 times"));
            }
            url = next;
        }
    }

    /// GET with success as the only good status.
    pub(super) async fn get_at(
        &self,
        host: &Endpoint,
        image: &ImageRef,
        traffic: Traffic,
        url: Url,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let answer = self.request_at(host, image, Access::Pull, traffic, Method::GET, url, headers, || None).await?;
        let response = self.http().success(host.login_name(), &answer.url, answer.response).await?;
        Ok(Answer { response, ..answer })
    }

    /// A small document, from the host that `url` is at, with retries.
    pub(super) async fn document(
        &self,
        image: &ImageRef,
        url: &Url,
        accept: &str,
        expected: Option<Digest>,
        limit_bytes: u64,
    ) -> Result<RawDocument, RegistryError> {
        let host = self.chain(image)?.asking(url)?;
        retry(self.config().backoff, || self.document_at(&host, image, url.clone(), accept, expected, limit_bytes))
            .await
    }

    /// A small document, from any host that may be asked for `wanted`, with retries.
    pub(super) async fn document_of_any(
        &self,
        image: &ImageRef,
        wanted: Capabilities,
        tail: [&str; 2],
        accept: &str,
        expected: Option<Digest>,
        limit_bytes: u64,
    ) -> Result<RawDocument, RegistryError> {
        // What is wrong with the hosts' description is told at once.
        self.chain(image)?;
        retry(self.config().backoff, || {
            self.any_host(image, wanted, |host| async move {
                let url = host.url(image.repository(), &tail);
                self.document_at(&host, image, url, accept, expected, limit_bytes).await
            })
        })
        .await
    }

    /// A small document, one attempt: not longer than `limit_bytes`, no web page, and with the digest that it was asked
    /// for by (`expected`) or that the registry claims.
    async fn document_at(
        &self,
        host: &Endpoint,
        image: &ImageRef,
        url: Url,
        accept: &str,
        expected: Option<Digest>,
        limit_bytes: u64,
    ) -> Result<RawDocument, RegistryError> {
        let mut headers = HeaderMap::new();
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(ACCEPT, accept);
        }
        let Answer { response, url, .. } = self.get_at(host, image, Traffic::Document, url, &headers).await?;
        refuse_web_page(&url, response.headers())?;
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let content_type = text(CONTENT_TYPE.as_str()).map(|t| media_type_only(&t).to_owned());
        let claimed = text("docker-content-digest").and_then(|t| t.parse().ok());
        let bytes = self.http().body(&url, response, limit_bytes).await?;
        let digest = Digest::of(&bytes);
        match expected.or(claimed) {
            Some(expected) if expected != digest => {
                Err(RegistryError::WrongDigest { what: shown(&url), expected, actual: digest })
            }
            _ => Ok(RawDocument { bytes, content_type, digest }),
        }
    }
}

/// What kept the hosts of a registry from doing something.
pub(super) struct Failures {
    registry: String,
    /// Whether it is the registry itself, its name, what it said.
    list: Vec<(bool, String, RegistryError)>,
}

impl Failures {
    pub(super) fn new(image: &ImageRef) -> Self {
        Self { registry: image.registry().to_owned(), list: Vec::new() }
    }

    pub(super) fn add(&mut self, host: &Endpoint, error: RegistryError) {
        if error.is_transient() {
            host.failed();
        }
        let (registry, name) = (&self.registry, &host.authority);
        if host.is_server {
            tracing::debug!(registry, host = name, %error, "the registry itself failed");
        } else if error.is_not_found() {
            tracing::info!(registry, host = name, %error, "a mirror is passed over");
        } else {
            tracing::warn!(registry, host = name, %error, "a mirror is passed over");
        }
        self.list.push((host.is_server, name.clone(), error));
    }

    /// The one error, or all of them with the registry's own last.
    pub(super) fn into_error(mut self) -> RegistryError {
        if self.list.len() == 1
            && let Some((_, _, error)) = self.list.pop()
        {
            return error;
        }
        self.list.sort_by_key(|(is_server, ..)| *is_server);
        self.into_error_with(Vec::new())
    }

    /// All of them, and `more` behind them.
    pub(super) fn into_error_with(self, more: Vec<(String, RegistryError)>) -> RegistryError {
        let failures = self.list.into_iter().map(|(_, host, error)| (host, error)).chain(more).collect();
        RegistryError::EveryHost { registry: self.registry, failures }
    }
}

/// A media type without its parameters.
pub(super) fn media_type_only(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Pages for people come with status 200 from login portals and proxies.
pub(super) fn refuse_web_page(url: &Url, headers: &HeaderMap) -> Result<(), RegistryError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if media_type_only(content_type).eq_ignore_ascii_case("text/html") {
        return Err(RegistryError::WebPage { url: shown(url), content_type: content_type.to_owned() });
    }
    Ok(())
}

fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, RegistryError> {
    let bad = |reason: &str| RegistryError::Redirect { url: shown(from), reason: reason.to_owned() };
    let location = headers.get(LOCATION).and_then(|v| v.to_str().ok()).ok_or_else(|| bad("a redirect to nowhere"))?;
    let mut next = from.join(location).map_err(|_| bad("a redirect to what is no URL"))?;
    if !matches!(next.scheme(), "http" | "https") || !next.has_host() {
        return Err(bad("a redirect to what is no web server"));
    }
    next.set_fragment(None);
    Ok(next)
}

#[cfg(test)]
#[path = "tests/client.rs"]
mod tests;

#[cfg(test)]
#[path = "tests/chain.rs"]
mod chain_tests;

#[cfg(test)]
#[path = "tests/http2.rs"]
mod http2_tests;

#[cfg(test)]
#[path = "tests/tls.rs"]
mod tls_tests;

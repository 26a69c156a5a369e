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
use super::http::{Http, shown};
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
    authorizer: Authorizer,
}

/// Most redirects in a row; as in Go's and curl's defaults, which registries are tested with.
const MAX_REDIRECTS: usize = 10;

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
        Self { inner: Arc::new(Inner { http: Http::new(config), authorizer: Authorizer::default() }) }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &ClientConfig {
        &self.inner.http.config
    }

    pub(super) fn http(&self) -> &Http {
        &self.inner.http
    }

    /// `https://HOST/v2/REPOSITORY/...` (or http) with `tail` as further path segments.
    pub(super) fn url(&self, image: &ImageRef, tail: &[&str]) -> Result<Url, RegistryError> {
        let mut url = self.http().base_url(image.host())?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().push("v2").extend(image.repository().split('/')).extend(tail);
        }
        Ok(url)
    }

    /// One request, one attempt: at most one renewal of the authorization, redirects followed for reads. The status of
    /// the answer is the caller's.
    pub(super) async fn request(
        &self,
        image: &ImageRef,
        access: Access,
        method: Method,
        start: Url,
        headers: &HeaderMap,
        body: impl Fn() -> Option<reqwest::Body>,
    ) -> Result<Answer, RegistryError> {
        let http = self.http();
        let origin = http.base_url(image.host())?.origin();
        let mut grant = self.inner.authorizer.current(image, access).await;
        let (mut url, mut renewed, mut visited) = (start.clone(), false, Vec::new());
        loop {
            let foreign = url.origin() != origin;
            let mut headers = headers.clone();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            // Only the registry itself sees the authorization, never where it redirects to.
            if let (false, Some(header)) = (foreign, &grant.header) {
                headers.insert(AUTHORIZATION, header.clone());
            }
            let response = http.send(method.clone(), &url, headers, body()).await?;
            let status = response.status();
            let refused =
                status == StatusCode::UNAUTHORIZED || (status == StatusCode::FORBIDDEN && grant.header.is_some());
            if refused && !foreign && !renewed {
                renewed = true;
                let offered = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
                let challenge = challenge::best(offered);
                if challenge.is_some() || grant.header.is_some() {
                    tracing::debug!(host = image.host(), status = status.as_u16(), "renewing the authorization");
                    grant = self.inner.authorizer.renew(http, image, access, &grant, challenge).await?;
                    continue;
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
            if next.scheme() == "http" && !http.plain_allowed(&next) {
                return Err(stuck(&format!(
                    "the registry redirects to {}; plain HTTP is only used for loopback and for hosts named in insecure_hosts",
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
    pub(super) async fn get(&self, image: &ImageRef, url: Url, headers: &HeaderMap) -> Result<Answer, RegistryError> {
        let answer = self.request(image, Access::Pull, Method::GET, url, headers, || None).await?;
        let response = self.http().success(image.registry(), &answer.url, answer.response).await?;
        Ok(Answer { response, ..answer })
    }

    /// A small document with retries: not longer than `limit_bytes`, no web page, and with the digest that it was asked
    /// for by (`expected`) or that the registry claims.
    pub(super) async fn document(
        &self,
        image: &ImageRef,
        url: &Url,
        accept: &str,
        expected: Option<Digest>,
        limit_bytes: u64,
    ) -> Result<RawDocument, RegistryError> {
        let mut headers = HeaderMap::new();
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(ACCEPT, accept);
        }
        retry(self.config().backoff, || async {
            let Answer { response, url, .. } = self.get(image, url.clone(), &headers).await?;
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
        })
        .await
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

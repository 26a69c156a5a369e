//! A blob in a registry.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::client::{Answer, Failures, refuse_web_page};
use super::hosts::{Capabilities, Endpoint};
use super::http::shown;
use super::transport::Traffic;
use super::{BlobSource, BlobStream, Client, ImageRef, RegistryError};
use crate::units::{BlobOffset, BlobRange, Digest};

mod body;
mod known;

use body::body;
use known::{Fitness, Known, name_of};

/// A blob in a registry, at whichever of its hosts has it.
pub(super) struct RemoteBlob {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    image: ImageRef,
    digest: Digest,
    size: BlobOffset,
    traffic: Traffic,
    known: Known,
}

/// An answer that fits what was asked.
struct Opened {
    url: Url,
    response: Response,
    sent: BlobRange,
}

impl RemoteBlob {
    pub(super) fn new(client: &Client, image: &ImageRef, digest: Digest, size: BlobOffset, traffic: Traffic) -> Self {
        let (client, image) = (client.clone(), image.clone());
        Self { inner: Arc::new(Inner { client, image, digest, size, traffic, known: Known::default() }) }
    }
}

impl Inner {
    /// The hosts to ask, best first.
    fn hosts(&self) -> Result<VecDeque<Arc<Endpoint>>, RegistryError> {
        let mut hosts = self.client.chain(&self.image)?.with(Capabilities::PULL)?;
        hosts.sort_by_key(|host| self.known.fitness(host));
        Ok(hosts.into())
    }

    fn describe(&self) -> String {
        format!("{}/{}@{}", self.image.registry(), self.image.repository(), self.digest)
    }

    fn whole(&self) -> BlobRange {
        BlobRange::new(BlobOffset::ZERO, self.size).expect("no size is below zero")
    }

    async fn open(self: &Arc<Self>, range: BlobRange) -> Result<BlobStream, RegistryError> {
        if range.end() > self.size {
            return Err(RegistryError::WrongRange {
                url: self.describe(),
                asked: range,
                blob_bytes: self.size.get(),
                answered: "the range ends beyond the blob".to_owned(),
            });
        }
        if range.is_empty() {
            return Ok(BlobStream { starts_at: range.start(), bytes: stream::empty().boxed() });
        }
        let (host, opened) = self.open_any(range, self.hosts()?).await?;
        Ok(BlobStream { starts_at: opened.sent.start(), bytes: body(Arc::clone(self), host, opened) })
    }

    /// Asks `hosts` until one has the range. One that ignores ranges is taken only when no other is left.
    async fn open_any(
        &self,
        range: BlobRange,
        mut hosts: VecDeque<Arc<Endpoint>>,
    ) -> Result<(Arc<Endpoint>, Opened), RegistryError> {
        let mut failures = Failures::new(&self.image);
        while let Some(host) = hosts.pop_front() {
            let patience = host.patience();
            let opened = self.open_at(&host, range).await;
            patience.over();
            match opened {
                Ok(opened)
                    if opened.sent != range && !hosts.is_empty() && self.known.fitness(&host) == Fitness::Good =>
                {
                    let (registry, name) = (self.image.registry(), &host.authority);
                    tracing::info!(registry, host = name, "ignores ranges: other hosts are asked first");
                    self.known.judge(&host, Fitness::IgnoresRanges);
                    hosts.push_back(host);
                }
                Ok(opened) => {
                    host.went_well();
                    self.known.served(&host, opened.sent);
                    return Ok((host, opened));
                }
                Err(error) => {
                    if error.is_not_found() {
                        self.known.judge(&host, Fitness::Missing);
                    }
                    failures.add(&host, error);
                }
            }
        }
        Err(failures.into_error())
    }

    async fn open_at(&self, host: &Endpoint, range: BlobRange) -> Result<Opened, RegistryError> {
        let url = host.url(self.image.repository(), &["blobs", &self.digest.to_string()]);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if range != self.whole() {
            // An inclusive end; the range is not empty, so there is a last byte.
            let text = format!("bytes={}-{}", range.start(), range.end().get() - 1);
            let value = HeaderValue::try_from(text).map_err(|_| self.odd(&url, range, "no range header"))?;
            headers.insert(RANGE, value);
        }
        let place = self.known.storage(host);
        if let Some(place) = place {
            match self.ask_storage(host, &place, &headers).await {
                Ok(Some(response)) => return self.accept(place, response, range),
                // Signed URLs end (403, or 400 from S3), storage moves (404, 410): the registry knows the new place.
                Ok(None) => self.known.remember(host, Some(&place), None),
                Err(error) => {
                    self.known.remember(host, Some(&place), None);
                    return Err(error);
                }
            }
        }
        let before = self.known.storage(host);
        let Answer { response, url, foreign } =
            self.client.get_at(host, &self.image, self.traffic, url, &headers).await?;
        if foreign {
            self.known.remember(host, before.as_ref(), Some(url.clone()));
        }
        self.accept(url, response, range)
    }

    /// Asks the remembered place; `None` when the registry should be asked instead.
    async fn ask_storage(
        &self,
        host: &Endpoint,
        place: &Url,
        headers: &HeaderMap,
    ) -> Result<Option<Response>, RegistryError> {
        let http = self.client.http();
        let response = http.send(host, self.traffic, Method::GET, place, headers.clone(), None).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(Some(response));
        }
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return http.success(host.login_name(), place, response).await.map(Some);
        }
        Ok(None)
    }

    fn odd(&self, url: &Url, asked: BlobRange, answered: &str) -> RegistryError {
        let (blob_bytes, answered) = (self.size.get(), answered.to_owned());
        RegistryError::WrongRange { url: shown(url), asked, blob_bytes, answered }
    }

    /// Holds the answer against what was asked and what the manifest says.
    fn accept(&self, url: Url, response: Response, range: BlobRange) -> Result<Opened, RegistryError> {
        let whole = self.whole();
        let headers = response.headers();
        refuse_web_page(&url, headers)?;
        let text = |name| headers.get(name).map(|v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned());
        if let Some(encoding) = text(CONTENT_ENCODING).filter(|e| !e.eq_ignore_ascii_case("identity")) {
            return Err(RegistryError::Encoded { url: shown(&url), encoding });
        }
        let wrong_size =
            |actual_bytes| RegistryError::WrongSize { url: shown(&url), expected_bytes: self.size.get(), actual_bytes };
        let sent = match response.status() {
            StatusCode::OK => {
                if let Some(length) = response.content_length().filter(|length| *length != self.size.get()) {
                    return Err(wrong_size(length));
                }
                whole
            }
            StatusCode::PARTIAL_CONTENT if range != whole => {
                let answered = text(CONTENT_RANGE).unwrap_or_else(|| "206 without Content-Range".to_owned());
                let (first, last, total) =
                    parse_content_range(&answered).ok_or_else(|| self.odd(&url, range, &answered))?;
                if let Some(total) = total.filter(|total| *total != self.size.get()) {
                    return Err(wrong_size(total));
                }
                let length = response.content_length();
                let exact = first == range.start().get()
                    && last.checked_add(1) == Some(range.end().get())
                    && length.is_none_or(|length| length == range.len_bytes());
                if !exact {
                    return Err(self.odd(&url, range, &answered));
                }
                range
            }
            status => return Err(self.odd(&url, range, &format!("status {}", status.as_u16()))),
        };
        Ok(Opened { url, response, sent })
    }

    /// The rest of a body that `failed` broke off, from a host that was not `asked` yet.
    async fn go_on(
        &self,
        failed: &Endpoint,
        asked: &[String],
        rest: BlobRange,
        error: RegistryError,
    ) -> Result<(Arc<Endpoint>, Opened), RegistryError> {
        let mut hosts = self.hosts()?;
        hosts.retain(|host| !asked.contains(&name_of(host)));
        if hosts.is_empty() {
            if error.is_transient() {
                failed.failed();
            }
            return Err(error);
        }
        let mut failures = Failures::new(&self.image);
        failures.add(failed, error);
        match self.open_any(rest, hosts).await {
            // The whole blob again from its start is for the caller to decide about.
            Ok((host, opened)) if opened.sent != rest => {
                failures.add(&host, self.odd(&opened.url, rest, "the whole blob"));
                Err(failures.into_error())
            }
            Ok(found) => Ok(found),
            Err(RegistryError::EveryHost { failures: more, .. }) => Err(failures.into_error_with(more)),
            Err(error) => Err(failures.into_error_with(vec![(self.image.registry().to_owned(), error)])),
        }
    }
}

/// `bytes FIRST-LAST/TOTAL`; the total may be `*` (RFC 9110, section 14.4).
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

impl BlobSource for RemoteBlob {
    fn digest(&self) -> Digest {
        self.inner.digest
    }

    fn size(&self) -> BlobOffset {
        self.inner.size
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        Box::pin(self.inner.open(range))
    }

    fn reject(&self, range: BlobRange) -> bool {
        let inner = &self.inner;
        let liars = inner.known.senders_of(range);
        let Ok(hosts) = inner.hosts() else { return false };
        let (mut another, mut caught) = (false, false);
        for host in hosts {
            if liars.contains(&name_of(&host)) {
                // Caught again, it had its turn last: there is nobody better.
                caught |= inner.known.fitness(&host) != Fitness::Lies;
                tracing::warn!(
                    blob = inner.describe(),
                    host = host.authority,
                    "sent wrong bytes: it is asked last from now on"
                );
                inner.known.judge(&host, Fitness::Lies);
            } else {
                another |= inner.known.fitness(&host) != Fitness::Lies;
            }
        }
        another && caught
    }
}

#[cfg(test)]
#[path = "tests/remote.rs"]
mod tests;

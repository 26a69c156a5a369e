//! A blob in a registry.

use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::client::{Answer, refuse_web_page};
use super::http::shown;
use super::{BlobSource, BlobStream, Client, ImageRef, RegistryError};
use crate::units::{BlobOffset, BlobRange, Digest};

/// A blob in a registry. Remembers where the registry redirects to, so that a read costs one round trip, until that
/// place refuses.
pub(super) struct RemoteBlob {
    client: Client,
    image: ImageRef,
    url: Url,
    digest: Digest,
    size: BlobOffset,
    storage: Mutex<Option<Url>>,
}

impl RemoteBlob {
    pub(super) fn new(
        client: &Client,
        image: &ImageRef,
        digest: Digest,
        size: BlobOffset,
    ) -> Result<Self, RegistryError> {
        let url = client.url(image, &["blobs", &digest.to_string()])?;
        Ok(Self { client: client.clone(), image: image.clone(), url, digest, size, storage: Mutex::new(None) })
    }

    fn remembered(&self) -> Option<Url> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the remembered place, unless another reader has done so since it was `seen`.
    fn remember(&self, seen: Option<&Url>, place: Option<Url>) {
        let mut storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        if storage.as_ref() == seen {
            *storage = place;
        }
    }

    async fn open_range(&self, range: BlobRange) -> Result<BlobStream, RegistryError> {
        let checked = BlobRange::new(BlobOffset::ZERO, self.size).filter(|whole| range.end() <= whole.end());
        let Some(whole) = checked else {
            return Err(RegistryError::WrongRange {
                url: self.describe(),
                asked: range,
                blob_bytes: self.size.get(),
                answered: "the range ends beyond the blob".to_owned(),
            });
        };
        if range.is_empty() {
            return Ok(BlobStream { starts_at: range.start(), bytes: stream::empty().boxed() });
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if range != whole {
            // An inclusive end; the range is not empty, so there is a last byte.
            let text = format!("bytes={}-{}", range.start(), range.end().get() - 1);
            let value = HeaderValue::try_from(text).map_err(|_| self.odd(&self.url, range, "no range header"))?;
            headers.insert(RANGE, value);
        }
        if let Some(place) = self.remembered() {
            match self.ask_storage(&place, &headers).await {
                Ok(Some(response)) => return self.accept(place, response, range, whole),
                // Signed URLs end (403, or 400 from S3), storage moves (404, 410): the registry knows the new place.
                Ok(None) => self.remember(Some(&place), None),
                Err(error) => {
                    self.remember(Some(&place), None);
                    return Err(error);
                }
            }
        }
        let before = self.remembered();
        let Answer { response, url, foreign } = self.client.get(&self.image, self.url.clone(), &headers).await?;
        if foreign {
            self.remember(before.as_ref(), Some(url.clone()));
        }
        self.accept(url, response, range, whole)
    }

    /// Asks the remembered place; `None` when the registry should be asked instead.
    async fn ask_storage(&self, place: &Url, headers: &HeaderMap) -> Result<Option<Response>, RegistryError> {
        let http = self.client.http();
        let response = http.send(Method::GET, place, headers.clone(), None).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(Some(response));
        }
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return http.success(self.image.registry(), place, response).await.map(Some);
        }
        Ok(None)
    }

    fn odd(&self, url: &Url, asked: BlobRange, answered: &str) -> RegistryError {
        let (blob_bytes, answered) = (self.size.get(), answered.to_owned());
        RegistryError::WrongRange { url: shown(url), asked, blob_bytes, answered }
    }

    /// Holds the answer against what was asked and what the manifest says.
    fn accept(
        &self,
        url: Url,
        response: Response,
        range: BlobRange,
        whole: BlobRange,
    ) -> Result<BlobStream, RegistryError> {
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
        Ok(BlobStream { starts_at: sent.start(), bytes: body(self.client.clone(), url, response, sent.len_bytes()) })
    }
}

/// The body, exactly `expected_bytes` long or an error at its end.
fn body(
    client: Client,
    url: Url,
    response: Response,
    expected_bytes: u64,
) -> stream::BoxStream<'static, Result<bytes::Bytes, RegistryError>> {
    let state = Some((client, url, response, 0_u64));
    stream::unfold(state, move |state| async move {
        let (client, url, mut response, got_bytes) = state?;
        match client.http().chunk(&url, &mut response).await {
            Ok(Some(piece)) => {
                let got_bytes = got_bytes.saturating_add(piece.len() as u64);
                if got_bytes > expected_bytes {
                    let error = RegistryError::WrongSize { url: shown(&url), expected_bytes, actual_bytes: got_bytes };
                    return Some((Err(error), None));
                }
                Some((Ok(piece), Some((client, url, response, got_bytes))))
            }
            Ok(None) if got_bytes == expected_bytes => None,
            Ok(None) => Some((Err(RegistryError::Truncated { url: shown(&url), got_bytes, expected_bytes }), None)),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
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
        self.digest
    }

    fn size(&self) -> BlobOffset {
        self.size
    }

    fn describe(&self) -> String {
        format!("{}/{}@{}", self.image.registry(), self.image.repository(), self.digest)
    }

    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        Box::pin(self.open_range(range))
    }
}

#[cfg(test)]
#[path = "tests/remote.rs"]
mod tests;

//! Uploads: blobs, manifests, and the list of referrers under the fallback tag.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use reqwest::Method;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH, LOCATION};
use serde_json::{Value, json};

use super::auth::Access;
use super::backoff::retry;
use super::client::Answer;
use super::document::media_type;
use super::http::shown;
use super::referrers::fallback_tag;
use super::{Backoff, BackoffConfig, BlobSource, Client, ImageRef, RegistryError};
use crate::units::{BlobOffset, BlobRange, Digest, Offset};

/// Where the bytes of an upload are.
#[derive(Clone)]
pub enum Upload {
    /// In memory.
    Bytes(Bytes),
    /// In another registry, a layout, a file, containerd: streamed, and taken up again where it breaks.
    Source(Arc<dyn BlobSource>),
}

/// How a blob came to be in a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// It was there.
    Present,
    /// The registry took it from another repository of its own.
    Mounted,
    /// It was uploaded.
    Uploaded,
}

/// What the registry said to a manifest with a subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PushedManifest {
    /// The manifest's digest.
    pub digest: Digest,
    /// Whether the registry lists it among the subject's referrers; if not, the client keeps the fallback tag.
    pub lists_referrer: bool,
}

impl Client {
    /// Uploads a blob unless the repository has it.
    ///
    /// # Errors
    /// [`RegistryError`]; the registry checks the digest.
    pub async fn push_blob(&self, image: &ImageRef, digest: Digest, upload: &Upload) -> Result<Sent, RegistryError> {
        self.push_blob_from(image, digest, upload, None).await
    }

    /// As [`Client::push_blob`]; first asks the registry to take the blob from its repository `from`, which moves no
    /// bytes.
    ///
    /// # Errors
    /// As [`Client::push_blob`].
    pub async fn push_blob_from(
        &self,
        image: &ImageRef,
        digest: Digest,
        upload: &Upload,
        from: Option<&str>,
    ) -> Result<Sent, RegistryError> {
        retry(self.config().backoff, || self.push_blob_once(image, digest, upload, from)).await
    }

    async fn push_blob_once(
        &self,
        image: &ImageRef,
        digest: Digest,
        upload: &Upload,
        from: Option<&str>,
    ) -> Result<Sent, RegistryError> {
        let text = digest.to_string();
        let url = self.url(image, &["blobs", &text])?;
        let head = self.request(image, Access::Push, Method::HEAD, url, &HeaderMap::new(), || None).await?;
        if head.response.status().is_success() {
            return Ok(Sent::Present);
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let place = self.url(image, &["blobs", "uploads", ""])?;
        let mut begun = None;
        if let Some(from) = from {
            let mut mount = place.clone();
            mount.query_pairs_mut().append_pair("mount", &text).append_pair("from", from);
            match self.request(image, Access::Push, Method::POST, mount, &headers, || None).await {
                Ok(answer) if answer.response.status() == StatusCode::CREATED => return Ok(Sent::Mounted),
                // The specification has the registry begin an upload where it cannot take the blob over.
                Ok(answer) if answer.response.status() == StatusCode::ACCEPTED => begun = Some(answer),
                // Not even that is allowed: a plain upload may be.
                Ok(_) | Err(RegistryError::Auth { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let Answer { response, url, .. } = match begun {
            Some(answer) => answer,
            None => self.request(image, Access::Push, Method::POST, place, &headers, || None).await?,
        };
        let response = self.http().success(image.registry(), &url, response).await?;
        let bad = |reason: &str| RegistryError::Redirect { url: shown(&url), reason: reason.to_owned() };
        let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
        let mut target = location
            .and_then(|location| url.join(location).ok())
            .ok_or_else(|| bad("the registry named no place to upload to"))?;
        target.query_pairs_mut().append_pair("digest", &text);
        let length = match upload {
            Upload::Bytes(bytes) => bytes.len() as u64,
            Upload::Source(source) => source.size().get(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        let body = || match upload {
            Upload::Bytes(bytes) => Some(bytes.clone().into()),
            Upload::Source(source) => Some(reqwest::Body::wrap_stream(self.whole(source, BlobOffset::ZERO))),
        };
        let answer = self.request(image, Access::Push, Method::PUT, target, &headers, body).await?;
        let url = answer.url;
        let response = self.http().success(image.registry(), &url, answer.response).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK => Ok(Sent::Uploaded),
            other => {
                let message = "the upload was not finished".to_owned();
                Err(RegistryError::Status { url: shown(&url), status: other.as_u16(), message, retry_after: None })
            }
        }
    }

    /// The bytes of a blob from an offset on, taken up again where its source breaks.
    pub fn whole(
        &self,
        source: &Arc<dyn BlobSource>,
        from: BlobOffset,
    ) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send + use<> {
        resumed(Arc::clone(source), self.clone(), from)
    }

    /// Uploads a manifest under its digest, or under `tag`.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::WrongDigest`] when the registry took it for other bytes.
    pub async fn push_manifest(
        &self,
        image: &ImageRef,
        tag: Option<&str>,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<PushedManifest, RegistryError> {
        self.push_manifest_if(image, tag, media_type, bytes, HeaderMap::new()).await
    }

    /// As [`Client::push_manifest`], under conditions that `headers` name.
    async fn push_manifest_if(
        &self,
        image: &ImageRef,
        tag: Option<&str>,
        media_type: &str,
        bytes: &Bytes,
        mut headers: HeaderMap,
    ) -> Result<PushedManifest, RegistryError> {
        let digest = Digest::of(bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let kind = HeaderValue::from_str(media_type).map_err(|_| RegistryError::Document {
            what: name.clone(),
            reason: "the media type holds characters that no HTTP header can carry".to_owned(),
        })?;
        headers.insert(CONTENT_TYPE, kind);
        retry(self.config().backoff, || async {
            let url = self.url(image, &["manifests", &name])?;
            let body = || Some(bytes.clone().into());
            let Answer { response, url, .. } =
                self.request(image, Access::Push, Method::PUT, url, &headers, body).await?;
            let response = self.http().success(image.registry(), &url, response).await?;
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            match header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
                Some(stored) if stored != digest => {
                    Err(RegistryError::WrongDigest { what: shown(&url), expected: digest, actual: stored })
                }
                _ => Ok(PushedManifest { digest, lists_referrer: header("oci-subject").is_some() }),
            }
        })
        .await
    }

    /// Adds `artifact` (a descriptor in JSON, with `digest`) to the index under the fallback tag of `subject`, for
    /// registries that do not list referrers. Entries of others, and members that are not known here, stay as they are.
    ///
    /// Others may do the same at the same moment. The tag is replaced only if it is what was read, where the registry
    /// knows `If-Match`; most do not. So it is read again after the write, and once more after a pause in which everybody
    /// who had read it before the write has written, too; what was lost is added again.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Contended`] when others overwrite it again and again.
    pub async fn add_to_fallback_tag(
        &self,
        image: &ImageRef,
        subject: Digest,
        artifact: Value,
    ) -> Result<(), RegistryError> {
        let pauses = BackoffConfig {
            first: Duration::from_millis(20),
            longest: Duration::from_secs(2),
            retries: Some(MAX_TAG_WRITES),
        };
        let mut backoff = Backoff::new(pauses);
        let (mut longest, mut settled, mut condition) = (Duration::ZERO, true, Condition::Untried);
        loop {
            let began = Instant::now();
            let done = self.list_once(image, subject, &artifact, &mut condition).await?;
            longest = longest.max(began.elapsed());
            match done {
                // Either it was there before, or it still is after everybody had the time to overwrite it.
                Listing::Listed if settled => return Ok(()),
                Listing::Listed => {
                    settled = true;
                    tokio::time::sleep((longest * 4).clamp(SHORTEST_SETTLE, LONGEST_SETTLE)).await;
                }
                Listing::Written if settled => settled = false,
                Listing::Written | Listing::Changed => {
                    settled = false;
                    let Some(pause) = backoff.next_pause(None) else {
                        let what = format!("{}/{}:{}", image.registry(), image.repository(), fallback_tag(&subject));
                        return Err(RegistryError::Contended { what });
                    };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Reads the fallback tag and adds the artifact if it is missing.
    async fn list_once(
        &self,
        image: &ImageRef,
        subject: Digest,
        artifact: &Value,
        condition: &mut Condition,
    ) -> Result<Listing, RegistryError> {
        let tag = fallback_tag(&subject);
        let read = self.fallback_index(image, subject).await?;
        let seen = read.as_ref().map(|(_, bytes)| Digest::of(bytes));
        let what = || format!("{}/{}:{tag}", image.registry(), image.repository());
        let bad = |reason: &str| RegistryError::Document { what: what(), reason: reason.to_owned() };
        let mut index = match &read {
            None => json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []}),
            Some((_, bytes)) => serde_json::from_slice(bytes).map_err(|e| bad(&e.to_string()))?,
        };
        let object = index.as_object_mut().ok_or_else(|| bad("the fallback tag holds no index"))?;
        let list = object.entry("manifests").or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        let list = list.as_array_mut().ok_or_else(|| bad("the fallback tag holds no index"))?;
        if list.iter().any(|entry| entry.get("digest") == artifact.get("digest")) {
            return Ok(Listing::Listed);
        }
        list.push(artifact.clone());
        let bytes = Bytes::from(index.to_string());
        // Refused although nothing has changed: the registry has other entity tags than digests.
        if *condition == Condition::Refused(seen) {
            *condition = Condition::Useless;
        }
        let mut headers = HeaderMap::new();
        match (&condition, seen) {
            (Condition::Useless, _) => {}
            (_, None) => drop(headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"))),
            (_, Some(digest)) => {
                headers.extend(HeaderValue::try_from(format!("\"{digest}\"")).ok().map(|value| (IF_MATCH, value)));
            }
        }
        match self.push_manifest_if(image, Some(&tag), media_type::OCI_INDEX, &bytes, headers).await {
            Ok(_) => Ok(Listing::Written),
            Err(RegistryError::Status { status: 412, .. }) => {
                *condition = Condition::Refused(seen);
                Ok(Listing::Changed)
            }
            Err(error) => Err(error),
        }
    }
}

/// Writes of a fallback tag that others overwrite, before it is given up.
const MAX_TAG_WRITES: u32 = 60;
/// Pause before the fallback tag is looked at for the last time: four times as long as reading and writing it took.
const SHORTEST_SETTLE: Duration = Duration::from_millis(200);
const LONGEST_SETTLE: Duration = Duration::from_secs(5);

/// What became of an entry of the fallback tag.
enum Listing {
    /// It is there.
    Listed,
    /// It was missing and the tag was written.
    Written,
    /// The tag has changed since it was read; nothing was written.
    Changed,
}

/// What is known of the registry's way with conditional writes.
#[derive(PartialEq, Eq)]
enum Condition {
    Untried,
    /// It refused one, when this was what had been read.
    Refused(Option<Digest>),
    Useless,
}

/// A blob from its start, opened again where it breaks.
fn resumed(
    source: Arc<dyn BlobSource>,
    client: Client,
    from: BlobOffset,
) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send + 'static {
    struct State {
        at: BlobOffset,
        open: Option<super::BlobStream>,
        backoff: Backoff,
    }
    let state = State { at: from, open: None, backoff: Backoff::new(client.config().backoff) };
    stream::try_unfold((source, state), |(source, mut state)| async move {
        loop {
            let end = source.size();
            let Some(range) = BlobRange::new(state.at, end).filter(|range| !range.is_empty()) else { return Ok(None) };
            let mut opened = match state.open.take() {
                Some(open) => open,
                None => match source.open(range).await {
                    Ok(opened) if opened.starts_at == state.at => opened,
                    Ok(opened) => skipping(opened, state.at),
                    Err(error) => {
                        pause(&mut state.backoff, error).await?;
                        continue;
                    }
                },
            };
            match opened.bytes.next().await {
                Some(Ok(bytes)) => {
                    state.at = state.at.checked_add(bytes.len() as u64).unwrap_or(end);
                    state.backoff.reset();
                    state.open = Some(opened);
                    return Ok(Some((bytes, (source, state))));
                }
                Some(Err(error)) => pause(&mut state.backoff, error).await?,
                None => {
                    let (url, got_bytes, expected_bytes) = (source.describe(), state.at.get(), end.get());
                    pause(&mut state.backoff, RegistryError::Truncated { url, got_bytes, expected_bytes }).await?;
                }
            }
        }
    })
    .try_filter(|bytes| std::future::ready(!bytes.is_empty()))
}

/// Waits before another try, or gives the error back when there is none.
async fn pause(backoff: &mut Backoff, error: RegistryError) -> Result<(), RegistryError> {
    let pause = if error.is_transient() { backoff.next_pause(error.retry_after()) } else { None };
    tokio::time::sleep(pause.ok_or(error)?).await;
    Ok(())
}

/// Leaves out what a server that ignores ranges sends before `at`.
fn skipping(opened: super::BlobStream, at: BlobOffset) -> super::BlobStream {
    let mut left = at.bytes_since(opened.starts_at).unwrap_or(0);
    let bytes = opened.bytes.map(move |piece| {
        piece.map(|mut bytes| {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            left -= now as u64;
            bytes.split_off(now)
        })
    });
    super::BlobStream { starts_at: at, bytes: bytes.boxed() }
}

#[cfg(test)]
#[path = "tests/push.rs"]
mod tests;

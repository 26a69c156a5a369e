//! Uploads: blobs, manifests, and the list of referrers under the fallback tag.

use std::path::PathBuf;

use bytes::Bytes;
use reqwest::Method;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use serde_json::{Value, json};

use super::auth::Access;
use super::backoff::retry;
use super::client::Answer;
use super::document::media_type;
use super::http::shown;
use super::referrers::fallback_tag;
use super::{Client, ImageRef, RegistryError};
use crate::units::Digest;

/// Where the bytes of an upload are.
#[derive(Clone, Debug)]
pub enum Upload {
    /// In memory.
    Bytes(Bytes),
    /// In a file, which is streamed.
    File(PathBuf),
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
    pub async fn push_blob(&self, image: &ImageRef, digest: Digest, upload: &Upload) -> Result<(), RegistryError> {
        retry(self.config().backoff, || self.push_blob_once(image, digest, upload)).await
    }

    async fn push_blob_once(&self, image: &ImageRef, digest: Digest, upload: &Upload) -> Result<(), RegistryError> {
        let text = digest.to_string();
        let url = self.url(image, &["blobs", &text])?;
        let head = self.request(image, Access::Push, Method::HEAD, url, &HeaderMap::new(), || None).await?;
        if head.response.status().is_success() {
            return Ok(());
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let url = self.url(image, &["blobs", "uploads", ""])?;
        let Answer { response, url, .. } =
            self.request(image, Access::Push, Method::POST, url, &headers, || None).await?;
        let response = self.http().success(image.registry(), &url, response).await?;
        let bad = |reason: &str| RegistryError::Redirect { url: shown(&url), reason: reason.to_owned() };
        let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
        let mut target = location
            .and_then(|location| url.join(location).ok())
            .ok_or_else(|| bad("the registry named no place to upload to"))?;
        target.query_pairs_mut().append_pair("digest", &text);
        let (length, file) = match upload {
            Upload::Bytes(bytes) => (bytes.len() as u64, None),
            Upload::File(path) => {
                let io = |source| RegistryError::Io { path: path.clone(), source };
                let file = tokio::fs::File::open(path).await.map_err(io)?;
                let length = file.metadata().await.map_err(io)?.len();
                (length, Some(file.into_std().await))
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        let body = || match (upload, &file) {
            (Upload::Bytes(bytes), _) => Some(bytes.clone().into()),
            (Upload::File(_), Some(file)) => rewound(file).ok().map(reqwest::Body::from),
            (Upload::File(_), None) => None,
        };
        let answer = self.request(image, Access::Push, Method::PUT, target, &headers, body).await?;
        let url = answer.url;
        let response = self.http().success(image.registry(), &url, answer.response).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK => Ok(()),
            other => {
                let message = "the upload was not finished".to_owned();
                Err(RegistryError::Status { url: shown(&url), status: other.as_u16(), message, retry_after: None })
            }
        }
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
        let digest = Digest::of(bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let mut headers = HeaderMap::new();
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
    /// The registry offers no compare-and-swap: of two clients that do this in the same moment for the same subject one may win;
    /// doing it again repairs that.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn add_to_fallback_tag(
        &self,
        image: &ImageRef,
        subject: Digest,
        artifact: Value,
    ) -> Result<(), RegistryError> {
        let mut index = match self.fallback_index(image, subject).await? {
            None => json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []}),
            Some((url, bytes)) => serde_json::from_slice(&bytes)
                .map_err(|e| RegistryError::Document { what: shown(&url), reason: e.to_string() })?,
        };
        let what = || format!("{}/{}:{}", image.registry(), image.repository(), fallback_tag(&subject));
        let bad = || RegistryError::Document { what: what(), reason: "the fallback tag holds no index".to_owned() };
        let object = index.as_object_mut().ok_or_else(bad)?;
        let list = object.entry("manifests").or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        let list = list.as_array_mut().ok_or_else(bad)?;
        if list.iter().any(|entry| entry.get("digest") == artifact.get("digest")) {
            return Ok(());
        }
        list.push(artifact);
        let bytes = Bytes::from(index.to_string());
        self.push_manifest(image, Some(&fallback_tag(&subject)), media_type::OCI_INDEX, &bytes).await.map(drop)
    }
}

/// The same open file from its start, for a body that may be sent twice.
fn rewound(file: &std::fs::File) -> std::io::Result<tokio::fs::File> {
    use std::io::Seek as _;
    let mut again = file.try_clone()?;
    again.rewind()?;
    Ok(tokio::fs::File::from_std(again))
}

#[cfg(test)]
#[path = "tests/push.rs"]
mod tests;

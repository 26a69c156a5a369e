//! Artifacts that belong to a manifest: the OCI 1.1 referrers endpoint, else the fallback tag; in layouts, `index.json`.

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LINK};
use url::Url;

use super::auth::Access;
use super::backoff::retry;
use super::client::{Answer, Failures, media_type_only};
use super::document::{Descriptor, ManifestDocument, media_type, parse_manifest};
use super::hosts::{Capabilities, Endpoint};
use super::http::shown;
use super::transport::Traffic;
use super::{Client, ImageRef, ImageSource, RegistryError, layout};
use crate::units::Digest;

/// Most pages of one listing.
const MAX_PAGES: usize = 32;

/// Who lists the artifacts of a manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReferrersBy {
    /// The referrers endpoint of OCI 1.1.
    Endpoint,
    /// The fallback tag, because the registry has no such endpoint.
    Tag,
    /// `index.json` of a layout.
    Layout,
    /// Labels in containerd's content store.
    Labels,
}

/// One page of the referrers endpoint.
struct Page {
    bytes: Bytes,
    url: Url,
    next: Option<Url>,
}

/// `sha256-HEX`: where registries without the endpoint keep the list (distribution-spec 1.1, "Referrers Tag Schema").
#[must_use]
pub fn fallback_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

impl Client {
    /// The artifacts of type `artifact_type` that name `subject`, in the registry's order. None is an empty list, not
    /// an error.
    ///
    /// # Errors
    /// [`RegistryError`] when the registry cannot be asked, or answers what is no index.
    pub async fn referrers(
        &self,
        source: &ImageSource,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        Ok(self.find_referrers(source, subject, &[artifact_type]).await?.1)
    }

    /// The artifacts of any of these types, asked for in one request, and who said so.
    ///
    /// # Errors
    /// As [`Client::referrers`].
    pub async fn find_referrers(
        &self,
        source: &ImageSource,
        subject: Digest,
        artifact_types: &[&str],
    ) -> Result<(ReferrersBy, Vec<Descriptor>), RegistryError> {
        match source {
            ImageSource::LayerFile(_) => Ok((ReferrersBy::Layout, Vec::new())),
            ImageSource::Layout { .. } | ImageSource::Archive { .. } => {
                Ok((ReferrersBy::Layout, self.layout_referrers(source, subject, artifact_types).await?))
            }
            ImageSource::Containerd(image) => {
                let mut found = Vec::new();
                for artifact_type in artifact_types {
                    found.extend(self.stored_referrers(image, subject, artifact_type).await?);
                }
                Ok((ReferrersBy::Labels, found))
            }
            ImageSource::Registry(image) => {
                let (by, mut found) = match self.listed_referrers(image, subject, artifact_types).await? {
                    Some(found) => (ReferrersBy::Endpoint, found),
                    None => (ReferrersBy::Tag, self.tagged_referrers(image, subject).await?),
                };
                found.retain(|d| d.artifact_type.as_deref().is_some_and(|kind| artifact_types.contains(&kind)));
                Ok((by, found))
            }
        }
    }

    /// By the endpoint; `None` when the registry has none. A host that has it answers for all.
    async fn listed_referrers(
        &self,
        image: &ImageRef,
        subject: Digest,
        artifact_types: &[&str],
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        // What is wrong with the hosts' description is told at once.
        self.chain(image)?;
        retry(self.config().backoff, || self.listed_once(image, subject, artifact_types)).await
    }

    async fn listed_once(
        &self,
        image: &ImageRef,
        subject: Digest,
        artifact_types: &[&str],
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let mut failures = Failures::new(image);
        let mut missing = false;
        let Ok(hosts) = self.chain(image)?.with(Capabilities::REFERRERS) else { return Ok(None) };
        for host in hosts {
            let patience = host.patience();
            let listed = self.listed_at(&host, image, subject, artifact_types).await;
            patience.over();
            match listed {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => missing = true,
                Err(error) => failures.add(&host, error),
            }
        }
        if missing { Ok(None) } else { Err(failures.into_error()) }
    }

    async fn listed_at(
        &self,
        host: &Endpoint,
        image: &ImageRef,
        subject: Digest,
        artifact_types: &[&str],
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let mut url = host.url(image.repository(), &["referrers", &subject.to_string()]);
        // The endpoint filters by one type. For several, all are listed: a few more lines cost less than a round trip.
        if let [only] = artifact_types {
            url.query_pairs_mut().append_pair("artifactType", only);
        }
        let registry = url.origin();
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let Some(page) = self.page(host, image, url).await? else { return Ok(None) };
            found.extend(manifests_of(shown(&page.url), &page.bytes)?);
            match page.next {
                Some(next) if next.origin() == registry => url = next,
                _ => return Ok(Some(found)),
            }
        }
        tracing::warn!(registry = image.registry(), %subject, "more than {MAX_PAGES} pages of referrers; the rest is left out");
        Ok(Some(found))
    }

    async fn page(&self, host: &Endpoint, image: &ImageRef, url: Url) -> Result<Option<Page>, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let Answer { response, url, .. } =
            self.request_at(host, image, Access::Pull, Traffic::Document, Method::GET, url, &headers, || None).await?;
        // 404 says by specification that there is no such endpoint; the others are how registries that never heard of it
        // answer an unknown path.
        let text = |name| response.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default();
        let missing = matches!(response.status().as_u16(), 400 | 404 | 405 | 406 | 415 | 501)
            || (response.status().is_success() && media_type_only(text(CONTENT_TYPE)) == "text/html");
        if missing {
            return Ok(None);
        }
        let next = next_page(&url, text(LINK));
        let response = self.http().success(host.login_name(), &url, response).await?;
        let bytes = self.http().body(&url, response, self.config().manifest_limit_bytes).await?;
        Ok(Some(Page { bytes, url, next }))
    }

    /// By the fallback tag, from any host that may say which artifacts there are.
    async fn tagged_referrers(&self, image: &ImageRef, subject: Digest) -> Result<Vec<Descriptor>, RegistryError> {
        let (tag, limit) = (fallback_tag(&subject), self.config().manifest_limit_bytes);
        let tail = ["manifests", &tag];
        // As containerd has it: where no host knows of referrers, those that are trusted with tags do.
        let knows = self.chain(image)?.with(Capabilities::REFERRERS).is_ok();
        let wanted = if knows { Capabilities::REFERRERS } else { Capabilities::RESOLVE };
        match self.document_of_any(image, wanted, tail, media_type::OCI_INDEX, None, limit).await {
            Ok(raw) => manifests_of(format!("{}/{}:{tag}", image.registry(), image.repository()), &raw.bytes),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The index under the fallback tag, as it came, from the host that uploads go to.
    pub(super) async fn fallback_index(
        &self,
        image: &ImageRef,
        subject: Digest,
    ) -> Result<Option<(Url, Bytes)>, RegistryError> {
        let url = self.url(image, &["manifests", &fallback_tag(&subject)])?;
        let limit = self.config().manifest_limit_bytes;
        match self.document(image, &url, media_type::OCI_INDEX, None, limit).await {
            Ok(raw) => Ok(Some((url, raw.bytes))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// In a layout an artifact is any manifest of `index.json` with the right subject and config type.
    async fn layout_referrers(
        &self,
        source: &ImageSource,
        subject: Digest,
        artifact_types: &[&str],
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let at = match source {
            ImageSource::Layout { dir, .. } => layout::At::Dir(dir),
            ImageSource::Archive { file, .. } => layout::At::Archive(file),
            ImageSource::Registry(_) | ImageSource::Containerd(_) | ImageSource::LayerFile(_) => return Ok(Vec::new()),
        };
        let limit = self.config().manifest_limit_bytes;
        let mut found = Vec::new();
        for entry in layout::index(at, limit).await?.manifests {
            let Ok(bytes) = layout::document(at, entry.digest, limit).await else { continue };
            let Ok(ManifestDocument::Manifest(manifest)) = parse_manifest(&bytes, None) else { continue };
            let kind = manifest.artifact_type.unwrap_or(manifest.config.media_type);
            if artifact_types.contains(&kind.as_str()) && manifest.subject.is_some_and(|s| s.digest == subject) {
                found.push(Descriptor { artifact_type: Some(kind), ..entry });
            }
        }
        Ok(found)
    }
}

fn manifests_of(what: String, bytes: &[u8]) -> Result<Vec<Descriptor>, RegistryError> {
    let bad = |reason: String| RegistryError::Document { what: what.clone(), reason };
    match parse_manifest(bytes, Some(media_type::OCI_INDEX)).map_err(|e| bad(e.to_string()))? {
        ManifestDocument::Index(index) => Ok(index.manifests),
        ManifestDocument::Manifest(_) => Err(bad("expected an index of referrers".to_owned())),
    }
}

/// The target of `Link: <URL>; rel="next"`.
fn next_page(base: &Url, link: &str) -> Option<Url> {
    link.split(',').find_map(|part| {
        let (target, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
        if is_next { base.join(target).ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_next_page() {
        let base = Url::parse("https://r.io/v2/a/referrers/x?n=1").expect("a URL");
        for (link, want) in [
            (r#"</v2/a/referrers/x?last=y>; rel="next""#, Some("https://r.io/v2/a/referrers/x?last=y")),
            (r#"<https://a/>; rel="prev", <https://b/>; rel="next""#, Some("https://b/")),
            (r#"<https://a/>; rel="prev""#, None),
            ("", None),
            ("<<<", None),
        ] {
            assert_eq!(next_page(&base, link).map(String::from).as_deref(), want, "{link}");
        }
    }
}

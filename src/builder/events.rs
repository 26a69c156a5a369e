//! What registries say was pushed: foreign JSON into checked references. Pure.
//!
//! Formats: the distribution project's notifications (distribution.github.io/distribution/about/notifications) and
//! Amazon ECR's event "ECR Image Action" (docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-eventbridge.html).

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::BuilderError;
use crate::registry::ImageRef;
use crate::registry::document::media_type;
use crate::units::Digest;

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Registry and repository, at the digest.
    pub image: ImageRef,
    /// The tag that it was pushed under, if any.
    pub tag: Option<String>,
    /// Digest of the manifest or index.
    pub digest: Digest,
}

/// Why an event leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Members are missing, of the wrong type, or name no possible image.
    Malformed,
    /// Something else happened than a push.
    NotAPush,
    /// What was pushed is no image: a layer, an artifact.
    MediaType,
    /// What was pushed is, or holds, indexes or other referrers of images.
    Own,
    /// No tag, and untagged images are not wanted.
    Untagged,
    /// The registry is not wanted.
    Registry,
    /// The repository is not wanted.
    Repository,
    /// The tag is not wanted.
    Tag,
}

impl Rejection {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::NotAPush,
        Self::MediaType,
        Self::Own,
        Self::Untagged,
        Self::Registry,
        Self::Repository,
        Self::Tag,
    ];

    /// Its name in metrics and answers.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotAPush => "not_a_push",
            Self::MediaType => "media_type",
            Self::Own => "own",
            Self::Untagged => "untagged",
            Self::Registry => "registry",
            Self::Repository => "repository",
            Self::Tag => "tag",
        }
    }
}

#[derive(Deserialize)]
struct Envelope {
    events: Vec<Value>,
}

#[derive(Deserialize)]
struct Event {
    action: String,
    target: Target,
    #[serde(default)]
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    #[serde(default)]
    media_type: String,
    digest: String,
    repository: String,
    #[serde(default)]
    tag: String,
}

#[derive(Deserialize, Default)]
struct Request {
    #[serde(default)]
    host: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct EcrEvent {
    #[serde(default)]
    account: String,
    #[serde(default)]
    region: String,
    #[serde(rename = "detail-type")]
    detail_type: String,
    detail: EcrDetail,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct EcrDetail {
    action_type: String,
    result: String,
    repository_name: String,
    image_digest: String,
    #[serde(default)]
    image_tag: String,
    #[serde(default)]
    manifest_media_type: String,
    #[serde(default)]
    artifact_media_type: String,
}

/// What one notification tells, event by event.
pub type Told = Vec<Result<Push, Rejection>>;

fn unreadable(error: &serde_json::Error) -> BuilderError {
    BuilderError::Notification { reason: error.to_string() }
}

/// Members of one event. Types that are wrong are this event's trouble, not that of those beside it.
fn typed<T: DeserializeOwned>(event: Value) -> Result<T, Rejection> {
    serde_json::from_value(event).map_err(|_| Rejection::Malformed)
}

/// Reads an envelope of the distribution project. `registry` stands in for the host that events name.
///
/// # Errors
/// [`BuilderError::Notification`] when the whole is no envelope.
pub fn distribution(body: &[u8], registry: Option<&str>) -> Result<Told, BuilderError> {
    let envelope: Envelope = serde_json::from_slice(body).map_err(|e| unreadable(&e))?;
    Ok(envelope.events.into_iter().map(|event| distribution_event(event, registry)).collect())
}

fn distribution_event(event: Value, registry: Option<&str>) -> Result<Push, Rejection> {
    if event.get("action").is_some_and(|action| action.is_string() && action != "push") {
        return Err(Rejection::NotAPush);
    }
    let Event { action, target, request } = typed(event)?;
    if action != "push" {
        return Err(Rejection::NotAPush);
    }
    if !is_image(&target.media_type) {
        return Err(Rejection::MediaType);
    }
    push(registry.unwrap_or(&request.host), &target.repository, &target.tag, &target.digest)
}

/// Reads an event of Amazon ECR, as EventBridge delivers it. `registry` stands in for the account's own.
///
/// # Errors
/// [`BuilderError::Notification`] when it is no JSON object.
pub fn ecr(body: &[u8], registry: Option<&str>) -> Result<Told, BuilderError> {
    let event: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(|e| unreadable(&e))?;
    Ok(vec![ecr_event(Value::Object(event), registry)])
}

fn ecr_event(event: Value, registry: Option<&str>) -> Result<Push, Rejection> {
    if event.get("detail-type").is_some_and(|kind| kind.is_string() && kind != "ECR Image Action") {
        return Err(Rejection::NotAPush);
    }
    let EcrEvent { account, region, detail_type, detail } = typed(event)?;
    if detail_type != "ECR Image Action" || detail.action_type != "PUSH" || detail.result != "SUCCESS" {
        return Err(Rejection::NotAPush);
    }
    // Both are left out by older events; the worker looks at the manifest itself.
    if !(detail.manifest_media_type.is_empty() || is_image(&detail.manifest_media_type)) {
        return Err(Rejection::MediaType);
    }
    match detail.artifact_media_type.as_str() {
        "" | media_type::OCI_CONFIG | media_type::DOCKER_CONFIG => {}
        soci if soci.starts_with("application/vnd.amazon.soci.index.") => return Err(Rejection::Own),
        _ => return Err(Rejection::MediaType),
    }
    let host = match registry {
        Some(registry) => registry.to_owned(),
        None => ecr_host(&account, &region).ok_or(Rejection::Malformed)?,
    };
    push(&host, &detail.repository_name, &detail.image_tag, &detail.image_digest)
}

/// The registry of an account in a region.
fn ecr_host(account: &str, region: &str) -> Option<String> {
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let is_region = !region.is_empty()
        && region.len() <= 32
        && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    (is_account && is_region).then(|| format!("{account}.dkr.ecr.{region}.{domain}"))
}

fn is_image(kind: &str) -> bool {
    matches!(
        kind,
        media_type::OCI_MANIFEST | media_type::OCI_INDEX | media_type::DOCKER_MANIFEST | media_type::DOCKER_LIST
    )
}

/// The grammar of references decides what is possible, and nothing may be completed or read otherwise than it was written.
fn push(registry: &str, repository: &str, tag: &str, digest: &str) -> Result<Push, Rejection> {
    let digest: Digest = digest.parse().map_err(|_| Rejection::Malformed)?;
    let colon = if tag.is_empty() { "" } else { ":" };
    let text = format!("{registry}/{repository}{colon}{tag}@{digest}");
    let image: ImageRef = text.parse().map_err(|_| Rejection::Malformed)?;
    let as_written = image.registry() == registry
        && image.repository() == repository
        && image.tag().unwrap_or_default() == tag
        && image.digest() == Some(digest);
    if !as_written {
        return Err(Rejection::Malformed);
    }
    if is_referrers_tag(tag) {
        return Err(Rejection::Own);
    }
    let tag = Some(tag.to_owned()).filter(|tag| !tag.is_empty());
    Ok(Push { image: image.with_digest(digest), tag, digest })
}

/// `sha256-HEX`, alone (OCI's fallback for the referrers endpoint) or with a suffix (signatures, attestations).
fn is_referrers_tag(tag: &str) -> bool {
    let hex = tag.strip_prefix("sha256-").and_then(|rest| rest.get(..64));
    hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

#[cfg(test)]
#[path = "tests/events.rs"]
mod tests;

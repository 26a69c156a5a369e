//! Authorizations: earned once per host, repository and direction, renewed when a registry stops taking them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use super::challenge::Challenge;
use super::credentials::{self, Credentials};
use super::hosts::Endpoint;
use super::http::{Http, shown};
use super::transport::Traffic;
use super::{ImageRef, RegistryError};

/// What a request wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Access {
    Pull,
    Push,
}

/// What requests carry at the moment.
#[derive(Clone, Default)]
pub(super) struct Grant {
    /// The header `Authorization`, marked sensitive; `None` before the first challenge.
    pub(super) header: Option<HeaderValue>,
    /// Counts renewals, so that many requests that fail together renew once.
    generation: u64,
    /// Which credentials to try when these are refused, too.
    pub(super) next: usize,
    challenge: Option<Challenge>,
    /// When it is to be renewed without waiting for a refusal; `None`: the token server did not say how long it holds.
    ends: Option<Instant>,
}

/// What credentials were good for.
struct Earned {
    header: HeaderValue,
    ends: Option<Instant>,
}

type Slot = Arc<tokio::sync::Mutex<Grant>>;

/// All authorizations of a client.
#[derive(Default)]
pub(super) struct Authorizer {
    slots: Mutex<HashMap<(String, bool, String, Access), Slot>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// How long before its end a token is renewed, at most; less for those that hold for less than ten times this.
const RENEWED_BEFORE: Duration = Duration::from_secs(30);
/// What is said to hold for longer than this is renewed all the same.
const LONGEST_TOKEN: Duration = Duration::from_secs(86_400);

/// Longest answer of a token server, in bytes.
const TOKEN_LIMIT_BYTES: u64 = 1 << 20;

impl Authorizer {
    fn slot(&self, host: &Endpoint, image: &ImageRef, access: Access) -> Slot {
        let key = (host.authority.clone(), host.is_server, image.repository().to_owned(), access);
        Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default())
    }

    /// What to send now; waits for a renewal that is under way. What is about to end is renewed first; when that fails,
    /// the registry may still take it.
    pub(super) async fn current(&self, http: &Http, host: &Endpoint, image: &ImageRef, access: Access) -> Grant {
        let grant = self.slot(host, image, access).lock().await.clone();
        if grant.ends.is_none_or(|ends| Instant::now() < ends) {
            return grant;
        }
        match self.renew(http, host, image, access, &grant, None, 0).await {
            Ok(new) => new.unwrap_or(grant),
            Err(error) => {
                tracing::debug!(host = host.authority, %error, "a token ends and is not renewed");
                grant
            }
        }
    }

    /// A new authorization in place of `refused`, earned with the first credentials, from number `from` on, for which
    /// there is one; `None` when all were tried before. `challenge` is what the refusal offered; without one the
    /// challenge of the last time counts (some registries answer an ended token with a bare 403).
    #[expect(clippy::too_many_arguments, reason = "these are what a request is made of, and what became of it")]
    pub(super) async fn renew(
        &self,
        http: &Http,
        host: &Endpoint,
        image: &ImageRef,
        access: Access,
        refused: &Grant,
        challenge: Option<Challenge>,
        from: usize,
    ) -> Result<Option<Grant>, RegistryError> {
        let slot = self.slot(host, image, access);
        let mut grant = slot.lock().await;
        if grant.generation != refused.generation {
            return Ok(Some(grant.clone()));
        }
        let Some(challenge) = challenge.or_else(|| grant.challenge.clone()) else {
            return Err(refusal(host, image, "the registry refuses and offers no way to sign in that is known here"));
        };
        let mut failed = None;
        for n in from.. {
            let Some(credentials) = credentials::candidate(&http.config, host, image, n).await? else { break };
            if n > 0 && credentials == Credentials::Anonymous && challenge == Challenge::Basic {
                break;
            }
            let earned = match &challenge {
                Challenge::Basic => basic(host, image, credentials).map(|header| Earned { header, ends: None }),
                Challenge::Bearer { realm, service, scope } => {
                    bearer(http, host, image, access, realm, service.as_deref(), scope.as_deref(), credentials).await
                }
            };
            match earned {
                Ok(Earned { header, ends }) => {
                    let generation = grant.generation + 1;
                    *grant = Grant { header: Some(header), generation, next: n + 1, challenge: Some(challenge), ends };
                    return Ok(Some(grant.clone()));
                }
                // The first refusal counts: what comes last is nothing at all, as a rule.
                Err(error) if error.is_auth() => {
                    tracing::debug!(host = host.authority, n, "these credentials are refused");
                    failed.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

fn refusal(host: &Endpoint, image: &ImageRef, reason: &str) -> RegistryError {
    RegistryError::Auth {
        host: host.login_name().to_owned(),
        what: image.repository().to_owned(),
        reason: format!("{reason}; run docker login {}, or use --user", host.login_name()),
    }
}

fn sensitive(host: &Endpoint, image: &ImageRef, text: String) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| refusal(host, image, "the token or password holds characters that no HTTP header can carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic_header(host: &Endpoint, image: &ImageRef, user: &str, password: &str) -> Result<HeaderValue, RegistryError> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(host, image, format!("Basic {encoded}"))
}

fn basic(host: &Endpoint, image: &ImageRef, credentials: Credentials) -> Result<HeaderValue, RegistryError> {
    match credentials {
        Credentials::Password { user, password } => basic_header(host, image, &user, &password.0),
        Credentials::Anonymous => {
            Err(refusal(host, image, "the registry wants a user and password and none is configured"))
        }
        Credentials::IdentityToken(_) => {
            Err(refusal(host, image, "the registry wants a user and password, only an identity token is configured"))
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "a token is for all of these")]
async fn bearer(
    http: &Http,
    host: &Endpoint,
    image: &ImageRef,
    access: Access,
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
    credentials: Credentials,
) -> Result<Earned, RegistryError> {
    let asked_at = Instant::now();
    let mut url = Url::parse(realm)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| refusal(host, image, "the registry names a token server that is no URL"))?;
    let own_scope = match access {
        Access::Pull => format!("repository:{}:pull", image.repository()),
        Access::Push => format!("repository:{}:pull,push", image.repository()),
    };
    // For pulls the registry knows best what it wants; for pushes it may have been asked for a mere read first.
    // A blob that is taken over from another repository needs that one, too: then the registry names both.
    let wide = |scope: &str| scope.contains("push") && scope.split(' ').count() > 1;
    let scope = match (access, scope) {
        (Access::Pull, Some(scope)) if !scope.is_empty() => scope,
        (Access::Push, Some(scope)) if wide(scope) => scope,
        _ => &own_scope,
    };
    // What a host's description has it sent goes to its token server, too (as containerd does).
    let mut headers = host.headers.clone();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let response = match credentials {
        Credentials::IdentityToken(token) => {
            // https://distribution.github.io/distribution/spec/auth/oauth/
            let body = Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("client_id", "sociblk")
                .append_pair("scope", scope)
                .append_pair("refresh_token", &token.0)
                .finish();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            http.send(host, Traffic::Document, Method::POST, &url, headers, Some(body.into())).await?
        }
        other => {
            // https://distribution.github.io/distribution/spec/auth/token/
            if let Some(service) = service {
                url.query_pairs_mut().append_pair("service", service);
            }
            for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                url.query_pairs_mut().append_pair("scope", scope);
            }
            if let Credentials::Password { user, password } = &other {
                url.query_pairs_mut().append_pair("account", user);
                headers.insert(AUTHORIZATION, basic_header(host, image, user, &password.0)?);
            }
            http.send(host, Traffic::Document, Method::GET, &url, headers, None).await?
        }
    };
    let response = http.success(host.login_name(), &url, response).await?;
    let body = http.body(&url, response, TOKEN_LIMIT_BYTES).await?;
    let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
    let holds = answer.as_ref().and_then(|a| a.expires_in).map(|s| Duration::from_secs(s).min(LONGEST_TOKEN));
    let token = answer.and_then(|a| a.token.filter(|t| !t.is_empty()).or(a.access_token)).filter(|t| !t.is_empty());
    // The body is not shown: half a token is half a secret.
    let token = token.ok_or_else(|| refusal(host, image, &format!("{} answered no token", shown(&url))))?;
    let header = sensitive(host, image, format!("Bearer {token}"))?;
    Ok(Earned { header, ends: holds.map(|holds| asked_at + (holds - RENEWED_BEFORE.min(holds / 10))) })
}

//! One host of a registry's chain.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use url::Url;

use super::super::RegistryError;
use super::super::tls::TlsSettings;
use super::super::transport::Transport;

/// What a host may be asked for, and is trusted with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Capabilities(u8);

impl Capabilities {
    pub(in super::super) const NONE: Self = Self(0);
    /// Bytes by their digest.
    pub(in super::super) const PULL: Self = Self(1);
    /// Which digest a tag means.
    pub(in super::super) const RESOLVE: Self = Self(2);
    /// Uploads.
    pub(in super::super) const PUSH: Self = Self(4);
    /// Which artifacts belong to a manifest.
    pub(in super::super) const REFERRERS: Self = Self(8);
    pub(in super::super) const ALL: Self = Self(15);

    pub(in super::super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(in super::super) const fn has(self, all_of: Self) -> bool {
        self.0 & all_of.0 == all_of.0
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::ALL
    }
}

impl std::fmt::Display for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names =
            [(Self::PULL, "pull"), (Self::RESOLVE, "resolve"), (Self::PUSH, "push"), (Self::REFERRERS, "referrers")];
        let found: Vec<_> = names.into_iter().filter(|(one, _)| self.has(*one)).map(|(_, name)| name).collect();
        f.write_str(&found.join(", "))
    }
}

impl std::fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{self}]")
    }
}

/// How long a host that could not be reached is asked last, at first; doubles with every failure.
const FIRST_REST: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// One host of a registry's chain, ready to be spoken to. Its headers are sensitive and show nothing.
#[derive(Debug)]
pub(in super::super) struct Endpoint {
    /// Root of its API, without a slash at the end.
    pub(super) base: Url,
    /// `HOST[:PORT]` as written: names it in messages, and credentials are looked up by it.
    pub authority: String,
    /// Value of the query `ns`: the registry that it stands in for. `None` when it is that registry itself.
    pub namespace: Option<String>,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// Whether it is the registry itself, or stands for it as `server`: only then it is shown the credentials of
    /// `--user`.
    pub is_server: bool,
    /// Sent with every request to it, never to where it redirects.
    pub headers: HeaderMap,
    pub tls: TlsSettings,
    /// Stands for the state of the files of `tls`, so that changed ones are read again.
    pub stamp: u64,
    /// How long opening a connection may take.
    pub connect_limit: Duration,
    /// How long the head of an answer may take.
    pub head_limit: Duration,
    /// How long a body may pause.
    pub idle_limit: Duration,
    pub transport: OnceLock<Arc<Transport>>,
    pub(super) experience: Experience,
}

/// What became known of an endpoint while it was used.
#[derive(Debug, Default)]
pub(super) struct Experience {
    /// It is named with plain HTTP but has settings for TLS: TLS is tried first (as containerd does).
    plain_fallback: bool,
    /// It turned out not to speak TLS.
    plain: AtomicBool,
    rests_until: Mutex<Option<Instant>>,
    /// Failures since the last success.
    failures: AtomicU64,
}

impl Endpoint {
    /// The endpoint, ready for its first request.
    pub(super) fn ready(mut self) -> Self {
        // Port 80 leaves no doubt about the protocol.
        self.experience.plain_fallback =
            self.base.scheme() == "http" && self.tls.is_set() && self.base.port().is_some();
        if self.experience.plain_fallback {
            // The port stays: it is written, and not that of either scheme.
            let _ = self.base.set_scheme("https");
        }
        self
    }

    /// What docker knows it by.
    pub fn login_name(&self) -> &str {
        if self.authority == "registry-1.docker.io" { "docker.io" } else { &self.authority }
    }

    /// Root of its API.
    pub fn base(&self) -> Url {
        self.in_its_scheme(self.base.clone())
    }

    /// `url`, over plain HTTP if the host turned out not to speak TLS.
    pub fn in_its_scheme(&self, mut url: Url) -> Url {
        if self.experience.plain.load(Ordering::Relaxed)
            && url.host() == self.base.host()
            && url.port() == self.base.port()
        {
            let _ = url.set_scheme("http");
        }
        url
    }

    /// Whether `error` says that the host speaks plain HTTP after all; then it is spoken to so from now on.
    pub fn falls_back(&self, error: &RegistryError) -> bool {
        if !self.experience.plain_fallback || !error.is_not_tls() || self.experience.plain.swap(true, Ordering::Relaxed)
        {
            return false;
        }
        tracing::info!(host = self.authority, "does not speak TLS; going on over plain HTTP, as its URL says");
        true
    }

    /// Whether plain HTTP to `url` is what the settings of this host say.
    pub fn is_plainly(&self, url: &Url) -> bool {
        let base = self.base();
        base.scheme() == "http" && base.origin() == url.origin()
    }

    /// `BASE/REPOSITORY/TAIL...`.
    pub fn url(&self, repository: &str, tail: &[&str]) -> Url {
        let mut url = self.base();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(repository.split('/')).extend(tail);
        }
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether `url` lies under this host's API.
    pub fn holds(&self, url: &Url) -> bool {
        let base = self.base();
        base.origin() == url.origin()
            && url
                .path()
                .strip_prefix(base.path())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || base.path() == "/")
    }

    /// Whether it failed lately and had better be asked after the others.
    pub fn rests(&self) -> bool {
        let rests_until = self.experience.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// It answered.
    pub fn went_well(&self) {
        if self.experience.failures.swap(0, Ordering::Relaxed) > 0 {
            *self.experience.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Notes it when whoever asks this host is tired of waiting: dropped without [`Patience::over`], the host counts as
    /// failed.
    pub fn patience(self: &Arc<Self>) -> Patience {
        Patience { host: Some(Arc::clone(self)), since: Instant::now() }
    }

    /// It could not be reached, or was in trouble.
    pub fn failed(&self) {
        let before = self.experience.failures.fetch_add(1, Ordering::Relaxed).min(10);
        let rest = FIRST_REST.saturating_mul(1 << before).min(LONGEST_REST);
        *self.experience.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + rest);
    }
}

/// See [`Endpoint::patience`].
pub(in super::super) struct Patience {
    host: Option<Arc<Endpoint>>,
    since: Instant,
}

/// Who gives up sooner has other reasons.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

impl Patience {
    /// The host answered, or the failure is known otherwise.
    pub fn over(mut self) {
        self.host = None;
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        if let Some(host) = self.host.take().filter(|_| self.since.elapsed() >= LEAST_PATIENCE) {
            host.failed();
        }
    }
}

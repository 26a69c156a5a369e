//! Settings of the registry client.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::http::is_loopback;
use super::{BackoffConfig, Keychains, Login, Mirror, RegistryError, TlsSettings};

/// Which requests go over HTTP/2 where a server has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Http2 {
    /// None.
    #[default]
    Off,
    /// Those for documents: tokens, manifests, zTOCs.
    Documents,
    /// The bytes of layers, too.
    All,
}

/// Settings of a [`Client`](super::Client). Built by the binary's configuration; nothing here reads the environment
/// except [`ClientConfig::from_environment`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Hosts, as `HOST` or `HOST:PORT`, that are reached by plain HTTP. Loopback hosts always are.
    pub insecure_hosts: Vec<String>,
    /// PEM files with certificate authorities to trust besides the system's, for every host.
    pub extra_ca_files: Vec<PathBuf>,
    /// TLS as this use of the client wants it; a host's own description adds to it.
    pub tls: TlsSettings,
    /// Directories that describe registries (containerd's `config_path`), in the order to look.
    pub hosts_dirs: Vec<PathBuf>,
    /// Mirrors by registry, asked before all hosts of `hosts_dirs`.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// User and password for the registries themselves, in place of `docker_config`; mirrors never see it.
    pub login: Option<Login>,
    /// Docker's `config.json`, read again whenever credentials are needed; `None`: anonymous only.
    pub docker_config: Option<PathBuf>,
    /// What others bring, tried before `docker_config`.
    pub keychains: Keychains,
    /// How long a credential helper may take.
    pub helper_limit: Duration,
    /// Which requests go over HTTP/2 where a server has it.
    pub http2: Http2,
    /// How long opening a connection may take.
    pub connect_limit: Duration,
    /// How long the head of an answer may take.
    pub head_limit: Duration,
    /// How long a body may pause.
    pub idle_limit: Duration,
    /// Longest manifest or index, in bytes. 4 MiB is what the distribution specification asks registries to take.
    pub manifest_limit_bytes: u64,
    /// Longest image config, in bytes.
    pub config_limit_bytes: u64,
    /// Retries for documents; layer bytes are retried by `fill`.
    pub backoff: BackoffConfig,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            insecure_hosts: Vec::new(),
            extra_ca_files: Vec::new(),
            tls: TlsSettings::default(),
            hosts_dirs: Vec::new(),
            mirrors: BTreeMap::new(),
            login: None,
            docker_config: None,
            keychains: Keychains::default(),
            helper_limit: Duration::from_secs(30),
            http2: Http2::default(),
            connect_limit: Duration::from_secs(10),
            head_limit: Duration::from_secs(30),
            idle_limit: Duration::from_secs(30),
            manifest_limit_bytes: 4 << 20,
            config_limit_bytes: 8 << 20,
            backoff: BackoffConfig::default(),
        }
    }
}

impl ClientConfig {
    /// Defaults with the user's docker configuration: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    #[must_use]
    pub fn from_environment() -> Self {
        let dir = std::env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
        Self { docker_config: dir.map(|dir| dir.join("config.json")), ..Self::default() }
    }
    /// Whether plain HTTP to this host was asked for.
    pub(super) fn is_insecure(&self, url: &Url) -> bool {
        let named = |host: &str| {
            self.insecure_hosts.iter().any(|insecure| {
                insecure.eq_ignore_ascii_case(host)
                    || url.port().is_some_and(|port| insecure.eq_ignore_ascii_case(&format!("{host}:{port}")))
            })
        };
        url.host_str().is_some_and(named)
    }

    /// Root of the API of a host that nothing describes: over plain HTTP where that is allowed, else over TLS.
    pub(super) fn base_url(&self, host: &str) -> Result<Url, RegistryError> {
        let bad = |e: url::ParseError| RegistryError::Reference { text: host.to_owned(), reason: e.to_string() };
        let plain = Url::parse(&format!("http://{host}/v2")).map_err(bad)?;
        if is_loopback(&plain) || self.is_insecure(&plain) {
            return Ok(plain);
        }
        Url::parse(&format!("https://{host}/v2")).map_err(bad)
    }
}

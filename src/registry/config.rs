//! Settings of the registry client.

use std::path::PathBuf;
use std::time::Duration;

use super::BackoffConfig;

/// Settings of a [`Client`](super::Client). Built by the binary's configuration; nothing here reads the environment
/// except [`ClientConfig::from_environment`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Hosts, as `HOST` or `HOST:PORT`, that are reached by plain HTTP. Loopback hosts always are.
    pub insecure_hosts: Vec<String>,
    /// PEM files with further certificate authorities.
    pub extra_ca_files: Vec<PathBuf>,
    /// Docker's `config.json`, read again whenever credentials are needed; `None`: anonymous only.
    pub docker_config: Option<PathBuf>,
    /// How long a credential helper may take.
    pub helper_limit: Duration,
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
            docker_config: None,
            helper_limit: Duration::from_secs(30),
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
}

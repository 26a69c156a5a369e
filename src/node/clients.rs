//! Registry clients, one for each way of talking: they keep connections and tokens, and are shared by all mounts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

use super::protocol::{LoginOrder, RegistryAccess};
use crate::config::{self, Config};
use crate::registry::{
    Client, ClientConfig, ClientPair, Http2, Image, ImageSource, Keychains, Login, Mirror, Platform, Secret,
    TlsSettings,
};

/// What SOCI's "no limit" for a mirror means: somebody waits, after all.
const NO_LIMIT: Duration = Duration::from_secs(86_400);

/// All clients of this process.
pub struct Clients {
    registry: config::Registry,
    resolver: config::Resolver,
    made: Mutex<HashMap<RegistryAccess, Arc<Client>>>,
    /// What the clients that are made ask for credentials, also those that are there already.
    pub(super) keychains: Keychains,
}

impl Clients {
    /// None is made yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            registry: config.registry.clone(),
            resolver: config.resolver.clone(),
            made: Mutex::default(),
            keychains: Keychains::default(),
        }
    }

    /// The client that talks about `source` as `access` says. One with a `login` is nobody else's, and gone, password
    /// and all, when the last layer that it fetches is.
    #[must_use]
    pub fn get(&self, source: &ImageSource, access: &RegistryAccess, login: Option<LoginOrder>) -> Arc<Client> {
        let mut access = access.clone();
        if let (true, ImageSource::Registry(image)) = (access.plain_http, source) {
            access.insecure.push(image.host().to_owned());
        }
        access.plain_http = false;
        access.insecure.extend(self.registry.insecure_hosts.iter().cloned());
        access.insecure.sort();
        access.insecure.dedup();
        if let Some(LoginOrder { user, password }) = login {
            let login = Some(Login { user, password: Secret::new(password) });
            return Arc::new(Client::new(ClientConfig { login, ..self.client_config(&access) }));
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&access) {
            return Arc::clone(client);
        }
        let client = Arc::new(Client::new(self.client_config(&access)));
        made.insert(access, Arc::clone(&client));
        client
    }

    /// What `source` is for `platform`, within the time that the settings give for it.
    ///
    /// # Errors
    /// What the registry said, or that it said nothing.
    pub async fn resolve(&self, client: &Client, source: &ImageSource, platform: &Platform) -> anyhow::Result<Image> {
        let limit = Duration::from_secs(self.registry.resolve_timeout_s);
        match tokio::time::timeout(limit, client.resolve(source, platform)).await {
            Ok(resolved) => resolved.with_context(|| format!("resolving {source}")),
            Err(_) => bail!(
                "resolving {source}: no host of its registry gave a whole answer within {} s; is it reachable? \
                 (registry.resolve_timeout_s is the limit)",
                limit.as_secs()
            ),
        }
    }

    fn client_config(&self, access: &RegistryAccess) -> ClientConfig {
        let mut made = ClientConfig::from_environment();
        made.insecure_hosts.clone_from(&access.insecure);
        made.keychains = self.keychains.clone();
        if let Some(dir) = &access.docker_config {
            made.docker_config = Some(dir.join("config.json"));
        }
        made.extra_ca_files.clone_from(&self.registry.ca_files);
        made.tls = TlsSettings {
            ca_files: access.ca_file.iter().cloned().collect(),
            client_pairs: access
                .certificate
                .iter()
                .map(|certificate| ClientPair { certificate: certificate.clone(), key: access.key.clone() })
                .collect(),
            skip_verify: access.skip_verify.then_some(true),
        };
        made.hosts_dirs = match &access.hosts_dir {
            Some(dir) => vec![dir.clone()],
            None => self.registry.hosts_dirs(),
        };
        let of_host = |host: &config::ResolverHost| host.mirrors.iter().map(mirror).collect();
        made.mirrors = self.resolver.host.iter().map(|(name, host)| (name.clone(), of_host(host))).collect();
        made.http2 = match self.registry.http2 {
            config::Http2::Off => Http2::Off,
            config::Http2::Documents => Http2::Documents,
            config::Http2::All => Http2::All,
        };
        made.connect_limit = Duration::from_secs(self.registry.connect_timeout_s);
        made.idle_limit = Duration::from_secs(self.registry.idle_timeout_s);
        // The head of an answer is no more than the first bytes to arrive.
        made.head_limit = made.idle_limit;
        made
    }
}

fn mirror(mirror: &config::Mirror) -> Mirror {
    let request_limit = match u64::try_from(mirror.request_timeout_sec) {
        Ok(0) => None,
        Ok(limit_s) => Some(Duration::from_secs(limit_s)),
        Err(_) => Some(NO_LIMIT),
    };
    Mirror { host: mirror.host.clone(), insecure: mirror.insecure, request_limit }
}

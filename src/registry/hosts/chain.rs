//! The hosts of one registry in the order to ask them, read again when their description changes.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

use super::endpoint::Experience;
use super::file::base_url;
use super::lookup::{self, Found, Stamp, stamp_of};
use super::{Capabilities, Endpoint, HostEntry, HostsError, Mirror};
use crate::registry::http::is_loopback;
use crate::registry::tls::TlsSettings;
use crate::registry::{ClientConfig, RegistryError};

/// The part of the time limits that a mirror gets: whoever waits for the next byte gives up after the whole, and by then
/// another host must have been asked.
const MIRRORS_SHARE: u32 = 3;

/// How often the description is looked at again, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The hosts of a registry.
pub(in super::super) struct Chain {
    registry: String,
    endpoints: Vec<Arc<Endpoint>>,
    stamp: Stamp,
}

impl Chain {
    /// The hosts that may be asked for `wanted`, those that failed lately last.
    ///
    /// # Errors
    /// [`RegistryError::NoHost`] when there is none.
    pub fn with(&self, wanted: Capabilities) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let mut found: Vec<_> = self.endpoints.iter().filter(|e| e.capabilities.has(wanted)).cloned().collect();
        if found.is_empty() {
            return Err(RegistryError::NoHost { registry: self.registry.clone(), wanted: wanted.to_string() });
        }
        // Stable: within each half the order is that of the file.
        found.sort_by_key(|endpoint| endpoint.rests());
        Ok(found)
    }

    /// The one host that uploads go to.
    ///
    /// # Errors
    /// [`RegistryError::NoHost`] when there is none.
    pub fn for_pushes(&self) -> Result<Arc<Endpoint>, RegistryError> {
        let found = self.endpoints.iter().find(|endpoint| endpoint.capabilities.has(Capabilities::PUSH)).cloned();
        let wanted = Capabilities::PUSH.to_string();
        found.ok_or_else(|| RegistryError::NoHost { registry: self.registry.clone(), wanted })
    }

    /// The host by whose rules `url` is asked: the one under whose API it lies, or on whose server; else the one that
    /// uploads go to, which may name any place for them.
    ///
    /// # Errors
    /// [`RegistryError::NoHost`].
    pub fn asking(&self, url: &Url) -> Result<Arc<Endpoint>, RegistryError> {
        let holding = self.endpoints.iter().filter(|endpoint| endpoint.holds(url));
        let holding = holding.max_by_key(|endpoint| endpoint.base().path().len());
        let same_server = || self.endpoints.iter().find(|endpoint| endpoint.base().origin() == url.origin());
        holding.or_else(same_server).cloned().map_or_else(|| self.for_pushes(), Ok)
    }
}

/// The chains of all registries.
#[derive(Default)]
pub(in super::super) struct Chains {
    known: Mutex<HashMap<String, (Instant, Arc<Chain>)>>,
}

impl Chains {
    /// The chain of `registry`. A description that was good once and no longer is leaves the chain as it was.
    ///
    /// # Errors
    /// [`RegistryError::Hosts`].
    pub fn of(&self, config: &ClientConfig, registry: &str, own_host: &str) -> Result<Arc<Chain>, RegistryError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(registry).map(|(looked, chain)| (*looked, Arc::clone(chain)));
        if let Some((looked, chain)) = &before
            && looked.elapsed() < LOOK_AGAIN
        {
            return Ok(Arc::clone(chain));
        }
        let chain = match (lookup::find(&config.hosts_dirs, registry), before) {
            (Ok(found), before) => {
                let stamp = stamp_with(&found, config);
                match before {
                    Some((_, chain)) if chain.stamp == stamp => chain,
                    _ => Arc::new(build(config, registry, own_host, found, stamp)?),
                }
            }
            (Err(error), Some((_, chain))) => {
                tracing::warn!(registry, %error, "the registry's hosts can no longer be read; those of before stay");
                chain
            }
            (Err(error), None) => return Err(error.into()),
        };
        known.insert(registry.to_owned(), (Instant::now(), Arc::clone(&chain)));
        Ok(chain)
    }
}

/// Certificates change under their names.
fn stamp_with(found: &Found, config: &ClientConfig) -> Stamp {
    let mut stamp = found.stamp.clone();
    stamp.extend(stamp_of(&config.tls.ca_files));
    stamp.extend(config.tls.client_pairs.iter().flat_map(|pair| stamp_of(pair.files())));
    stamp
}

fn build(
    config: &ClientConfig,
    registry: &str,
    own_host: &str,
    found: Found,
    stamp: Stamp,
) -> Result<Chain, RegistryError> {
    for warning in &found.warnings {
        tracing::warn!("{warning}");
    }
    let mut endpoints = Vec::new();
    for mirror in config.mirrors.get(registry).into_iter().flatten() {
        endpoints.push(Arc::new(of_mirror(config, registry, own_host, mirror, &stamp)?));
    }
    // Nothing describes the registry: it answers for itself.
    let hosts = if found.hosts.is_empty() { vec![HostEntry::default()] } else { found.hosts };
    let last = hosts.len() - 1;
    for (i, entry) in hosts.into_iter().enumerate() {
        endpoints.push(Arc::new(of_entry(config, registry, own_host, entry, i == last, &stamp)?));
    }
    Ok(Chain { registry: registry.to_owned(), endpoints, stamp })
}

fn authority(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Set for all but the registry itself (containerd: `isProxy`).
fn namespace(registry: &str, own_host: &str, authority: &str) -> Option<String> {
    (authority != registry && authority != own_host).then(|| registry.to_owned())
}

fn of_mirror(
    config: &ClientConfig,
    registry: &str,
    own_host: &str,
    mirror: &Mirror,
    stamp: &Stamp,
) -> Result<Endpoint, RegistryError> {
    let bad = |reason: String| HostsError::Mirror { registry: registry.to_owned(), host: mirror.host.clone(), reason };
    let mut base = base_url(&mirror.host, false).map_err(bad)?;
    if !mirror.host.contains("://") && (mirror.insecure || is_loopback(&base)) {
        base = base_url(&format!("http://{}", mirror.host), false).map_err(bad)?;
    }
    let authority = authority(&base);
    let endpoint = Endpoint {
        namespace: namespace(registry, own_host, &authority),
        base,
        authority,
        capabilities: Capabilities::PULL.with(Capabilities::RESOLVE).with(Capabilities::REFERRERS),
        is_server: false,
        headers: reqwest::header::HeaderMap::new(),
        // Settings for TLS are for hosts that speak it.
        tls: if mirror.insecure { TlsSettings::default() } else { config.tls.clone() },
        stamp: number_of(stamp),
        connect_limit: config.connect_limit,
        head_limit: mirror.request_limit.unwrap_or(config.head_limit / MIRRORS_SHARE),
        idle_limit: config.idle_limit / MIRRORS_SHARE,
        transport: OnceLock::new(),
        experience: Experience::default(),
    };
    Ok(endpoint.ready())
}

fn of_entry(
    config: &ClientConfig,
    registry: &str,
    own_host: &str,
    entry: HostEntry,
    is_server: bool,
    stamp: &Stamp,
) -> Result<Endpoint, RegistryError> {
    let own = entry.base.is_none();
    let share = if is_server { 1 } else { MIRRORS_SHARE };
    let base = entry.base.map_or_else(|| config.base_url(own_host), Ok)?;
    let authority = if own { own_host.to_owned() } else { authority(&base) };
    let tls = if own && config.is_insecure(&base) {
        // Plain HTTP was asked for in so many words.
        TlsSettings::default()
    } else {
        config.tls.and(entry.ca_files, entry.client_pairs, entry.skip_verify)
    };
    let endpoint = Endpoint {
        namespace: namespace(registry, own_host, &authority),
        base,
        authority,
        // What a file says at its top about a server that it does not name is about certificates and headers only, as
        // in containerd.
        capabilities: if own { Capabilities::ALL } else { entry.capabilities },
        is_server,
        headers: entry.headers,
        tls,
        stamp: number_of(stamp),
        connect_limit: entry.dial_limit.unwrap_or(config.connect_limit),
        head_limit: config.head_limit / share,
        idle_limit: config.idle_limit / share,
        transport: OnceLock::new(),
        experience: Experience::default(),
    };
    Ok(endpoint.ready())
}

/// Tells one state of the files from another.
fn number_of(stamp: &Stamp) -> u64 {
    let mut hasher = DefaultHasher::new();
    stamp.hash(&mut hasher);
    hasher.finish()
}

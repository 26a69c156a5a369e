//! Registry clients, one for each way of talking: they keep connections and tokens, and are shared by all mounts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config;
use crate::registry::{Client, ClientConfig};

/// What distinguishes one client from another.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    insecure: Vec<String>,
    docker_config: Option<PathBuf>,
}

/// All clients of this process.
pub struct Clients {
    config: config::Registry,
    made: Mutex<HashMap<Key, Arc<Client>>>,
}

impl Clients {
    /// None is made yet.
    #[must_use]
    pub fn new(config: config::Registry) -> Self {
        Self { config, made: Mutex::new(HashMap::new()) }
    }

    /// The client that speaks plain HTTP to `insecure` hosts (besides the configured ones) and takes credentials from
    /// the `config.json` in the directory `docker_config`, or from this process's own docker configuration.
    #[must_use]
    pub fn get(&self, insecure: &[String], docker_config: Option<PathBuf>) -> Arc<Client> {
        let mut hosts: Vec<String> = self.config.insecure_hosts.iter().chain(insecure).cloned().collect();
        hosts.sort();
        hosts.dedup();
        let key = Key { insecure: hosts, docker_config };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&key) {
            return Arc::clone(client);
        }
        let mut client_config = ClientConfig::from_environment();
        client_config.insecure_hosts.clone_from(&key.insecure);
        if let Some(dir) = &key.docker_config {
            client_config.docker_config = Some(dir.join("config.json"));
        }
        client_config.connect_limit = Duration::from_secs(self.config.connect_timeout_s);
        client_config.idle_limit = Duration::from_secs(self.config.idle_timeout_s);
        // The head of an answer is no more than the first bytes to arrive.
        client_config.head_limit = client_config.idle_limit;
        let client = Arc::new(Client::new(client_config));
        made.insert(key, Arc::clone(&client));
        client
    }
}

//! Settings of talking to registries.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::docs::documented;

documented! {
    /// Settings of `[registry]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Registry {
        /// Hosts (`host` or `host:port`) that are spoken to over plain HTTP. Loopback hosts are anyway.
        pub insecure_hosts: Vec<String>,
        /// Directories that describe registries' hosts (`hosts.toml`, certificates), separated by colons; as containerd's
        /// setting of this name. Empty: none.
        pub config_path: String,
        /// PEM files with certificate authorities to trust besides the system's, for every host.
        pub ca_files: Vec<PathBuf>,
        /// Which requests go over HTTP/2 where a server has it (TLS only). "off": none; "documents": tokens, manifests,
        /// zTOCs; "all": the bytes of layers, too.
        pub http2: Http2,
        /// Time limit for a connection to come up, in seconds.
        pub connect_timeout_s: u64,
        /// Time limit for the next byte to arrive, in seconds.
        pub idle_timeout_s: u64,
        /// Time limit for finding out what an image is, over all hosts and attempts, in seconds.
        pub resolve_timeout_s: u64,
    }
}

/// Which requests go over HTTP/2.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Http2 {
    /// None.
    Off,
    /// Those for documents.
    Documents,
    /// All.
    All,
}

impl Default for Registry {
    fn default() -> Self {
        // SOCI waits 3 s for a connection; a slow VPN needs a little more. 30 s without a byte is a dead connection.
        Self {
            insecure_hosts: Vec::new(),
            config_path: "/etc/containerd/certs.d:/etc/docker/certs.d".to_owned(),
            ca_files: Vec::new(),
            // What it gains for documents, the first read of a layer loses (docs/decisions/registry-client.md).
            http2: Http2::Off,
            connect_timeout_s: 5,
            idle_timeout_s: 30,
            // Two hosts that say nothing for as long as they may.
            resolve_timeout_s: 60,
        }
    }
}

impl Registry {
    /// The directories of `config_path`.
    #[must_use]
    pub fn hosts_dirs(&self) -> Vec<PathBuf> {
        std::env::split_paths(&self.config_path).filter(|dir| !dir.as_os_str().is_empty()).collect()
    }
}

documented! {
    /// Settings of `[resolver]`.
    #[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Resolver {
        /// By registry, as image references name it.
        pub host: BTreeMap<String, ResolverHost>,
    }
}

documented! {
    /// Settings of `[resolver.host."REGISTRY"]`.
    #[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct ResolverHost {
        /// Asked one after the other before the registry itself.
        pub mirrors: Vec<Mirror>,
    }
}

documented! {
    /// A mirror of a registry.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    pub struct Mirror {
        /// `host`, `host:port` or a URL.
        pub host: String,
        /// Whether it is spoken to over plain HTTP. Loopback hosts are anyway.
        #[serde(default)]
        pub insecure: bool,
        /// Time limit for the head of an answer, in seconds; 0: as for every host; negative: none.
        #[serde(default)]
        pub request_timeout_sec: i64,
    }
}

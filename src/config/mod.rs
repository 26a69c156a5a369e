//! Typed settings. Raw TOML becomes ready values here, once; every other module takes values, not text.
//!
//! The file is `/etc/sociblk/config.toml` unless `--config` names another. Unknown keys are errors: a misspelt limit
//! that is silently ignored fills a disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod builder;
mod snapshotter;

pub use builder::{Builder, IndexVersion};
pub use snapshotter::{Snapshotter, WithoutIndex};

/// Where settings are looked for when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/sociblk/config.toml";

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("settings file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML, or has unknown keys or wrong values.
    #[error("settings file {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line and cause.
        reason: String,
    },
    /// A value is out of its range.
    #[error("settings file {path}: {key}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Dotted name of the setting.
        key: &'static str,
        /// What it must be.
        reason: String,
    },
}

/// All settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Talking to registries.
    pub registry: Registry,
    /// Mirrors, as SOCI's settings have them.
    pub resolver: Resolver,
    /// Layer files on local disk.
    pub cache: Cache,
    /// Fetching and inflating.
    pub fill: Fill,
    /// Block devices.
    pub ublk: Ublk,
    /// Which index an image gets.
    pub index: Index,
    /// The index builder.
    pub builder: Builder,
    /// containerd's snapshotter.
    pub snapshotter: Snapshotter,
}

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
    /// Time limit for a connection to come up, in seconds.
    pub connect_timeout_s: u64,
    /// Time limit for the next byte to arrive, in seconds.
    pub idle_timeout_s: u64,
    /// Time limit for finding out what an image is, over all hosts and attempts, in seconds.
    pub resolve_timeout_s: u64,
}

impl Default for Registry {
    fn default() -> Self {
        // SOCI waits 3 s for a connection; a slow VPN needs a little more. 30 s without a byte is a dead connection.
        Self {
            insecure_hosts: Vec::new(),
            config_path: "/etc/containerd/certs.d:/etc/docker/certs.d".to_owned(),
            ca_files: Vec::new(),
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

/// Settings of `[resolver]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Resolver {
    /// By registry, as image references name it.
    pub host: BTreeMap<String, ResolverHost>,
}

/// Settings of `[resolver.host."REGISTRY"]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ResolverHost {
    /// Asked one after the other before the registry itself.
    pub mirrors: Vec<Mirror>,
}

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

/// Settings of `[cache]`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Disk space for layer files; unused layers go first, then parts of used ones. 0: no limit.
    pub max_bytes: Size,
}

impl Default for Cache {
    fn default() -> Self {
        Self { max_bytes: Size(0) }
    }
}

/// Settings of `[fill]`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Fill {
    /// Range requests under way at once, over all layers.
    pub max_requests: usize,
    /// Memory for bytes on their way (compressed and inflated).
    pub memory_bytes: Size,
    /// Threads that verify and inflate; 0: one for each CPU.
    pub threads: usize,
    /// How long a reader is held while the registry gives trouble before it sees an I/O error, in seconds.
    pub hold_limit_s: u64,
    /// Complete every layer in the background after its mount.
    pub background: bool,
    /// Bandwidth of background completion, in bytes a second; 0: no limit.
    pub background_bytes_per_s: Size,
}

impl Default for Fill {
    fn default() -> Self {
        Self {
            // Enough to fill a 10 Gbit/s link of 10 ms with 1.5 MB requests; registries throttle far above it.
            max_requests: 16,
            // 16 requests of a usual span (1.5 MB compressed, 4 MiB inflated) and room for a large one.
            memory_bytes: Size(128 << 20),
            threads: 0,
            hold_limit_s: 600,
            background: false,
            background_bytes_per_s: Size(0),
        }
    }
}

/// Settings of `[ublk]`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Ublk {
    /// Ring threads, 1 to 4; 0: chosen by the number of CPUs.
    pub rings: usize,
}

#[expect(clippy::derivable_impls, reason = "every section states its defaults in the same place")]
impl Default for Ublk {
    fn default() -> Self {
        Self { rings: 0 }
    }
}

/// Settings of `[index]`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Index {
    /// What is in the local store is taken before the registry is asked.
    pub prefer_local: bool,
    /// Local mappings of images to indexes are used.
    pub local_mappings: bool,
}

impl Default for Index {
    fn default() -> Self {
        // What was built here is proven, and is here when the registry is not.
        Self { prefer_local: true, local_mappings: true }
    }
}

/// A byte count: a number, or a text such as `"20GiB"` or `"512 MiB"` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().ok()?;
        let shift = match text[digits..].trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return None,
        };
        number.checked_mul(1 << shift).map(Self)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Number(n) => Ok(Self(n)),
            Raw::Text(t) => Self::parse(&t)
                .ok_or_else(|| serde::de::Error::custom(format!("{t:?} is no size; write 1048576 or \"20GiB\""))),
        }
    }
}

impl Config {
    /// Reads the settings. Without `path`, an absent file at [`DEFAULT_PATH`] means the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file or the setting.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Io { path: file.to_owned(), source }),
        };
        let config: Self = toml::from_str(&text)
            .map_err(|e| ConfigError::Parse { path: file.to_owned(), reason: parse_error(&text, &e) })?;
        config.check(file)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let value =
            |key, reason: &str| Err(ConfigError::Value { path: path.to_owned(), key, reason: reason.to_owned() });
        if self.fill.max_requests == 0 {
            return value("fill.max_requests", "must be at least 1");
        }
        if self.fill.memory_bytes.0 < 16 << 20 {
            return value("fill.memory_bytes", "must be at least 16 MiB: a span and its inflated bytes must fit");
        }
        if self.ublk.rings > 4 {
            return value("ublk.rings", "must be 0 (automatic) to 4");
        }
        if self.registry.hosts_dirs().iter().any(|dir| !dir.is_absolute()) {
            return value("registry.config_path", "must be absolute directories, separated by colons");
        }
        if self.registry.ca_files.iter().any(|file| !file.is_absolute()) {
            return value("registry.ca_files", "must be absolute file names");
        }
        if self.resolver.host.values().flat_map(|host| &host.mirrors).any(|mirror| mirror.host.is_empty()) {
            return value("resolver.host.mirrors", "every mirror must name its host");
        }
        let limits = &self.registry;
        if limits.connect_timeout_s == 0 || limits.idle_timeout_s == 0 || limits.resolve_timeout_s == 0 {
            return value("registry", "time limits must be at least 1 second");
        }
        if let Some((key, reason)) = self.builder.wrong().or_else(|| self.snapshotter.wrong()) {
            return value(key, reason);
        }
        Ok(())
    }

    /// How long a reader is held.
    #[must_use]
    pub fn hold_limit(&self) -> Duration {
        Duration::from_secs(self.fill.hold_limit_s)
    }
}

/// What is wrong in one line, with the number of the line where it is known.
fn parse_error(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', " ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(Some(&path))
    }

    #[test]
    fn the_empty_file_is_the_default_and_sizes_may_be_texts() {
        assert_eq!(load("").expect("empty"), Config::default());
        let config = load("[cache]\nmax_bytes = \"20GiB\"\n[fill]\nmemory_bytes = 33554432\n").expect("sizes");
        assert_eq!(config.cache.max_bytes, Size(20 << 30));
        assert_eq!(config.fill.memory_bytes, Size(32 << 20));
    }

    #[test]
    fn the_local_store_comes_first_unless_told_otherwise() {
        let index = Config::default().index;
        assert!(index.prefer_local && index.local_mappings);
        let config = load("[index]\nprefer_local = false\nlocal_mappings = false\n").expect("settings");
        assert!(!config.index.prefer_local && !config.index.local_mappings);
    }

    #[test]
    fn mirrors_as_soci_writes_them_and_directories_as_containerd_does() {
        let config = load(
            "[registry]\nconfig_path = \"/a/certs.d:/b\"\n[resolver.host.\"docker.io\"]\n\
             [[resolver.host.\"docker.io\".mirrors]]\nhost = \"mirror:5000\"\ninsecure = true\nrequest_timeout_sec = 3\n\
             [[resolver.host.\"docker.io\".mirrors]]\nhost = \"second\"\n",
        )
        .expect("mirrors");
        let mirrors = &config.resolver.host["docker.io"].mirrors;
        assert_eq!(
            (mirrors[0].host.as_str(), mirrors[0].insecure, mirrors[0].request_timeout_sec),
            ("mirror:5000", true, 3)
        );
        assert_eq!((mirrors[1].host.as_str(), mirrors[1].insecure), ("second", false));
        assert_eq!(config.registry.hosts_dirs(), ["/a/certs.d", "/b"].map(PathBuf::from));
        let defaults = Config::default().registry.hosts_dirs();
        assert_eq!(defaults, ["/etc/containerd/certs.d", "/etc/docker/certs.d"].map(PathBuf::from));
        assert!(Registry { config_path: String::new(), ..Registry::default() }.hosts_dirs().is_empty());
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        for (text, want) in [
            ("[registry]\nconfig_path = \"certs.d\"", "registry.config_path"),
            ("[registry]\nca_files = [\"x.pem\"]", "registry.ca_files"),
            ("[registry]\nresolve_timeout_s = 0", "at least 1 second"),
            ("[[resolver.host.a.mirrors]]\nhost = \"\"", "must name its host"),
            ("[[resolver.host.a.mirrors]]\ninsecure = true", "host"),
            ("[cache]\nmax_byte = 1", "max_byte"),
            ("[cache]\nmax_bytes = \"20 apples\"", "20 apples"),
            ("[cache]\nmax_bytes = \"99999999TiB\"", "99999999TiB"),
            ("[fill]\nmax_requests = 0", "fill.max_requests"),
            ("[fill]\nmemory_bytes = 1", "fill.memory_bytes"),
            ("[ublk]\nrings = 9", "ublk.rings"),
            ("[snapshotter]\naddress = \"x.sock\"", "snapshotter.address"),
            ("[snapshotter]\nwithout_index = \"maybe\"", "maybe"),
            ("[builder]\njobs = 0", "builder.jobs"),
            ("[builder]\nindex = \"v3\"", "v3"),
            ("[builder]\nindex = \"v2\"\ntarget_tag = \"{tag}\"", "builder.target_tag"),
            ("[builder]\nindex = \"v2\"\nuntagged = true", "builder.untagged"),
            ("[builder]\ntoken_file = \"token\"", "builder.token_file"),
            ("[builder]\nspan_size = 1", "builder.span_size"),
            ("nonsense", "config.toml"),
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains(want), "{text:?}: {error}");
        }
        let absent = Config::load(Some(Path::new("/nonexistent/x.toml"))).expect_err("absent");
        assert!(absent.to_string().contains("/nonexistent/x.toml"));
    }
}

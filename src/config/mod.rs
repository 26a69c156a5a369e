//! Typed settings. Raw TOML becomes ready values here, once; every other module takes values, not text.
//!
//! The file is `/etc/sociblk/config.toml` unless `--config` names another. Unknown keys are errors: a misspelt limit
//! that is silently ignored fills a disk. A file of SOCI's snapshotter is taken as it is ([`soci`]).

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod builder;
mod credentials;
mod docs;
mod file;
mod layers;
mod load_order;
mod problems;
mod registry;
mod size;
mod snapshotter;
pub mod soci;
#[cfg(test)]
mod tests;

pub use builder::{Builder, IndexVersion};
pub use credentials::Credentials;
use docs::documented;
pub use layers::{Cache, Fill, Fuse, Index, Ublk};
pub use load_order::{LoadOrder, OrderPolicy};
pub use registry::{Http2, Mirror, Registry, Resolver, ResolverHost};
pub use size::Size;
pub use snapshotter::{Frontend, Snapshotter, WithoutIndex};

/// Where settings are looked for when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/sociblk/config.toml";

/// Something in a settings file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line of the file, from 1, where it is known.
    pub line: Option<usize>,
    /// Dotted name of the setting; empty for what is no TOML.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.reason)
    }
}

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
    #[error("settings file {path}: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// All that is wrong; never empty.
        problems: Vec<Problem>,
    },
    /// A value that TOML cannot say.
    #[error("the settings cannot be written as TOML: {reason}")]
    Unwritable {
        /// What the writer said.
        reason: String,
    },
}

documented! {
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
        /// FUSE.
        pub fuse: Fuse,
        /// Which index an image gets.
        pub index: Index,
        /// What a start reads first.
        pub load_order: LoadOrder,
        /// The index builder.
        pub builder: Builder,
        /// containerd's snapshotter.
        pub snapshotter: Snapshotter,
        /// Where the snapshotter's credentials come from, besides docker's configuration.
        pub credentials: Credentials,
    }
}

/// Settings, and where they come from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file that was looked for.
    pub path: PathBuf,
    /// When it is a file of SOCI's snapshotter: what became of each of its keys.
    pub soci: Option<Vec<soci::Finding>>,
}

impl Config {
    /// Reads the settings. Without `path`, an absent file at [`DEFAULT_PATH`] means the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, and each setting that is wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Ok(Self::read(path)?.config)
    }

    /// Like [`load`](Self::load), and says what kind of file it is.
    ///
    /// # Errors
    /// As `load`.
    pub fn read(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Io { path: file, source }),
        };
        match problems::examine(&text) {
            Ok((config, soci)) => Ok(Loaded { config, path: file, soci }),
            Err(problems) => Err(ConfigError::Wrong { path: file, problems }),
        }
    }

    /// The settings as a file with every setting explained; those that have their default are commented out.
    ///
    /// # Errors
    /// [`ConfigError::Unwritable`].
    pub fn commented(&self) -> Result<String, ConfigError> {
        file::commented(self).map_err(|e| ConfigError::Unwritable { reason: e.to_string() })
    }

    /// The settings as a file, each with its value, without a word.
    ///
    /// # Errors
    /// [`ConfigError::Unwritable`].
    pub fn dump(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::Unwritable { reason: e.to_string() })
    }

    /// How long a reader is held.
    #[must_use]
    pub fn hold_limit(&self) -> Duration {
        Duration::from_secs(self.fill.hold_limit_s)
    }

    /// A setting that is out of its range, and what it must be.
    fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let limits = &self.registry;
        Some(match self {
            _ if self.fill.max_requests == 0 => ("fill.max_requests", "must be at least 1"),
            _ if self.fill.memory_bytes.0 < 16 << 20 => {
                ("fill.memory_bytes", "must be at least 16 MiB: a span and its inflated bytes must fit")
            }
            _ if self.ublk.rings > 4 => ("ublk.rings", "must be 0 (automatic) to 4"),
            _ if limits.hosts_dirs().iter().any(|dir| !dir.is_absolute()) => {
                ("registry.config_path", "must be absolute directories, separated by colons")
            }
            _ if limits.ca_files.iter().any(|file| !file.is_absolute()) => {
                ("registry.ca_files", "must be absolute file names")
            }
            _ if self.resolver.host.values().flat_map(|host| &host.mirrors).any(|mirror| mirror.host.is_empty()) => {
                ("resolver.host", "every mirror must name its host")
            }
            _ if limits.connect_timeout_s == 0 => ("registry.connect_timeout_s", "must be at least 1 second"),
            _ if limits.idle_timeout_s == 0 => ("registry.idle_timeout_s", "must be at least 1 second"),
            _ if limits.resolve_timeout_s == 0 => ("registry.resolve_timeout_s", "must be at least 1 second"),
            _ => {
                let parts =
                    self.builder.wrong().or_else(|| self.snapshotter.wrong()).or_else(|| self.load_order.wrong());
                return parts.or_else(|| self.credentials.wrong());
            }
        })
    }
}

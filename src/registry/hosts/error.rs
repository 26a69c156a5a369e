//! Why the description of a registry's hosts cannot be used.

use std::path::PathBuf;

/// What is wrong with a `hosts.toml`, its directory, or a file that it names. Values of headers are never shown.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A file or directory could not be read.
    #[error("{}: {source}; make it readable, or remove it", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{}: line {line}: {reason}; see docs/REGISTRIES.md for the format", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key has a value that cannot be used.
    #[error("{}: line {line}: {key}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// Dotted name of the key.
        key: String,
        /// What is wrong and what it must be.
        reason: String,
    },
    /// A mirror of our own settings is no host.
    #[error("settings: resolver.host.\"{registry}\".mirrors: host {host:?}: {reason}")]
    Mirror {
        /// The registry that it stands in for.
        registry: String,
        /// The host as it is written.
        host: String,
        /// What is wrong and what it must be.
        reason: String,
    },
}

//! Which containerd, and which of its namespaces.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ContainerdError;

/// Where containerd listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/containerd/containerd.sock";
/// The namespace of `ctr` and `nerdctl` unless told otherwise. Kubernetes uses `k8s.io`, Docker `moby`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Longest name that containerd takes (`identifiers.Validate`).
const MAX_NAMESPACE_BYTES: usize = 76;

/// One namespace of one containerd.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    socket: PathBuf,
    namespace: String,
}

impl Address {
    /// A socket, as a path or `unix://PATH`, and a namespace. Nothing is connected.
    ///
    /// # Errors
    /// [`ContainerdError::Address`] for a path that is not absolute, or holds what cannot be part of an address, and for
    /// what is no namespace.
    pub fn new(socket: &Path, namespace: &str) -> Result<Self, ContainerdError> {
        let bad = |text: &str, reason| ContainerdError::Address { text: text.to_owned(), reason };
        let text = socket.to_str().ok_or_else(|| bad(&socket.to_string_lossy(), "it is not valid UTF-8"))?;
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if !path.starts_with('/') {
            return Err(bad(text, "the path of containerd's socket must be absolute"));
        }
        if path.contains(':') {
            return Err(bad(text, "the path of containerd's socket must not contain a colon"));
        }
        if !is_identifier(namespace) {
            let reason = "a namespace consists of at most 76 letters and digits, with single dots, dashes and \
                          underscores between them";
            return Err(bad(namespace, reason));
        }
        Ok(Self { socket: PathBuf::from(path), namespace: namespace.to_owned() })
    }

    /// Path of the socket, absolute.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "containerd at {}, namespace {}", self.socket.display(), self.namespace)
    }
}

/// `[A-Za-z0-9]+([._-][A-Za-z0-9]+)*`
fn is_identifier(text: &str) -> bool {
    text.len() <= MAX_NAMESPACE_BYTES
        && text.split(['.', '_', '-']).all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_namespaces_are_checked_once() {
        for (socket, namespace) in [("/run/c.sock", "default"), ("unix:///run/c.sock", "k8s.io"), ("/a b", "a-b_c.9")] {
            let address = Address::new(Path::new(socket), namespace).expect("an address");
            assert_eq!(address.socket().to_str(), Some(socket.trim_start_matches("unix://")));
            assert_eq!(address.namespace(), namespace);
        }
        let long = "n".repeat(77);
        for (socket, namespace) in [
            ("run/c.sock", "default"),
            ("", "default"),
            ("/run/a:b", "default"),
            ("/s", ""),
            ("/s", "a..b"),
            ("/s", "-a"),
            ("/s", "a/b"),
            ("/s", "a\nb"),
            ("/s", &long),
        ] {
            let error = Address::new(Path::new(socket), namespace).expect_err("no address");
            assert!(matches!(error, ContainerdError::Address { .. }), "{socket} {namespace}: {error}");
        }
    }
}

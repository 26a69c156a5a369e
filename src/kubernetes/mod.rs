//! Image pull secrets of a Kubernetes cluster: listed, watched, and given to whoever looks for credentials.
//!
//! Only secrets of the type `kubernetes.io/dockerconfigjson` are asked for. What is known of them is in memory only. A
//! cluster that cannot be reached costs nothing but what is new there: [`watch`] tries again, with growing pauses, and
//! what is known stays.
//!
//! API: <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>

mod api;
mod kubeconfig;
mod secrets;
#[cfg(test)]
mod tests;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

pub use kubeconfig::Source;
pub use secrets::Secrets;
pub use watch::{Pauses, watch};

/// Why secrets cannot be had. No text of a secret, and none of a kubeconfig file, ever stands in it.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A kubeconfig file that cannot be used, or what it names.
    #[error("{path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Nothing says where the cluster is.
    #[error(
        "no cluster is known: set credentials.kubeconfig to a kubeconfig file, or run in a pod with a service account"
    )]
    NoCluster,
    /// The HTTP library cannot be set up.
    #[error("the connection to {server} cannot be set up: {source}")]
    Setup {
        /// The API server.
        server: String,
        /// What the library said.
        source: reqwest::Error,
    },
    /// The API server cannot be reached, or the connection broke.
    #[error("{url}: {}", chain(source))]
    Transport {
        /// What was asked for, without its query.
        url: String,
        /// What the library said.
        source: reqwest::Error,
    },
    /// Nothing came for too long.
    #[error("{url}: no answer within {} s", limit.as_secs())]
    Timeout {
        /// What was asked for, without its query.
        url: String,
        /// The limit.
        limit: Duration,
    },
    /// The API server refuses.
    #[error("{url}: status {status}{}{message}{}", if message.is_empty() { "" } else { ": " }, advice(*status))]
    Status {
        /// What was asked for, without its query.
        url: String,
        /// HTTP status, or the code of an event of that kind.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The answer is none.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for, without its query.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl KubernetesError {
    /// Whether the server has forgotten the version that was asked for (410 Gone): all must be listed again.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Status { status: 410, .. })
    }
}

fn advice(status: u16) -> &'static str {
    match status {
        401 => "; the token or certificate of the kubeconfig is not valid (any more)",
        403 => "; the account needs the verbs list and watch for secrets of the whole cluster (docs/KUBERNETES.md)",
        404 => "; is this the address of a Kubernetes API server?",
        _ => "",
    }
}

/// The HTTP library's error with what caused it.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

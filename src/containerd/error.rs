//! Why containerd did not do it, and what a user may do about it.

use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use super::Address;
use crate::units::Digest;

/// What somebody else's stream of bytes failed with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why containerd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// What is no address.
    #[error("{text:?}: {reason}")]
    Address {
        /// As it came.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nobody can be reached at the socket.
    #[error("containerd at {}: {source}{}", socket.display(), hint(source))]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Whoever answers there is not containerd.
    #[error(
        "{}: whoever listens there does not speak as containerd does ({reason}); name containerd's own socket, \
         usually {}", socket.display(), super::DEFAULT_SOCKET
    )]
    NotContainerd {
        /// The socket.
        socket: PathBuf,
        /// What came instead of an answer.
        reason: String,
    },
    /// There is no such thing.
    #[error("{at}: {what}: not found")]
    NotFound {
        /// Where.
        at: Address,
        /// What was asked for.
        what: String,
    },
    /// It is there already.
    #[error("{at}: {what}: exists already")]
    Exists {
        /// Where.
        at: Address,
        /// What was to be made.
        what: String,
    },
    /// Not now: containerd is going down or not up yet, or somebody else writes the same content.
    #[error("{at}: {what}: {message}; is containerd running?")]
    Unavailable {
        /// Where.
        at: Address,
        /// What was asked for.
        what: String,
        /// What was said.
        message: String,
    },
    /// No answer came in time.
    #[error("{at}: {what}: no answer for {} s", limit.as_secs())]
    Timeout {
        /// Where.
        at: Address,
        /// What was asked for.
        what: String,
        /// The limit that ran out.
        limit: Duration,
    },
    /// containerd said no.
    #[error("{at}: {what}: {message} ({code})")]
    Refused {
        /// Where.
        at: Address,
        /// What was asked for.
        what: String,
        /// What sort of trouble it is, in gRPC's words.
        code: String,
        /// containerd's own words.
        message: String,
    },
    /// The answer makes no sense.
    #[error("{at}: {what}: {reason}")]
    Answer {
        /// Where.
        at: Address,
        /// What was asked for.
        what: String,
        /// What is odd.
        reason: String,
    },
    /// Content does not have its digest, or what is written has another one.
    #[error("{at}: content {expected}: the bytes are {actual}; remove it (ctr content rm) and fetch it again")]
    WrongDigest {
        /// Where.
        at: Address,
        /// As it was named.
        expected: Digest,
        /// As the bytes are.
        actual: Digest,
    },
    /// Content is longer than allowed.
    #[error("{at}: content {digest} has {size_bytes} bytes, at most {limit_bytes} are read")]
    TooLong {
        /// Where.
        at: Address,
        /// The content.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// What was to be written could not be read.
    #[error("writing {digest} to {at}: {source}")]
    Source {
        /// Where to.
        at: Address,
        /// What was to be written.
        digest: Digest,
        /// What its source said.
        source: BoxError,
    },
}

impl ContainerdError {
    /// What a status means for `what`.
    pub(super) fn of(at: &Address, what: &str, status: &Status) -> Self {
        let (at, what, message) = (at.clone(), what.to_owned(), status.message().to_owned());
        match status.code() {
            Code::NotFound => Self::NotFound { at, what },
            Code::AlreadyExists => Self::Exists { at, what },
            Code::Unavailable => Self::Unavailable { at, what, message },
            // A connection that breaks while an answer is on its way is told in many words.
            Code::Unknown | Code::Cancelled | Code::Internal if is_broken(status) => {
                Self::Unavailable { at, what, message }
            }
            code => Self::Refused { at, what, code: code.description().to_owned(), message },
        }
    }

    /// Whether there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether trying again after a while can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout { .. })
    }
}

/// Statuses that this side made of a broken connection have a cause; those that containerd sent have none.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            "; is it running? --containerd-address names its socket (`address` in /etc/containerd/config.toml)"
        }
        std::io::ErrorKind::PermissionDenied => "; its socket is root's: try sudo",
        _ => "",
    }
}

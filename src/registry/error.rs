//! Why bytes or documents could not be had, and what a caller may do about it.

use std::path::PathBuf;
use std::time::Duration;

use super::HostsError;
use crate::containerd::ContainerdError;
use crate::units::{BlobRange, Digest};

/// Which part of a request took too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Opening the connection.
    Connect,
    /// From the request until the head of the answer.
    ResponseHead,
    /// A pause within the body.
    Body,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::ResponseHead => "waiting for the answer",
            Self::Body => "waiting for more of the body",
        })
    }
}

/// Why bytes could not be had. URLs stand without their query: signed ones are secrets.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A local file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A local file no longer is what it was.
    #[error("{}: the file changed: {expected_bytes} bytes expected, {actual_bytes} found; mount the image again", path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
        /// Size when it was opened, or as the manifest says.
        expected_bytes: u64,
        /// Size now.
        actual_bytes: u64,
    },
    /// The text names no image.
    #[error("{text:?} is no image reference: {reason}")]
    Reference {
        /// The text as it came.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up the HTTP client: {source}; are CA certificates installed (package ca-certificates)?")]
    Setup {
        /// What the HTTP library said.
        source: reqwest::Error,
    },
    /// What describes the registry's hosts cannot be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// No host of the registry may be asked for this.
    #[error(
        "{registry}: no host has the capability {wanted:?}; add one in its hosts.toml, or name the registry as its server"
    )]
    NoHost {
        /// The registry.
        registry: String,
        /// The capabilities that were needed.
        wanted: String,
    },
    /// A certificate or key cannot be used.
    #[error("{what}: {reason}")]
    Tls {
        /// The file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Every host of the registry failed.
    #[error("{registry}: none of its hosts could serve this: {}", each(failures))]
    EveryHost {
        /// The registry.
        registry: String,
        /// Host, and what it said, in the order of asking.
        failures: Vec<(String, RegistryError)>,
    },
    /// No connection, or it broke.
    #[error("{url}: {}{}", chain(source), hint(source))]
    Transport {
        /// What was asked for.
        url: String,
        /// What the HTTP library said.
        source: reqwest::Error,
    },
    /// Nothing came for too long.
    #[error("{url}: gave up {phase} after {} ms", limit.as_millis())]
    Timeout {
        /// What was asked for.
        url: String,
        /// Which part took too long.
        phase: Phase,
        /// The limit that ran out.
        limit: Duration,
    },
    /// An HTTP status that is no success.
    #[error("{url}: the registry answered {status}{}", detail(message))]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words, shortened; may be empty.
        message: String,
        /// How long the registry wants us to wait.
        retry_after: Option<Duration>,
    },
    /// Credentials are missing, wrong, or cannot be had.
    #[error("{host}: access to {what} was refused: {reason}")]
    Auth {
        /// The registry.
        host: String,
        /// Repository or token server.
        what: String,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no such manifest, tag or blob.
    #[error("{url}: not found")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// A page for people came instead of data: a proxy, a login page, a captive portal.
    #[error("{url}: answered a web page ({content_type}) instead of data; is a proxy or login page in the way?")]
    WebPage {
        /// What was asked for.
        url: String,
        /// The answer's content type.
        content_type: String,
    },
    /// The answer is not the range that was asked for.
    #[error("{url}: asked for bytes {asked} of {blob_bytes}, the registry answered {answered:?}")]
    WrongRange {
        /// What was asked for.
        url: String,
        /// The range.
        asked: BlobRange,
        /// The blob's size by the manifest.
        blob_bytes: u64,
        /// The header `Content-Range` as it came, or what is odd.
        answered: String,
    },
    /// The registry's blob or file has another size than the manifest says.
    #[error("{url}: the manifest says {expected_bytes} bytes, the registry says {actual_bytes}")]
    WrongSize {
        /// What was asked for.
        url: String,
        /// Size by the manifest.
        expected_bytes: u64,
        /// Size by the answer.
        actual_bytes: u64,
    },
    /// The body ended early.
    #[error("{url}: the body ended after {got_bytes} of {expected_bytes} bytes")]
    Truncated {
        /// What was asked for.
        url: String,
        /// Bytes that came.
        got_bytes: u64,
        /// Bytes that should have come.
        expected_bytes: u64,
    },
    /// The answer is compressed on the way, which makes ranges meaningless.
    #[error("{url}: the answer has Content-Encoding {encoding:?}; blobs must be served as they are")]
    Encoded {
        /// What was asked for.
        url: String,
        /// The header as it came.
        encoding: String,
    },
    /// A redirect that cannot be followed.
    #[error("{url}: {reason}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Why not.
        reason: String,
    },
    /// Bytes do not have their digest.
    #[error("{what}: expected {expected}, the bytes are {actual}")]
    WrongDigest {
        /// URL or path.
        what: String,
        /// As it was named.
        expected: Digest,
        /// As the bytes are.
        actual: Digest,
    },
    /// A document is longer than allowed.
    #[error("{what}: longer than the limit of {limit_bytes} bytes")]
    TooLong {
        /// URL, path or digest.
        what: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// A manifest, index or config that cannot be used.
    #[error("{what}: {reason}")]
    Document {
        /// Which one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Others keep overwriting what is written.
    #[error("{what}: other clients overwrite this tag again and again; try again when they are done")]
    Contended {
        /// The tag.
        what: String,
    },
    /// containerd failed, or cannot be reached.
    #[error(transparent)]
    Containerd(Box<ContainerdError>),
    /// containerd has no image of that name.
    #[error("{at}: no image {name}: {hint}")]
    NoImage {
        /// Which containerd and namespace.
        at: String,
        /// The name.
        name: String,
        /// What there is instead.
        hint: String,
    },
    /// containerd has the image, but not this of its content.
    #[error(
        "containerd at {socket}, namespace {namespace}: {image}: its content {what} is not there (not pulled for this \
         platform, or thrown away after it was unpacked); fetch it: ctr -a {socket} -n {namespace} content fetch \
         --all-platforms {image}"
    )]
    NotPulled {
        /// Digest of the content.
        what: String,
        /// containerd's socket.
        socket: String,
        /// The namespace.
        namespace: String,
        /// The image.
        image: String,
    },
    /// The image is not made for the wanted platform.
    #[error("{what}: no image for {wanted}; it has {}; choose with --platform", offered.join(", "))]
    NoPlatform {
        /// The image.
        what: String,
        /// The wanted platform.
        wanted: String,
        /// Platforms that exist.
        offered: Vec<String>,
    },
}

impl RegistryError {
    /// Whether trying again after a while can help: the network, the registry's load, a cut body.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Truncated { .. } => true,
            Self::Transport { source, .. } => !source.is_builder() && tls_trouble(source).is_none(),
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429) || (*status >= 500 && *status != 501),
            // Read again every time: a reader of a running container waits until somebody has repaired it.
            Self::Hosts(_) => true,
            Self::Containerd(error) => error.is_transient(),
            // One host that comes back is enough, unless the registry itself is sure that there is nothing to come.
            Self::EveryHost { failures, .. } => {
                failures.iter().any(|(_, error)| error.is_transient()) && !self.is_not_found()
            }
            _ => false,
        }
    }

    /// Whether the host answered a TLS client in another protocol.
    pub(super) fn is_not_tls(&self) -> bool {
        matches!(self, Self::Transport { source, .. } if tls_trouble(source) == Some(TlsTrouble::NotTls))
    }

    /// Whether credentials are the trouble.
    #[must_use]
    pub fn is_auth(&self) -> bool {
        match self {
            Self::Auth { .. } => true,
            // Mirrors come first; what the registry itself says counts.
            Self::EveryHost { failures, .. } => failures.last().is_some_and(|(_, error)| error.is_auth()),
            _ => false,
        }
    }

    /// Whether the registry, or the local layout, is sure that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::NoImage { .. } | Self::NotPulled { .. } => true,
            Self::EveryHost { failures, .. } => failures.last().is_some_and(|(_, error)| error.is_not_found()),
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// How long the registry asked us to wait, if it did.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            // The first that is willing again is enough.
            Self::EveryHost { failures, .. } => failures.iter().filter_map(|(_, error)| error.retry_after()).min(),
            _ => None,
        }
    }
}

fn each(failures: &[(String, RegistryError)]) -> String {
    failures.iter().map(|(host, error)| format!("[{host}] {error}")).collect::<Vec<_>>().join("; ")
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// The error with its causes: the HTTP library's outermost text is always just "error sending request".
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Trouble with TLS that no retry ends. The TLS library's errors cannot be named as types without depending on its exact version,
/// so they are told by their texts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TlsTrouble {
    Certificate,
    NotTls,
}

fn tls_trouble(error: &reqwest::Error) -> Option<TlsTrouble> {
    let text = chain(error);
    if text.contains("invalid peer certificate") {
        return Some(TlsTrouble::Certificate);
    }
    text.contains("InvalidContentType").then_some(TlsTrouble::NotTls)
}

fn hint(error: &reqwest::Error) -> &'static str {
    match tls_trouble(error) {
        Some(TlsTrouble::Certificate) => {
            "; if its certificate is of a private authority, name that (registry.ca_files, --tlscacert, or `ca` in hosts.toml)"
        }
        Some(TlsTrouble::NotTls) => "; it does not speak TLS: use --plain-http, or name it in registry.insecure_hosts",
        None => "",
    }
}

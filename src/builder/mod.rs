//! The index builder (`sociblk serve-index`): registries tell what was pushed to them, and every image that the filters
//! let through gets its SOCI index, once.
//!
//! ```text
//! POST /v1/notifications/… ─ events: which image ─ filter: wanted? ─ queue: durable, once for each digest ─ 202
//!                                                                     │
//!                            worker: bounded, with retries ───────────┘─ survey, create or convert (node) ─ registry
//! ```
//!
//! A notification is answered with success only when every image in it that is wanted is in the queue on disk. What
//! dies, also by SIGKILL, takes its work up again at its next start; work that was done twice changes nothing, since the
//! documents are the same. `docs/BUILDER.md` is the operator's page.

mod events;
mod filter;
mod job;
mod metrics;
mod queue;
mod server;
mod service;
mod worker;

use std::path::PathBuf;

pub use events::{Push, Rejection, Told, distribution, ecr};
pub use filter::Filter;
pub use job::{Accepted, Counts, Job, JobRow, JobState, Status};
pub use queue::Queue;
pub use service::{BuilderOptions, run, status};

/// Name of the environment variable with the bearer token, where no file is named.
pub const TOKEN_VARIABLE: &str = "SOCIBLK_BUILDER_TOKEN";

/// Why the index builder cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// A file could not be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another index builder works under this root.
    #[error("{}: another index builder runs under this root; stop it, or use another --root", path.display())]
    Taken {
        /// The lock.
        path: PathBuf,
    },
    /// The queue failed.
    #[error("queue {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file is not a queue that this version knows.
    #[error("queue {}: {reason}; move the file away, then registries' notifications fill a new one", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many images wait.
    #[error("{limit} images wait already (builder.max_queued)")]
    Full {
        /// The limit.
        limit: u64,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting cannot be used.
    #[error("{key}: {reason}")]
    Setting {
        /// Which.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A notification is none.
    #[error("the notification cannot be read: {reason}")]
    Notification {
        /// What is wrong with it.
        reason: String,
    },
    /// The runtime could not be made, or ends.
    #[error("the service's threads: {source}")]
    Runtime {
        /// What the system said.
        source: std::io::Error,
    },
}

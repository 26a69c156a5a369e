//! Which hosts answer for a registry, in what order, and how each is spoken to.
//!
//! The model is containerd's (containerd `docs/hosts.md`): a registry has a chain of hosts, mirrors first and the
//! registry itself last, each with what it may be trusted with. It is read from `hosts.toml` or from certificates in
//! Docker's layout ([`lookup`]), and from the mirrors of our own settings.

mod chain;
mod duration;
mod endpoint;
mod error;
mod file;
mod lookup;

pub use error::HostsError;

pub(super) use chain::{Chain, Chains};
pub(super) use endpoint::{Capabilities, Endpoint};
pub(super) use file::HostEntry;

/// A mirror from our own settings (SOCI's `resolver.host` tables). It may be asked for anything but pushes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mirror {
    /// `HOST[:PORT]`, or a URL.
    pub host: String,
    /// Whether it is spoken to over plain HTTP.
    pub insecure: bool,
    /// How long the head of an answer may take; `None`: as for every mirror.
    pub request_limit: Option<std::time::Duration>,
}

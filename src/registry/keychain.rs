//! Credentials that others bring while a daemon runs: CRI's pull requests, secrets of a cluster.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use super::{ImageRef, Login};

/// Most credentials that are tried for one request: a cluster may have a thousand for one registry.
const MAX_CANDIDATES: usize = 8;

/// Who is to be spoken to, about what.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The image.
    pub image: &'a ImageRef,
    /// `HOST[:PORT]` of who asks for credentials.
    pub host: &'a str,
    /// Whether that is the registry itself, or stands for it, and no mirror.
    pub is_registry: bool,
}

/// Somewhere credentials are.
pub trait Keychain: Send + Sync + 'static {
    /// What there is at the moment, the likeliest first. Asked again whenever an authorization is earned, so it must not
    /// take long.
    fn find(&self, wanted: Wanted<'_>) -> Vec<Login>;
}

/// All keychains of a process, shared by its clones and by all clients that have one of them.
#[derive(Clone, Default)]
pub struct Keychains(Arc<RwLock<Vec<Arc<dyn Keychain>>>>);

impl Keychains {
    /// One more, asked after those that are there.
    pub fn add(&self, keychain: Arc<dyn Keychain>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(keychain);
    }

    /// What all of them have, each once.
    pub(super) fn find(&self, wanted: Wanted<'_>) -> Vec<Login> {
        let keychains = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found: Vec<Login> = Vec::new();
        for login in keychains.iter().flat_map(|keychain| keychain.find(wanted)) {
            if !found.contains(&login) {
                found.push(login);
            }
        }
        found.truncate(MAX_CANDIDATES);
        found
    }
}

impl fmt::Debug for Keychains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(keychains)")
    }
}

#[cfg(test)]
#[path = "tests/keychain.rs"]
mod tests;

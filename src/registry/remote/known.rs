//! What reads of a blob teach about its hosts.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use url::Url;

use crate::registry::hosts::Endpoint;
use crate::units::BlobRange;

/// What was learned about the blob's hosts.
#[derive(Default)]
pub(super) struct Known {
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    hosts: HashMap<String, Host>,
    /// Who sent which bytes lately, oldest first.
    served: VecDeque<(BlobRange, String)>,
}

/// A host as far as this blob goes. Remembers where the host redirects to, so that a read costs one round trip, until
/// that place refuses.
#[derive(Default)]
struct Host {
    storage: Option<Url>,
    fitness: Fitness,
}

/// Whom to ask first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) enum Fitness {
    #[default]
    Good,
    /// It sends the whole blob whatever is asked for.
    IgnoresRanges,
    /// It did not have the blob.
    Missing,
    /// Bytes that it sent were not the blob's.
    Lies,
}

/// Reads whose host is remembered, to know whose bytes were wrong: more than are under way at once.
const MAX_SERVED: usize = 64;

impl Known {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `host` keeps the blob, if it was heard to redirect.
    pub(super) fn storage(&self, host: &Endpoint) -> Option<Url> {
        self.facts().hosts.get(&name_of(host)).and_then(|known| known.storage.clone())
    }

    /// Replaces the place where `host` keeps the blob, unless another reader has done so since it was `seen`.
    pub(super) fn remember(&self, host: &Endpoint, seen: Option<&Url>, place: Option<Url>) {
        let mut facts = self.facts();
        let storage = &mut facts.hosts.entry(name_of(host)).or_default().storage;
        if storage.as_ref() == seen {
            *storage = place;
        }
    }

    pub(super) fn fitness(&self, host: &Endpoint) -> Fitness {
        self.facts().hosts.get(&name_of(host)).map(|known| known.fitness).unwrap_or_default()
    }

    pub(super) fn judge(&self, host: &Endpoint, fitness: Fitness) {
        self.facts().hosts.entry(name_of(host)).or_default().fitness = fitness;
    }

    /// `host` sends `range`.
    pub(super) fn served(&self, host: &Endpoint, range: BlobRange) {
        let mut facts = self.facts();
        let name = name_of(host);
        // Who goes on where it left off needs no second entry.
        if let Some((last, by)) = facts.served.back_mut()
            && *by == name
            && last.end() == range.start()
        {
            *last = BlobRange::new(last.start(), range.end()).unwrap_or(range);
            return;
        }
        if facts.served.len() >= MAX_SERVED {
            facts.served.pop_front();
        }
        facts.served.push_back((range, name));
    }

    /// Who sent the bytes of `range` last. The newest first: who sent the whole range is the one; of several that sent
    /// parts of it any may be meant.
    pub(super) fn senders_of(&self, range: BlobRange) -> Vec<String> {
        let mut found = Vec::new();
        let facts = self.facts();
        for (sent, host) in facts.served.iter().rev().filter(|(sent, _)| sent.intersection(&range).is_some()) {
            found.push(host.clone());
            if sent.start() <= range.start() && range.end() <= sent.end() {
                break;
            }
        }
        found
    }
}

/// Tells the hosts of a chain apart.
pub(super) fn name_of(host: &Endpoint) -> String {
    host.base().into()
}

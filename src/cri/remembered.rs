//! What pull requests brought.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::messages::AuthConfig;
use crate::registry::{ImageRef, Keychain, Login, Secret, Wanted};

/// Most credentials that are held; the oldest go. A node has some hundred images.
const MAX_ENTRIES: usize = 4096;

/// Credentials of pull requests, by image. Nothing of it is ever written or logged.
///
/// A pull that is under way counts at once, for its layers are asked for meanwhile. When it succeeds it takes the place
/// of the last one of the same image; when it fails, nothing is left of it: a wrong password must not cost a running
/// container the right one.
#[derive(Clone, Default)]
pub struct Remembered(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// In the order of their requests.
    entries: Vec<Entry>,
    requests: u64,
}

struct Entry {
    request: u64,
    image: ImageRef,
    /// The only host that may see it.
    server: Option<String>,
    login: Login,
    /// Whether the pull has succeeded.
    good: bool,
    /// The image's ID, once that is known.
    id: String,
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} credentials)", self.lock().entries.len())
    }
}

/// A pull that is under way. When it is dropped without success, so are its credentials.
pub(super) struct Attempt {
    of: Remembered,
    request: u64,
}

impl Remembered {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pull begins.
    pub(super) fn begin(&self, image: ImageRef, server: Option<String>, login: Login) -> Attempt {
        let mut state = self.lock();
        state.requests += 1;
        let request = state.requests;
        if state.entries.len() >= MAX_ENTRIES {
            state.entries.remove(0);
        }
        state.entries.push(Entry { request, image, server, login, good: false, id: String::new() });
        Attempt { of: self.clone(), request }
    }

    /// An image is gone, by its reference or its ID.
    pub(super) fn forget(&self, image: &str) {
        let reference = image.parse::<ImageRef>().ok();
        let gone = |entry: &Entry| entry.good && (entry.id == image || Some(&entry.image) == reference.as_ref());
        self.lock().entries.retain(|entry| !gone(entry));
    }
}

impl Attempt {
    /// The pull has succeeded, and made the image with this ID.
    pub(super) fn succeeded(self, id: String) {
        let mut state = self.of.lock();
        let Some(at) = state.entries.iter().position(|entry| entry.request == self.request) else { return };
        let image = state.entries[at].image.clone();
        state.entries[at].good = true;
        state.entries[at].id = id;
        let replaced = |entry: &Entry| entry.good && entry.request < self.request && entry.image == image;
        state.entries.retain(|entry| !replaced(entry));
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.of.lock().entries.retain(|entry| entry.good || entry.request != self.request);
    }
}

impl Keychain for Remembered {
    /// Those of pulls from the same repository, the newest first: a layer does not say by which tag it was pulled.
    fn find(&self, wanted: Wanted<'_>) -> Vec<Login> {
        let fits = |entry: &&Entry| {
            let same = entry.image.registry() == wanted.image.registry()
                && entry.image.repository() == wanted.image.repository();
            same && match &entry.server {
                None => wanted.is_registry,
                Some(server) => {
                    same_host(server, wanted.host) || (wanted.is_registry && same_host(server, wanted.image.registry()))
                }
            }
        };
        self.lock().entries.iter().rev().filter(fits).map(|entry| entry.login.clone()).collect()
    }
}

/// Whether an address, with or without scheme and path, is this `HOST[:PORT]`.
fn same_host(address: &str, host: &str) -> bool {
    let canonical = |host: &str| match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    };
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    canonical(rest.split('/').next().unwrap_or_default()) == canonical(host)
}

/// The login that a request brings, in the order in which containerd looks for it; `None`: it wants to be nobody.
pub(super) fn login(auth: &AuthConfig) -> Result<Option<Login>, &'static str> {
    let login =
        |user: &str, password: &str| Login { user: user.to_owned(), password: Secret::new(password.to_owned()) };
    Ok(match auth {
        AuthConfig { username, password, .. } if !username.is_empty() => Some(login(username, password)),
        AuthConfig { identity_token, .. } if !identity_token.is_empty() => Some(login("", identity_token)),
        AuthConfig { auth, .. } if !auth.is_empty() => Some(Login::from_auth(auth)?),
        _ => None,
    })
}

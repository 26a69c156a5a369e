//! The part `auths` of a docker configuration, by the rules of Kubernetes: names may have wildcards and paths.
//!
//! <https://kubernetes.io/docs/concepts/containers/images/#config-json>

use std::cmp::Reverse;
use std::fmt;

use super::credentials::{AuthEntry, DockerConfig, inline};
use super::keychain::Wanted;
use super::{ImageRef, Login};

/// Credentials by registry, host pattern and path.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DockerAuths(Vec<Entry>);

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// Host, a part of it between dots perhaps with `*` and `?`.
    host: String,
    port: Option<String>,
    /// Without slashes at its ends; empty: any.
    path: String,
    login: Login,
}

impl fmt::Debug for DockerAuths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.0.iter().map(|entry| &entry.host).collect();
        f.debug_tuple("DockerAuths").field(&hosts).finish()
    }
}

impl DockerAuths {
    /// Reads a `config.json`. Entries without credentials are left out.
    ///
    /// # Errors
    /// What is wrong with it, without a word of it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let config: DockerConfig =
            serde_json::from_slice(json).map_err(|error| format!("not valid JSON at line {}", error.line()))?;
        let mut entries = Vec::new();
        for (key, entry) in &config.auths {
            entries.extend(Entry::new(key, entry)?);
        }
        // The most particular first: by path, then hosts without wildcards.
        entries.sort_by_key(|entry| (Reverse(entry.path.len()), entry.host.contains(['*', '?'])));
        Ok(Self(entries))
    }

    /// Whose credentials these are, the likeliest first.
    #[must_use]
    pub fn find(&self, wanted: Wanted<'_>) -> Vec<Login> {
        let image = wanted.image;
        let fits = |entry: &&Entry| {
            entry.fits(wanted.host, image) || (wanted.is_registry && entry.fits(image.registry(), image))
        };
        self.0.iter().filter(fits).map(|entry| entry.login.clone()).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Entry {
    fn new(key: &str, entry: &AuthEntry) -> Result<Option<Self>, String> {
        let Some(login) = inline(entry).map_err(|reason| format!("{key}: {reason}"))? else { return Ok(None) };
        let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_port(authority);
        // Of the registry's API, not of a repository.
        let path = match path.split_once('/').unwrap_or((path, "")) {
            ("v1" | "v2", rest) => rest,
            _ => path,
        };
        let path = path.trim_matches('/').to_owned();
        Ok(Some(Self { host: canonical(host), port: port.map(str::to_owned), path, login }))
    }

    fn fits(&self, authority: &str, image: &ImageRef) -> bool {
        let (host, port) = split_port(authority);
        let host = canonical(host);
        let (mut patterns, mut parts) = (self.host.split('.'), host.split('.'));
        let same_host = loop {
            match (patterns.next(), parts.next()) {
                (None, None) => break true,
                (Some(pattern), Some(part)) if matches(pattern.as_bytes(), part.as_bytes()) => {}
                _ => break false,
            }
        };
        same_host && self.port.as_deref() == port && image.repository().starts_with(&self.path)
    }
}

/// Docker Hub has many names.
fn canonical(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    }
}

/// `*`: any text, `?`: any byte. Takes no more than the product of both lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when a star has to take one byte more.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    (p, t) = (after, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Secret;

    const CONFIG: &str = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
        "quay.io": {"username": "q", "password": "1"},
        "quay.io/team": {"username": "t", "password": "2"},
        "*.lan:5000": {"username": "w", "password": "3"},
        "a.lan:5000": {"username": "a", "password": "4"},
        "https://reg.io/v2/own/": {"identitytoken": "refresh"},
        "empty.io": {}
    }}"#;

    fn users(image: &str, host: &str, is_registry: bool) -> Vec<String> {
        let image: ImageRef = image.parse().expect("a reference");
        let found =
            DockerAuths::parse(CONFIG.as_bytes()).expect("good").find(Wanted { image: &image, host, is_registry });
        found.into_iter().map(|login| login.user).collect()
    }

    #[test]
    fn keys_match_as_in_kubernetes() {
        for (image, host, want) in [
            ("python", "registry-1.docker.io", &["hub"][..]),
            ("quay.io/team/app", "quay.io", &["t", "q"]),
            ("quay.io/other/app", "quay.io", &["q"]),
            ("a.lan:5000/x", "a.lan:5000", &["a", "w"]),
            ("b.lan:5000/x", "b.lan:5000", &["w"]),
            ("b.c.lan:5000/x", "b.c.lan:5000", &[]),
            ("b.lan/x", "b.lan", &[]),
            ("reg.io/own/app", "reg.io", &[""]),
            ("reg.io/app", "reg.io", &[]),
            ("empty.io/app", "empty.io", &[]),
        ] {
            assert_eq!(users(image, host, true), want, "{image}");
        }
        // A mirror gets what is for it, a server in place of the registry what is for the registry.
        assert_eq!(users("quay.io/x", "b.lan:5000", false), ["w"]);
        assert_eq!(users("quay.io/x", "elsewhere.lan", true), ["q"]);
        assert!(users("quay.io/x", "mirror.lan", false).is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        for broken in [r#"{"auths": {"a.io": {"auth": "hunter2"#, r#"{"auths": {"a.io": {"auth": "hunter2"}}}"#] {
            let error = DockerAuths::parse(broken.as_bytes()).expect_err("broken");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", DockerAuths::parse(CONFIG.as_bytes()).expect("good"));
        assert!(shown.contains("quay.io") && !shown.contains("refresh"), "{shown}");
        let password = DockerAuths::parse(br#"{"auths":{"a":{"auth":"dTpw"}}}"#).expect("good").0.remove(0).login;
        assert_eq!(password, Login { user: "u".into(), password: Secret::new("p".into()) });
    }

    #[test]
    fn wildcards() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("?b", "ab", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("abc", "abc", true),
            ("abc", "ab", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
        }
        assert!(!matches("*a".repeat(40).as_bytes(), "a".repeat(30).as_bytes()));
    }
}

//! `hosts.toml`: text into hosts that cannot be wrong afterwards. Pure.
//!
//! Format: containerd `docs/hosts.md`; where that page is silent, containerd 2's reader
//! (`core/remotes/docker/config/hosts.go`) was asked. Two differences: keys that are not known are warned about, and a
//! file that cannot be used is an error, where containerd logs it and then speaks to the registry as if there were none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use url::Url;

use super::super::tls::ClientPair;
use super::{Capabilities, HostsError, duration};

/// One host as the file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in super::super) struct HostEntry {
    /// Root of its API, without a slash at the end: `https://mirror.example/v2`. `None`: the registry's own host.
    pub base: Option<Url>,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Certificates to show to it.
    pub client_pairs: Vec<ClientPair>,
    /// Whether its certificate is left unchecked; `None`: as for every host.
    pub skip_verify: Option<bool>,
    /// Headers that it is sent with every request; all marked sensitive.
    pub headers: HeaderMap,
    /// How long opening a connection may take.
    pub dial_limit: Option<Duration>,
}

/// A file's hosts in the order to ask them: `[host]` tables as they stand, then the server.
#[derive(Debug)]
pub(super) struct HostsFile {
    pub hosts: Vec<HostEntry>,
    /// What was passed over, for the log.
    pub warnings: Vec<String>,
}

/// The root of `URL`'s API: `https` where no scheme is written, `/v2` at the end unless the path says it all.
pub(super) fn base_url(text: &str, override_path: bool) -> Result<Url, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url =
        Url::parse(&full).map_err(|error| format!("{error}; write a URL such as \"https://mirror.example\""))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("must be a URL of http or https, such as \"https://mirror.example\"".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password; put those into docker's config.json (docker login)".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not hold a query or fragment".to_owned());
    }
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    url.set_path(&path);
    Ok(url)
}

/// Reads a file's text. Paths in it count from its own directory.
pub(super) fn parse(path: &Path, text: &str) -> Result<HostsFile, HostsError> {
    let root = DeTable::parse(text).map_err(|error| HostsError::Toml {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        reason: error.message().trim().replace('\n', " "),
    })?;
    let mut reader = Reader { path, text, warnings: Vec::new(), seen: BTreeSet::new() };
    let root = root.get_ref();
    let mut hosts = Vec::new();
    if let Some(value) = root.get("host") {
        let table = reader.table(value, "host")?;
        // A table's own order is by name; its keys know where they stand in the file.
        let mut named: Vec<_> = table.iter().collect();
        named.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in named {
            let key = format!("host.\"{}\"", name.get_ref());
            let table = reader.table(value, &key)?;
            hosts.push(reader.host(table, Some((name.get_ref(), name.span().start)), &key)?);
        }
    }
    let server = match root.get("server") {
        None => None,
        Some(value) => Some((reader.string(value, "server")?.to_owned(), value.span().start)),
    };
    let server = server.as_ref().filter(|(text, _)| !text.is_empty());
    hosts.push(reader.host(root, server.map(|(text, at)| (text.as_str(), *at)), "")?);
    Ok(HostsFile { hosts, warnings: reader.warnings })
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).map_or(1, |before| before.matches('\n').count() + 1)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    warnings: Vec<String>,
    seen: BTreeSet<String>,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn bad(&self, at: usize, key: &str, reason: impl Into<String>) -> HostsError {
        HostsError::Value {
            path: self.path.to_owned(),
            line: line_of(self.text, at),
            key: key.to_owned(),
            reason: reason.into(),
        }
    }

    fn string<'v>(&self, value: &'v Value<'_>, key: &str) -> Result<&'v str, HostsError> {
        let text = value.get_ref().as_str();
        text.ok_or_else(|| self.bad(value.span().start, key, format!("must be a string, is {}", kind(value))))
    }

    fn boolean(&self, value: &Value<'_>, key: &str) -> Result<bool, HostsError> {
        let flag = value.get_ref().as_bool();
        flag.ok_or_else(|| self.bad(value.span().start, key, format!("must be true or false, is {}", kind(value))))
    }

    fn table<'v, 'i>(&self, value: &'v Value<'i>, key: &str) -> Result<&'v DeTable<'i>, HostsError> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.bad(value.span().start, key, format!("must be a table, is {}", kind(value))))
    }

    /// A file name, absolute or beside `hosts.toml`.
    fn file(&self, value: &Value<'_>, key: &str) -> Result<PathBuf, HostsError> {
        let name = self.string(value, key)?;
        if name.is_empty() {
            return Err(self.bad(value.span().start, key, "must name a file"));
        }
        Ok(self.path.parent().unwrap_or(Path::new("")).join(name))
    }

    /// The keys of a host; `named` is its URL and where that stands.
    fn host(
        &mut self,
        table: &DeTable<'_>,
        named: Option<(&str, usize)>,
        prefix: &str,
    ) -> Result<HostEntry, HostsError> {
        let mut entry = HostEntry::default();
        let mut override_path = false;
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            match name.get_ref().as_ref() {
                "capabilities" => entry.capabilities = self.capabilities(value, &key)?,
                "ca" => entry.ca_files = self.ca(value, &key)?,
                "client" => entry.client_pairs = self.client(value, &key)?,
                "skip_verify" => entry.skip_verify = Some(self.boolean(value, &key)?),
                "override_path" => override_path = self.boolean(value, &key)?,
                "header" => entry.headers = self.headers(value, &key)?,
                "dial_timeout" => entry.dial_limit = self.dial_limit(value, &key)?,
                "server" | "host" if prefix.is_empty() => {}
                "host" => {
                    return Err(self.bad(
                        value.span().start,
                        &key,
                        "a host cannot have hosts of its own; put them side by side",
                    ));
                }
                "server" => {
                    return Err(self.bad(
                        value.span().start,
                        &key,
                        "belongs to the top of the file, before the first [host]",
                    ));
                }
                other => {
                    if self.seen.insert(key.clone()) {
                        let line = line_of(self.text, name.span().start);
                        let path = self.path.display();
                        self.warnings.push(format!(
                            "{path}: line {line}: {key}: the key {other:?} is not known here and is passed over"
                        ));
                    }
                }
            }
        }
        if let Some((url, at)) = named {
            let key = if prefix.is_empty() { "server" } else { prefix };
            entry.base = Some(base_url(url, override_path).map_err(|reason| self.bad(at, key, reason))?);
        }
        Ok(entry)
    }

    fn capabilities(&self, value: &Value<'_>, key: &str) -> Result<Capabilities, HostsError> {
        const WANTED: &str = "must be a list out of \"pull\", \"resolve\", \"push\" and \"referrers\"";
        let at = value.span().start;
        let list = value.get_ref().as_array();
        let list = list.ok_or_else(|| self.bad(at, key, format!("{WANTED}, is {}", kind(value))))?;
        let mut found = Capabilities::NONE;
        for item in list {
            let name = self.string(item, key)?;
            found = found.with(match name.to_ascii_lowercase().as_str() {
                "pull" => Capabilities::PULL,
                "resolve" => Capabilities::RESOLVE,
                "push" => Capabilities::PUSH,
                "referrers" => Capabilities::REFERRERS,
                _ => return Err(self.bad(item.span().start, key, format!("{name:?} is no capability; it {WANTED}"))),
            });
        }
        // As containerd has it, an empty list says nothing.
        Ok(if list.is_empty() { Capabilities::ALL } else { found })
    }

    fn ca(&self, value: &Value<'_>, key: &str) -> Result<Vec<PathBuf>, HostsError> {
        match value.get_ref() {
            DeValue::String(_) => Ok(vec![self.file(value, key)?]),
            DeValue::Array(list) => list.iter().map(|item| self.file(item, key)).collect(),
            _ => {
                Err(self.bad(value.span().start, key, format!("must be a file or a list of files, is {}", kind(value))))
            }
        }
    }

    fn client(&self, value: &Value<'_>, key: &str) -> Result<Vec<ClientPair>, HostsError> {
        let both = |item: &Value<'_>| Ok(ClientPair { certificate: self.file(item, key)?, key: None });
        match value.get_ref() {
            DeValue::String(_) => Ok(vec![both(value)?]),
            DeValue::Array(list) => list
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::Array(pair) => match pair.iter().collect::<Vec<_>>()[..] {
                        [certificate, second] if second.get_ref().as_str() == Some("") => both(certificate),
                        [certificate, second] => Ok(ClientPair {
                            certificate: self.file(certificate, key)?,
                            key: Some(self.file(second, key)?),
                        }),
                        _ => {
                            let reason = "a pair must be [CERTIFICATE, KEY]; KEY is \"\" when both are in one file";
                            Err(self.bad(item.span().start, key, reason))
                        }
                    },
                    _ => both(item),
                })
                .collect(),
            _ => {
                let reason = format!("must be a file, a list of files or a list of pairs of files, is {}", kind(value));
                Err(self.bad(value.span().start, key, reason))
            }
        }
    }

    fn headers(&self, value: &Value<'_>, key: &str) -> Result<HeaderMap, HostsError> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.table(value, key)? {
            let key = format!("{key}.{}", name.get_ref());
            let at = name.span().start;
            let header = HeaderName::try_from(name.get_ref().as_ref())
                .map_err(|_| self.bad(at, &key, "is no name that an HTTP header can have"))?;
            let mut add = |item: &Value<'_>| {
                let mut text = HeaderValue::try_from(self.string(item, &key)?)
                    .map_err(|_| self.bad(at, &key, "holds characters that no HTTP header can carry"))?;
                text.set_sensitive(true);
                headers.append(header.clone(), text);
                Ok(())
            };
            match value.get_ref() {
                DeValue::String(_) => add(value)?,
                DeValue::Array(list) => list.iter().try_for_each(add)?,
                _ => {
                    return Err(self.bad(
                        at,
                        &key,
                        format!("must be a string or a list of strings, is {}", kind(value)),
                    ));
                }
            }
        }
        Ok(headers)
    }

    fn dial_limit(&self, value: &Value<'_>, key: &str) -> Result<Option<Duration>, HostsError> {
        let text = self.string(value, key)?;
        if text.is_empty() {
            return Ok(None);
        }
        let limit = duration::parse(text).filter(|limit| !limit.is_zero());
        let reason = || format!("{text:?} is no time limit; write one such as \"1s\" or \"500ms\", at most a day");
        limit.map(Some).ok_or_else(|| self.bad(value.span().start, key, reason()))
    }
}

/// What a value is, for messages; never the value itself, which may be a secret.
fn kind(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
#[path = "../tests/hosts_file.rs"]
mod tests;

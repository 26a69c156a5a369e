//! Where a registry's hosts are described: containerd's directory of `hosts.toml` files, or Docker's of certificates.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::super::tls::ClientPair;
use super::file::{self, HostEntry};
use super::{Capabilities, HostsError};

/// Longest `hosts.toml`, in bytes.
const LIMIT_BYTES: u64 = 1 << 20;

/// What was found for a registry.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Hosts in the order to ask them; empty when nothing describes the registry.
    pub hosts: Vec<HostEntry>,
    /// What was read, to see whether it changed.
    pub stamp: Stamp,
    /// What was passed over, for the log.
    pub warnings: Vec<String>,
}

/// Files as they stood: name, length, time of the last change.
pub(super) type Stamp = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// Directories that may describe `registry`, the first that exists counts. Each root is tried as a whole, its
/// `_default` included, before the next.
pub(super) fn candidates(roots: &[PathBuf], registry: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    // `host:port` as `host_port_`: a colon is no part of a directory name everywhere.
    if let Some((host, port)) = registry.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    roots.iter().flat_map(|root| names.iter().map(|name| root.join(name))).collect()
}

/// Reads what describes `registry`.
pub(super) fn find(roots: &[PathBuf], registry: &str) -> Result<Found, HostsError> {
    for dir in candidates(roots, registry) {
        match std::fs::metadata(&dir) {
            Ok(_) => return read_dir(&dir),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(source) => return Err(HostsError::Io { path: dir, source }),
        }
    }
    Ok(Found::default())
}

fn read_dir(dir: &Path) -> Result<Found, HostsError> {
    let path = dir.join("hosts.toml");
    let mut found = match read(&path)? {
        Some(text) if !text.is_empty() => {
            let file = file::parse(&path, &text)?;
            Found { hosts: file.hosts, stamp: stamp_of([&path]), warnings: file.warnings }
        }
        _ => Found { hosts: vec![certificates(dir)?], stamp: stamp_of([&path]), warnings: Vec::new() },
    };
    found.stamp.extend(stamp_of([dir]));
    for host in &found.hosts {
        found.stamp.extend(stamp_of(&host.ca_files));
        for pair in &host.client_pairs {
            found.stamp.extend(stamp_of(pair.files()));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Option<String>, HostsError> {
    use std::io::Read as _;
    let io = |source| HostsError::Io { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(io(std::io::Error::other(format!("longer than {LIMIT_BYTES} bytes"))));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| io(std::io::Error::other("not valid UTF-8")))
}

/// Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` of the same name certificates to show
/// (<https://docs.docker.com/engine/security/certificates/>).
fn certificates(dir: &Path) -> Result<HostEntry, HostsError> {
    let io = |source| HostsError::Io { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        names.push(entry.map_err(io)?.path());
    }
    names.sort();
    let with = |wanted: &'static str| {
        let is = move |path: &&PathBuf| path.extension().is_some_and(|e| e == wanted) && !path.is_dir();
        names.iter().filter(is).cloned()
    };
    let client_pairs = with("cert").map(|certificate| {
        let key = certificate.with_extension("key");
        let key = names.contains(&key).then_some(key);
        ClientPair { certificate, key }
    });
    Ok(HostEntry {
        ca_files: with("crt").collect(),
        client_pairs: client_pairs.collect(),
        capabilities: Capabilities::ALL,
        ..HostEntry::default()
    })
}

/// How files stand now.
pub(super) fn stamp_of(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Stamp {
    let stamp = |path: &Path| {
        let metadata = std::fs::metadata(path).ok();
        let length = metadata.as_ref().map_or(0, std::fs::Metadata::len);
        (path.to_owned(), length, metadata.and_then(|m| m.modified().ok()))
    };
    paths.into_iter().map(|path| stamp(path.as_ref())).collect()
}

#[cfg(test)]
#[path = "../tests/hosts_lookup.rs"]
mod tests;

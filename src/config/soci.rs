//! A settings file of SOCI's snapshotter, taken as it is: every key of it, and what it becomes here.
//!
//! The keys, their defaults and what values mean are those of the project awslabs/soci-snapshotter (its `config`
//! package). As there, letter case does not matter, keys that nobody knows are no errors, and 0 stands for the default
//! where it makes no other sense.

mod keys;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;
use toml::{Table, Value};

use self::keys::{KEYS, Key, To};
use super::problems::Lines;
use super::{Config, Mirror, Problem};

/// What became of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Dotted name in the file.
    pub key: String,
    /// Line of the file, from 1.
    pub line: Option<usize>,
    /// Its value, as TOML.
    pub value: String,
    /// What it means here.
    pub meaning: Meaning,
}

/// What a key of SOCI's settings means here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Meaning {
    /// It is this setting of ours.
    Mapped {
        /// Dotted name of our setting.
        to: String,
    },
    /// It has a setting here, and its value is what SOCI takes without it: our default holds.
    Default {
        /// Dotted name of our setting.
        to: String,
    },
    /// It is not needed here.
    NotNeeded {
        /// Why.
        reason: String,
        /// Whether its value is what SOCI takes without it.
        default: bool,
    },
    /// It asks for something that there is not.
    Missing {
        /// What there is instead.
        reason: String,
    },
    /// SOCI has no such key either.
    Unknown,
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped { to } => write!(f, "becomes {to}"),
            Self::Default { to } => write!(f, "SOCI's default: {to} keeps its own"),
            Self::NotNeeded { reason, .. } => write!(f, "not needed: {reason}"),
            Self::Missing { reason } => write!(f, "NOT THERE: {reason}"),
            Self::Unknown => f.write_str("UNKNOWN: a misspelling? SOCI ignores it, too"),
        }
    }
}

impl Finding {
    /// Whether somebody who starts a daemon with this file should hear of it: what was asked for is not what happens.
    #[must_use]
    pub fn is_worth_a_warning(&self) -> bool {
        match &self.meaning {
            Meaning::Mapped { .. } | Meaning::Default { .. } => false,
            Meaning::NotNeeded { default, .. } => !default,
            Meaning::Missing { .. } | Meaning::Unknown => true,
        }
    }
}

/// Whose settings a file has.
pub(super) enum Kind {
    Ours,
    Soci,
    Mixed { ours: String, theirs: String },
}

/// A value in a file. Tables in lists have the path of their list.
struct Leaf<'a> {
    path: Vec<String>,
    value: &'a Value,
}

impl Leaf<'_> {
    fn name(&self) -> String {
        self.path.join(".")
    }

    fn key(&self) -> Option<&'static Key> {
        KEYS.iter().find(|key| {
            let pattern: Vec<&str> = key.name.split('.').collect();
            pattern.len() == self.path.len()
                && pattern.iter().zip(&self.path).all(|(p, name)| *p == "*" || p.eq_ignore_ascii_case(name))
        })
    }
}

fn leaves<'a>(value: &'a Value, path: &mut Vec<String>, found: &mut Vec<Leaf<'a>>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                path.push(key.clone());
                leaves(value, path, found);
                path.pop();
            }
        }
        Value::Array(list) if list.iter().any(Value::is_table) => {
            list.iter().for_each(|value| leaves(value, path, found));
        }
        _ => found.push(Leaf { path: path.clone(), value }),
    }
}

fn leaves_of(table: &Table) -> Vec<Leaf<'_>> {
    let mut found = Vec::new();
    for (key, value) in table {
        leaves(value, &mut vec![key.clone()], &mut found);
    }
    found
}

/// Says whose settings these are, by the keys that only one of the two has. Without any they are ours.
pub(super) fn kind(table: &Table) -> Kind {
    let defaults = Table::try_from(Config::default()).unwrap_or_default();
    let is_ours = |leaf: &Leaf<'_>| {
        let section = leaf.path.first().and_then(|name| defaults.get(name)).and_then(Value::as_table);
        match (section, leaf.path.first().map(String::as_str), leaf.path.get(1).map(String::as_str)) {
            // Shared with SOCI: only some settings of it are ours.
            (_, Some("resolver"), key) => key == Some("host"),
            (Some(section), Some("snapshotter"), Some(key)) => section.contains_key(key),
            (section, _, _) => section.is_some(),
        }
    };
    let found = leaves_of(table);
    // Whatever stands under `resolver` may be in either.
    let shared = |leaf: &Leaf<'_>| leaf.path.first().is_some_and(|name| name == "resolver");
    let ours = found.iter().find(|leaf| is_ours(leaf) && leaf.key().is_none() && !shared(leaf));
    let theirs = found.iter().find(|leaf| !is_ours(leaf) && leaf.key().is_some());
    match (ours, theirs) {
        (_, None) => Kind::Ours,
        (None, Some(_)) => Kind::Soci,
        (Some(ours), Some(theirs)) => Kind::Mixed { ours: ours.name(), theirs: theirs.name() },
    }
}

/// What is known so far. Where metrics are served takes three keys to say.
#[derive(Default)]
struct Draft {
    config: Config,
    metrics_address: String,
    metrics_over_unix: bool,
    no_metrics: bool,
}

/// Translates SOCI's settings.
///
/// # Errors
/// Values that SOCI would not take either, of keys that mean something here.
pub(super) fn convert(table: &Table, lines: &Lines) -> Result<(Config, Vec<Finding>), Vec<Problem>> {
    let mut draft = Draft::default();
    let (mut findings, mut problems) = (Vec::new(), Vec::new());
    for leaf in leaves_of(table) {
        let (key, line) = (leaf.name(), lines.get(&leaf.path).copied());
        match meaning(&leaf, &mut draft) {
            Ok(meaning) => findings.push(Finding { key, line, value: leaf.value.to_string(), meaning }),
            Err(reason) => problems.push(Problem { line, key, reason }),
        }
    }
    match mirrors(table) {
        Ok(mirrors) => {
            for (registry, mirror) in mirrors {
                draft.config.resolver.host.entry(registry).or_default().mirrors.push(mirror);
            }
        }
        Err(reason) => problems.push(Problem {
            line: lines.get(["resolver", "host"].map(str::to_owned).as_slice()).copied(),
            key: "resolver.host".to_owned(),
            reason,
        }),
    }
    if !draft.no_metrics {
        draft.config.snapshotter.metrics_address = match (draft.metrics_over_unix, draft.metrics_address) {
            (_, address) if address.is_empty() => address,
            (true, path) => format!("unix:{path}"),
            (false, address) => numeric(&address),
        };
    }
    findings.sort_by_key(|finding| finding.line);
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() { Ok((draft.config, findings)) } else { Err(problems) }
}

fn meaning(leaf: &Leaf<'_>, draft: &mut Draft) -> Result<Meaning, String> {
    let Some(key) = leaf.key() else { return Ok(Meaning::Unknown) };
    let is_default = key.is_default(leaf.value);
    Ok(match &key.to {
        To::Setting { to, .. } if is_default => Meaning::Default { to: (*to).to_owned() },
        To::Setting { to, set } => {
            set(draft, leaf.value)?;
            Meaning::Mapped { to: (*to).to_owned() }
        }
        To::Mirrors => Meaning::Mapped { to: leaf.name() },
        To::Nothing { reason } => Meaning::NotNeeded { reason: (*reason).to_owned(), default: is_default },
        To::Missing { reason } if is_default => Meaning::NotNeeded { reason: (*reason).to_owned(), default: true },
        To::Missing { reason } => Meaning::Missing { reason: (*reason).to_owned() },
    })
}

/// Mirrors by registry, in their order.
fn mirrors(table: &Table) -> Result<Vec<(String, Mirror)>, String> {
    let mut found = Vec::new();
    let hosts = table.get("resolver").and_then(|resolver| resolver.get("host")).and_then(Value::as_table);
    for (registry, host) in hosts.into_iter().flatten() {
        for mirror in host.get("mirrors").and_then(Value::as_array).into_iter().flatten() {
            // Keys that nobody knows are told, not refused.
            let known = mirror
                .as_table()
                .into_iter()
                .flatten()
                .filter(|(key, _)| ["host", "insecure", "request_timeout_sec"].contains(&key.as_str()));
            let known: Table = known.map(|(key, value)| (key.clone(), value.clone())).collect();
            let mirror = known.try_into().map_err(|e: toml::de::Error| format!("{registry}: {}", e.message()))?;
            found.push((registry.clone(), mirror));
        }
    }
    Ok(found)
}

/// `localhost` and nothing, as hosts that Go listens on, in numbers; anything else as it is.
fn numeric(address: &str) -> String {
    match address.rsplit_once(':') {
        Some(("", port)) => format!("[::]:{port}"),
        Some(("localhost", port)) => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    }
}

//! Everything that is wrong in a settings file, each with its line.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::soci::{self, Finding};
use super::{Config, Problem};

/// Where keys stand: the line of each, by its path from the top. Keys in lists of tables have the path of the list.
pub(super) type Lines = BTreeMap<Vec<String>, usize>;

/// Reads a settings file, ours or SOCI's.
pub(super) fn examine(text: &str) -> Result<(Config, Option<Vec<Finding>>), Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut lines = Lines::new();
    note_lines(text, document.get_ref(), &mut Vec::new(), &mut lines);
    let table = match toml::from_str::<Table>(text) {
        Ok(table) if errors.is_empty() => table,
        Ok(_) => return Err(errors.iter().map(|e| no_toml(text, e)).collect()),
        Err(e) if errors.is_empty() => return Err(vec![no_toml(text, &e)]),
        Err(_) => return Err(errors.iter().map(|e| no_toml(text, e)).collect()),
    };
    match soci::kind(&table) {
        soci::Kind::Ours => ours(table, &lines).map(|config| (config, None)),
        soci::Kind::Soci => {
            let (config, findings) = soci::convert(&table, &lines)?;
            // What SOCI takes and we cannot use is told in our words: the values are in our settings by now.
            match config.wrong() {
                None => Ok((config, Some(findings))),
                Some((key, reason)) => Err(vec![problem(&Lines::new(), key, reason)]),
            }
        }
        soci::Kind::Mixed { ours, theirs } => {
            let reason = format!(
                "this is a setting of SOCI's snapshotter, and {ours} is one of sociblk's: keep them in files of their \
                 own, or translate SOCI's with `sociblk config convert`"
            );
            Err(vec![problem(&lines, &theirs, &reason)])
        }
    }
}

/// Tries each setting by itself, so that one mistake hides no other, then all together.
fn ours(table: Table, lines: &Lines) -> Result<Config, Vec<Problem>> {
    let mut found = Vec::new();
    for (section, value) in &table {
        let Value::Table(settings) = value else {
            found.extend(one(section.clone(), alone(section, value.clone()), lines));
            continue;
        };
        if let Err(error) = Config::deserialize(Value::Table(alone(section, Value::Table(Table::new())))) {
            found.push(problem(lines, section, error.message()));
            continue;
        }
        for (key, value) in settings {
            let name = format!("{section}.{key}");
            found.extend(one(name, alone(section, Value::Table(alone(key, value.clone()))), lines));
        }
    }
    if !found.is_empty() {
        found.sort_by_key(|problem| problem.line);
        return Err(found);
    }
    match Config::deserialize(Value::Table(table)) {
        Err(error) => Err(vec![problem(lines, "", error.message())]),
        Ok(config) => match config.wrong() {
            Some((key, reason)) => Err(vec![problem(lines, key, reason)]),
            None => Ok(config),
        },
    }
}

fn alone(key: &str, value: Value) -> Table {
    Table::from_iter([(key.to_owned(), value)])
}

/// What is wrong with a setting, whatever the others are.
fn one(name: String, table: Table, lines: &Lines) -> Option<Problem> {
    let reason = match Config::deserialize(Value::Table(table)) {
        Err(error) => error.message().to_owned(),
        // What a setting is wrong about only together with others is found when all are there.
        Ok(config) => config.wrong().filter(|(key, _)| *key == name)?.1.to_owned(),
    };
    Some(problem(lines, &name, &reason))
}

fn problem(lines: &Lines, key: &str, reason: &str) -> Problem {
    let path: Vec<String> = key.split('.').map(str::to_owned).collect();
    Problem { line: lines.get(&path).copied(), key: key.to_owned(), reason: reason.trim().replace('\n', " ") }
}

fn no_toml(text: &str, error: &toml::de::Error) -> Problem {
    let line = error.span().map(|span| line_of(text, span.start));
    Problem { line, key: String::new(), reason: error.message().trim().replace('\n', " ") }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn note_lines(text: &str, table: &DeTable<'_>, path: &mut Vec<String>, lines: &mut Lines) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        lines.entry(path.clone()).or_insert_with(|| line_of(text, key.span().start));
        note_lines_below(text, value, path, lines);
        path.pop();
    }
}

fn note_lines_below(text: &str, value: &Spanned<DeValue<'_>>, path: &mut Vec<String>, lines: &mut Lines) {
    match value.get_ref() {
        DeValue::Table(table) => note_lines(text, table, path, lines),
        DeValue::Array(values) => values.iter().for_each(|value| note_lines_below(text, value, path, lines)),
        _ => {}
    }
}

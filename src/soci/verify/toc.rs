//! A table of contents against the headers of the tar.

use std::collections::HashMap;

use super::{Findings, Part};
use crate::spans::ztoc::Ztoc;
use crate::spans::{PaxRecord, TocEntry};
use crate::units::LayerOffset;

/// Entries of the tar that the zTOC lacks at their place and that may still come at another.
const MAX_AWAITED: usize = 10_000;

/// Holds the zTOC's entries against those of the tar. An entry is told by where its data begin, which no two share, or by
/// its name.
pub(super) fn compare(tar: &[TocEntry<'_>], ztoc: &Ztoc<'_>, findings: &mut Findings) {
    // Missed so far, by place: number in the tar.
    let mut missed: HashMap<LayerOffset, usize> = HashMap::new();
    let mut expected = tar.iter().enumerate().peekable();
    for (number, entry) in ztoc.entries().enumerate() {
        let said = match entry {
            Ok(said) => said,
            Err(error) => {
                findings.add(Part::Ztoc, "table of contents", "entries that can be read", error);
                break;
            }
        };
        let (at, part) = (said.data.start(), part(number, &said));
        // What lies before this entry's place is missing, unless it is this entry, with a wrong place.
        let mut met = None;
        while let Some((i, right)) = expected.peek().copied() {
            let same_name = right.name == said.name;
            if same_name || right.data.start() == at {
                expected.next();
                met = Some(right);
                break;
            }
            if right.data.start() > at {
                break;
            }
            expected.next();
            if missed.len() < MAX_AWAITED {
                missed.insert(right.data.start(), i);
            } else {
                lacking(i, right, findings);
            }
        }
        match met {
            Some(right) => fields(&part, right, &said, findings),
            None => match missed.remove(&at).and_then(|i| Some((i, tar.get(i)?))) {
                Some((i, right)) => {
                    findings.add(part.clone(), "order", format!("entry {i} of the tar"), format!("entry {number}"));
                    fields(&part, right, &said, findings);
                }
                None => findings.add(part, "entry", "none in the tar", "one"),
            },
        }
    }
    let mut missed: Vec<usize> = missed.into_values().collect();
    missed.sort_unstable();
    for i in missed {
        if let Some(right) = tar.get(i) {
            lacking(i, right, findings);
        }
    }
    expected.for_each(|(i, right)| lacking(i, right, findings));
}

fn part(number: usize, entry: &TocEntry<'_>) -> Part {
    Part::Entry { number, name: text(&entry.name) }
}

fn lacking(number: usize, right: &TocEntry<'_>, findings: &mut Findings) {
    findings.add(part(number, right), "entry", "one, as in the tar", "none");
}

fn fields(part: &Part, right: &TocEntry<'_>, said: &TocEntry<'_>, findings: &mut Findings) {
    if right == said {
        return;
    }
    let mut differ = |field: &str, right: String, said: String| {
        if right != said {
            findings.add(part.clone(), field, right, said);
        }
    };
    differ("name", text(&right.name), text(&said.name));
    differ("type", right.kind.as_str().to_owned(), said.kind.as_str().to_owned());
    differ("offset", right.data.start().to_string(), said.data.start().to_string());
    differ("size", right.data.len_bytes().to_string(), said.data.len_bytes().to_string());
    differ("link target", text(&right.linkname), text(&said.linkname));
    differ("mode", format!("{:#o}", right.mode), format!("{:#o}", said.mode));
    differ("uid", right.uid.to_string(), said.uid.to_string());
    differ("gid", right.gid.to_string(), said.gid.to_string());
    differ("uname", text(&right.uname), text(&said.uname));
    differ("gname", text(&right.gname), text(&said.gname));
    differ("mtime", right.mtime.to_string(), said.mtime.to_string());
    differ("devmajor", right.devmajor.to_string(), said.devmajor.to_string());
    differ("devminor", right.devminor.to_string(), said.devminor.to_string());
    records(part, &right.pax, &said.pax, findings);
}

/// PAX records, both sorted by key.
fn records(part: &Part, right: &[PaxRecord<'_>], said: &[PaxRecord<'_>], findings: &mut Findings) {
    let value_in = |records: &[PaxRecord<'_>], key: &[u8]| {
        let at = records.binary_search_by(|(other, _)| other.as_ref().cmp(key)).ok()?;
        Some(text(&records.get(at)?.1))
    };
    let shown = |value: Option<String>| value.map_or_else(|| "none".to_owned(), |value| format!("\"{value}\""));
    for (key, value) in right {
        let (value, other) = (Some(text(value)), value_in(said, key));
        if value != other {
            findings.add(part.clone(), &format!("PAX record {}", text(key)), shown(value), shown(other));
        }
    }
    for (key, value) in said {
        if value_in(right, key).is_none() {
            findings.add(part.clone(), &format!("PAX record {}", text(key)), "none", shown(Some(text(value))));
        }
    }
}

/// Bytes, unambiguously: what is no plain text is escaped.
fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

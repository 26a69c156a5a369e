//! containerd's filters (pkg/filters of containerd): what `List` and garbage collection ask for.
//!
//! A filter is a list of selectors, separated by commas, which must all hold: a field, alone (it must be set and not
//! empty), or with `==`, `!=` or `~=` (a regular expression) and a value. Fields are names joined by dots, quoted where
//! they contain other characters: `labels."containerd.io/snapshot.ref"==sha256:…`. Of several filters, one must hold.

use regex::Regex;

use super::info::Info;

/// Longest filter that is read.
const MAX_BYTES: usize = 64 << 10;

/// One filter: all of its selectors must hold.
#[derive(Debug, Clone)]
pub struct Filter {
    selectors: Vec<Selector>,
}

#[derive(Debug, Clone)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("filter {filter:?}: {reason} at byte {at}")]
pub struct FilterError {
    /// The filter.
    pub filter: String,
    /// Where reading stopped.
    pub at: usize,
    /// What was wrong.
    pub reason: &'static str,
}

/// Whether `info` passes one of `filters`, or there are none.
#[must_use]
pub fn any_matches(filters: &[Filter], info: &Info) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.matches(info))
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut scanner = Scanner { text, at: 0 };
        if text.len() > MAX_BYTES {
            return Err(scanner.bad("it is too long"));
        }
        let mut selectors = Vec::new();
        if text.is_empty() {
            // Selects all.
            return Ok(Self { selectors });
        }
        loop {
            selectors.push(scanner.selector()?);
            if scanner.rest().is_empty() {
                return Ok(Self { selectors });
            }
            if !scanner.take(",") {
                return Err(scanner.bad("a comma is expected"));
            }
        }
    }

    fn matches(&self, info: &Info) -> bool {
        self.selectors.iter().all(|selector| {
            let value = field(info, &selector.field);
            match &selector.test {
                Test::Present => value.is_some_and(|value| !value.is_empty()),
                Test::Equal(wanted) => value == Some(wanted.as_str()),
                Test::NotEqual(wanted) => value != Some(wanted.as_str()),
                Test::Matches(pattern) => value.is_some_and(|value| pattern.is_match(value)),
            }
        })
    }
}

/// Value of a field; `None` for one that is not there.
fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    match path {
        [name] if name == "name" => Some(&info.name),
        [name] if name == "parent" => Some(&info.parent),
        [name] if name == "kind" => Some(info.kind.word()),
        // A label's name may hold dots that nobody quoted.
        [first, rest @ ..] if first == "labels" && !rest.is_empty() => {
            info.labels.get(&rest.join(".")).map(String::as_str)
        }
        _ => None,
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn bad(&self, reason: &'static str) -> FilterError {
        FilterError { filter: self.text.to_owned(), at: self.at, reason }
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut field = vec![self.field_part()?];
        while self.take(".") {
            field.push(self.field_part()?);
        }
        let test = if self.take("==") {
            Test::Equal(self.value()?)
        } else if self.take("!=") {
            Test::NotEqual(self.value()?)
        } else if self.take("~=") {
            let pattern = self.value()?;
            Test::Matches(Regex::new(&pattern).map_err(|_| self.bad("the regular expression before this is wrong"))?)
        } else {
            Test::Present
        };
        Ok(Selector { field, test })
    }

    fn field_part(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted('"');
        }
        let part = self.word(|c| c.is_alphanumeric() || c == '_');
        if part.is_empty() { Err(self.bad("a field is expected")) } else { Ok(part) }
    }

    fn value(&mut self) -> Result<String, FilterError> {
        match self.rest().chars().next() {
            Some(quote @ ('"' | '|' | '/')) => self.quoted(quote),
            _ => Ok(self.word(|c| c != ',' && !c.is_whitespace())),
        }
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default().to_owned()
    }

    /// A quoted text; a backslash takes the next character as it is.
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((_, c)) = chars.next() {
            match c {
                c if c == quote => {
                    let end = chars.next().map_or(self.text.len(), |(i, _)| self.at + i);
                    self.at = end;
                    return Ok(text);
                }
                // In a regular expression a backslash is its own, but before the quote.
                '\\' if quote != '"' => match chars.next() {
                    Some((_, escaped)) if escaped == quote => text.push(escaped),
                    Some((_, escaped)) => text.extend(['\\', escaped]),
                    None => break,
                },
                '\\' => match chars.next() {
                    Some((_, escaped)) => text.push(escaped),
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err(self.bad("a quote is never closed"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::info::Kind;
    use super::*;

    fn info() -> Info {
        let labels = [("containerd.io/snapshot.ref", "sha256:abc"), ("plain", "x y"), ("a.b", "dots"), ("empty", "")];
        Info {
            name: "default/1/sha256:abc".to_owned(),
            parent: "base".to_owned(),
            kind: Kind::Committed,
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn filters_select_what_containerds_do() {
        for (filter, want) in [
            ("", true),
            ("kind==Committed", true),
            ("kind==Active", false),
            ("name==default/1/sha256:abc,parent==base", true),
            ("name==default/1/sha256:abc,parent==other", false),
            ("labels.\"containerd.io/snapshot.ref\"==sha256:abc,parent==base", true),
            ("labels.\"containerd.io/snapshot.ref\"==\"sha256:abc\"", true),
            ("labels.\"containerd.io/snapshot.ref\"", true),
            ("labels.absent", false),
            ("labels.empty", false),
            ("labels.absent!=x", true),
            ("labels.plain==\"x y\"", true),
            ("labels.a.b==dots", true),
            ("labels.plain!=\"x y\"", false),
            ("name~=^default/", true),
            ("name~=/^default\\/[0-9]+/", true),
            ("name~=|[a-z]{9}|", false),
            ("parent~=x", false),
            ("unknown==x", false),
            ("parent==\"ba\\se\"", true),
        ] {
            let parsed = Filter::parse(filter).unwrap_or_else(|e| panic!("{filter:?}: {e}"));
            assert_eq!(any_matches(&[parsed], &info()), want, "{filter:?}");
        }
        assert!(any_matches(&[], &info()));
        let or = ["kind==View", "parent==base"].map(|f| Filter::parse(f).expect("good"));
        assert!(any_matches(&or, &info()));
    }

    #[test]
    fn broken_filters_are_errors() {
        for filter in
            ["==x", "name==x,", "name==\"x", "labels.\"x==y", "name~=(", "name==x y", "na me", ",", "name==a,,"]
        {
            assert!(Filter::parse(filter).is_err(), "{filter:?}");
        }
        assert!(Filter::parse(&"a".repeat(MAX_BYTES + 1)).is_err());
    }
}

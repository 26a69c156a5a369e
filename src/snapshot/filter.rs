//! containerd's filters (pkg/filters of containerd): what `List` asks for, and how containerd finds the layer that
//! `Prepare` said is there already.
//!
//! A filter is a list of selectors, separated by commas, which must all hold: a field, alone (it must be there), or with
//! `==`, `!=` or `~=` (a regular expression) and a value. Fields are names joined by dots, quoted where they contain
//! other characters: `labels."containerd.io/snapshot.ref"==sha256:…`. Quoted texts have Go's escapes: containerd quotes
//! names with `%q`. Of several filters, one must hold.
//!
//! One thing is stricter: a regular expression that cannot be read is an error here; containerd's matches nothing.

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
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value == Some(wanted.as_str()),
                // What is not there reads as empty.
                Test::NotEqual(wanted) => value.unwrap_or_default() != wanted.as_str(),
                Test::Matches(pattern) => pattern.is_match(value.unwrap_or_default()),
            }
        })
    }
}

/// Value of a field; `None` for one that is not there. What follows the name of a field that has no parts is ignored, as
/// containerd does.
fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&info.name),
        "parent" => Some(&info.parent),
        "kind" => Some(info.kind.word()),
        // A label's name may hold dots that nobody quoted.
        "labels" => info.labels.get(&rest.join(".")).map(String::as_str),
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

    /// White space is passed over before a token, never after the last one of a selector.
    fn skip_space(&mut self) {
        self.word(char::is_whitespace);
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut field = vec![self.field_part()?];
        while self.take(".") {
            field.push(self.field_part()?);
        }
        if self.rest().is_empty() || self.rest().starts_with(',') {
            return Ok(Selector { field, test: Test::Present });
        }
        self.skip_space();
        let test = match self.word(|c| matches!(c, '=' | '!' | '~')).as_str() {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => {
                let pattern = self.value(true)?;
                let pattern = Regex::new(&pattern);
                Test::Matches(pattern.map_err(|_| self.bad("the regular expression before this is wrong"))?)
            }
            _ => return Err(self.bad("an operator is expected (==, != or ~=)")),
        };
        Ok(Selector { field, test })
    }

    fn field_part(&mut self) -> Result<String, FilterError> {
        self.skip_space();
        if self.rest().starts_with('"') {
            return self.quoted('"');
        }
        let part = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
        if part.is_empty() { Err(self.bad("a field is expected")) } else { Ok(part) }
    }

    /// Regular expressions may also be quoted by `/` or `|`.
    fn value(&mut self, pattern: bool) -> Result<String, FilterError> {
        self.skip_space();
        match self.rest().chars().next() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('|' | '/')) if pattern => self.quoted(quote),
            Some('|' | '/') => Err(self.bad("only regular expressions may be quoted like this")),
            Some('.') | None => Err(self.bad("a value is expected")),
            Some(_) => {
                let value = self.word(|c| c != ',' && !c.is_whitespace() && !c.is_control());
                if value.is_empty() { Err(self.bad("a value is expected")) } else { Ok(value) }
            }
        }
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default().to_owned();
        self.at += end;
        word
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// A quoted text, with the escapes of Go's strings and of the quote itself.
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        let mut bytes = Vec::new();
        let push = |bytes: &mut Vec<u8>, c: char| bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        self.next();
        loop {
            match self.next() {
                None | Some('\n') => return Err(self.bad("a quote is never closed")),
                Some(c) if c == quote => break,
                Some('\\') => match self.escape(quote)? {
                    Escape::Char(c) => push(&mut bytes, c),
                    Escape::Byte(byte) => bytes.push(byte),
                },
                Some(c) => push(&mut bytes, c),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.bad("the text in quotes is not UTF-8"))
    }

    /// What follows a backslash.
    fn escape(&mut self, quote: char) -> Result<Escape, FilterError> {
        let wrong = |this: &Self| this.bad("no such escape");
        Ok(match self.next() {
            Some('a') => Escape::Char('\x07'),
            Some('b') => Escape::Char('\x08'),
            Some('f') => Escape::Char('\x0c'),
            Some('n') => Escape::Char('\n'),
            Some('r') => Escape::Char('\r'),
            Some('t') => Escape::Char('\t'),
            Some('v') => Escape::Char('\x0b'),
            Some('\\') => Escape::Char('\\'),
            Some(c) if c == quote => Escape::Char(c),
            Some('x') => Escape::Byte(u8::try_from(self.digits(16, 2)?).map_err(|_| wrong(self))?),
            Some('u') => Escape::Char(char::from_u32(self.digits(16, 4)?).ok_or_else(|| wrong(self))?),
            Some('U') => Escape::Char(char::from_u32(self.digits(16, 8)?).ok_or_else(|| wrong(self))?),
            Some('0'..='7') => {
                self.at -= 1;
                Escape::Byte(u8::try_from(self.digits(8, 3)?).map_err(|_| wrong(self))?)
            }
            _ => return Err(wrong(self)),
        })
    }

    fn digits(&mut self, base: u32, count: usize) -> Result<u32, FilterError> {
        let digits = self.rest().get(..count).filter(|digits| digits.chars().all(|c| c.is_digit(base)));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, base).ok());
        let number = number.ok_or_else(|| self.bad("an escape is cut short"))?;
        self.at += count;
        Ok(number)
    }
}

/// An escaped character, or a byte of one.
enum Escape {
    Char(char),
    Byte(u8),
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::info::Kind;
    use super::*;

    fn info() -> Info {
        let labels =
            [("containerd.io/snapshot.ref", "sha256:abc"), ("plain", "x y"), ("a.b", "dots"), ("say \"\\", "quoted")];
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
            ("kind==committed", true),
            ("kind==Committed", false),
            ("kind==active", false),
            ("parent", true),
            ("labels", false),
            ("name.ignored==default/1/sha256:abc", true),
            (" name == default/1/sha256:abc, parent == base", true),
            ("labels.absent~=/.*/", true),
            ("labels.absent~=/.+/", false),
            ("labels.absent!=\"\"", false),
            ("labels.\"say \\\"\\\\\"==quoted", true),
            ("parent==\"\\x62\\u0061\\U00000073\\145\"", true),
            ("name==default/1/sha256:abc,parent==base", true),
            ("name==default/1/sha256:abc,parent==other", false),
            ("labels.\"containerd.io/snapshot.ref\"==sha256:abc,parent==base", true),
            ("labels.\"containerd.io/snapshot.ref\"==\"sha256:abc\"", true),
            ("labels.\"containerd.io/snapshot.ref\"", true),
            ("labels.absent", false),
            ("labels.absent!=x", true),
            ("labels.plain==\"x y\"", true),
            ("labels.a.b==dots", true),
            ("labels.plain!=\"x y\"", false),
            ("name~=^default/", true),
            ("name~=/^default\\/[0-9]+/", true),
            ("name~=|[a-z]{9}|", false),
            ("parent~=x", false),
            ("unknown==x", false),
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
        for filter in [
            "==x",
            "name==x,",
            "name==\"x",
            "labels.\"x==y",
            "name~=(",
            "name==x y",
            "na me",
            ",",
            "name==a,,",
            // Of containerd's own table.
            "labels.|foo|==omg_asdf.asdf-qwer",
            "labels.?\"more\".post==present",
            "labels.",
            "image~=,id?=?fbaq",
            "labels.ns/key==value",
            "labels.key==/value",
            "name==",
            "name===x",
            "name==/x/",
            "name==.x",
            "parent==\"ba\\se\"",
            "parent==\"\\xff\"",
            "name=x",
            "name~=/\\d/",
            "name==\"a\nb\"",
        ] {
            assert!(Filter::parse(filter).is_err(), "{filter:?}");
        }
        assert!(Filter::parse(&"a".repeat(MAX_BYTES + 1)).is_err());
    }
}

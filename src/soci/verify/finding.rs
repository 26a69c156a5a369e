//! What is wrong with a zTOC.

use std::fmt;

use serde::Serialize;

/// Findings that are told of one layer; more are only counted.
const MAX_TOLD: usize = 20;

/// Longest text of a value.
const MAX_VALUE_CHARS: usize = 300;

/// What a finding is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "part", rename_all = "kebab-case")]
pub enum Part {
    /// The layer itself: it is not what the image names.
    Layer,
    /// The zTOC as a whole.
    Ztoc,
    /// A span.
    Span {
        /// Its number.
        number: usize,
    },
    /// A checkpoint.
    Checkpoint {
        /// Its number.
        number: usize,
    },
    /// An entry of the table of contents.
    Entry {
        /// Its number: in the zTOC; of one that the zTOC lacks, in the tar.
        number: usize,
        /// Its name, made printable.
        name: String,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer => f.write_str("layer"),
            Self::Ztoc => f.write_str("zTOC"),
            Self::Span { number } => write!(f, "span {number}"),
            Self::Checkpoint { number } => write!(f, "checkpoint {number}"),
            Self::Entry { number, name } => write!(f, "entry {number} {name:?}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Where.
    #[serde(flatten)]
    pub part: Part,
    /// Which field.
    pub field: String,
    /// What is right: what the layer shows, or, of the layer itself, what the image says.
    pub expected: String,
    /// What was found: what the zTOC says, or what the layer is.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.part, self.field, self.expected, self.found)
    }
}

/// All that is wrong with one layer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Findings {
    /// The first of them.
    pub told: Vec<Finding>,
    /// How many there are in all.
    pub total: u64,
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, part: Part, field: &str, expected: impl fmt::Display, found: impl fmt::Display) {
        self.total += 1;
        if self.told.len() < MAX_TOLD {
            let (expected, found) = (shortened(expected.to_string()), shortened(found.to_string()));
            self.told.push(Finding { part, field: field.to_owned(), expected, found });
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

//! The prefetch artifact: which spans of a layer to fetch first. One document for each layer.

use serde::{Deserialize, Serialize};

use super::SociError;
use super::toc::FileSpans;

/// Longest document that is read.
pub const MAX_PREFETCH_BYTES: u64 = 1 << 20;

/// Spans, first and last included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct SpanRange {
    /// First span.
    pub start_span: u32,
    /// Last span.
    pub end_span: u32,
}

#[derive(Serialize)]
struct Document<'a> {
    version: &'static str,
    prefetch_spans: &'a [SpanRange],
}

/// Sorted; ranges that overlap or touch become one.
#[must_use]
pub fn merged(files: impl IntoIterator<Item = FileSpans>) -> Vec<SpanRange> {
    merged_ranges(files.into_iter().map(|file| SpanRange { start_span: file.first, end_span: file.last }).collect())
}

/// As [`merged`], of ranges.
#[must_use]
pub fn merged_ranges(mut ranges: Vec<SpanRange>) -> Vec<SpanRange> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let touches = next.start_span <= last.end_span.saturating_add(1);
        if touches {
            last.end_span = last.end_span.max(next.end_span);
        }
        touches
    });
    ranges
}

#[derive(Deserialize)]
struct Foreign {
    version: String,
    #[serde(default)]
    prefetch_spans: Vec<ForeignRange>,
}

#[derive(Deserialize)]
struct ForeignRange {
    start_span: u32,
    end_span: u32,
    #[serde(default)]
    priority: i64,
}

/// The ranges of a foreign document, the most urgent first. That the layer has these spans is not known here.
///
/// # Errors
/// [`SociError::Index`] for what is longer than [`MAX_PREFETCH_BYTES`], no such document, of another version, or has a range
/// that ends before it begins.
pub fn parse(bytes: &[u8]) -> Result<Vec<SpanRange>, SociError> {
    let bad = |reason: String| SociError::Index { reason: format!("prefetch artifact: {reason}") };
    if bytes.len() as u64 > MAX_PREFETCH_BYTES {
        return Err(bad(format!("it has {} bytes; at most {MAX_PREFETCH_BYTES} are accepted", bytes.len())));
    }
    let Foreign { version, mut prefetch_spans } = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if version != "1.0" {
        return Err(bad(format!("version {version:.20} is not known")));
    }
    if let Some(wrong) = prefetch_spans.iter().find(|range| range.end_span < range.start_span) {
        return Err(bad(format!("a range ends at span {}, before its start {}", wrong.end_span, wrong.start_span)));
    }
    prefetch_spans.sort_by_key(|range| range.priority);
    let ranges = prefetch_spans.into_iter();
    Ok(ranges.map(|ForeignRange { start_span, end_span, .. }| SpanRange { start_span, end_span }).collect())
}

/// The document, as SOCI writes it.
///
/// # Errors
/// Never for ranges; the writer's own error otherwise.
pub fn document(ranges: &[SpanRange]) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Document { version: "1.0", prefetch_spans: ranges })
}

/// A path as the user writes it, as tars name it: cleaned, without a leading `/`.
#[must_use]
pub fn tar_name(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(first: u32, last: u32) -> FileSpans {
        FileSpans { name: 0, first, last }
    }

    #[test]
    fn documents_are_those_of_soci() {
        for (files, want) in [
            (vec![file(3, 3)], r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":3}]}"#),
            (
                vec![file(9, 9), file(0, 1), file(2, 4), file(3, 3), file(6, 7)],
                r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":4},{"start_span":6,"end_span":7},{"start_span":9,"end_span":9}]}"#,
            ),
        ] {
            let text = document(&merged(files)).expect("a document");
            assert_eq!(String::from_utf8(text).expect("text"), want);
        }
    }

    #[test]
    fn foreign_documents_are_read_or_refused() {
        let range = |start_span, end_span| SpanRange { start_span, end_span };
        let text = r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":4,"priority":2},{"start_span":0,"end_span":0}],"x":1}"#;
        assert_eq!(parse(text.as_bytes()).expect("ranges"), [range(0, 0), range(3, 4)]);
        assert_eq!(parse(br#"{"version":"1.0"}"#).expect("none"), []);
        for (text, words) in [
            (String::new(), "prefetch artifact"),
            (r#"{"version":"2.0","prefetch_spans":[]}"#.to_owned(), "version 2.0"),
            (r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":2}]}"#.to_owned(), "before its start"),
            (r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":2}]}"#.to_owned(), "prefetch artifact"),
            (" ".repeat(2 << 20), "at most"),
        ] {
            let error = parse(text.as_bytes()).expect_err(words).to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn paths_become_names_of_tars() {
        for (path, want) in
            [("/usr/bin/python3", "usr/bin/python3"), ("a//b/./c/../d/", "a/b/d"), ("/../x", "x"), ("/", "")]
        {
            assert_eq!(tar_name(path), want, "{path}");
        }
    }
}

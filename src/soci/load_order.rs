//! The prefetch artifact: which spans of a layer to fetch first. One document for each layer.

use serde::Serialize;

use super::toc::FileSpans;

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
    let mut ranges: Vec<SpanRange> =
        files.into_iter().map(|file| SpanRange { start_span: file.first, end_span: file.last }).collect();
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
    fn paths_become_names_of_tars() {
        for (path, want) in
            [("/usr/bin/python3", "usr/bin/python3"), ("a//b/./c/../d/", "a/b/d"), ("/../x", "x"), ("/", "")]
        {
            assert_eq!(tar_name(path), want, "{path}");
        }
    }
}

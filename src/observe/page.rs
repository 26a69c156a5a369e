//! Pages of metrics in Prometheus' text format (version 0.0.4).

use std::fmt::Write as _;

/// What a page is announced as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// A page under way.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// Adds a family of metrics: `kind` is `counter`, `gauge` or `histogram`; each sample is what follows the family's name
    /// (labels in braces, or a suffix) and its value.
    pub fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, String)]) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (suffix, value) in samples {
            let _ = writeln!(self.text, "{name}{suffix} {value}");
        }
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

/// A sample with labels, whose values may be any text.
#[must_use]
pub fn sample(labels: &[(&str, &str)], value: impl std::fmt::Display) -> (String, String) {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    (format!("{{{}}}", pairs.join(",")), value.to_string())
}

/// Samples of a histogram: how many were at most each bound, their sum, their number. `counts` has one more than `bounds`.
#[must_use]
pub fn histogram(bounds: &[u64], counts: &[u64], sum: impl std::fmt::Display) -> Vec<(String, String)> {
    let (mut below, mut samples) = (0, Vec::new());
    let bounds = bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(counts) {
        below += count;
        samples.push((format!("_bucket{{le=\"{bound}\"}}"), below.to_string()));
    }
    samples.push(("_sum".to_owned(), sum.to_string()));
    samples.push(("_count".to_owned(), below.to_string()));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_cannot_break_a_page() {
        assert_eq!(
            sample(&[("a", "x\"y\\z\n"), ("b", "")], 3),
            ("{a=\"x\\\"y\\\\z\\n\",b=\"\"}".to_owned(), "3".to_owned())
        );
        let mut page = Page::default();
        page.family("n_total", "counter", "Things.", &[(String::new(), "7".to_owned())]);
        page.family("t_seconds", "histogram", "Times.", &histogram(&[1, 5], &[2, 0, 1], "9.5"));
        let want = "# HELP n_total Things.\n# TYPE n_total counter\nn_total 7\n# HELP t_seconds Times.\n\
                    # TYPE t_seconds histogram\nt_seconds_bucket{le=\"1\"} 2\nt_seconds_bucket{le=\"5\"} 2\n\
                    t_seconds_bucket{le=\"+Inf\"} 3\nt_seconds_sum 9.5\nt_seconds_count 3\n";
        assert_eq!(page.into_text(), want);
    }
}

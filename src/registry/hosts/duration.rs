//! Durations as Go writes them, which `dial_timeout` is (Go `time.ParseDuration`).

use std::time::Duration;

/// Longest duration that is taken, in seconds: more is a slip.
const MAX_S: f64 = 86_400.0;

/// `1s`, `500ms`, `1m30s`, `1.5h`; not negative.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total_s = 0.0_f64;
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_ends);
        let unit_ends = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_ends);
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total_s += number.parse::<f64>().ok()? * unit_s;
        rest = after;
    }
    (!text.is_empty() && total_s <= MAX_S).then(|| Duration::from_secs_f64(total_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, want_ms) in [
            ("1s", Some(1000)),
            ("500ms", Some(500)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            (".5s", Some(500)),
            ("2h", Some(7_200_000)),
            ("+3s", Some(3000)),
            ("0", Some(0)),
            ("1500us", Some(1)),
            ("", None),
            ("5", None),
            ("-1s", None),
            ("s", None),
            ("1 s", None),
            ("1d", None),
            ("1..2s", None),
            ("9999999999999h", None),
        ] {
            assert_eq!(parse(text).map(|d| d.as_millis()), want_ms, "{text:?}");
        }
    }
}

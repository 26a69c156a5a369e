//! Modification times and their text form in a zTOC.

use std::fmt;

/// A modification time: seconds since 1970 (may be negative) and nanoseconds 0..1_000_000_000 after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub struct ModTime {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds, always counted forward from `secs`.
    pub nanos: u32,
}

/// A text that is no RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no RFC 3339 time")]
pub struct ModTimeError {
    /// The text as it came, made printable.
    pub text: String,
}

const SECS_PER_DAY: i64 = 86_400;

/// Days from 0000-03-01 to 1970-01-01 in the proleptic Gregorian calendar.
const DAYS_TO_EPOCH: i64 = 719_468;

impl ModTime {
    /// Go's zero time, 0001-01-01T00:00:00Z. SOCI's writer leaves the text empty for a year outside 0..=9999, and its
    /// reader then falls back to this time.
    pub const GO_ZERO: Self = Self { secs: -62_135_596_800, nanos: 0 };

    /// The text that SOCI's builder writes when its time zone is UTC (Go `time.Time.MarshalText`): RFC 3339 with as
    /// many fractional digits as needed, e.g. `2023-01-02T03:04:05.123Z`. Empty for years outside 0..=9999, which Go
    /// refuses to write.
    #[must_use]
    pub fn to_text(self) -> String {
        let (year, month, day) = civil(self.secs.div_euclid(SECS_PER_DAY));
        if !(0..=9999).contains(&year) {
            return String::new();
        }
        let second = self.secs.rem_euclid(SECS_PER_DAY);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        let mut text = String::with_capacity("2023-01-02T03:04:05.123456789Z".len());
        push_digits(&mut text, year, 4);
        for (mark, number) in [('-', month), ('-', day), ('T', h), (':', m), (':', s)] {
            text.push(mark);
            push_digits(&mut text, number, 2);
        }
        if self.nanos != 0 {
            text.push('.');
            push_digits(&mut text, i64::from(self.nanos), 9);
            text.truncate(text.trim_end_matches('0').len());
        }
        text.push('Z');
        text
    }

    /// Reads the text of a zTOC. Any zone offset is accepted (SOCI's builder writes the local zone of its machine),
    /// digits beyond nanoseconds are dropped; the empty text is [`ModTime::GO_ZERO`].
    ///
    /// # Errors
    /// When the text is no RFC 3339 time.
    pub fn from_text(text: &[u8]) -> Result<Self, ModTimeError> {
        if text.is_empty() {
            return Ok(Self::GO_ZERO);
        }
        parse(text).ok_or_else(|| ModTimeError { text: String::from_utf8_lossy(text).into_owned() })
    }
}

impl fmt::Display for ModTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_text();
        if text.is_empty() { write!(f, "{}.{:09} s since 1970", self.secs, self.nanos) } else { f.write_str(&text) }
    }
}

fn parse(text: &[u8]) -> Option<ModTime> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let &[y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b'T', h0, h1, b':', n0, n1, b':', s0, s1] = date_time else {
        return None;
    };
    let year = number(&[y0, y1, y2, y3], 0..=9999)?;
    let month = number(&[m0, m1], 1..=12)?;
    let day = number(&[d0, d1], 1..=days_in_month(year, month))?;
    let hour = number(&[h0, h1], 0..=23)?;
    let minute = number(&[n0, n1], 0..=59)?;
    let second = number(&[s0, s1], 0..=59)?;

    let (nanos, zone) = match rest {
        [b'.' | b',', rest @ ..] => {
            let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            let (fraction, zone) = rest.split_at_checked(digits).filter(|(f, _)| !f.is_empty())?;
            let padded = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
            (padded.fold(0, |n, digit| n * 10 + u32::from(digit - b'0')), zone)
        }
        zone => (0, zone),
    };
    let ahead = match *zone {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), h0, h1, b':', m0, m1] => {
            let ahead = number(&[h0, h1], 0..=23)? * 3600 + number(&[m0, m1], 0..=59)? * 60;
            if sign == b'+' { ahead } else { -ahead }
        }
        _ => return None,
    };
    let secs = days(year, month, day) * SECS_PER_DAY + hour * 3600 + minute * 60 + second - ahead;
    Some(ModTime { secs, nanos })
}

/// A number in as many digits as asked for. A table of contents holds many times: with `format!`, they took two thirds
/// of the time of writing a zTOC.
fn push_digits(text: &mut String, number: i64, digits: u32) {
    for power in (0..digits).rev() {
        let digit = u8::try_from(number / 10_i64.pow(power) % 10).unwrap_or(0);
        text.push(char::from(b'0' + digit));
    }
}

fn number(digits: &[u8], range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    let mut n = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        n = n * 10 + i64::from(digit - b'0');
    }
    range.contains(&n).then_some(n)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01. Years are counted from March, so that a leap day ends its year, in eras of 400 years.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - DAYS_TO_EPOCH
}

/// The inverse of [`days`]: year, month, day. Takes any number of days that seconds in an `i64` can hold.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_EPOCH;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(secs: i64, nanos: u32) -> ModTime {
        ModTime { secs, nanos }
    }

    #[test]
    fn text_is_what_go_writes() {
        for (value, text) in [
            (time(0, 0), "1970-01-01T00:00:00Z"),
            (time(-1, 0), "1969-12-31T23:59:59Z"),
            (time(-1, 500_000_000), "1969-12-31T23:59:59.5Z"),
            (time(1_672_628_645, 123_000_000), "2023-01-02T03:04:05.123Z"),
            (time(951_782_400, 1), "2000-02-29T00:00:00.000000001Z"),
            (time(4_107_542_400, 0), "2100-03-01T00:00:00Z"),
            (time(253_402_300_799, 999_999_999), "9999-12-31T23:59:59.999999999Z"),
            (time(-62_167_219_200, 0), "0000-01-01T00:00:00Z"),
            (ModTime::GO_ZERO, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(value.to_text(), text);
            assert_eq!(ModTime::from_text(text.as_bytes()), Ok(value));
        }
        for unwritable in [253_402_300_800, -62_167_219_201, i64::MAX, i64::MIN] {
            assert_eq!(time(unwritable, 0).to_text(), "");
        }
        assert_eq!(ModTime::from_text(b""), Ok(ModTime::GO_ZERO));
    }

    #[test]
    fn zones_and_long_fractions_are_read() {
        for (text, want) in [
            ("2023-01-02T03:04:05+01:30", time(1_672_628_645 - 5400, 0)),
            ("2023-01-02T03:04:05.25-08:00", time(1_672_628_645 + 28_800, 250_000_000)),
            ("2023-01-02T03:04:05,1234567899Z", time(1_672_628_645, 123_456_789)),
        ] {
            assert_eq!(ModTime::from_text(text.as_bytes()), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "yesterday",
            "2023-01-02",
            "2023-01-02T03:04:05",
            "2023-01-02T03:04:05.Z",
            "2023-13-02T03:04:05Z",
            "2023-02-29T03:04:05Z",
            "2023-01-02T24:04:05Z",
            "2023-01-02T03:04:60Z",
            "2023-01-02T03:04:05+1:30",
            "2023-01-02T03:04:05ZZ",
            "+023-01-02T03:04:05Z",
        ] {
            assert!(ModTime::from_text(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(secs in -62_167_219_200_i64..253_402_300_800, nanos in 0_u32..1_000_000_000) {
            let value = time(secs, nanos);
            prop_assert_eq!(ModTime::from_text(value.to_text().as_bytes()), Ok(value));
        }

        #[test]
        fn any_bytes_are_a_time_or_an_error(text in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = ModTime::from_text(&text) {
                prop_assert!(value.nanos < 1_000_000_000);
            }
        }
    }
}

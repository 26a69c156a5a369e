//! Which user and group of the host stands for which of a container: the mapping of a user namespace.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The kernel takes no more ranges (Linux `include/linux/user_namespace.h`: UID_GID_MAP_MAX_EXTENTS).
const MAX_RANGES: usize = 340;
/// -1, which is no user.
const NOBODY: u32 = u32::MAX;

/// Numbers that follow each other, in a container and on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct IdRange {
    inside: u32,
    outside: u32,
    count: u32,
}

impl IdRange {
    /// Whether all numbers are somebody's: the last one is below [`NOBODY`] when what follows it is a number.
    fn is_within(first: u32, count: u32) -> bool {
        first.checked_add(count).is_some()
    }
}

/// Why a mapping is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdRangesError {
    /// A part has another form.
    #[error("{part:?} is not INSIDE:OUTSIDE:COUNT, three numbers of which the last is not 0")]
    Form {
        /// The part.
        part: String,
    },
    /// A range goes beyond what numbers there are.
    #[error("{part:?} goes beyond {}", NOBODY - 1)]
    Beyond {
        /// The part.
        part: String,
    },
    /// Two ranges have a number in common.
    #[error("{part:?} overlaps with another range")]
    Overlap {
        /// The part.
        part: String,
    },
    /// The kernel takes fewer ranges.
    #[error("{count} ranges; the kernel takes {MAX_RANGES}")]
    Many {
        /// How many.
        count: usize,
    },
}

/// A mapping of users or of groups, in the words of containerd's labels: `INSIDE:OUTSIDE:COUNT`, separated by commas.
/// At least one range; no number is in two of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct IdRanges(Vec<IdRange>);

impl IdRanges {
    /// Everybody is who they are.
    #[must_use]
    pub fn identity() -> Self {
        Self(vec![IdRange { inside: 0, outside: 0, count: NOBODY }])
    }

    /// Who on the host stands for `inside`; `None`: nobody.
    #[must_use]
    pub fn outside(&self, inside: u32) -> Option<u32> {
        let range = self.0.iter().find(|r| inside.checked_sub(r.inside).is_some_and(|n| n < r.count))?;
        Some(range.outside + (inside - range.inside))
    }

    /// The text that `/proc/PID/uid_map` and `gid_map` take (user_namespaces(7)).
    #[must_use]
    pub fn proc_text(&self) -> String {
        self.0.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
    }
}

impl fmt::Display for IdRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, r) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}:{}", r.inside, r.outside, r.count)?;
        }
        Ok(())
    }
}

impl From<IdRanges> for String {
    fn from(ranges: IdRanges) -> Self {
        ranges.to_string()
    }
}

impl TryFrom<String> for IdRanges {
    type Error = IdRangesError;

    fn try_from(text: String) -> Result<Self, IdRangesError> {
        text.parse()
    }
}

impl FromStr for IdRanges {
    type Err = IdRangesError;

    fn from_str(text: &str) -> Result<Self, IdRangesError> {
        let count = text.split(',').count();
        if count > MAX_RANGES {
            return Err(IdRangesError::Many { count });
        }
        let mut ranges: Vec<IdRange> = Vec::with_capacity(count);
        for part in text.split(',') {
            let range = range(part).ok_or_else(|| IdRangesError::Form { part: part.to_owned() })?;
            if !IdRange::is_within(range.inside, range.count) || !IdRange::is_within(range.outside, range.count) {
                return Err(IdRangesError::Beyond { part: part.to_owned() });
            }
            let meet = |a: u32, b: u32, other: u32| u64::from(a) < u64::from(b) + u64::from(other);
            let overlap = |r: &IdRange| {
                (meet(r.inside, range.inside, range.count) && meet(range.inside, r.inside, r.count))
                    || (meet(r.outside, range.outside, range.count) && meet(range.outside, r.outside, r.count))
            };
            if ranges.iter().any(overlap) {
                return Err(IdRangesError::Overlap { part: part.to_owned() });
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }
}

fn range(part: &str) -> Option<IdRange> {
    // Rust's own parser takes a sign, the kernel's does not.
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
    let mut numbers = part.split(':').map(number);
    let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
    (numbers.next().is_none() && count > 0).then_some(IdRange { inside, outside, count })
}

/// Mappings of users and of groups.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IdMap {
    /// Users.
    pub users: IdRanges,
    /// Groups.
    pub groups: IdRanges,
}

impl IdMap {
    /// User and group on the host that stand for these of the container; `None`: nobody does.
    #[must_use]
    pub fn outside(&self, (user, group): (u32, u32)) -> Option<(u32, u32)> {
        Some((self.users.outside(user)?, self.groups.outside(group)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_containerd_writes_them() {
        let ranges: IdRanges = "0:1000:1,1:100000:65535".parse().expect("two ranges");
        assert_eq!(ranges.to_string(), "0:1000:1,1:100000:65535");
        assert_eq!(ranges.proc_text(), "0 1000 1\n1 100000 65535\n");
        for (inside, outside) in [(0, Some(1000)), (1, Some(100_000)), (65535, Some(165_534)), (65536, None)] {
            assert_eq!(ranges.outside(inside), outside, "{inside}");
        }
        assert_eq!(IdRanges::identity().outside(4_294_967_294), Some(4_294_967_294));
        assert_eq!(IdRanges::identity().to_string().parse(), Ok(IdRanges::identity()));
        let map = IdMap { users: ranges, groups: IdRanges::identity() };
        assert_eq!((map.outside((0, 5)), map.outside((70_000, 5))), (Some((1000, 5)), None));
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        let form = |part: &str| Err(IdRangesError::Form { part: part.to_owned() });
        for part in ["", "0", "0:0", "0:0:0", "0:0:1:1", "+0:0:1", "-1:0:1", "0:x:1", "0:0:4294967296", " 0:0:1"] {
            assert_eq!(part.parse::<IdRanges>(), form(part));
        }
        assert_eq!("0:0:1,".parse::<IdRanges>(), form(""));
        for part in ["1:0:4294967295", "0:4294967295:1", "4294967295:0:1"] {
            assert_eq!(part.parse::<IdRanges>(), Err(IdRangesError::Beyond { part: part.to_owned() }));
        }
        for (text, part) in [("0:0:10,9:100:1", "9:100:1"), ("5:5:1,0:0:10", "0:0:10"), ("0:7:2,2:8:2", "2:8:2")] {
            assert_eq!(text.parse::<IdRanges>(), Err(IdRangesError::Overlap { part: part.to_owned() }));
        }
        let many: Vec<String> = (0..341).map(|n| format!("{n}:{n}:1")).collect();
        assert_eq!(many.join(",").parse::<IdRanges>(), Err(IdRangesError::Many { count: 341 }));
        assert!(many[..340].join(",").parse::<IdRanges>().is_ok());
    }
}

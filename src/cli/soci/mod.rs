//! What the `soci` command does, under the same names: one file for each command, with its arguments.

pub mod convert;
pub mod create;
pub mod index;
pub mod prefetch;
pub mod push;
pub mod serve_index;
pub mod ztoc;

use std::time::{Duration, SystemTime};

use super::output;
use crate::node::artifacts::{Artifacts, Removed};
use crate::node::paths::Paths;
use crate::units::Digest;

/// Runs `sociblk rebuild-db`.
pub fn rebuild_db(paths: &Paths, json: bool) -> anyhow::Result<()> {
    let rebuilt = Artifacts::open(paths)?.rebuild()?;
    if json {
        return output::json(&rebuilt);
    }
    output::line(&format!(
        "{} indexes, {} zTOCs, {} prefetch artifacts; {} entries dropped whose content is gone",
        rebuilt.indexes, rebuilt.ztocs, rebuilt.prefetches, rebuilt.dropped
    ));
    Ok(())
}

/// Says what was removed.
fn say_removed(removed: &Removed, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(removed);
    }
    output::line(&format!(
        "removed {} indexes and {} other blobs, {} freed",
        removed.indexes.len(),
        removed.blobs.len(),
        output::size(removed.freed_bytes)
    ));
    Ok(())
}

/// Prints the digests of rows, one for all rows in succession that have it.
fn say_digests(digests: impl Iterator<Item = Digest>) {
    let mut digests: Vec<Digest> = digests.collect();
    digests.dedup();
    digests.iter().for_each(|digest| output::line(&digest.to_string()));
}

/// How long ago, in the way of SOCI's CREATED column: `1h2m3s ago`.
fn ago(at: SystemTime, now: SystemTime) -> String {
    let age = now.duration_since(at).unwrap_or(Duration::ZERO);
    let s = age.as_secs() + u64::from(age.subsec_millis() >= 500);
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    match (h, m) {
        (0, 0) => format!("{s}s ago"),
        (0, m) => format!("{m}m{s}s ago"),
        (h, m) => format!("{h}h{m}m{s}s ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_go_writes_durations() {
        let now = SystemTime::now();
        for (ms, want) in [
            (0, "0s ago"),
            (499, "0s ago"),
            (500, "1s ago"),
            (59_499, "59s ago"),
            (59_500, "1m0s ago"),
            (3_600_000, "1h0m0s ago"),
            (90_061_000, "25h1m1s ago"),
        ] {
            assert_eq!(ago(now - Duration::from_millis(ms), now), want);
        }
        assert_eq!(ago(now + Duration::from_secs(5), now), "0s ago");
    }
}

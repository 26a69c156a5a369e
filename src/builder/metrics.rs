//! Counters of the service.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::events::Rejection;
use super::job::{Accepted, Counts, JobState};
use crate::observe::page::{Page, histogram, sample};

/// Upper bounds of the histogram of build times, in seconds.
const BOUNDS_S: [u64; 8] = [1, 5, 15, 60, 300, 900, 1800, 3600];

/// Why a request was refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The bearer token is missing or wrong.
    Unauthorized,
    /// The body is no notification.
    Unreadable,
    /// The body is too long.
    TooLong,
    /// The body came too slowly.
    TooSlow,
    /// The queue could not take it.
    Unavailable,
}

impl Refusal {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Unauthorized, "unauthorized"),
        (Self::Unreadable, "unreadable"),
        (Self::TooLong, "too_long"),
        (Self::TooSlow, "too_slow"),
        (Self::Unavailable, "unavailable"),
    ];
}

/// All counters. They begin at 0 with the process; what is in the queue is counted there.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    accepted: AtomicU64,
    duplicates: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
    rejected: [AtomicU64; Rejection::ALL.len()],
    refused: [AtomicU64; Refusal::ALL.len()],
    outcomes: [AtomicU64; JobState::ALL.len()],
    build_ms: AtomicU64,
    builds: [AtomicU64; BOUNDS_S.len() + 1],
}

fn add(counter: Option<&AtomicU64>, count: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(super) fn accepted(&self, told: Accepted) {
        add(Some(&self.accepted), told.accepted);
        add(Some(&self.duplicates), told.duplicates);
    }

    pub(super) fn rejected(&self, reason: Rejection) {
        let at = Rejection::ALL.iter().position(|r| *r == reason);
        add(at.and_then(|at| self.rejected.get(at)), 1);
    }

    pub(super) fn refused(&self, reason: Refusal) {
        let at = Refusal::ALL.iter().position(|(r, _)| *r == reason);
        add(at.and_then(|at| self.refused.get(at)), 1);
    }

    pub(super) fn retried(&self) {
        add(Some(&self.retries), 1);
    }

    pub(super) fn ended(&self, state: JobState) {
        let at = JobState::ALL.iter().position(|s| *s == state);
        add(at.and_then(|at| self.outcomes.get(at)), 1);
    }

    /// A build that worked.
    pub(super) fn built(&self, took: Duration, bytes: u64) {
        add(Some(&self.bytes), bytes);
        add(Some(&self.build_ms), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let at = BOUNDS_S.iter().position(|bound| took <= Duration::from_secs(*bound)).unwrap_or(BOUNDS_S.len());
        add(self.builds.get(at), 1);
    }

    /// The whole page.
    pub(super) fn page(&self, counts: Counts) -> String {
        let mut page = Page::default();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            page.family(&format!("sociblk_builder_{name}"), kind, help, samples);
        };
        let plain = |value: u64| vec![(String::new(), value.to_string())];
        let labelled = |label: &str, name: &str, value: u64| sample(&[(label, name)], value);
        family("queue_length", "gauge", "Images that wait.", &plain(counts.queued));
        let jobs: Vec<_> = JobState::ALL.map(|s| labelled("state", s.word(), counts.of(s))).into();
        family("jobs", "gauge", "Images in the queue's database by state.", &jobs);
        family("images_accepted_total", "counter", "Images that came into the queue.", &plain(get(&self.accepted)));
        let text = "Images of notifications that were known already.";
        family("images_duplicate_total", "counter", text, &plain(get(&self.duplicates)));
        let rejected = Rejection::ALL.iter().zip(&self.rejected);
        let rejected: Vec<_> = rejected.map(|(reason, n)| labelled("reason", reason.word(), get(n))).collect();
        family("events_rejected_total", "counter", "Events that led to nothing.", &rejected);
        let refused = Refusal::ALL.iter().zip(&self.refused);
        let refused: Vec<_> = refused.map(|((_, word), n)| labelled("reason", word, get(n))).collect();
        family("requests_refused_total", "counter", "Notifications that were refused.", &refused);
        let ends = [JobState::Done, JobState::Skipped, JobState::Failed];
        let ended = JobState::ALL.iter().zip(&self.outcomes).filter(|(state, _)| ends.contains(state));
        let ended: Vec<_> = ended.map(|(state, n)| labelled("state", state.word(), get(n))).collect();
        family("jobs_ended_total", "counter", "Jobs that ended, by how.", &ended);
        family("retries_total", "counter", "Tries that failed and are made again.", &plain(get(&self.retries)));
        family(
            "layer_bytes_total",
            "counter",
            "Bytes of layers of images that got an index.",
            &plain(get(&self.bytes)),
        );
        let counts: Vec<u64> = self.builds.iter().map(get).collect();
        let sum_ms = get(&self.build_ms);
        let samples = histogram(&BOUNDS_S, &counts, format!("{}.{:03}", sum_ms / 1000, sum_ms % 1000));
        family("build_seconds", "histogram", "Time from taking up an image until its index is there.", &samples);
        page.into_text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_family_once_and_buckets_add_up() {
        let metrics = Metrics::default();
        metrics.accepted(Accepted { accepted: 3, duplicates: 2 });
        metrics.rejected(Rejection::Own);
        metrics.refused(Refusal::TooLong);
        metrics.retried();
        metrics.ended(JobState::Failed);
        for seconds in [1, 2, 20, 5000] {
            metrics.built(Duration::from_secs(seconds), 10);
        }
        let page = metrics.page(Counts { queued: 7, running: 1, ..Counts::default() });
        for line in [
            "sociblk_builder_queue_length 7",
            "sociblk_builder_jobs{state=\"running\"} 1",
            "sociblk_builder_images_accepted_total 3",
            "sociblk_builder_images_duplicate_total 2",
            "sociblk_builder_events_rejected_total{reason=\"own\"} 1",
            "sociblk_builder_events_rejected_total{reason=\"tag\"} 0",
            "sociblk_builder_requests_refused_total{reason=\"too_long\"} 1",
            "sociblk_builder_jobs_ended_total{state=\"failed\"} 1",
            "sociblk_builder_retries_total 1",
            "sociblk_builder_layer_bytes_total 40",
            "sociblk_builder_build_seconds_bucket{le=\"1\"} 1",
            "sociblk_builder_build_seconds_bucket{le=\"5\"} 2",
            "sociblk_builder_build_seconds_bucket{le=\"60\"} 3",
            "sociblk_builder_build_seconds_bucket{le=\"+Inf\"} 4",
            "sociblk_builder_build_seconds_sum 5023.000",
            "sociblk_builder_build_seconds_count 4",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        let mut families: Vec<_> = page.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let count = families.len();
        families.dedup();
        assert_eq!((families.len(), count), (10, 10));
    }
}

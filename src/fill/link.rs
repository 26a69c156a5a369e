//! What transfers teach about the way to a registry host: how fast it is and how long it takes, and from that how much to
//! ask for at once. Times are arguments.

use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::lock;

/// Bytes are counted over such times before they count as a rate: shorter ones see the bursts of buffers.
const WINDOW: Duration = Duration::from_millis(40);

/// A piece takes the link at least so long, and a round trip where that is longer: two at a time then keep the link busy, and
/// are all that a reader may have to wait behind.
const PIECE_TIME: Duration = Duration::from_millis(10);

/// Bounds of pieces: smaller ones cost too many requests, larger ones stop too late.
const PIECE_BYTES: RangeInclusive<u64> = (64 << 10)..=(2 << 20);

/// A piece while nothing is known.
const FIRST_PIECE_BYTES: u64 = 256 << 10;

/// Most parallel requests for one transfer. More would be rude, and gain little: four connections that start slowly are two
/// round trips ahead of one.
const MAX_WAYS: u32 = 4;

/// Shortest part of a transfer that is worth a request of its own.
const MIN_PART_BYTES: u64 = 128 << 10;

/// Whole-link transfers after which fewer ways are tried again.
const FORGET_AFTER: u32 = 32;

/// A loss of time below this is noise.
const NOISE: Duration = Duration::from_millis(5);

/// The way to one host.
#[derive(Default)]
pub(super) struct Link {
    state: Mutex<State>,
}

struct State {
    /// Requests under way, and how many ever began.
    active: u32,
    begun: u64,
    window_began: Duration,
    window_bytes: u64,
    /// Bytes a second of all requests together, the best that was seen lately.
    rate: Option<f64>,
    /// From a request to the head of its answer, the shortest that was seen lately.
    round_trip: Option<Duration>,
    ways: u32,
    since_change: u32,
}

impl Default for State {
    fn default() -> Self {
        Self {
            active: 0,
            begun: 0,
            window_began: Duration::ZERO,
            window_bytes: 0,
            rate: None,
            round_trip: None,
            ways: 1,
            since_change: 0,
        }
    }
}

impl State {
    /// What keeps the link busy for a [`PIECE_TIME`] or a round trip, if its rate is known.
    fn busy_bytes(&self) -> Option<f64> {
        let time = self.round_trip.unwrap_or_default().max(PIECE_TIME);
        self.rate.map(|rate| rate * time.as_secs_f64())
    }
}

/// A transfer under way, for [`Link::ended`].
pub(super) struct Sample {
    /// Value of `begun` when all its requests had begun; `None` when others ran.
    alone: Option<u64>,
    began: Duration,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A request begins.
    pub fn begin(&self, now: Duration) {
        let mut state = self.state();
        if state.active == 0 {
            (state.window_began, state.window_bytes) = (now, 0);
        }
        state.active += 1;
        state.begun += 1;
    }

    /// A request ends, well or not.
    pub fn end(&self) {
        let mut state = self.state();
        state.active = state.active.saturating_sub(1);
    }

    /// A request was answered after so long.
    pub fn answered(&self, after: Duration) {
        let mut state = self.state();
        // Ways change: what was short once is forgotten, slowly.
        let before = state.round_trip.map(|round_trip| round_trip.mul_f64(1.01));
        state.round_trip = Some(before.map_or(after, |before| before.min(after)));
    }

    /// Bytes came.
    pub fn received(&self, bytes: usize, now: Duration) {
        let mut state = self.state();
        state.window_bytes += bytes as u64;
        let elapsed = now.saturating_sub(state.window_began);
        if elapsed < WINDOW {
            return;
        }
        // A pause within the window says nothing about the link; a rate that was reached once may be out of reach now.
        if elapsed < 4 * WINDOW {
            let seen = state.window_bytes as f64 / elapsed.as_secs_f64();
            state.rate = Some(state.rate.map_or(seen, |rate| seen.max(rate * 0.99)));
        }
        (state.window_began, state.window_bytes) = (now, 0);
    }

    /// How much the background may ask for at once.
    pub fn piece_bytes(&self) -> u64 {
        let Some(busy) = self.state().busy_bytes() else { return FIRST_PIECE_BYTES };
        (busy as u64).clamp(*PIECE_BYTES.start(), *PIECE_BYTES.end())
    }

    /// How much has to be on its way to keep the link busy, twice over, since neither rate nor time is steady; no limit while
    /// nothing is known.
    pub fn ahead_bytes(&self) -> u64 {
        self.state().busy_bytes().map_or(u64::MAX, |busy| (2.0 * busy) as u64)
    }

    /// In how many parallel requests to fetch so many bytes, if no more than `limit` shall run.
    pub fn ways(&self, bytes: u64, limit: usize) -> u64 {
        let state = self.state();
        let free = u32::try_from(limit).unwrap_or(u32::MAX).saturating_sub(state.active);
        u64::from(state.ways.min(free)).min(bytes / MIN_PART_BYTES).max(1)
    }

    /// A transfer has begun its `requests` requests.
    pub fn sample(&self, requests: u64, now: Duration) -> Sample {
        let state = self.state();
        Sample { alone: (u64::from(state.active) == requests).then_some(state.begun), began: now }
    }

    /// A transfer of so many bytes is complete, whose first came after `first_after`. If nothing but connections that were slow
    /// to start held it up, the next goes over more of them.
    pub fn ended(&self, sample: &Sample, bytes: u64, first_after: Duration, now: Duration) {
        let mut state = self.state();
        let (Some(rate), true) = (state.rate, sample.alone == Some(state.begun)) else { return };
        let took = now.saturating_sub(sample.began);
        let needed = first_after + Duration::from_secs_f64(bytes as f64 / rate.max(1.0));
        let lost = took.saturating_sub(needed);
        state.since_change += 1;
        if lost > first_after.max(NOISE) && state.ways < MAX_WAYS {
            state.ways = (state.ways * 2).min(MAX_WAYS);
            state.since_change = 0;
        } else if state.since_change >= FORGET_AFTER && state.ways > 1 {
            state.ways /= 2;
            state.since_change = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// 25 MB/s for a while.
    fn known() -> Link {
        let link = Link::default();
        link.begin(ms(0));
        for at in 1..=100 {
            link.received(25_000, ms(at));
        }
        link.end();
        link
    }

    #[test]
    fn pieces_take_the_link_as_long_whatever_its_rate() {
        assert_eq!(Link::default().piece_bytes(), FIRST_PIECE_BYTES);
        let piece = known().piece_bytes();
        assert!((240_000..=260_000).contains(&piece), "10 ms of 25 MB/s, got {piece}");
        assert_eq!(Link::default().ahead_bytes(), u64::MAX);
        let far = known();
        [80, 50, 60].into_iter().for_each(|after| far.answered(ms(after)));
        let piece = far.piece_bytes();
        assert!((1_200_000..=1_300_000).contains(&piece), "50 ms of 25 MB/s, got {piece}");
        assert!(far.ahead_bytes().abs_diff(2 * piece) <= 2, "twice that, got {}", far.ahead_bytes());
        for (step, want) in [(10, *PIECE_BYTES.start()), (10_000_000, *PIECE_BYTES.end())] {
            let link = Link::default();
            link.begin(ms(0));
            (1..=100).for_each(|at| link.received(step, ms(at)));
            assert_eq!(link.piece_bytes(), want);
        }
    }

    /// A transfer of 1.5 MB that took so long, alone or not; how many ways the next one gets.
    fn after(link: &Link, took: u64, others: bool) -> u64 {
        link.begin(ms(1000));
        let sample = link.sample(1, ms(1000));
        if others {
            link.begin(ms(1001));
            link.end();
        }
        link.end();
        link.ended(&sample, 1_500_000, ms(10), ms(1000 + took));
        link.ways(1_500_000, 12)
    }

    #[test]
    fn slow_starts_lead_to_parallel_requests_and_nothing_else_does() {
        let link = known();
        assert_eq!(link.ways(1_500_000, 12), 1);
        assert_eq!(after(&link, 72, false), 1, "70 ms are what it takes");
        assert_eq!(after(&link, 200, true), 1, "somebody else had a share of the link");
        assert_eq!(after(&link, 200, false), 2);
        assert_eq!(after(&link, 200, false), 4);
        assert_eq!(after(&link, 200, false), 4, "no more");
        assert_eq!(link.ways(300_000, 12), 2, "no tiny parts");
        assert_eq!(link.ways(1_500_000, 2), 2, "within the limits");
        assert_eq!(link.ways(1_500_000, 0), 1);
        assert_eq!((0..2 * FORGET_AFTER).map(|_| after(&link, 72, false)).last(), Some(1), "tried anew after a while");
    }
}

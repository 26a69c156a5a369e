//! What readers waited for: the slowest reads that ended, and those that wait now. Memory for a few dozen spans, and for
//! those on their way.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::layer::Waiter;
use super::lock;
use crate::units::{LayerRange, SpanId};

/// Slowest reads that are kept of a layer.
pub const MAX_SLOWEST: usize = 8;
/// Spans that have come last and whose ways are known: readers are told a moment after their last span is here.
const MAX_LANDED: usize = 64;

/// What a reader waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitsFor {
    /// A request slot, memory, or more urgent work.
    Queue,
    /// Another attempt, after one that failed.
    Retry,
    /// The registry's bytes.
    Network,
    /// Their proof, inflating and writing.
    Inflate,
}

impl WaitsFor {
    /// The word for it in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Retry => "retry",
            Self::Network => "network",
            Self::Inflate => "inflate",
        }
    }
}

/// A read that had to wait, and is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlowRead {
    /// What was read.
    pub range: LayerRange,
    /// How long it took.
    pub took: Duration,
    /// Of that, until the request for its last span was made.
    pub queue: Duration,
    /// From the first request for it to the one that brought it.
    pub retry: Duration,
    /// From that request to the span's last byte.
    pub network: Duration,
    /// From there until the span was in the layer file.
    pub inflate: Duration,
    /// It ended with an error.
    pub failed: bool,
    /// When it ended.
    pub ended: Instant,
}

impl SlowRead {
    /// What took the longest.
    #[must_use]
    pub fn waited_for(&self) -> WaitsFor {
        let parts = [
            (self.inflate, WaitsFor::Inflate),
            (self.queue, WaitsFor::Queue),
            (self.retry, WaitsFor::Retry),
            (self.network, WaitsFor::Network),
        ];
        parts.into_iter().max_by_key(|(took, _)| *took).map_or(WaitsFor::Network, |(_, what)| what)
    }
}

/// A read that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitingRead {
    /// What is read.
    pub range: LayerRange,
    /// For how long.
    pub waited: Duration,
    /// What for.
    pub waits_for: WaitsFor,
}

/// What is told of a layer's reads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Waits {
    /// The slowest reads that are over, the slowest first.
    pub slowest: Vec<SlowRead>,
    /// Reads that wait, the oldest first.
    pub waiting: Vec<WaitingRead>,
    /// How many reads had to wait so far.
    pub reads: u64,
    /// How long they waited, all together.
    pub total: Duration,
}

/// A span on its way.
#[derive(Clone, Copy)]
struct Way {
    first_asked: Instant,
    asked: Instant,
    came: Option<Instant>,
}

struct Landed {
    span: u32,
    way: Way,
    at: Instant,
}

struct Reader {
    range: LayerRange,
    spans: Range<u32>,
    since: Instant,
}

#[derive(Default)]
struct State {
    ways: HashMap<u32, Way>,
    landed: VecDeque<Landed>,
    readers: BTreeMap<u64, Reader>,
    next: u64,
    slowest: Vec<SlowRead>,
    reads: u64,
    total: Duration,
}

/// Where a layer's reads are written down.
#[derive(Default)]
pub(super) struct Journal(Mutex<State>);

impl Journal {
    /// A waiter that is written down until it is told.
    pub fn watch(self: &Arc<Self>, range: LayerRange, spans: Range<u32>, waiter: Waiter) -> Waiter {
        let id = {
            let mut state = lock(&self.0);
            state.next += 1;
            let id = state.next;
            state.readers.insert(id, Reader { range, spans, since: Instant::now() });
            id
        };
        let journal = Arc::clone(self);
        Box::new(move |result| {
            lock(&journal.0).over(id, result.is_err(), Instant::now());
            waiter(result);
        })
    }

    /// A request for these spans begins.
    pub fn asked(&self, spans: impl Iterator<Item = u32>) {
        let now = Instant::now();
        let mut state = lock(&self.0);
        for span in spans {
            let way = state.ways.entry(span).or_insert(Way { first_asked: now, asked: now, came: None });
            (way.asked, way.came) = (now, None);
        }
    }

    /// All bytes of a span are here.
    pub fn came(&self, span: SpanId) {
        if let Some(way) = lock(&self.0).ways.get_mut(&span.0) {
            way.came = Some(Instant::now());
        }
    }

    /// A span is in the layer file.
    pub fn landed(&self, span: SpanId) {
        let mut state = lock(&self.0);
        let Some(way) = state.ways.remove(&span.0) else { return };
        if state.landed.len() == MAX_LANDED {
            state.landed.pop_front();
        }
        state.landed.push_back(Landed { span: span.0, way, at: Instant::now() });
    }

    /// What there is to tell.
    pub fn tell(&self) -> Waits {
        let now = Instant::now();
        let state = lock(&self.0);
        let mut waiting: Vec<WaitingRead> = state.readers.values().map(|reader| state.waiting(reader, now)).collect();
        waiting.sort_by_key(|read| std::cmp::Reverse(read.waited));
        Waits { slowest: state.slowest.clone(), waiting, reads: state.reads, total: state.total }
    }
}

impl State {
    fn waiting(&self, reader: &Reader, now: Instant) -> WaitingRead {
        let ways: Vec<&Way> = reader.spans.clone().filter_map(|span| self.ways.get(&span)).collect();
        let waits_for = match ways.iter().min_by_key(|way| way.came.is_some()) {
            None => WaitsFor::Queue,
            Some(Way { came: Some(_), .. }) => WaitsFor::Inflate,
            Some(way) if way.asked > way.first_asked => WaitsFor::Retry,
            Some(_) => WaitsFor::Network,
        };
        WaitingRead { range: reader.range, waited: now.saturating_duration_since(reader.since), waits_for }
    }

    fn over(&mut self, id: u64, failed: bool, now: Instant) {
        let Some(reader) = self.readers.remove(&id) else { return };
        let took = now.saturating_duration_since(reader.since);
        self.reads += 1;
        self.total += took;
        let full = self.slowest.len() >= MAX_SLOWEST;
        if full && self.slowest.last().is_some_and(|fastest| fastest.took >= took) {
            return;
        }
        self.slowest.truncate(MAX_SLOWEST - 1);
        let read = self.told(&reader, took, failed, now);
        let at = self.slowest.partition_point(|other| other.took >= took);
        self.slowest.insert(at, read);
    }

    /// Cuts the time of a read by what became of the span that came last.
    fn told(&self, reader: &Reader, took: Duration, failed: bool, now: Instant) -> SlowRead {
        let after = |later: Instant, earlier: Instant| later.saturating_duration_since(earlier.max(reader.since));
        let mine = |landed: &&Landed| reader.spans.contains(&landed.span) && landed.at >= reader.since;
        let landed = self.landed.iter().rev().find(mine).map(|landed| (landed.way, landed.at));
        let under_way = || reader.spans.clone().find_map(|span| self.ways.get(&span)).map(|way| (*way, now));
        let mut read = SlowRead {
            range: reader.range,
            took,
            queue: Duration::ZERO,
            retry: Duration::ZERO,
            network: Duration::ZERO,
            inflate: Duration::ZERO,
            failed,
            ended: now,
        };
        match landed.or_else(under_way) {
            Some((way, end)) => {
                let came = way.came.unwrap_or(end);
                read.queue = way.first_asked.saturating_duration_since(reader.since);
                read.retry = after(way.asked, way.first_asked);
                read.network = after(came, way.asked);
                read.inflate = after(end, came);
            }
            None => read.queue = took,
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::LayerOffset;

    fn range(start: u64) -> LayerRange {
        LayerRange::from_len(LayerOffset::new(start), 10).expect("range")
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_time_of_a_read_is_cut_where_its_last_span_went_on() {
        let start = Instant::now();
        let mut state = State::default();
        let reader = |span: u32| Reader { range: range(0), spans: span..span + 2, since: start };
        let way = |first: u64, asked: u64, came: Option<u64>| Way {
            first_asked: start + ms(first),
            asked: start + ms(asked),
            came: came.map(|at| start + ms(at)),
        };
        for (id, first, landed) in [(1, 0, 5), (2, 1, 80)] {
            let way = way(10 * first, 20, Some(60));
            state.landed.push_back(Landed { span: id, way, at: start + ms(landed) });
        }
        let read = state.told(&reader(1), ms(81), false, start + ms(81));
        assert_eq!([read.queue, read.retry, read.network, read.inflate], [10, 10, 40, 20].map(ms));
        assert_eq!(read.waited_for(), WaitsFor::Network);
        // One that gave up while its span was asked for again and again.
        state.ways.insert(7, way(1, 90, None));
        let read = state.told(&reader(7), ms(100), true, start + ms(100));
        assert_eq!([read.queue, read.retry, read.network, read.inflate], [1, 89, 10, 0].map(ms));
        assert_eq!((read.waited_for(), read.failed), (WaitsFor::Retry, true));
        // One whose span was never asked for.
        assert_eq!(state.told(&reader(20), ms(3), true, start + ms(3)).waited_for(), WaitsFor::Queue);
        // Nothing that was before the read counts.
        let late = Reader { since: start + ms(50), ..reader(1) };
        let read = state.told(&late, ms(31), false, start + ms(81));
        assert_eq!([read.queue, read.retry, read.network, read.inflate], [0, 0, 10, 20].map(ms));
    }

    #[test]
    fn the_slowest_are_kept_in_order_and_no_more() {
        let start = Instant::now();
        let mut state = State::default();
        for (id, took) in [5, 1, 9, 3, 7, 2, 8, 4, 6, 10, 0].into_iter().enumerate() {
            let id = id as u64;
            state.readers.insert(id, Reader { range: range(took), spans: 0..1, since: start });
            state.over(id, false, start + ms(took));
        }
        let took: Vec<_> = state.slowest.iter().map(|read| read.took).collect();
        assert_eq!(took, [10, 9, 8, 7, 6, 5, 4, 3].map(ms));
        assert_eq!((state.reads, state.total, state.readers.len()), (11, ms(55), 0));
    }

    #[test]
    fn a_reader_that_waits_says_what_for() {
        let journal = Arc::new(Journal::default());
        let waiter = journal.watch(range(0), 3..5, Box::new(|_| {}));
        let waits = || journal.tell().waiting.iter().map(|read| read.waits_for).collect::<Vec<_>>();
        assert_eq!(waits(), [WaitsFor::Queue]);
        journal.asked(3..5);
        assert_eq!(waits(), [WaitsFor::Network]);
        journal.came(SpanId(3));
        assert_eq!(waits(), [WaitsFor::Network], "one of its spans has not come");
        journal.came(SpanId(4));
        assert_eq!(waits(), [WaitsFor::Inflate]);
        journal.landed(SpanId(3));
        journal.landed(SpanId(4));
        waiter(Ok(()));
        let told = journal.tell();
        assert_eq!((told.waiting.len(), told.slowest.len(), told.reads), (0, 1, 1));
        assert_eq!(lock(&journal.0).ways.len(), 0);
    }
}

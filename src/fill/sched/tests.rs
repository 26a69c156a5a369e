//! Events in, actions out; no clock, no threads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange};

const LAYER: LayerId = LayerId(1);
const SPAN_BYTES: u64 = 1000;

/// A plain tar of `spans` spans of [`SPAN_BYTES`].
fn table(spans: u64) -> Arc<SpanTable> {
    let cut = |i: u64| Span {
        blob: BlobRange::from_len(BlobOffset::new(i * SPAN_BYTES), SPAN_BYTES).expect("small"),
        layer: LayerRange::from_len(LayerOffset::new(i * SPAN_BYTES), SPAN_BYTES).expect("small"),
        bits: 0,
        digest: Digest::of(b""),
        window_at: None,
    };
    let size = spans * SPAN_BYTES;
    let spans = (0..spans).map(cut).collect();
    let made = SpanTable::new(Compression::Uncompressed, BlobOffset::new(size), LayerOffset::new(size), spans);
    Arc::new(made.expect("a good table"))
}

/// The layer file of a test.
struct Disk {
    spans: u32,
    present: Mutex<BTreeSet<u32>>,
}

impl Presence for Disk {
    fn has(&self, id: SpanId) -> bool {
        self.present.lock().expect("no panics").contains(&id.0)
    }
    fn is_complete(&self) -> bool {
        self.present.lock().expect("no panics").len() == self.spans as usize
    }
}

/// The world around a scheduler.
struct World {
    sched: Scheduler,
    disk: Arc<Disk>,
    now: Now,
    running: BTreeMap<TransferId, Transfer>,
    told: HashMap<WaiterId, Vec<Result<(), FillError>>>,
    starts: Vec<Transfer>,
    marks: BTreeSet<u32>,
    all_present: usize,
}

fn config() -> FillConfig {
    FillConfig {
        max_requests: 6,
        max_requests_per_host: 6,
        max_requests_per_layer: 4,
        reserved_requests: 2,
        memory_bytes: 1 << 30,
        max_transfer_bytes: 8 * SPAN_BYTES,
        background_transfer_bytes: 2 * SPAN_BYTES,
        bridge_bytes: 0,
        read_ahead_bytes: 0,
        hold_limit: Duration::from_secs(600),
        ..FillConfig::default()
    }
}

impl World {
    fn new(config: FillConfig, spans: u32) -> Self {
        let disk = Arc::new(Disk { spans, present: Mutex::default() });
        let mut world = Self {
            sched: Scheduler::new(config),
            disk: disk.clone(),
            now: Duration::ZERO,
            running: BTreeMap::new(),
            told: HashMap::new(),
            starts: Vec::new(),
            marks: BTreeSet::new(),
            all_present: 0,
        };
        let table = table(u64::from(spans));
        world.apply(Event::LayerAdded { layer: LAYER, table, present: disk, host: "registry".into() });
        world
    }

    fn apply(&mut self, event: Event) {
        if let Event::TransferEnded { transfer, .. } = &event {
            self.running.remove(transfer);
        }
        let mut actions = Vec::new();
        self.sched.apply(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Start(transfer) => {
                    self.starts.push(transfer.clone());
                    self.running.insert(transfer.id, transfer);
                }
                Action::Abort(transfer) => drop(self.running.remove(&transfer)),
                Action::Complete { waiter, result } => self.told.entry(waiter).or_default().push(result),
                Action::Mark { span, .. } => drop(self.marks.insert(span.0)),
                Action::AllPresent { .. } => self.all_present += 1,
            }
        }
    }

    fn want(&mut self, spans: Range<u32>, priority: Priority, waiter: u64) {
        self.apply(Event::Wanted { layer: LAYER, spans, priority, waiter: Some(WaiterId(waiter)), from_start: true });
    }

    fn deliver(&mut self, transfer: TransferId, span: u32) {
        self.disk.present.lock().expect("no panics").insert(span);
        self.apply(Event::SpanDone { layer: LAYER, transfer, span: SpanId(span) });
    }

    /// The transfer brings everything and ends well.
    fn complete(&mut self, transfer: TransferId) {
        let spans = self.running[&transfer].spans.clone();
        for span in spans.clone() {
            self.deliver(transfer, span);
        }
        self.apply(Event::TransferEnded { transfer, handed: SpanId(spans.end), error: None });
    }

    fn fail(&mut self, transfer: TransferId, error: FillError) {
        let handed = SpanId(self.running[&transfer].spans.start);
        self.apply(Event::TransferEnded { transfer, handed, error: Some(error) });
    }

    fn started(&self) -> Vec<(Range<u32>, Priority)> {
        self.starts.iter().map(|t| (t.spans.clone(), t.priority)).collect()
    }

    fn only(&self) -> TransferId {
        assert_eq!(self.running.len(), 1, "one transfer expected: {:?}", self.running);
        *self.running.keys().next().expect("one")
    }

    fn tick_at(&mut self, now: Now) {
        self.now = now;
        self.apply(Event::Tick);
    }
}

fn transient() -> FillError {
    FillError::Stalled { layer: Digest::of(b""), from: "test".into(), limit_ms: 1 }
}

fn permanent() -> FillError {
    FillError::Misplaced {
        layer: Digest::of(b""),
        from: "test".into(),
        asked: BlobOffset::new(1),
        got: BlobOffset::new(2),
    }
}

#[test]
fn adjacent_spans_go_together_and_each_waiter_is_told_when_its_own_are_here() {
    let mut world = World::new(config(), 100);
    world.want(0..3, Priority::Demand, 1);
    assert_eq!(world.started(), [(0..3, Priority::Demand)]);
    let first = world.only();
    world.want(1..2, Priority::Demand, 2);
    assert_eq!(world.starts.len(), 1, "a flying span is joined, not fetched again");
    world.deliver(first, 0);
    world.deliver(first, 1);
    assert!(matches!(world.told[&WaiterId(2)][..], [Ok(())]));
    assert!(!world.told.contains_key(&WaiterId(1)));
    world.complete(first);
    assert!(matches!(world.told[&WaiterId(1)][..], [Ok(())]));
    assert_eq!(world.sched.memory_used(), 0);
}

#[test]
fn long_ranges_are_cut_at_the_longest_transfer() {
    let mut world = World::new(config(), 100);
    world.want(0..20, Priority::Demand, 1);
    assert_eq!(world.started(), [(0..8, Priority::Demand), (8..16, Priority::Demand), (16..20, Priority::Demand)]);
}

#[test]
fn demand_never_waits_behind_other_work() {
    let mut world = World::new(FillConfig { max_transfer_bytes: SPAN_BYTES, ..config() }, 100);
    world.apply(Event::Wanted {
        layer: LAYER,
        spans: 0..50,
        priority: Priority::Recorded,
        waiter: None,
        from_start: false,
    });
    assert_eq!(world.starts.len(), 2, "requests stay free for demand");
    world.want(80..81, Priority::Demand, 1);
    assert_eq!(world.started().last(), Some(&(80..81, Priority::Demand)));
    // A queued span moves to the front when a reader wants it.
    world.want(40..41, Priority::Demand, 2);
    assert_eq!(world.started().last(), Some(&(40..41, Priority::Demand)));
    world.want(45..46, Priority::Demand, 3);
    assert_eq!(world.starts.len(), 4, "the layer's limit holds for demand, too");
    let first = world.starts[0].id;
    world.complete(first);
    assert_eq!(world.started().last(), Some(&(45..46, Priority::Demand)), "demand goes before the older prefetch");
}

#[test]
fn memory_bounds_what_is_on_its_way_and_a_span_too_big_goes_alone() {
    // One span needs 2000 bytes, compressed and inflated.
    let mut world = World::new(FillConfig { memory_bytes: 4000, ..config() }, 100);
    world.want(0..5, Priority::Demand, 1);
    assert_eq!(world.started(), [(0..2, Priority::Demand)]);
    assert_eq!(world.sched.memory_used(), 4000);
    let first = world.only();
    world.deliver(first, 0);
    assert_eq!(world.started()[1..], [(2..3, Priority::Demand)]);

    let mut world = World::new(FillConfig { memory_bytes: 10, ..config() }, 100);
    world.want(0..2, Priority::Demand, 1);
    world.want(50..51, Priority::ReadAhead, 2);
    assert_eq!(world.started(), [(0..1, Priority::Demand)]);
    let first = world.only();
    world.complete(first);
    assert_eq!(world.started()[1..], [(1..2, Priority::Demand)]);
}

#[test]
fn small_present_spans_are_bridged_and_larger_ones_are_not() {
    for (bridge_bytes, want) in [(SPAN_BYTES, &[(0, 4)][..]), (SPAN_BYTES - 1, &[(0, 1), (2, 4)])] {
        let mut world = World::new(FillConfig { bridge_bytes, ..config() }, 100);
        world.disk.present.lock().expect("no panics").insert(1);
        world.want(0..4, Priority::Demand, 1);
        let starts: Vec<_> = world.starts.iter().map(|t| (t.spans.start, t.spans.end)).collect();
        assert_eq!(starts, want);
        assert_eq!(world.starts[0].bridged.len(), usize::from(want.len() == 1));
    }
}

#[test]
fn trouble_holds_readers_retries_with_growing_pauses_and_ends_at_the_limit() {
    let mut world = World::new(config(), 10);
    world.want(0..1, Priority::Demand, 1);
    let mut pauses = Vec::new();
    while !world.told.contains_key(&WaiterId(1)) {
        if let Some(transfer) = world.running.keys().next().copied() {
            world.fail(transfer, transient());
            assert!(world.running.is_empty(), "not at once");
        }
        let at = world.sched.next_timer(world.now).expect("a retry or the limit");
        pauses.push(at - world.now);
        world.tick_at(at);
        assert!(pauses.len() < 1000);
    }
    assert!(pauses[0] < pauses[8], "{pauses:?}");
    assert_eq!(world.now, Duration::from_secs(600));
    assert!(matches!(&world.told[&WaiterId(1)][..], [Err(FillError::Held { last: Some(_), .. })]));
    let before = world.starts.len();
    // Not sticky: the next reader starts anew, as soon as the pause is over.
    world.want(0..1, Priority::Demand, 2);
    let later = world.now + Duration::from_secs(60);
    world.tick_at(later);
    assert!(world.starts.len() > before);
    let transfer = world.only();
    world.complete(transfer);
    assert!(matches!(world.told[&WaiterId(2)][..], [Ok(())]));
}

#[test]
fn permanent_errors_fail_the_readers_concerned_at_once_and_are_forgotten() {
    let mut world = World::new(config(), 100);
    world.want(0..2, Priority::Demand, 1);
    world.want(50..51, Priority::Demand, 2);
    let first = world.starts[0].id;
    world.deliver(first, 0);
    world.apply(Event::TransferEnded { transfer: first, handed: SpanId(1), error: Some(permanent()) });
    assert!(matches!(&world.told[&WaiterId(1)][..], [Err(FillError::Misplaced { .. })]));
    assert!(!world.told.contains_key(&WaiterId(2)));
    world.want(1..2, Priority::Demand, 3);
    assert_eq!(world.started().last(), Some(&(1..2, Priority::Demand)));
}

#[test]
fn a_span_with_a_wrong_digest_is_fetched_once_more() {
    let mut world = World::new(config(), 100);
    world.want(0..2, Priority::Demand, 1);
    for round in 0..2 {
        let transfer = *world.running.keys().next().expect("running");
        let spans = world.running[&transfer].spans.clone();
        if round == 0 {
            world.deliver(transfer, 1);
        }
        world.apply(Event::SpanFailed { layer: LAYER, transfer, span: SpanId(0), error: permanent(), refetch: true });
        world.apply(Event::TransferEnded { transfer, handed: SpanId(spans.end), error: None });
    }
    assert_eq!(world.started(), [(0..2, Priority::Demand), (0..1, Priority::Demand)]);
    assert!(matches!(&world.told[&WaiterId(1)][..], [Err(FillError::Misplaced { .. })]));
    assert_eq!(world.sched.memory_used(), 0);
}

#[test]
fn a_server_without_ranges_sends_the_blob_once_for_everybody() {
    let mut world = World::new(config(), 40);
    world.want(10..11, Priority::Demand, 1);
    world.want(30..31, Priority::Demand, 2);
    let (a, b) = (world.starts[0].id, world.starts[1].id);
    world.apply(Event::WholeBlob { transfer: a });
    assert!(!world.running.contains_key(&b), "the other transfer is stopped");
    // The other had seen the same before it heard of that.
    world.apply(Event::WholeBlob { transfer: b });
    world.want(35..36, Priority::Demand, 3);
    assert_eq!(world.starts.len(), 2);
    for span in 0..40 {
        world.deliver(a, span);
        let told = [10, 30, 35].iter().filter(|s| **s <= span).count();
        assert_eq!(world.told.len(), told);
    }
    world.apply(Event::TransferEnded { transfer: a, handed: SpanId(40), error: None });
    assert_eq!((world.starts.len(), world.all_present), (2, 1));
    assert_eq!(world.sched.memory_used(), 0);
}

#[test]
fn a_sequential_reader_gets_a_growing_window_and_a_random_one_gets_none() {
    let config = FillConfig {
        read_ahead_bytes: 16 << 20,
        max_transfer_bytes: u64::MAX,
        max_requests: 20,
        max_requests_per_host: 20,
        max_requests_per_layer: 20,
        ..config()
    };
    let mut world = World::new(config, 50_000);
    world.want(0..1, Priority::Demand, 1);
    world.want(40_000..40_001, Priority::Demand, 2);
    assert!(world.starts.iter().all(|t| t.priority == Priority::Demand));
    world.want(1..2, Priority::Demand, 3);
    let ahead = world.starts.last().expect("read-ahead").spans.end;
    assert!((2000..2200).contains(&ahead), "2 MiB ahead, got span {ahead}");
    let mark = *world.marks.first().expect("a mark");
    assert_eq!(mark, 2);
    world.apply(Event::MarkReached { layer: LAYER, spans: mark..mark + 1 });
    let further = world.starts.iter().map(|t| t.spans.end).max().expect("started");
    assert!(further > ahead + 3000, "the window doubles: {further}");
}

#[test]
fn the_background_works_only_while_nothing_else_does_and_keeps_its_rate() {
    let config = FillConfig { background: true, background_bytes_per_sec: 2 * SPAN_BYTES, ..config() };
    let mut world = World::new(config, 6);
    assert_eq!(world.started(), [(0..2, Priority::Background)]);
    let first = world.only();
    world.want(5..6, Priority::Demand, 1);
    world.complete(first);
    assert_eq!(world.started()[1..], [(5..6, Priority::Demand)]);
    let demand = world.only();
    world.complete(demand);
    assert_eq!(world.starts.len(), 2, "the rate is used up");
    let at = world.sched.next_timer(world.now).expect("the background's turn");
    assert_eq!(at, Duration::from_secs(1));
    world.tick_at(at);
    assert_eq!(world.started()[2..], [(2..4, Priority::Background)]);
    let next = world.only();
    world.complete(next);
    world.tick_at(Duration::from_secs(2));
    let last = world.only();
    world.complete(last);
    assert_eq!((world.all_present, world.sched.next_timer(world.now)), (1, None));
}

#[test]
fn a_background_that_fails_for_good_pauses() {
    let mut world = World::new(FillConfig { background: true, ..config() }, 6);
    while let Some(transfer) = world.running.keys().next().copied() {
        world.fail(transfer, permanent());
        assert!(world.starts.len() < 10, "no busy loop");
    }
    let at = world.sched.next_timer(world.now).expect("it will try again");
    assert_eq!(at, config().longest_pause);
    world.tick_at(at);
    assert!(!world.running.is_empty());
}

#[test]
fn a_removed_layer_fails_its_waiters_and_later_ones() {
    let mut world = World::new(config(), 10);
    world.want(0..1, Priority::Demand, 1);
    world.apply(Event::LayerRemoved { layer: LAYER });
    world.want(0..1, Priority::Demand, 2);
    for waiter in [1, 2] {
        assert!(matches!(&world.told[&WaiterId(waiter)][..], [Err(FillError::Stopping)]));
    }
    assert!(world.running.is_empty());
    assert_eq!((world.sched.memory_used(), world.sched.next_timer(world.now)), (0, None));
}

/// One step of a random history; numbers choose among what is possible.
#[derive(Clone, Debug)]
enum Step {
    Want { start: u32, len: u32, priority: usize },
    Deliver(usize),
    BadSpan(usize),
    End(usize),
    Break(usize),
    Refuse(usize),
    Whole(usize),
    Wait(u64),
    Evict(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..30_u32, 0..9_u32, 0..4_usize).prop_map(|(start, len, priority)| Step::Want { start, len, priority }),
        6 => any::<usize>().prop_map(Step::Deliver),
        1 => any::<usize>().prop_map(Step::BadSpan),
        2 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::Break),
        1 => any::<usize>().prop_map(Step::Refuse),
        1 => any::<usize>().prop_map(Step::Whole),
        1 => (0..100_000_u64).prop_map(Step::Wait),
        1 => (0..30_u32).prop_map(Step::Evict),
    ]
}

/// A transfer as its task sees it: how far it has come.
#[derive(Default)]
struct Progress {
    at: HashMap<TransferId, u32>,
    whole: BTreeSet<TransferId>,
}

impl Progress {
    fn pick(&self, world: &World, choice: usize) -> Option<(TransferId, Range<u32>, u32)> {
        let keys: Vec<_> = world.running.keys().copied().collect();
        let id = *keys.get(choice.checked_rem(keys.len())?)?;
        let spans = if self.whole.contains(&id) { 0..world.disk.spans } else { world.running[&id].spans.clone() };
        let at = self.at.get(&id).copied().unwrap_or(spans.start);
        Some((id, spans, at))
    }

    fn run(&mut self, world: &mut World, step: &Step) {
        let choice = match step {
            Step::Deliver(c) | Step::BadSpan(c) | Step::End(c) | Step::Break(c) | Step::Refuse(c) | Step::Whole(c) => {
                *c
            }
            _ => 0,
        };
        let picked = self.pick(world, choice);
        let skip = |world: &World, id: &TransferId, at: u32| {
            world.running.get(id).is_some_and(|t| t.bridged.contains(&SpanId(at)))
        };
        match (step, picked) {
            (Step::Deliver(_), Some((id, spans, at))) if at < spans.end => {
                self.at.insert(id, at + 1);
                if !skip(world, &id, at) || self.whole.contains(&id) {
                    world.deliver(id, at);
                }
            }
            (Step::BadSpan(_), Some((id, spans, at))) if at < spans.end && !skip(world, &id, at) => {
                self.at.insert(id, at + 1);
                let error = permanent();
                world.apply(Event::SpanFailed { layer: LAYER, transfer: id, span: SpanId(at), error, refetch: true });
            }
            (Step::End(_), Some((id, spans, at))) => {
                for rest in at..spans.end {
                    if !skip(world, &id, rest) || self.whole.contains(&id) {
                        world.deliver(id, rest);
                    }
                }
                world.apply(Event::TransferEnded { transfer: id, handed: SpanId(spans.end), error: None });
            }
            (Step::Break(_), Some((id, _, at))) => {
                world.apply(Event::TransferEnded { transfer: id, handed: SpanId(at), error: Some(transient()) });
            }
            (Step::Refuse(_), Some((id, _, at))) => {
                world.apply(Event::TransferEnded { transfer: id, handed: SpanId(at), error: Some(permanent()) });
            }
            (Step::Whole(_), Some((id, spans, at))) if at == spans.start => {
                self.whole.insert(id);
                self.at.insert(id, 0);
                world.apply(Event::WholeBlob { transfer: id });
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens in whatever order: each waiter is told exactly once, success only when its spans are here, a span
    /// flies once at a time, limits hold, and at the end nothing is reserved.
    #[test]
    fn every_history_ends_well(steps in proptest::collection::vec(step(), 1..120), background: bool, tight: bool) {
        let config = FillConfig {
            background,
            bridge_bytes: SPAN_BYTES,
            read_ahead_bytes: 4 * SPAN_BYTES,
            memory_bytes: if tight { 5000 } else { 1 << 30 },
            ..config()
        };
        let mut world = World::new(config.clone(), 30);
        let mut progress = Progress::default();
        let mut wanted: HashMap<u64, Range<u32>> = HashMap::new();
        let mut evicted = false;
        for (number, step) in (0_u64..).zip(&steps) {
            match step {
                Step::Want { start, len, priority } => {
                    let spans = *start..(start + len).min(30);
                    let all = [Priority::Background, Priority::Recorded, Priority::ReadAhead, Priority::Demand];
                    wanted.insert(number, spans.clone());
                    world.want(spans, all[*priority], number);
                }
                Step::Wait(ms) => { let at = world.now + Duration::from_millis(*ms); world.tick_at(at); }
                Step::Evict(span) => { evicted |= world.disk.present.lock().expect("no panics").remove(span); }
                step => progress.run(&mut world, step),
            }
            prop_assert!(world.running.len() <= config.max_requests_per_layer);
            let mut flying = BTreeSet::new();
            let whole = world.running.keys().any(|id| progress.whole.contains(id));
            for transfer in world.running.values() {
                let from = progress.at.get(&transfer.id).copied().unwrap_or(transfer.spans.start);
                for span in (from..transfer.spans.end).filter(|s| !transfer.bridged.contains(&SpanId(*s))) {
                    prop_assert!(flying.insert(span) || whole, "span {} flies twice", span);
                }
            }
            for (waiter, results) in &world.told {
                prop_assert_eq!(results.len(), 1);
                if results[0].is_ok() && !evicted {
                    let present = world.disk.present.lock().expect("no panics");
                    prop_assert!(wanted[&waiter.0].clone().all(|s| present.contains(&s)));
                }
            }
        }
        let mut rounds = 0;
        while world.told.len() < wanted.len() || !world.running.is_empty() {
            progress.run(&mut world, &Step::End(0));
            if world.running.is_empty() && let Some(at) = world.sched.next_timer(world.now) {
                world.tick_at(at);
            }
            rounds += 1;
            prop_assert!(rounds < 1000, "waiters are left: {:?}", wanted.len() - world.told.len());
        }
        prop_assert!(world.told.values().all(|results| results.len() == 1));
        prop_assert_eq!(world.sched.memory_used(), 0);
        prop_assert_eq!(world.sched.numbers(LAYER, world.now), LayerNumbers::default());
    }
}

//! Random histories: whatever happens in whatever order.

use proptest::prelude::*;

use super::*;

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
    fn every_history_ends_well(steps in proptest::collection::vec(step(), 1..120), background: bool, tight: bool, quiet_ms in 0..100_u64) {
        let config = FillConfig {
            background,
            bridge_bytes: SPAN_BYTES,
            background_quiet: Duration::from_millis(quiet_ms),
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
            prop_assert!(world.paces.keys().eq(world.running.keys()));
            let waited_for = |t: &Transfer| t.priority == Priority::Demand;
            if world.running.values().any(waited_for) {
                let mut low = world.running.values().filter(|t| t.priority < Priority::ReadAhead);
                prop_assert!(low.all(|t| world.paces[&t.id] != Pace::Pieces), "background beside demand");
            }
            if world.paces.values().any(|pace| *pace == Pace::Held) && !world.running.values().any(waited_for) {
                // Who goes on, raised or recorded, makes those that stand still look again when it ends.
                let goes_on = world.paces.values().any(|pace| *pace != Pace::Held);
                prop_assert!(goes_on || world.sched.next_timer(world.now).is_some(), "held for nothing");
            }
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

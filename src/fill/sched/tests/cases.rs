//! What the scheduler does, case by case.

use super::*;

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
        ahead: Ahead::Nothing,
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
    world.apply(Event::MarkReached { layer: LAYER, spans: mark..mark + 1, ahead: UNBOUNDED });
    let further = world.starts.iter().map(|t| t.spans.end).max().expect("started");
    assert!(further > ahead + 3000, "the window doubles: {further}");
}

#[test]
fn the_window_is_what_keeps_the_link_busy_and_at_least_two_spans() {
    let config = FillConfig { read_ahead_bytes: 32 << 20, max_transfer_bytes: u64::MAX, ..config() };
    for (link_bytes, want) in [(100 * SPAN_BYTES, 100), (5 * SPAN_BYTES + 1, 5), (SPAN_BYTES, 2), (0, 2)] {
        let mut world = World::new(config.clone(), 50_000);
        let ahead = Ahead::UpTo { link_bytes };
        for span in 0..2_u32 {
            let (spans, waiter) = (span..span + 1, Some(WaiterId(span.into())));
            world.apply(Event::Wanted { layer: LAYER, spans, priority: Priority::Demand, waiter, ahead });
        }
        let window = world.starts.iter().map(|t| t.spans.end).max().expect("started") - 2;
        assert_eq!(window, want, "{link_bytes} bytes");
        world.apply(Event::MarkReached { layer: LAYER, spans: 2..3, ahead });
        let next = world.marks.last().copied().expect("a mark");
        assert_eq!(next, 2 + want, "one window behind the other");
    }
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

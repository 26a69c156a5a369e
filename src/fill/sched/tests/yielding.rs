//! Work that makes way for readers: the background and recorded load orders.

use super::*;

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

fn prefetch(world: &mut World, spans: Range<u32>, priority: Priority) {
    world.apply(Event::Wanted { layer: LAYER, spans, priority, waiter: None, ahead: Ahead::Nothing });
}

const QUIET: Duration = Duration::from_millis(50);

#[test]
fn the_background_stands_still_while_a_reader_waits_and_a_short_time_longer() {
    let mut world = World::new(FillConfig { background_quiet: QUIET, ..config() }, 40);
    prefetch(&mut world, 0..40, Priority::Background);
    assert_eq!(world.started(), [(0..2, Priority::Background), (2..4, Priority::Background)]);
    let (first, second) = (world.starts[0].id, world.starts[1].id);
    assert_eq!(world.paces[&first], Pace::Pieces);

    world.want(30..31, Priority::Demand, 1);
    let demand = world.starts[2].id;
    assert_eq!((world.starts[2].priority, world.paces[&demand]), (Priority::Demand, Pace::Full));
    assert_eq!([world.paces[&first], world.paces[&second]], [Pace::Held; 2]);
    // What was on its way still comes; nothing new begins.
    world.complete(first);
    assert_eq!(world.starts.len(), 3);
    world.complete(demand);
    assert_eq!((world.starts.len(), world.paces[&second]), (3, Pace::Held), "the reader may read again soon");
    assert_eq!(world.sched.next_timer(world.now), Some(QUIET));

    // It does: the time begins anew.
    world.tick_at(QUIET / 2);
    world.want(35..36, Priority::Demand, 2);
    let demand = world.starts[3].id;
    world.tick_at(QUIET * 3);
    assert_eq!(world.paces[&second], Pace::Held, "however long the reader waits");
    world.complete(demand);
    world.tick_at(QUIET * 4);
    assert_eq!(world.paces[&second], Pace::Pieces);
    assert_eq!(world.started().last(), Some(&(4..6, Priority::Background)));
}

#[test]
fn a_reader_that_wants_what_the_background_brings_makes_it_hurry() {
    let mut world = World::new(FillConfig { background_quiet: QUIET, ..config() }, 40);
    prefetch(&mut world, 0..40, Priority::Background);
    let (first, second) = (world.starts[0].id, world.starts[1].id);
    world.want(3..4, Priority::Demand, 1);
    assert_eq!(world.starts.len(), 2, "nothing is fetched twice");
    assert_eq!([world.paces[&first], world.paces[&second]], [Pace::Held, Pace::Full]);
    world.complete(second);
    assert!(matches!(world.told[&WaiterId(1)][..], [Ok(())]));
    world.tick_at(QUIET);
    assert_eq!(world.paces[&first], Pace::Pieces);
}

#[test]
fn only_the_host_that_a_reader_waits_for_is_spared() {
    let mut world = World::new(config(), 40);
    let other = Arc::new(Disk { spans: 40, present: Mutex::default() });
    let layer = LayerId(2);
    world.apply(Event::LayerAdded { layer, table: table(40), present: other, host: "another".into(), completes: true });
    world.want(0..1, Priority::Demand, 1);
    world.apply(Event::Wanted {
        layer,
        spans: 0..2,
        priority: Priority::Background,
        waiter: None,
        ahead: Ahead::Nothing,
    });
    assert_eq!(world.started(), [(0..1, Priority::Demand), (0..2, Priority::Background)]);
}

#[test]
fn a_rate_holds_for_what_was_asked_for_too() {
    let mut world = World::new(FillConfig { background_bytes_per_sec: SPAN_BYTES, ..config() }, 6);
    prefetch(&mut world, 0..6, Priority::Background);
    let mut begun = Vec::new();
    while world.all_present == 0 {
        begun.extend(world.starts.get(begun.len()).map(|_| world.now.as_secs()));
        let transfer = world.only();
        world.complete(transfer);
        if let Some(at) = world.sched.next_timer(world.now) {
            world.tick_at(at);
        }
        assert!(begun.len() < 10);
    }
    assert_eq!(begun, [0, 2, 4], "two spans at a time, one a second");
}

#[test]
fn a_recorded_order_is_followed_and_makes_way_for_reads_that_are_not_in_it() {
    let config = FillConfig { max_requests_per_layer: 6, max_requests: 8, ..config() };
    let mut world = World::new(config, 60);
    for first in [40, 10, 20, 50, 0] {
        prefetch(&mut world, first..first + 2, Priority::Recorded);
    }
    let recorded = |firsts: &[u32]| firsts.iter().map(|f| (*f..f + 2, Priority::Recorded)).collect::<Vec<_>>();
    assert_eq!(world.started(), recorded(&[40, 10, 20]), "in order, a few at once");
    let (first, second) = (world.starts[0].id, world.starts[1].id);
    world.complete(first);
    assert_eq!(world.started(), recorded(&[40, 10, 20, 50]));

    // A reader comes to what is on its way: it hurries, and the others go on.
    world.want(11..12, Priority::Demand, 1);
    assert_eq!(world.paces[&second], Pace::Full);
    assert!(world.paces.iter().filter(|(id, _)| **id != second).all(|(_, pace)| *pace == Pace::Pieces));
    // Another wants what nobody recorded.
    world.want(30..31, Priority::Demand, 2);
    let demand = world.starts.last().expect("started").id;
    let held = world.paces.values().filter(|pace| **pace == Pace::Held).count();
    assert_eq!((held, world.starts.last().expect("started").priority), (3, Priority::Demand));
    world.complete(demand);
    assert!(world.paces.values().all(|pace| *pace != Pace::Held), "at once");
}

#[test]
fn the_background_leaves_layers_alone_whose_start_is_known_and_comes_back() {
    let settle = config().background_settle;
    for by_itself in [true, false] {
        let config = FillConfig { background: by_itself, max_requests_per_layer: 6, max_requests: 8, ..config() };
        let mut world = World::new(config, 8);
        if !by_itself {
            prefetch(&mut world, 0..8, Priority::Background);
        }
        // A layer that is gone by now is no trouble.
        world.apply(Event::Settling { layers: vec![LAYER, LayerId(9)] });
        // What the start needs comes all the same: by the order, and by readers.
        world.apply(Event::Recorded { order: vec![(LAYER, 6..7)] });
        let begun = world.started();
        assert_eq!(begun.last(), Some(&(6..7, Priority::Recorded)), "{begun:?}");
        world.want(7..8, Priority::Demand, 1);
        assert_eq!(world.started().last(), Some(&(7..8, Priority::Demand)));
        while let Some(id) = world.running.keys().next().copied() {
            world.complete(id);
        }
        let before = world.starts.len();
        assert_eq!(before, 4, "two of the background, which ran already, and these two: {:?}", world.starts);
        assert_eq!(world.sched.next_timer(world.now), Some(settle), "nothing to do until then");
        world.tick_at(settle - Duration::from_millis(1));
        assert_eq!(world.starts.len(), before);
        world.tick_at(settle);
        while let Some(id) = world.running.keys().next().copied() {
            world.complete(id);
        }
        assert_eq!((world.all_present, world.sched.next_timer(world.now)), (1, None));
    }
}

#[test]
fn a_layer_is_left_alone_once_and_what_was_evicted_comes_again() {
    let settle = config().background_settle;
    let mut world = World::new(config(), 4);
    prefetch(&mut world, 0..4, Priority::Background);
    while let Some(id) = world.running.keys().next().copied() {
        world.complete(id);
    }
    assert_eq!(world.all_present, 1);
    world.disk.present.lock().expect("no panics").remove(&2);
    let settling = |world: &mut World| world.apply(Event::Settling { layers: vec![LAYER] });
    settling(&mut world);
    prefetch(&mut world, 0..4, Priority::Background);
    assert_eq!((world.running.len(), world.sched.next_timer(world.now)), (0, Some(settle)));
    world.now = settle / 2;
    settling(&mut world);
    assert_eq!(world.sched.next_timer(world.now), Some(settle), "somebody starts it again");
    world.tick_at(settle);
    assert_eq!(world.started().last(), Some(&(2..3, Priority::Background)));
}

#[test]
fn the_background_leaves_a_new_layer_alone_for_a_moment_readers_and_orders_do_not() {
    let begin = Duration::from_millis(300);
    let mut world = World::new(FillConfig { background: true, background_begin: begin, ..config() }, 8);
    assert_eq!((world.running.len(), world.sched.next_timer(world.now)), (0, Some(begin)));
    prefetch(&mut world, 6..7, Priority::Recorded);
    prefetch(&mut world, 0..1, Priority::Demand);
    assert_eq!(world.started(), [(6..7, Priority::Recorded), (0..1, Priority::Demand)]);
    while let Some(id) = world.running.keys().next().copied() {
        world.complete(id);
    }
    assert_eq!(world.starts.len(), 2);
    world.tick_at(begin.max(world.now + config().background_quiet));
    assert!(world.started().iter().skip(2).any(|(_, priority)| *priority == Priority::Background));
    // That one layer is at work does not keep another from being thought of in time.
    let other = Arc::new(Disk { spans: 4, present: Mutex::default() });
    let layer = LayerId(2);
    world.apply(Event::LayerAdded { layer, table: table(4), present: other, host: "other".into(), completes: true });
    assert_eq!(world.sched.next_timer(world.now), Some(world.now + begin));
}

#[test]
fn layers_of_other_images_are_completed_meanwhile() {
    let mut world = World::new(FillConfig { background: true, ..config() }, 8);
    let other = Arc::new(Disk { spans: 4, present: Mutex::default() });
    let layer = LayerId(2);
    world.apply(Event::Settling { layers: vec![LAYER] });
    world.apply(Event::LayerAdded { layer, table: table(4), present: other, host: "registry".into(), completes: true });
    for id in world.running.keys().copied().collect::<Vec<_>>() {
        world.complete(id);
    }
    let begun: Vec<LayerId> = world.starts.iter().map(|transfer| transfer.layer).collect();
    assert_eq!(begun, [LAYER, LAYER, layer, layer]);
}

#[test]
fn neighbours_of_a_recorded_order_go_together_and_what_is_here_is_left_out() {
    let mut world = World::new(config(), 60);
    world.disk.present.lock().expect("no panics").insert(20);
    let order = [(41, 42), (20, 21), (10, 11), (42, 43), (11, 12)].map(|(start, end)| (LAYER, start..end)).to_vec();
    world.apply(Event::Recorded { order });
    assert_eq!(world.started(), [(41..43, Priority::Recorded), (10..12, Priority::Recorded)]);
}

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::document::tests::example;
use super::*;

const MIB: u64 = 1 << 20;

fn shape(name: &[u8], spans: usize) -> LayerShape {
    let ztoc = Digest::of(&[name, b"z"].concat());
    LayerShape { layer: Digest::of(name), ztoc, span_bytes: vec![MIB; spans] }
}

fn run(layer: usize, spans: Range<u32>) -> PlannedRun {
    PlannedRun { layer, spans }
}

fn limits(run: u64, ahead: u64, total: u64) -> Limits {
    Limits { run_bytes: run * MIB, ahead_bytes: ahead * MIB, total_bytes: total * MIB }
}

#[test]
fn neighbours_go_together_the_first_needed_first() {
    let layers = [shape(b"a", 20), shape(b"b", 20)];
    let reads = [(0, 5..6), (1, 0..1), (0, 3..5), (0, 6..8), (1, 1..2), (0, 15..16), (0, 5..9)];
    for (limit, want) in [
        (limits(8, 100, 100), vec![run(0, 3..9), run(1, 0..2), run(0, 15..16)]),
        // A piece of three.
        (limits(3, 100, 100), vec![run(0, 5..8), run(1, 0..2), run(0, 3..5), run(0, 15..16), run(0, 8..9)]),
        // Only what is needed at once.
        (
            limits(8, 0, 100),
            vec![
                run(0, 5..6),
                run(1, 0..1),
                run(0, 3..4),
                run(0, 4..5),
                run(0, 6..7),
                run(0, 7..8),
                run(1, 1..2),
                run(0, 15..16),
                run(0, 8..9),
            ],
        ),
        // Not more than three in all.
        (limits(8, 100, 3), vec![run(0, 5..6), run(1, 0..1), run(0, 3..4)]),
        // A span that is longer than a piece still comes.
        (Limits { run_bytes: 1, ..limits(0, 0, 1) }, vec![run(0, 5..6)]),
    ] {
        let plan = runs(reads.iter().cloned(), &layers, limit);
        assert_eq!((plan.runs, plan.cut), (want, limit.total_bytes < 9 * MIB), "{limit:?}");
    }
}

#[test]
fn a_document_serves_the_layers_that_it_was_recorded_with() {
    let order = example();
    let (one, two) = (shape(b"one", 10), shape(b"two", 3));
    let full = plan(&order, &[two.clone(), one.clone()], Limits::default());
    assert_eq!(full.runs, [run(0, 0..1), run(1, 4..7), run(0, 2..3)]);
    assert_eq!((full.spans, full.bytes, full.unusable.len()), (5, 5 * MIB, 0));
    let (layer, recorded) = (one.layer, one.ztoc);
    let other = LayerShape { ztoc: Digest::of(b"other"), ..one.clone() };
    for (layers, want) in [
        (vec![two.clone()], Unusable::NotServed { layer }),
        (vec![two.clone(), other.clone()], Unusable::OtherZtoc { layer, recorded, served: other.ztoc }),
        (vec![two.clone(), shape(b"one", 9)], Unusable::OtherSpans { layer, recorded: 10, served: 9 }),
    ] {
        let partly = plan(&order, &layers, Limits::default());
        assert_eq!((partly.runs, partly.unusable), (vec![run(0, 0..1), run(0, 2..3)], vec![want]), "{want}");
    }
}

#[test]
fn what_a_layer_does_not_have_is_left_out() {
    let layers = [shape(b"a", 2)];
    let reads = [(0, 1..u32::MAX), (7, 0..1), (0, u32::MAX - 1..u32::MAX)];
    assert_eq!(runs(reads.into_iter(), &layers, Limits::default()).runs, [run(0, 1..2)]);
}

proptest! {
    /// Every span that is needed and there is asked for once, and nothing else.
    #[test]
    fn each_span_once(
        reads in prop::collection::vec((0_usize..3, 0_u32..40, 0_u32..9), 0..40),
        run_mib in 0_u64..12,
        ahead_mib in 0_u64..40,
    ) {
        let layers = [shape(b"a", 30), shape(b"b", 12)];
        let reads: Vec<_> = reads.into_iter().map(|(layer, first, count)| (layer, first..first + count)).collect();
        let wanted: BTreeSet<(usize, u32)> = reads
            .iter()
            .flat_map(|(layer, spans)| spans.clone().map(|span| (*layer, span)))
            .filter(|(layer, span)| layers.get(*layer).is_some_and(|l| (*span as usize) < l.span_bytes.len()))
            .collect();
        let plan = runs(reads.into_iter(), &layers, limits(run_mib, ahead_mib, 1000));
        let mut asked = BTreeSet::new();
        for PlannedRun { layer, spans } in plan.runs {
            prop_assert!(spans.len() == 1 || spans.len() as u64 <= run_mib);
            for span in spans {
                prop_assert!(asked.insert((layer, span)), "twice: {} of {}", span, layer);
            }
        }
        prop_assert_eq!(plan.spans, asked.len() as u64);
        prop_assert_eq!(asked, wanted);
    }
}

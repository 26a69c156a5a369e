//! Which spans and slices readers came to first, and when. Always on: a read of what was read before costs a load for each.
//!
//! Each has a slot with the time of its first read since [`Touched::begin`]; the order is a sort away. So memory is
//! 8 bytes for each, nothing is allocated on the way of a read, and readers need no lock. Spans that are here already count
//! like those that must come: a warm start, too, gives a whole order. What the kernel has in its page cache is not asked
//! for again and cannot be seen here.

use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The moment from which times count.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Microseconds on the clock of [`Touch::at_us`], the same for all layers; never 0.
#[must_use]
pub fn read_clock_us() -> u64 {
    u64::try_from(ORIGIN.elapsed().as_micros()).unwrap_or(u64::MAX - 1) + 1
}

/// The first read of a span, or of a slice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Touch<T> {
    /// When, by [`read_clock_us`].
    pub at_us: u64,
    /// What.
    pub what: T,
}

/// The first reads of one layer's spans, or of its slices.
pub(super) struct Touched {
    /// For each of them the time of its first read; what is before `since_us` does not count.
    slots: Box<[AtomicU64]>,
    since_us: AtomicU64,
}

impl Touched {
    pub fn new(number: usize) -> Self {
        Self { slots: (0..number).map(|_| AtomicU64::new(0)).collect(), since_us: AtomicU64::new(1) }
    }

    /// A reader reads these. Relaxed throughout: nothing else hangs on the order of these numbers.
    pub fn read(&self, numbers: Range<u32>) {
        let since_us = self.since_us.load(Ordering::Relaxed);
        let slots = self.slots.get(numbers.start as usize..numbers.end as usize).unwrap_or_default();
        for slot in slots.iter().filter(|slot| slot.load(Ordering::Relaxed) < since_us) {
            // Of two readers at the same moment either time is right.
            slot.store(read_clock_us(), Ordering::Relaxed);
        }
    }

    /// From `at_us` on first reads are first again.
    pub fn begin(&self, at_us: u64) {
        self.since_us.fetch_max(at_us, Ordering::Relaxed);
    }

    /// Which were read at or after `since_us`, and when: by time and, at the same time, by number.
    pub fn since(&self, since_us: u64) -> Vec<(u64, u32)> {
        let times = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed)).zip(0_u32..);
        let mut touches: Vec<(u64, u32)> = times.filter(|(at_us, _)| *at_us >= since_us.max(1)).collect();
        touches.sort_unstable();
        touches
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans(touches: &[(u64, u32)]) -> Vec<u32> {
        let mut spans: Vec<u32> = touches.iter().map(|touch| touch.1).collect();
        spans.sort_unstable();
        spans
    }

    #[test]
    fn only_first_reads_count_until_a_new_beginning() {
        let touched = Touched::new(8);
        touched.read(5..6);
        touched.read(1..3);
        let first = touched.since(0);
        assert_eq!(spans(&first), [1, 2, 5]);
        touched.read(0..8);
        let all = touched.since(0);
        assert!(first.iter().all(|touch| all.contains(touch)), "{first:?} {all:?}");
        // Later than all that was read.
        let at_us = read_clock_us() + 1;
        touched.begin(at_us);
        assert!(touched.since(at_us).is_empty());
        while read_clock_us() < at_us {}
        touched.read(7..8);
        assert_eq!(spans(&touched.since(at_us)), [7]);
        assert_eq!(spans(&touched.since(0)), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn spans_that_are_not_there_are_ignored() {
        let touched = Touched::new(2);
        touched.read(1..3);
        touched.read(7..9);
        touched.read(u32::MAX - 1..u32::MAX);
        assert!(touched.since(0).is_empty());
    }

    proptest! {
        /// Against the slow way: a list to which each read appends what is not in it.
        #[test]
        fn the_order_is_that_of_first_reads(reads in prop::collection::vec((0_u32..60, 1_u32..5), 0..40)) {
            let touched = Touched::new(64);
            let mut list: Vec<u32> = Vec::new();
            for (first, count) in reads {
                touched.read(first..first + count);
                let after = read_clock_us();
                list.extend((first..first + count).filter(|span| !list.contains(span)).collect::<Vec<_>>());
                // So that no two reads have the same time.
                while read_clock_us() <= after {}
            }
            let order: Vec<u32> = touched.since(0).iter().map(|touch| touch.1).collect();
            prop_assert_eq!(order, list);
        }
    }
}

//! Which entries of a ring's fixed-buffer table belong to which device.

use crate::sys::ring::MAX_FIXED_BUFFERS;

/// A run of table entries; entry `queue * depth + tag` of it belongs to that tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotRun {
    /// First entry.
    pub first: u16,
    /// Number of entries.
    pub len: u16,
}

/// First-fit allocator over one ring's table.
#[derive(Debug)]
pub(super) struct SlotTable {
    /// Free runs, sorted, never touching.
    free: Vec<SlotRun>,
}

impl SlotTable {
    /// An empty table; `enabled` is false on kernels without automatic registration, which then hold no entries.
    pub(super) fn new(enabled: bool) -> Self {
        let whole = SlotRun { first: 0, len: MAX_FIXED_BUFFERS as u16 };
        Self { free: if enabled { vec![whole] } else { Vec::new() } }
    }

    /// `len` entries in a row, or `None` when no run is long enough.
    pub(super) fn take(&mut self, len: u16) -> Option<SlotRun> {
        let at = self.free.iter().position(|run| run.len >= len)?;
        let run = self.free.get_mut(at)?;
        let taken = SlotRun { first: run.first, len };
        run.first += len;
        run.len -= len;
        if run.len == 0 {
            self.free.remove(at);
        }
        Some(taken)
    }

    /// Gives entries back.
    pub(super) fn give_back(&mut self, run: SlotRun) {
        let at = self.free.partition_point(|other| other.first < run.first);
        self.free.insert(at, run);
        // Join with the right neighbour, then with the left one.
        for left in [at, at.wrapping_sub(1)] {
            let right = left.wrapping_add(1);
            let (Some(&a), Some(&b)) = (self.free.get(left), self.free.get(right)) else { continue };
            if a.first + a.len == b.first {
                self.free.remove(right);
                if let Some(joined) = self.free.get_mut(left) {
                    joined.len += b.len;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_holds_256_default_devices() {
        let mut table = SlotTable::new(true);
        let runs: Vec<SlotRun> = (0..256).map(|_| table.take(64).expect("room")).collect();
        assert_eq!(table.take(1), None);
        table.give_back(runs[100]);
        assert_eq!(table.take(65), None);
        assert_eq!(table.take(64), Some(runs[100]));
        assert_eq!(SlotTable::new(false).take(1), None);
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(ops in prop::collection::vec((any::<bool>(), 1_u16..3000), 1..200)) {
            let mut table = SlotTable::new(true);
            let mut taken: Vec<SlotRun> = Vec::new();
            for (take, n) in ops {
                if take {
                    if let Some(run) = table.take(n) {
                        let end = run.first + run.len;
                        prop_assert!(taken.iter().all(|t| t.first + t.len <= run.first || end <= t.first));
                        prop_assert!(u32::from(end) <= MAX_FIXED_BUFFERS);
                        taken.push(run);
                    }
                } else if !taken.is_empty() {
                    table.give_back(taken.swap_remove(usize::from(n) % taken.len()));
                }
            }
            for run in taken {
                table.give_back(run);
            }
            prop_assert_eq!(table.free, SlotTable::new(true).free);
        }
    }
}

//! Memory that work has left free in the allocator goes back to the kernel when the work is over.
//!
//! Mounting reads whole zTOCs and lays out trees, fetching and inflating take megabytes a span, all freed within moments and
//! kept by the allocator. Asking for them back when the daemon has become quiet costs nothing to anybody who waits for
//! bytes (docs/decisions/daemon-memory.md).

use std::time::Duration;

/// How often to look.
const PAUSE: Duration = Duration::from_secs(3);
/// What must have come together since the last time to be worth it: below it stays what small work needs again and again.
const WORTH_BYTES: u64 = 2 << 20;
/// Changes below this between two looks count as none.
const QUIET_BYTES: u64 = 256 << 10;

/// Looks after a trim at which to trim once more. What work has freed inside the heap shows in no figure, and some is freed
/// later: scratch memory after 5 seconds, buffers of idle connections after 60.
const AGAIN: [u32; 2] = [4, 25];

/// When to trim, by the anonymous memory that is seen at each look.
#[derive(Default)]
struct Watch {
    last_bytes: u64,
    trimmed_bytes: u64,
    /// Looks since the trim that followed upon work.
    looks: u32,
}

impl Watch {
    /// Whether now is the time: nothing moved since the last look, and there is more than after the last trim, or that
    /// is a while ago.
    fn is_time(&mut self, now_bytes: u64) -> bool {
        let quiet = now_bytes.abs_diff(self.last_bytes) < QUIET_BYTES;
        self.last_bytes = now_bytes;
        // What goes back without our doing lowers the mark.
        self.trimmed_bytes = self.trimmed_bytes.min(now_bytes);
        self.looks = self.looks.saturating_add(1);
        if quiet && now_bytes - self.trimmed_bytes >= WORTH_BYTES {
            self.looks = 0;
            return true;
        }
        AGAIN.contains(&self.looks)
    }

    fn trimmed(&mut self, now_bytes: u64) {
        self.last_bytes = now_bytes;
        self.trimmed_bytes = now_bytes;
    }
}

/// Runs for the life of the daemon.
pub(super) async fn trim_when_quiet() {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(PAUSE).await;
        if !watch.is_time(anonymous_bytes()) {
            continue;
        }
        // Off the network threads: it takes milliseconds.
        if tokio::task::spawn_blocking(crate::sys::memory::trim).await.is_ok() {
            watch.trimmed(anonymous_bytes());
        }
    }
}

/// Resident memory of this process that is not backed by files, from proc(5); 0 where it cannot be read.
fn anonymous_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split(' ').skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_trimmed_once_after_work_and_not_during_it() {
        let mut watch = Watch::default();
        watch.trimmed(10 * MIB);
        // Growing, then at rest.
        assert!(!watch.is_time(40 * MIB));
        assert!(!watch.is_time(90 * MIB));
        assert!(watch.is_time(90 * MIB));
        watch.trimmed(12 * MIB);
        assert!(!watch.is_time(12 * MIB));
        // A little more is not worth it; less makes later growth count from there.
        assert!(!watch.is_time(13 * MIB));
        assert!(!watch.is_time(13 * MIB));
        assert!(watch.is_time(8 * MIB), "the first look for what was freed later");
        watch.trimmed(8 * MIB);
        assert!(!watch.is_time(11 * MIB));
        assert!(watch.is_time(11 * MIB));
    }

    #[test]
    fn what_is_freed_later_is_found_and_then_there_is_peace() {
        let mut watch = Watch::default();
        assert!(!watch.is_time(10 * MIB));
        assert!(watch.is_time(10 * MIB));
        watch.trimmed(9 * MIB);
        let times: Vec<u32> = (1..200).filter(|_| watch.is_time(9 * MIB)).collect();
        assert_eq!(times, AGAIN);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        assert!(anonymous_bytes() > 100_000);
    }
}

//! Settings of the frontend.

use std::time::Duration;

/// How bytes get into a request's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataMode {
    /// The driver copies from a pool buffer when the answer is committed. Every kernel with ublk.
    Copy,
    /// The pool buffer is written to the character device at the request's position. Linux 6.5.
    UserCopy,
    /// The driver registers the request's pages as a fixed buffer and files are read into it: no buffer of ours. Linux 6.16.
    AutoBufReg,
}

/// Settings; the defaults are those of the design.
#[derive(Clone, Debug)]
pub struct UblkConfig {
    /// Ring threads, 1 to 4. Default: half the processors.
    pub ring_threads: usize,
    /// Hardware queues per device. Two, so that the block layer picks no I/O scheduler.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Force a data mode; by default the best that the driver grants.
    pub data_mode: Option<DataMode>,
    /// Preferred request size in bytes, a power of two; the kernel reads ahead twice that.
    pub io_opt_bytes: u32,
    /// Copy buffers (1 MiB of address space each) per ring thread. Requests beyond that wait their turn.
    pub copy_buffers: u16,
    /// Time limit of control commands.
    pub control_limit: Duration,
    /// Time limit of a removal's wait for the ring thread, and of the drain of local reads at the end.
    pub drain_limit: Duration,
}

/// Longest request: 1 MiB.
pub(super) const MAX_REQUEST_BYTES: u32 = 1 << 20;
const MAX_RING_THREADS: usize = 4;
const MAX_QUEUES: u16 = 16;
const MAX_DEPTH: u16 = 1024;

impl Default for UblkConfig {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            ring_threads: (processors / 2).clamp(1, MAX_RING_THREADS),
            queues: 2,
            depth: 32,
            data_mode: None,
            io_opt_bytes: 256 << 10,
            copy_buffers: 32,
            control_limit: Duration::from_secs(10),
            drain_limit: Duration::from_secs(10),
        }
    }
}

impl UblkConfig {
    /// What is wrong with the settings, if anything.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if !(1..=MAX_RING_THREADS).contains(&self.ring_threads) {
            Some("ring threads must be 1 to 4")
        } else if !(1..=MAX_QUEUES).contains(&self.queues) {
            Some("queues must be 1 to 16")
        } else if !(1..=MAX_DEPTH).contains(&self.depth) {
            Some("depth must be 1 to 1024")
        } else if !self.io_opt_bytes.is_power_of_two() || !(4096..=1 << 28).contains(&self.io_opt_bytes) {
            Some("io_opt must be a power of two from 4 KiB to 256 MiB")
        } else if self.copy_buffers == 0 {
            Some("at least one copy buffer is needed")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_nonsense_is_named() {
        let good = UblkConfig::default();
        assert_eq!(good.problem(), None);
        for (bad, word) in [
            (UblkConfig { ring_threads: 0, ..good.clone() }, "ring threads"),
            (UblkConfig { ring_threads: 5, ..good.clone() }, "ring threads"),
            (UblkConfig { queues: 0, ..good.clone() }, "queues"),
            (UblkConfig { depth: 5000, ..good.clone() }, "depth"),
            (UblkConfig { io_opt_bytes: 100_000, ..good.clone() }, "io_opt"),
            (UblkConfig { copy_buffers: 0, ..good.clone() }, "copy buffer"),
        ] {
            assert!(bad.problem().is_some_and(|p| p.contains(word)), "{bad:?}");
        }
    }
}

//! Settings of the FUSE session.

use std::num::{NonZeroU16, NonZeroUsize};
use std::time::Duration;

/// Longest read that the kernel sends, in bytes: 256 pages, the kernel's own default ceiling
/// (`fuse_max_pages_limit`, Linux `fs/fuse/inode.c`).
pub(super) const MAX_READ_BYTES: u32 = 1 << 20;

/// How the FUSE session is run.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// Threads that take requests from the kernel and answer what is present.
    pub session_threads: NonZeroUsize,
    /// Threads that answer reads which had to wait.
    pub reply_threads: NonZeroUsize,
    /// Reads that the kernel keeps in flight before it holds further ones back. All layers share this number, and a
    /// read that waits for a registry occupies one: it must exceed what slow layers can have outstanding.
    pub max_background: NonZeroU16,
    /// How long [`remove`](super::FuseImages::remove) and [`close`](super::FuseImages::close) wait for the kernel to
    /// let go of a file: after an unmount its release arrives a little later.
    pub release_wait: Duration,
}

impl Default for FuseConfig {
    fn default() -> Self {
        const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
        Self {
            session_threads: TWO,
            reply_threads: TWO,
            max_background: NonZeroU16::MIN.saturating_add(4095),
            release_wait: Duration::from_secs(2),
        }
    }
}

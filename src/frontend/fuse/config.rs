//! Settings of the FUSE session.

use std::num::{NonZeroU16, NonZeroUsize};
use std::time::Duration;

use crate::sys::fuse::{
    ASYNC_DIO, ASYNC_READ, CACHE_SYMLINKS, DO_READDIRPLUS, HAS_RESEND, INIT_EXT, MAX_PAGES, OVER_IO_URING,
    PARALLEL_DIROPS, POSIX_ACL, READDIRPLUS_AUTO,
};

const EIGHT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Longest read that the kernel sends, in bytes: 256 pages, the kernel's own default ceiling
/// (`fuse_max_pages_limit`, Linux `fs/fuse/inode.c`).
pub(super) const MAX_READ_BYTES: u32 = 1 << 20;

/// Names and attributes never change while they are served; removal invalidates the name. Ten years.
pub(in crate::frontend) const VALID_S: u64 = 10 * 365 * 24 * 3600;

/// What the session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FuseKind {
    /// Files on which other file systems lie ([`fuse_image`](crate::frontend::fuse_image)).
    Images,
    /// Trees of files ([`fuse_fs`](crate::frontend::fuse_fs)).
    Files,
}

impl FuseKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Images, Self::Files];

    /// What we want of what the kernel offers. Passthrough is not asked for: it would make this a stacked file system,
    /// on which EROFS refuses to lie.
    fn wanted(self) -> u64 {
        let both = ASYNC_READ | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES | INIT_EXT | HAS_RESEND;
        match self {
            Self::Images => both,
            Self::Files => both | DO_READDIRPLUS | READDIRPLUS_AUTO | POSIX_ACL | CACHE_SYMLINKS,
        }
    }

    /// Room for inode numbers, as a power of two: one each, or one for every 32 bytes of metadata.
    pub(super) fn number_bits(self) -> u32 {
        match self {
            Self::Images => 30,
            Self::Files => FILE_NUMBER_BITS,
        }
    }
}

/// Numbers of a [`FuseKind::Files`] session differ in so many bits.
pub(in crate::frontend) const FILE_NUMBER_BITS: u32 = 40;

/// How the FUSE session is run.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// What it is for.
    pub kind: FuseKind,
    /// Threads that take requests from the kernel and answer what is present.
    pub session_threads: NonZeroUsize,
    /// Threads that answer reads which had to wait, at most: one is always there.
    pub reply_threads: NonZeroUsize,
    /// Reads that the kernel keeps in flight before it holds further ones back. All layers share this number, and a
    /// read that waits for a registry occupies one: it must exceed what slow layers can have outstanding.
    pub max_background: NonZeroU16,
    /// Requests come over io_uring where the kernel offers it. Such a connection cannot be taken over.
    pub io_uring: bool,
    /// How long [`remove`](super::FuseServer::remove) and [`close`](super::FuseServer::close) wait for the kernel to
    /// let go of a file: after an unmount its release arrives a little later.
    pub release_wait: Duration,
}

impl FuseConfig {
    /// What we want of what the kernel offers.
    pub(super) fn wanted(&self) -> u64 {
        self.kind.wanted() | if self.io_uring { OVER_IO_URING } else { 0 }
    }

    /// For trees of files: every open, look-up and attribute is a request here, so there are as many threads as CPUs, up
    /// to eight.
    #[must_use]
    pub fn files() -> Self {
        let images = Self::default();
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { kind: FuseKind::Files, session_threads: threads.clamp(images.session_threads, EIGHT), ..images }
    }
}

impl Default for FuseConfig {
    fn default() -> Self {
        const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
        Self {
            kind: FuseKind::Images,
            session_threads: TWO,
            reply_threads: TWO,
            max_background: NonZeroU16::MIN.saturating_add(4095),
            io_uring: false,
            release_wait: Duration::from_secs(2),
        }
    }
}

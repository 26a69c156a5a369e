//! FUSE over io_uring (Linux 6.14): a ring whose commands bring requests of a FUSE connection and take their answers back.
//!
//! Every entry has buffers of its own. The kernel has them from a command's submission to its completion, and a [`Held`], of
//! which there is at most one, from then to its next commit: never both at a time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

pub use super::fuse_entry::Held;
use super::fuse_entry::Memory;
use super::uring::submit_and_wait;

/// `FUSE_IO_URING_CMD_REGISTER`: here is an entry.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: here is an answer; bring the next request.
const COMMIT_AND_FETCH: u32 = 2;

/// Marks completions of the watch.
const WATCH: u64 = u64::MAX;

/// `struct fuse_uring_cmd_req`, at the beginning of a submission entry's 80 bytes for commands.
#[repr(C)]
#[derive(IntoBytes, Immutable, KnownLayout)]
struct Command {
    flags: u64,
    commit_id: u64,
    queue: u16,
    padding: [u8; 6],
}

const _: () = {
    assert!(size_of::<Command>() == 24 && size_of::<squeue::Entry128>() == 128);
};

/// Sizes of a [`FuseRing`].
#[derive(Clone, Debug)]
pub struct FuseRingSizes {
    /// The kernel's queues (one for each possible CPU) that the ring serves.
    pub queues: Vec<u16>,
    /// Entries of each of them: requests that may be in our hands at a time.
    pub depth: u16,
    /// Bytes of each payload buffer, a multiple of the page size.
    pub payload_bytes: usize,
}

impl FuseRingSizes {
    fn entries(&self) -> usize {
        self.queues.len() * usize::from(self.depth)
    }
}

/// What came of a command.
#[derive(Debug)]
pub enum FuseEvent {
    /// A request.
    Request(Held),
    /// An entry is no longer known to the kernel; a negated errno.
    Refused(i32),
    /// What is watched became readable.
    Woken {
        /// Whether it is still watched.
        watching: bool,
    },
}

/// A ring and its entries. Belongs to the thread that made it; the kernel takes its end for the end of its entries.
pub struct FuseRing {
    ring: IoUring<squeue::Entry128>,
    memory: Arc<Memory>,
    sizes: FuseRingSizes,
    in_flight: usize,
}

impl FuseRing {
    /// Makes the ring on the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    /// What `io_uring_setup` or `mmap` say.
    pub fn new(sizes: FuseRingSizes) -> io::Result<Self> {
        let entries = sizes.entries();
        let submissions = u32::try_from(entries + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ring = IoUring::<squeue::Entry128>::builder()
            .setup_single_issuer()
            // The kernel copies requests into our memory while this thread is in `submit_and_wait`, and never else.
            .setup_defer_taskrun()
            .build(submissions.next_power_of_two())?;
        let memory = Arc::new(Memory::new(entries, sizes.payload_bytes)?);
        Ok(Self { ring, memory, sizes, in_flight: 0 })
    }

    /// Tells the kernel of all entries of a connection, whose INIT must be answered.
    ///
    /// # Errors
    /// What `io_uring_enter` says. What the kernel says of each entry comes as events.
    pub fn register(&mut self, device: BorrowedFd<'_>) -> io::Result<()> {
        let named = |(base, len): (*mut u8, usize)| libc::iovec { iov_base: base.cast(), iov_len: len };
        // The kernel reads these while it takes the commands.
        let buffers: Vec<_> = (0..self.sizes.entries())
            .map(|entry| [named(self.memory.header(entry)), named(self.memory.payload(entry))])
            .collect();
        for (entry, buffers) in buffers.iter().enumerate() {
            self.push(device, REGISTER, entry, 0, Some(buffers));
        }
        while !self.ring.submission().is_empty() {
            self.submit_and_wait(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Hands an answer over, with the next [`submit_and_wait`](Self::submit_and_wait).
    ///
    /// # Panics
    /// When it is another ring's.
    pub fn commit(&mut self, device: BorrowedFd<'_>, held: Held) {
        assert!(Arc::ptr_eq(&self.memory, &held.memory), "an entry of another ring");
        self.push(device, COMMIT_AND_FETCH, held.entry, held.commit_id, None);
    }

    /// Brings [`FuseEvent::Woken`] whenever `file` becomes readable, until one that says otherwise.
    pub fn watch(&mut self, file: BorrowedFd<'_>) {
        let readable = libc::POLLIN as u32;
        let entry = opcode::PollAdd::new(types::Fd(file.as_raw_fd()), readable).multi(true).build();
        self.push_entry(&entry.user_data(WATCH).into());
    }

    /// Commands that the kernel still has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Submits everything and waits for a completion, or until `limit` passed (zero: only takes what is there).
    ///
    /// # Errors
    /// What `io_uring_enter` says; time-outs and signals are no errors.
    pub fn submit_and_wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        submit_and_wait(&self.ring.submitter(), limit)
    }

    /// The next completion that is there.
    pub fn next_event(&mut self) -> Option<FuseEvent> {
        let completion = self.ring.completion().next()?;
        if completion.user_data() == WATCH {
            return Some(FuseEvent::Woken { watching: cqueue::more(completion.flags()) });
        }
        self.in_flight -= 1;
        Some(match (completion.result(), usize::try_from(completion.user_data())) {
            (0, Ok(entry)) => FuseEvent::Request(Held::new(&self.memory, entry)),
            (error, _) => FuseEvent::Refused(error),
        })
    }

    /// Frees the memory of all payload buffers. Only when every entry is with the kernel and no completion is unread.
    pub fn trim(&mut self) {
        if self.in_flight == self.sizes.entries() && self.ring.completion().is_empty() {
            self.memory.trim();
        }
    }

    fn push(
        &mut self,
        device: BorrowedFd<'_>,
        operation: u32,
        entry: usize,
        commit_id: u64,
        buffers: Option<&[libc::iovec; 2]>,
    ) {
        let queue = self.sizes.queues.get(entry / usize::from(self.sizes.depth)).copied().unwrap_or_default();
        let command = Command { flags: 0, commit_id, queue, padding: [0; 6] };
        let mut bytes = [0_u8; 80];
        if let Some(place) = bytes.get_mut(..size_of::<Command>()) {
            place.copy_from_slice(command.as_bytes());
        }
        let address = buffers.map(|buffers| buffers.as_ptr() as u64);
        let fd = types::Fd(device.as_raw_fd());
        let mut sqe = opcode::UringCmd80::new(fd, operation).cmd(bytes).addr(address).build().user_data(entry as u64);
        if buffers.is_some() {
            const LEN_AT: usize = 24;
            // SAFETY: an `Entry128` is a whole `struct io_uring_sqe` (its size is asserted above) without padding, whose
            // member `len` is the u32 at byte 24; the crate has no way to set it for commands.
            unsafe { std::ptr::from_mut(&mut sqe).cast::<u8>().add(LEN_AT).cast::<u32>().write(2) };
        }
        self.in_flight += 1;
        self.push_entry(&sqe);
    }

    fn push_entry(&mut self, entry: &squeue::Entry128) {
        loop {
            // SAFETY: the addresses of buffers in commands lie in `memory`, which stays mapped until no command is in
            // flight, and is not touched from here meanwhile (see `Held`); the array that names them lives until the
            // submission right after. Descriptors are those of open files.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            if let Err(error) = self.submit_and_wait(Some(Duration::ZERO)) {
                panic!("io_uring takes no more submissions: {error}");
            }
        }
    }
}

impl Drop for FuseRing {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            tracing::debug!(commands = self.in_flight, "the kernel still has FUSE requests' buffers; they are leaked");
            std::mem::forget(Arc::clone(&self.memory));
        }
    }
}

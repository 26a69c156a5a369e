//! The io_uring of a ublk ring thread: reads of local files, copies into requests, ublk commands.
//!
//! Safe by construction: data goes from file to kernel buffer or pool and on, and no Rust code ever looks at a byte of it.
//! The pool's memory is named by number, stays mapped as long as the kernel may touch it, and is never referenced.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::IntoBytes;

use super::ublk::IoCmd;
use super::uring::submit_and_wait;

/// Marks completions of reads and writes, which may touch the pool. Callers leave this bit of `user_data` free.
const DATA: u64 = 1 << 63;

/// Most fixed buffers that a ring can have (`IORING_MAX_REG_BUFFERS`).
pub const MAX_FIXED_BUFFERS: u32 = 1 << 14;

/// A buffer of the ring's pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferId(u16);

impl BufferId {
    /// Names a buffer. A number that the pool lacks makes operations on it panic.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }
}

/// Where a read puts its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Byte `at` of a pool buffer.
    Pool {
        /// Which.
        buffer: BufferId,
        /// Offset in bytes.
        at: u32,
    },
    /// Byte `at` of the request pages that the driver registered in the fixed-buffer table.
    Fixed {
        /// Index in the table.
        slot: u16,
        /// Offset in bytes.
        at: u32,
    },
}

/// What address a ublk command carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandAddress {
    /// None (user copy).
    None,
    /// Copy mode, no data: any valid address.
    Any,
    /// Copy mode: the driver copies the answer from this buffer while the command is submitted. The buffer goes back to
    /// the pool by itself after that.
    Buffer(BufferId),
    /// The registration wish in the submission entry's own address (`auto_buffer_address`).
    Register(u64),
}

/// One completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// As given at submission.
    pub user_data: u64,
    /// Bytes, 0, or a negated errno.
    pub result: i32,
    /// More completions of the same submission will follow.
    pub more: bool,
}

/// Sizes of a [`DataRing`].
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    /// Submission entries.
    pub submissions: u32,
    /// Completion entries; the kernel keeps what does not fit.
    pub completions: u32,
    /// Entries of the fixed-buffer table, 0 for no table.
    pub fixed_buffers: u32,
    /// Buffers in the pool, at least 1.
    pub pool_buffers: u16,
    /// Bytes of each pool buffer, a multiple of the page size.
    pub buffer_bytes: u32,
}

/// A ring, the pool that its operations use, and the count of those in flight. Belongs to the thread that made it.
pub struct DataRing {
    // Dropped before the pool: no operation can start after it is gone.
    ring: IoUring,
    pool: Pool,
    data_in_flight: usize,
    parked: Vec<BufferId>,
}

impl DataRing {
    /// Makes the ring on the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    /// What `io_uring_setup`, the buffer table's registration or `mmap` say.
    pub fn new(sizes: &RingSizes) -> io::Result<Self> {
        let modern = IoUring::builder()
            .setup_cqsize(sizes.completions)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(sizes.submissions);
        let ring = match modern {
            // Before 6.1.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_cqsize(sizes.completions).build(sizes.submissions)?
            }
            other => other?,
        };
        if sizes.fixed_buffers > 0 {
            ring.submitter().register_buffers_sparse(sizes.fixed_buffers)?;
        }
        // Reads of cold pages on file systems without asynchronous buffered reads go to kernel workers: a few are enough.
        ring.submitter().register_iowq_max_workers(&mut [4, 2])?;
        let pool = Pool::new(sizes.pool_buffers, sizes.buffer_bytes)?;
        Ok(Self { ring, pool, data_in_flight: 0, parked: Vec::new() })
    }

    /// A free pool buffer.
    pub fn take_buffer(&mut self) -> Option<BufferId> {
        self.pool.dirty = true;
        self.pool.free.pop()
    }

    /// Gives a buffer back that no operation uses any more.
    pub fn give_back(&mut self, buffer: BufferId) {
        self.pool.free.push(buffer);
    }

    /// Reads and writes that the kernel still works on.
    #[must_use]
    pub fn data_in_flight(&self) -> usize {
        self.data_in_flight
    }

    /// Whether the pool may hold memory that [`DataRing::trim`] would free.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.pool.dirty
    }

    /// Frees the memory of the pool's idle buffers.
    pub fn trim(&mut self) {
        self.pool.trim();
    }

    /// Reads `len` bytes at `offset` of `file`.
    ///
    /// # Panics
    /// When the target lies outside the buffer.
    pub fn read(&mut self, file: BorrowedFd<'_>, offset: u64, target: Target, len: u32, user_data: u64) {
        let fd = types::Fd(file.as_raw_fd());
        let entry = match target {
            Target::Pool { buffer, at } => {
                opcode::Read::new(fd, self.pool.address(buffer, at, len), len).offset(offset).build()
            }
            // The "address" in a request's registered pages counts from 0.
            Target::Fixed { slot, at } => {
                let at = std::ptr::without_provenance_mut(at as usize);
                opcode::ReadFixed::new(fd, at, len, slot).offset(offset).build()
            }
        };
        self.push_data(entry, user_data);
    }

    /// Writes `len` bytes from byte `from` of a pool buffer to `offset` of `file`.
    ///
    /// # Panics
    /// When the range lies outside the buffer.
    pub fn write(&mut self, file: BorrowedFd<'_>, offset: u64, buffer: BufferId, from: u32, len: u32, user_data: u64) {
        let address = self.pool.address(buffer, from, len);
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), address, len).offset(offset).build();
        self.push_data(entry, user_data);
    }

    /// Sends a ublk command; `command.addr` is filled from `address`.
    pub fn command(
        &mut self,
        cdev: BorrowedFd<'_>,
        opcode: u32,
        mut command: IoCmd,
        address: CommandAddress,
        user_data: u64,
    ) {
        let mut register = None;
        match address {
            CommandAddress::None => {}
            CommandAddress::Any => command.addr = self.pool.base.as_ptr() as u64,
            CommandAddress::Buffer(buffer) => {
                command.addr = self.pool.address(buffer, 0, 0) as u64;
                self.parked.push(buffer);
            }
            CommandAddress::Register(wish) => register = Some(wish),
        }
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(command.as_bytes());
        let entry = opcode::UringCmd16::new(types::Fd(cdev.as_raw_fd()), opcode).cmd(bytes).addr(register).build();
        self.push(&entry.user_data(user_data));
    }

    /// Completes whenever `file` becomes readable, until a completion without `more`.
    pub fn watch(&mut self, file: BorrowedFd<'_>, user_data: u64) {
        let readable = libc::POLLIN as u32;
        let entry = opcode::PollAdd::new(types::Fd(file.as_raw_fd()), readable).multi(true).build();
        self.push(&entry.user_data(user_data));
    }

    /// Submits everything and waits for a completion, or until `limit` passed (zero: does not wait).
    ///
    /// # Errors
    /// What `io_uring_enter` says; time-outs and signals are no errors.
    pub fn submit_and_wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        submit_and_wait(&self.ring.submitter(), limit)?;
        if self.ring.submission().is_empty() {
            // The driver copies during submission: what was committed before is out.
            self.pool.free.append(&mut self.parked);
        }
        Ok(())
    }

    /// Moves the completions that are there to `out`.
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        for completion in self.ring.completion() {
            let user_data = completion.user_data();
            if user_data & DATA != 0 {
                self.data_in_flight -= 1;
            }
            out.push(Completion {
                user_data: user_data & !DATA,
                result: completion.result(),
                more: cqueue::more(completion.flags()),
            });
        }
    }

    fn push_data(&mut self, entry: squeue::Entry, user_data: u64) {
        debug_assert_eq!(user_data & DATA, 0);
        self.data_in_flight += 1;
        self.push(&entry.user_data(user_data | DATA));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: every address in an entry made here is 0-based in kernel-registered pages or lies in the pool, which
            // stays mapped until nothing is in flight. Descriptors are those of open files; callers keep them open
            // until their operations completed, and a closed one yields EBADF or a read of another file, not memory errors.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            if let Err(error) = self.submit_and_wait(Some(Duration::ZERO)) {
                panic!("io_uring takes no more submissions: {error}");
            }
        }
    }
}

impl Drop for DataRing {
    fn drop(&mut self) {
        if self.data_in_flight > 0 {
            tracing::error!(reads = self.data_in_flight, "local reads still run; their buffers are leaked");
            self.pool.leak = true;
        }
    }
}

/// Page-aligned buffers in one anonymous mapping; memory is taken when the kernel first writes to it.
struct Pool {
    base: NonNull<c_void>,
    buffer_bytes: u32,
    buffers: u16,
    /// Last in, first out: the warmest memory is used again.
    free: Vec<BufferId>,
    dirty: bool,
    leak: bool,
}

impl Pool {
    fn new(buffers: u16, buffer_bytes: u32) -> io::Result<Self> {
        let len_bytes = usize::from(buffers) * buffer_bytes as usize;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // SAFETY: our own mapping, as a whole. Huge pages would turn a 4 KiB request into 2 MiB of memory.
        if let Err(error) = unsafe { madvise(base, len_bytes, Advice::LinuxNoHugepage) } {
            tracing::debug!(%error, "no control over huge pages");
        }
        let base = NonNull::new(base).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let free = (0..buffers).rev().map(BufferId).collect();
        Ok(Self { base, buffer_bytes, buffers, free, dirty: false, leak: false })
    }

    fn address(&self, buffer: BufferId, at: u32, len: u32) -> *mut u8 {
        let end = u64::from(at) + u64::from(len);
        assert!(buffer.0 < self.buffers && end <= u64::from(self.buffer_bytes), "outside the pool");
        let offset = usize::from(buffer.0) * self.buffer_bytes as usize + at as usize;
        self.base.as_ptr().cast::<u8>().wrapping_add(offset)
    }

    fn trim(&mut self) {
        if self.free.len() < usize::from(self.buffers) {
            return;
        }
        let len_bytes = usize::from(self.buffers) * self.buffer_bytes as usize;
        // SAFETY: our own mapping; every buffer is free, so the kernel writes to none and nobody expects its contents.
        match unsafe { madvise(self.base.as_ptr(), len_bytes, Advice::LinuxDontNeed) } {
            Ok(()) => self.dirty = false,
            Err(error) => tracing::debug!(%error, "cannot give pool memory back"),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.leak {
            return;
        }
        let len_bytes = usize::from(self.buffers) * self.buffer_bytes as usize;
        // SAFETY: our own mapping; nothing is in flight (else `leak` is set) and no reference into it exists.
        if let Err(error) = unsafe { munmap(self.base.as_ptr(), len_bytes) } {
            tracing::error!(%error, "cannot unmap the buffer pool");
        }
    }
}

#[cfg(test)]
mod tests;

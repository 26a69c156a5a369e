//! The buffers of a [`super::fuse_ring::FuseRing`]'s entries: a header and a payload buffer each.

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::fuse::{InHeader, OutHeader};

/// Room for a [`Header`].
const HEADER_BYTES: usize = 512;

/// `struct fuse_uring_req_header`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    /// `struct fuse_in_header`, then `struct fuse_out_header`.
    in_out: [u8; 128],
    /// The first argument of the request.
    op_in: [u8; 128],
    flags: u64,
    commit_id: u64,
    /// Bytes in the payload buffer, in both directions.
    payload_bytes: u32,
    padding: u32,
    reserved: u64,
}

const _: () = assert!(size_of::<Header>() == 288 && size_of::<Header>() <= HEADER_BYTES);

/// A request that waits for its answer, and its buffers. Dropped unused it leaves its reader waiting.
#[derive(Debug)]
pub struct Held {
    pub(super) memory: Arc<Memory>,
    pub(super) entry: usize,
    /// What the answer must name; known once the request has been looked at.
    pub(super) commit_id: u64,
}

impl Held {
    /// For an entry whose command has just brought a request: there is no other `Held` of it.
    pub(super) fn new(memory: &Arc<Memory>, entry: usize) -> Self {
        Self { memory: Arc::clone(memory), entry, commit_id: 0 }
    }

    /// Copies what follows the request's header to `body`, and notes what its answer must name.
    ///
    /// # Errors
    /// For a request that is longer than `body`, or contradicts itself.
    pub fn request<'a>(&mut self, body: &'a mut [u8]) -> io::Result<(InHeader, &'a [u8])> {
        let odd = || io::Error::new(io::ErrorKind::InvalidData, "a FUSE request on a ring that contradicts itself");
        self.commit_id = self.header().commit_id;
        let header = self.header();
        let (request, _) = InHeader::read_from_prefix(&header.in_out).map_err(|_| odd())?;
        let payload_bytes = header.payload_bytes as usize;
        let first_bytes =
            (request.len_bytes as usize).checked_sub(size_of::<InHeader>() + payload_bytes).ok_or_else(odd)?;
        let first = header.op_in.get(..first_bytes).ok_or_else(odd)?;
        let rest = self.memory_of_payload().get(..payload_bytes).ok_or_else(odd)?;
        let body = body.get_mut(..first_bytes + payload_bytes).ok_or_else(odd)?;
        let (to_first, to_rest) = body.split_at_mut(first_bytes);
        to_first.copy_from_slice(first);
        to_rest.copy_from_slice(rest);
        Ok((request, body))
    }

    /// Where the answer's bytes go; the request's own are gone with the first of them.
    pub fn room(&mut self) -> &mut [u8] {
        let (base, len) = self.memory.payload(self.entry);
        // SAFETY: mapped as long as `memory` lives, initialized (zeros at first), and nobody else's while this `Held`,
        // the only one of its entry, exists: the kernel has the entry only between a submission, which consumes the
        // `Held`, and its completion, which makes the next one.
        unsafe { std::slice::from_raw_parts_mut(base, len) }
    }

    /// Says what the answer is: an error, or the first bytes of [`room`](Self::room).
    pub fn answer(&mut self, unique: u64, error: i32, len_bytes: u32) {
        let total = len_bytes.saturating_add(size_of::<OutHeader>() as u32);
        let out = OutHeader { len_bytes: total, error, unique };
        let (base, _) = self.memory.header(self.entry);
        // SAFETY: as in `room`; base is aligned to 512 bytes.
        let header = unsafe { &mut *base.cast::<Header>() };
        if let Some(place) = header.in_out.get_mut(..size_of::<OutHeader>()) {
            place.copy_from_slice(out.as_bytes());
        }
        header.payload_bytes = len_bytes;
    }

    fn header(&self) -> &Header {
        let (base, _) = self.memory.header(self.entry);
        // SAFETY: as in `room`, shared; base is aligned to 512 bytes, and any bytes are a header.
        unsafe { &*base.cast::<Header>() }
    }

    fn memory_of_payload(&self) -> &[u8] {
        let (base, len) = self.memory.payload(self.entry);
        // SAFETY: as in `room`, shared.
        unsafe { std::slice::from_raw_parts(base, len) }
    }
}

/// Where the payload buffers begin, behind the headers.
fn payloads_at(entries: usize) -> usize {
    (entries * HEADER_BYTES).next_multiple_of(1 << 16)
}

/// Headers, then payload buffers, in one anonymous mapping; memory is taken when somebody first writes to it.
#[derive(Debug)]
pub(super) struct Memory {
    base: NonNull<c_void>,
    entries: usize,
    payload_bytes: usize,
}

// SAFETY: no more than an address; who may use what lies there, the type `Held` says.
unsafe impl Send for Memory {}
// SAFETY: as above: through a shared reference only addresses are computed.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn new(entries: usize, payload_bytes: usize) -> io::Result<Self> {
        let len_bytes = payloads_at(entries) + entries * payload_bytes;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len_bytes, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let base = NonNull::new(base).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: our own mapping, as a whole. Huge pages would turn a request of 4 KiB into 2 MiB of memory.
        if let Err(error) = unsafe { madvise(base.as_ptr(), len_bytes, Advice::LinuxNoHugepage) } {
            tracing::debug!(%error, "no control over huge pages");
        }
        Ok(Self { base, entries, payload_bytes })
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.base.as_ptr().cast::<u8>().wrapping_add(offset)
    }

    pub(super) fn header(&self, entry: usize) -> (*mut u8, usize) {
        assert!(entry < self.entries, "no such entry");
        (self.at(entry * HEADER_BYTES), HEADER_BYTES)
    }

    pub(super) fn payload(&self, entry: usize) -> (*mut u8, usize) {
        assert!(entry < self.entries, "no such entry");
        (self.at(payloads_at(self.entries) + entry * self.payload_bytes), self.payload_bytes)
    }

    pub(super) fn trim(&self) {
        let len_bytes = self.entries * self.payload_bytes;
        let payloads = self.at(payloads_at(self.entries)).cast();
        // SAFETY: our own mapping. `FuseRing::trim` makes sure that no `Held` exists and that no request has been written;
        // the kernel writes the next ones to fresh pages.
        if let Err(error) = unsafe { madvise(payloads, len_bytes, Advice::LinuxDontNeed) } {
            tracing::debug!(%error, "cannot give the memory of FUSE requests back");
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let len_bytes = payloads_at(self.entries) + self.entries * self.payload_bytes;
        // SAFETY: our own mapping; neither a ring nor a `Held` has it any more, and a ring with commands in flight leaks it.
        if let Err(error) = unsafe { munmap(self.base.as_ptr(), len_bytes) } {
            tracing::error!(%error, "cannot unmap the buffers of FUSE requests");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_with(request: &InHeader, op_in: &[u8], payload: &[u8]) -> Held {
        let memory = Arc::new(Memory::new(2, 1 << 16).expect("memory"));
        let mut held = Held::new(&memory, 1);
        let mut header = Header::read_from_bytes(&[0; 288]).expect("a header");
        header.in_out[..size_of::<InHeader>()].copy_from_slice(request.as_bytes());
        header.op_in[..op_in.len()].copy_from_slice(op_in);
        (header.commit_id, header.payload_bytes) = (77, payload.len() as u32);
        let (base, _) = memory.header(1);
        // SAFETY: as the kernel does it before there is a `Held`; this one has not been looked at.
        unsafe { base.cast::<Header>().write(header) };
        held.room()[..payload.len()].copy_from_slice(payload);
        held
    }

    fn request(len_bytes: u32) -> InHeader {
        let mut request = InHeader::read_from_bytes(&[0; 40]).expect("a header");
        (request.len_bytes, request.opcode, request.unique) = (len_bytes, 22, 99);
        request
    }

    #[test]
    fn a_request_is_put_together_again_and_its_answer_lies_where_it_lay() {
        let mut held = held_with(&request(40 + 8 + 5), b"12345678", b"name\0");
        let mut body = [0; 64];
        let (header, body) = held.request(&mut body).expect("a request");
        assert_eq!((header.unique, header.opcode, body), (99, 22, &b"12345678name\0"[..]));
        assert_eq!(held.commit_id, 77);
        held.room()[..3].copy_from_slice(b"yes");
        held.answer(99, 0, 3);
        let out = OutHeader::read_from_prefix(&held.header().in_out).expect("an answer").0;
        assert_eq!((out.len_bytes, out.error, out.unique, held.header().payload_bytes), (19, 0, 99, 3));
        assert_eq!(&held.memory_of_payload()[..3], b"yes");
    }

    #[test]
    fn requests_that_contradict_themselves_or_are_too_long_are_refused() {
        for (len_bytes, payload) in [(44, &b"name\0"[..]), (40 + 129, b""), (40 + 128, b""), (0, b"")] {
            let refused = held_with(&request(len_bytes), b"", payload).request(&mut [0; 64]).is_err();
            assert!(refused, "{len_bytes}");
        }
    }
}

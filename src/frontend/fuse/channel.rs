//! The FUSE device: requests from the kernel, answers and notifications to it.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::interrupt::Asked;
use super::postbox::Entry;
use crate::sys::fuse::{InHeader, InvalEntry, InvalInode, OutHeader, READ_BUFFER_BYTES, ROOT_ID, notify};

/// `/dev/fuse`, opened once: every thread reads the same open file. A clone of it for each thread
/// (`FUSE_DEV_IOC_CLONE`) would take the requests that were read from it along when its process dies; those of this
/// one stay with whoever else holds it.
pub(super) struct Channel {
    device: OwnedFd,
    leaving: AtomicBool,
}

impl Channel {
    pub(super) fn new(device: OwnedFd) -> Arc<Self> {
        Arc::new(Self { device, leaving: AtomicBool::new(false) })
    }

    /// From now on requests are left to the next server where they would be answered only because this one ends.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// The next request; `None` when the file system is gone.
    pub(super) fn receive<'a>(&self, buffer: &'a mut ReadBuffer) -> io::Result<Option<(InHeader, &'a [u8])>> {
        let len = loop {
            match rustix::io::read(&self.device, &mut buffer.0[..]) {
                Ok(len) => break len,
                // NOENT: its reader gave up between our waking and our reading.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                // CONNABORTED: the connection was cut.
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("a FUSE request of {len} bytes"));
        let message = buffer.0.get(..len).ok_or_else(odd)?;
        let (header, body) = InHeader::read_from_prefix(message).map_err(|_| odd())?;
        if header.len_bytes as usize != len {
            return Err(odd());
        }
        Ok(Some((header, body)))
    }

    /// Answers a request. An error means that nobody waits for the answer any more.
    fn send(&self, unique: u64, error: i32, body: &[&[u8]]) -> Result<(), Errno> {
        let body_bytes: usize = body.iter().map(|part| part.len()).sum();
        let total = size_of::<OutHeader>() + body_bytes;
        let header = OutHeader { len_bytes: u32::try_from(total).map_err(|_| Errno::MSGSIZE)?, error, unique };
        let mut parts = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
        let all = std::iter::once(header.as_bytes()).chain(body.iter().copied());
        let mut count = 0;
        for (slot, part) in parts.iter_mut().zip(all) {
            *slot = IoSlice::new(part);
            count += 1;
        }
        let written =
            rustix::io::retry_on_intr(|| rustix::io::writev(&self.device, parts.get(..count).unwrap_or_default()));
        written.map(drop)
    }

    /// What the kernel would keep of a name goes, unless it is in use.
    pub(super) fn forget_name(&self, name: &OsStr) -> Result<(), Errno> {
        let name_bytes = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        let entry = InvalEntry { parent: ROOT_ID, name_bytes, flags: 0 };
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        self.send(0, notify::INVAL_ENTRY, &[entry.as_bytes(), &text])
    }

    /// Whether the kernel still has an inode. Its attributes are asked for again the next time, nothing else changes.
    pub(super) fn kernel_has(&self, inode: u64) -> bool {
        let inode = InvalInode { inode, offset: -1, len_bytes: 0 };
        // Gone with the whole file system counts as gone.
        !matches!(
            self.send(0, notify::INVAL_INODE, &[inode.as_bytes()]),
            Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN | Errno::PERM)
        )
    }

    /// What the kernel keeps of the root directory's names as a list goes.
    pub(super) fn forget_listing(&self) {
        let root = InvalInode { inode: ROOT_ID, offset: 0, len_bytes: 0 };
        if let Err(errno) = self.send(0, notify::INVAL_INODE, &[root.as_bytes()]) {
            tracing::debug!(%errno, "the kernel did not drop the list of names");
        }
    }

    /// Has the kernel send all requests again that were read and not answered. Before 6.9: EINVAL.
    pub(super) fn resend(&self) -> Result<(), Errno> {
        self.send(0, notify::RESEND, &[])
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Room for one request. Its pages are there from the start: a server that is killed while the kernel has to find one
/// would cost the reader its request.
pub(super) struct ReadBuffer(Box<[u8; READ_BUFFER_BYTES]>);

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self(Box::new([1; READ_BUFFER_BYTES]))
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.0[..]
    }
}

/// The right to answer one request, once. Dropped unused it leaves its reader waiting.
pub(in crate::frontend) struct Reply {
    channel: Arc<Channel>,
    asked: Asked,
    /// The entry of a ring that brought the request, and must take the answer.
    entry: Option<Entry>,
}

impl Reply {
    pub(super) fn new(channel: &Arc<Channel>, header: &InHeader) -> Self {
        let asked = Asked { unique: header.unique, thread: header.thread };
        Self { channel: Arc::clone(channel), asked, entry: None }
    }

    /// For a request that came over a ring.
    pub(super) fn over_ring(channel: &Arc<Channel>, header: &InHeader, entry: Entry) -> Self {
        Self { entry: Some(entry), ..Self::new(channel, header) }
    }

    pub(super) fn asked(&self) -> Asked {
        self.asked
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.channel.is_leaving()
    }

    /// Where an answer of `len` bytes may be written for [`filled`](Self::filled), when that saves a copy.
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.entry.as_mut()?.held.room().get_mut(..len)
    }

    /// Answers with the first `len` bytes of [`room`](Self::room).
    pub(super) fn filled(self, len: usize) {
        if let Some(entry) = self.entry {
            entry.commit(self.asked.unique, Ok(len));
        }
    }

    /// Answers with bytes.
    pub(in crate::frontend) fn data(mut self, bytes: &[u8]) {
        if self.entry.is_none() {
            return self.end(self.channel.send(self.asked.unique, 0, &[bytes]));
        }
        match self.room(bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.filled(bytes.len());
            }
            // An answer that is longer than any request allows.
            None => self.error(Errno::IO),
        }
    }

    /// Answers with a struct.
    pub(in crate::frontend) fn with(self, answer: &(impl IntoBytes + zerocopy::Immutable)) {
        self.data(answer.as_bytes());
    }

    /// Answers without a word.
    pub(in crate::frontend) fn ok(self) {
        self.data(&[]);
    }

    /// Answers with an error.
    pub(in crate::frontend) fn error(self, errno: Errno) {
        match self.entry {
            Some(entry) => entry.commit(self.asked.unique, Err(errno)),
            None => self.end(self.channel.send(self.asked.unique, -errno.raw_os_error(), &[])),
        }
    }

    fn end(&self, sent: Result<(), Errno>) {
        match sent {
            // NOENT: the reader was killed. NODEV: unmounted meanwhile.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::PERM) => {}
            Err(errno) => tracing::warn!(unique = self.asked.unique, %errno, "a FUSE answer was refused"),
        }
    }
}

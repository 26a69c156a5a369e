//! Requests about the root directory, and the way of all others to what they are about.
//!
//! No account is kept of the kernel's references: what the kernel still has of a name, it is asked
//! ([`Shared::in_use`]). So a server that takes over from a dead one lacks nothing.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros};

use super::channel::{Channel, ReadBuffer, Reply};
use super::config::VALID_S;
use super::content::Request;
use super::counters::Counters;
use super::listing::Listing;
use super::pool::ReplyQueue;
use super::table::Table;
use crate::sys::fuse::{Attr, AttrOut, InHeader, InterruptIn, OpenOut, ROOT_ID, ReadIn, StatfsOut, opcode};

/// Rows fetched from the table per round of a directory listing.
const LIST_CHUNK: usize = 128;

const DIRECTORY_MODE: u32 = libc::S_IFDIR | 0o500;

/// What the session threads, the reply threads and the owner of the session share.
pub(super) struct Shared {
    pub(super) channel: Arc<Channel>,
    pub(super) table: Table,
    pub(super) counters: Arc<Counters>,
    pub(super) replies: Arc<ReplyQueue>,
}

impl Shared {
    pub(super) fn new(channel: Arc<Channel>, reply_threads: NonZeroUsize) -> Arc<Self> {
        let replies = ReplyQueue::new(reply_threads);
        Arc::new(Self { channel, table: Table::default(), counters: Arc::default(), replies })
    }

    /// Whether the kernel still has anything of a name open, or keeps anything of it. Must not be called by those who
    /// answer requests: the kernel may have to wait for a look-up first.
    pub(super) fn in_use(&self, name: &OsStr, inode: u64) -> bool {
        if let Err(errno) = self.channel.forget_name(name)
            && errno != Errno::NOENT
        {
            tracing::debug!(%errno, ?name, "the kernel did not drop a name");
        }
        self.channel.kernel_has(inode)
    }

    /// Takes requests from the kernel until the file system is gone.
    pub(super) fn serve(&self) -> std::io::Result<()> {
        let mut buffer = ReadBuffer::new();
        while let Some((header, body)) = self.channel.receive(&mut buffer)? {
            self.handle(&header, body, Reply::new(&self.channel, &header));
        }
        Ok(())
    }

    /// Answers a request, now or later. `body` is what follows its header.
    pub(super) fn handle(&self, header: &InHeader, body: &[u8], reply: Reply) {
        match header.opcode {
            // These want no answer.
            opcode::FORGET | opcode::BATCH_FORGET => {}
            opcode::INTERRUPT => {
                if let Ok((interrupted, _)) = InterruptIn::read_from_prefix(body) {
                    self.counters.read_interrupted();
                    self.replies.interrupted(interrupted.unique);
                }
            }
            opcode::RELEASE => {
                reply.ok();
                self.table.released();
            }
            opcode::RELEASEDIR | opcode::DESTROY => reply.ok(),
            opcode if header.node == ROOT_ID => self.handle_root(opcode, body, reply),
            opcode => match self.table.find(header.node) {
                Some((first, content)) => {
                    let number = header.node - first;
                    content.served().handle(Request { opcode, number, first, body, reply, shared: self });
                }
                None => {
                    if opcode == opcode::READ {
                        self.counters.read_arrived();
                        self.counters.read_failed();
                    }
                    reply.error(Errno::STALE);
                }
            },
        }
    }

    fn handle_root(&self, opcode: u32, body: &[u8], reply: Reply) {
        match opcode {
            opcode::LOOKUP => {
                let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
                match self.table.by_name(OsStr::from_bytes(name)) {
                    Some((first, content)) => reply.with(&content.served().root_entry(first)),
                    None => reply.error(Errno::NOENT),
                }
            }
            opcode::GETATTR => {
                let mut out = AttrOut::new_zeroed();
                (out.attr_valid_s, out.attr) = (VALID_S, root_attributes());
                reply.with(&out);
            }
            opcode::OPENDIR => reply.with(&OpenOut::new_zeroed()),
            opcode::READDIR | opcode::READDIRPLUS => {
                let Ok((wanted, _)) = ReadIn::read_from_prefix(body) else { return reply.error(Errno::INVAL) };
                let mut listing = Listing::new(wanted.size_bytes, opcode == opcode::READDIRPLUS);
                self.list(wanted.offset, &mut listing);
                reply.data(&listing.into_bytes());
            }
            opcode::STATFS => {
                let mut out = StatfsOut::new_zeroed();
                (out.block_bytes, out.fragment_bytes, out.name_bytes) = (4096, 4096, 255);
                reply.with(&out);
            }
            opcode::GETXATTR => reply.error(Errno::NODATA),
            _ => reply.error(Errno::NOSYS),
        }
    }

    /// Offset 0 is the start; "." and ".." have offsets 1 and 2, a name its first number plus 1.
    fn list(&self, offset: u64, listing: &mut Listing) {
        for (position, name) in [(1, "."), (2, "..")] {
            if offset < position && !listing.add(ROOT_ID, position, libc::DT_DIR, name.as_bytes(), || None) {
                return;
            }
        }
        let mut after = offset.saturating_sub(1).max(ROOT_ID);
        loop {
            let rows = self.table.list_after(after, LIST_CHUNK);
            for (first, name, content) in &rows {
                after = *first;
                let served = content.served();
                let look_up = || Some(served.root_entry(*first));
                let inode = first + served.root();
                if !listing.add(inode, first + 1, served.root_type(), name.as_bytes(), look_up) {
                    return;
                }
            }
            if rows.len() < LIST_CHUNK {
                return;
            }
        }
    }
}

fn root_attributes() -> Attr {
    let mut attr = Attr::new_zeroed();
    (attr.inode, attr.mode, attr.nlink, attr.block_bytes) = (ROOT_ID, DIRECTORY_MODE, 1, 4096);
    attr
}

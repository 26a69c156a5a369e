//! The file system that the kernel talks to: one directory of read-only files.
//!
//! It keeps no account of the kernel's references: what the kernel still has of a file, it is asked
//! ([`Shared::in_use`]). So a server that takes over from a dead one lacks nothing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Readiness;
use super::channel::{Channel, ReadBuffer, Reply};
use super::config::MAX_READ_BYTES;
use super::counters::Counters;
use super::pool::ReplyQueue;
use super::read::ReadRequest;
use super::table::{Image, Table};
use crate::sys::fuse::{
    Attr, AttrOut, Dirent, EntryOut, FOPEN_DIRECT_IO, InHeader, OpenOut, ROOT_ID, ReadIn, StatfsOut, opcode,
};
use crate::units::{DeviceOffset, DeviceRange};

/// Names and attributes never change while an image is served; removal invalidates the name.
const VALID_S: u64 = 24 * 3600;

/// Rows fetched from the table per round of a directory listing.
const LIST_CHUNK: usize = 128;

const DIRECTORY_MODE: u32 = libc::S_IFDIR | 0o500;
const IMAGE_MODE: u32 = libc::S_IFREG | 0o400;

/// What the session threads, the reply threads and the owner of the session share.
pub(super) struct Shared {
    pub(super) channel: Arc<Channel>,
    pub(super) table: Table,
    pub(super) counters: Arc<Counters>,
    pub(super) replies: Arc<ReplyQueue>,
}

impl Shared {
    pub(super) fn new(channel: Arc<Channel>) -> Arc<Self> {
        Arc::new(Self { channel, table: Table::default(), counters: Arc::default(), replies: Arc::default() })
    }

    /// Whether the kernel still has the image open, or keeps anything of it. Must not be called by those who answer
    /// requests: the kernel may have to wait for a look-up first.
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
            self.handle(&header, body);
        }
        Ok(())
    }

    fn handle(&self, header: &InHeader, body: &[u8]) {
        let reply = Reply::new(&self.channel, header.unique);
        match header.opcode {
            opcode::LOOKUP => self.lookup(header.node, body, reply),
            opcode::GETATTR => self.getattr(header.node, reply),
            opcode::OPEN => self.open(header.node, reply),
            opcode::READ => self.read(header.node, body, reply),
            opcode::READDIR => self.readdir(header.node, body, reply),
            opcode::RELEASE => {
                reply.ok();
                self.table.released();
            }
            opcode::OPENDIR => reply.with(&OpenOut::new_zeroed()),
            opcode::RELEASEDIR | opcode::DESTROY => reply.ok(),
            opcode::STATFS => {
                let mut out = StatfsOut::new_zeroed();
                (out.block_bytes, out.fragment_bytes, out.name_bytes) = (4096, 4096, 255);
                reply.with(&out);
            }
            // These two want no answer.
            opcode::FORGET | opcode::BATCH_FORGET => {}
            // Once, and the kernel does not ask again: FLUSH, INTERRUPT, extended attributes.
            _ => reply.error(Errno::NOSYS),
        }
    }

    fn lookup(&self, parent: u64, name: &[u8], reply: Reply) {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        match self.table.by_name(OsStr::from_bytes(name)).filter(|_| parent == ROOT_ID) {
            Some(image) => {
                let mut out = EntryOut::new_zeroed();
                (out.node, out.entry_valid_s, out.attr_valid_s) = (image.inode, VALID_S, VALID_S);
                out.attr = image_attributes(&image);
                reply.with(&out);
            }
            None => reply.error(Errno::NOENT),
        }
    }

    fn getattr(&self, node: u64, reply: Reply) {
        let attr = match node {
            ROOT_ID => Some(attributes(ROOT_ID, DIRECTORY_MODE, 0)),
            inode => self.table.by_inode(inode).map(|image| image_attributes(&image)),
        };
        match attr {
            Some(attr) => {
                let mut out = AttrOut::new_zeroed();
                (out.attr_valid_s, out.attr) = (VALID_S, attr);
                reply.with(&out);
            }
            None => reply.error(Errno::STALE),
        }
    }

    fn open(&self, node: u64, reply: Reply) {
        if self.table.by_inode(node).is_none() {
            return reply.error(Errno::STALE);
        }
        let mut out = OpenOut::new_zeroed();
        // The file system on top has a page cache of its own; see kernel-notes/fuse-image.md.
        out.flags = FOPEN_DIRECT_IO;
        reply.with(&out);
    }

    fn read(&self, node: u64, body: &[u8], reply: Reply) {
        let Self { table, counters, replies, .. } = self;
        counters.read_arrived();
        let Ok((wanted, _)) = ReadIn::read_from_prefix(body) else {
            counters.read_failed();
            return reply.error(Errno::INVAL);
        };
        let Some(image) = table.by_inode(node) else {
            counters.read_failed();
            return reply.error(Errno::STALE);
        };
        let len_bytes =
            u64::from(wanted.size_bytes.min(MAX_READ_BYTES)).min(image.size_bytes.saturating_sub(wanted.offset));
        let range = DeviceRange::from_len(DeviceOffset::new(wanted.offset), len_bytes);
        let Some(range) = range.filter(|range| !range.is_empty()) else {
            return reply.data(&[]);
        };
        let mut request = ReadRequest::new(reply, image, range, Arc::clone(counters));
        if let Err(error) = request.cut() {
            return request.fail(&error);
        }
        if request.ask(replies) == Readiness::Pending {
            counters.read_pended();
        }
    }

    fn readdir(&self, node: u64, body: &[u8], reply: Reply) {
        let Ok((wanted, _)) = ReadIn::read_from_prefix(body) else { return reply.error(Errno::INVAL) };
        if node != ROOT_ID {
            return reply.error(Errno::NOTDIR);
        }
        let mut listing = Listing { bytes: Vec::new(), room_bytes: wanted.size_bytes.min(MAX_READ_BYTES) as usize };
        self.list(wanted.offset, &mut listing);
        reply.data(&listing.bytes);
    }

    /// Offset 0 is the start; "." and ".." have offsets 1 and 2, an image the number of its inode plus 1.
    fn list(&self, offset: u64, listing: &mut Listing) {
        for (position, name) in [(1, "."), (2, "..")] {
            if offset < position && !listing.add(ROOT_ID, position, libc::DT_DIR, name.as_bytes()) {
                return;
            }
        }
        let mut after = offset.saturating_sub(1).max(ROOT_ID);
        loop {
            let rows = self.table.list_after(after, LIST_CHUNK);
            for (inode, name) in &rows {
                after = *inode;
                if !listing.add(*inode, inode + 1, libc::DT_REG, name.as_bytes()) {
                    return;
                }
            }
            if rows.len() < LIST_CHUNK {
                return;
            }
        }
    }
}

/// The answer to READDIR.
struct Listing {
    bytes: Vec<u8>,
    room_bytes: usize,
}

impl Listing {
    /// `false`: no room.
    fn add(&mut self, inode: u64, next_offset: u64, kind: u8, name: &[u8]) -> bool {
        let Ok(name_bytes) = u32::try_from(name.len()) else { return false };
        let entry_bytes = (size_of::<Dirent>() + name.len()).next_multiple_of(8);
        let end = self.bytes.len() + entry_bytes;
        if end > self.room_bytes {
            return false;
        }
        let entry = Dirent { inode, next_offset, name_bytes, kind: kind.into() };
        self.bytes.extend_from_slice(entry.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

fn attributes(inode: u64, mode: u32, size_bytes: u64) -> Attr {
    let mut attr = Attr::new_zeroed();
    (attr.inode, attr.mode, attr.nlink) = (inode, mode, 1);
    (attr.size_bytes, attr.blocks, attr.block_bytes) = (size_bytes, size_bytes.div_ceil(512), 4096);
    attr
}

fn image_attributes(image: &Image) -> Attr {
    attributes(image.inode, IMAGE_MODE, image.size_bytes)
}

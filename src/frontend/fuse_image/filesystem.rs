//! The file system that the kernel talks to: one directory of read-only files.

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};

use super::Readiness;
use super::config::MAX_READ_BYTES;
use super::counters::Counters;
use super::pool::ReplyQueue;
use super::read::ReadRequest;
use super::table::{Image, ROOT_INODE, Table};
use crate::units::{DeviceOffset, DeviceRange};

/// Names and attributes never change while an image is served; removal invalidates the name.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// Rows fetched from the table per round of a directory listing.
const LIST_CHUNK: usize = 128;

/// What the session threads, the reply threads and the owner of the session share.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) table: Table,
    pub(super) counters: Arc<Counters>,
    pub(super) replies: Arc<ReplyQueue>,
}

pub(super) struct ImagesFs {
    pub(super) shared: Arc<Shared>,
    pub(super) max_background: NonZeroU16,
}

impl ImagesFs {
    fn read_at(&self, inode: u64, offset: u64, size: u32, reply: ReplyData) {
        let Shared { table, counters, replies } = &*self.shared;
        counters.read_arrived();
        let Some(image) = table.by_inode(inode) else {
            counters.read_failed();
            return reply.error(Errno::ESTALE);
        };
        let len_bytes = u64::from(size.min(MAX_READ_BYTES)).min(image.size_bytes.saturating_sub(offset));
        let range = DeviceRange::from_len(DeviceOffset::new(offset), len_bytes);
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
}

fn attributes(inode: u64, kind: FileType, size_bytes: u64, perm: u16) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode),
        size: size_bytes,
        blocks: size_bytes.div_ceil(512),
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn image_attributes(image: &Image) -> FileAttr {
    attributes(image.inode, FileType::RegularFile, image.size_bytes, 0o400)
}

impl Filesystem for ImagesFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each setter names the nearest value that it would take; that one then cannot be refused.
        if let Err(nearest) = config.set_max_write(MAX_READ_BYTES) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(MAX_READ_BYTES) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(self.max_background.get());
        // Passthrough is not asked for: it would make this a stacked file system, on which EROFS refuses to lie.
        let wanted = InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_PARALLEL_DIROPS;
        if let Err(missing) = config.add_capabilities(wanted) {
            let _ = config.add_capabilities(wanted & !missing);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.shared.table.by_name(name) {
            Some(image) if parent.0 == ROOT_INODE => reply.entry(&TTL, &image_attributes(&image), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino.0 == ROOT_INODE {
            return reply.attr(&TTL, &attributes(ROOT_INODE, FileType::Directory, 0, 0o500));
        }
        match self.shared.table.by_inode(ino.0) {
            Some(image) => reply.attr(&TTL, &image_attributes(&image)),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.shared.table.open(ino.0) {
            // The file system on top has a page cache of its own; see kernel-notes/fuse-image.md.
            reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        } else {
            reply.error(Errno::ESTALE);
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read_at(ino.0, offset, size, reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.table.release(ino.0);
        reply.ok();
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // ENOSYS once, and the kernel does not ask again; the same holds for the calls below.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino.0 != ROOT_INODE {
            return reply.error(Errno::ENOTDIR);
        }
        // Offset 0 is the start; "." and ".." have offsets 1 and 2, an image the number of its inode plus 1.
        for (position, name) in [(1, "."), (2, "..")] {
            if offset < position && reply.add(INodeNo(ROOT_INODE), position, FileType::Directory, name) {
                return reply.ok();
            }
        }
        let mut after = offset.saturating_sub(1).max(ROOT_INODE);
        loop {
            let rows = self.shared.table.list_after(after, LIST_CHUNK);
            for (inode, name) in &rows {
                after = *inode;
                if reply.add(INodeNo(*inode), inode + 1, FileType::RegularFile, name) {
                    return reply.ok();
                }
            }
            if rows.len() < LIST_CHUNK {
                return reply.ok();
            }
        }
    }
}

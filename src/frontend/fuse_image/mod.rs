//! The `fuse-image` frontend: every layer is one read-only file of a single FUSE file system, and EROFS is mounted on
//! that file (directly from Linux 6.12 on, else through a loop device). For hosts without ublk.
//!
//! `kernel-notes/fuse-image.md` says which kernel behaviour this leans on and what was measured.

use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::FromZeros;

use super::Backend;
use super::fuse::{Content, Request, Served, VALID_S};
use crate::sys::fuse::{Attr, AttrOut, EntryOut, FOPEN_DIRECT_IO, OpenOut, opcode};

const IMAGE_MODE: u32 = libc::S_IFREG | 0o400;

/// The bytes of `backend` as one file.
#[must_use]
pub fn image(backend: Arc<dyn Backend>) -> Content {
    Content::new(Arc::new(Image { size_bytes: backend.size().get(), backend }))
}

struct Image {
    size_bytes: u64,
    backend: Arc<dyn Backend>,
}

impl Image {
    fn attributes(&self, inode: u64) -> Attr {
        let mut attr = Attr::new_zeroed();
        (attr.inode, attr.mode, attr.nlink) = (inode, IMAGE_MODE, 1);
        (attr.size_bytes, attr.blocks, attr.block_bytes) = (self.size_bytes, self.size_bytes.div_ceil(512), 4096);
        attr
    }
}

impl Served for Image {
    fn number_limit(&self) -> u64 {
        1
    }

    fn root(&self) -> u64 {
        0
    }

    fn root_type(&self) -> u8 {
        libc::DT_REG
    }

    fn root_entry(&self, first: u64) -> EntryOut {
        let mut out = EntryOut::new_zeroed();
        (out.node, out.entry_valid_s, out.attr_valid_s) = (first, VALID_S, VALID_S);
        out.attr = self.attributes(first);
        out
    }

    fn handle(&self, request: Request<'_>) {
        match request.opcode {
            opcode::GETATTR => {
                let mut out = AttrOut::new_zeroed();
                (out.attr_valid_s, out.attr) = (VALID_S, self.attributes(request.first));
                request.reply.with(&out);
            }
            opcode::OPEN => {
                let mut out = OpenOut::new_zeroed();
                // The file system on top has a page cache of its own; see kernel-notes/fuse-image.md.
                out.flags = FOPEN_DIRECT_IO;
                request.reply.with(&out);
            }
            opcode::READ => {
                let (backend, size_bytes) = (Arc::clone(&self.backend), self.size_bytes);
                request.read(backend, 0, size_bytes);
            }
            opcode::LOOKUP | opcode::READDIR | opcode::READDIRPLUS => request.reply.error(Errno::NOTDIR),
            // Once, and the kernel does not ask again: FLUSH, extended attributes.
            _ => request.reply.error(Errno::NOSYS),
        }
    }
}

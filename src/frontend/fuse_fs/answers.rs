//! The requests, each with its answer.

use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::attributes::{attr_out, entry, no_entry, statfs};
use super::{FileTree, Files, Listing, Request, Served};
use crate::sys::fuse::{EntryOut, GetxattrIn, GetxattrOut, ReadIn, opcode};

/// What to say to a request.
#[derive(Debug)]
pub enum Answer<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// These, made for the answer.
    Made(Vec<u8>),
    /// No.
    Error(Errno),
}

impl Answer<'_> {
    fn of(answer: &(impl IntoBytes + zerocopy::Immutable)) -> Self {
        Self::Made(answer.as_bytes().to_vec())
    }
}

impl Served for Files {
    fn number_limit(&self) -> u64 {
        self.tree.number_limit()
    }

    fn root(&self) -> u64 {
        self.tree.root()
    }

    fn root_type(&self) -> u8 {
        libc::DT_DIR
    }

    fn root_entry(&self, first: u64) -> EntryOut {
        entry(&*self.tree, first, self.tree.root()).unwrap_or_else(no_entry)
    }

    fn handle(&self, request: Request<'_>) {
        if request.opcode == opcode::READ {
            return self.read(request);
        }
        match answer(&*self.tree, request.opcode, request.first, request.number, request.body) {
            Answer::Bytes(bytes) => request.reply.data(bytes),
            Answer::Made(bytes) => request.reply.data(&bytes),
            Answer::Error(errno) => request.reply.error(errno),
        }
    }
}

impl Files {
    fn read(&self, request: Request<'_>) {
        let facts = self.tree.facts(request.number);
        match facts.and_then(|facts| Some((facts.data_start?.get(), facts.size_bytes))) {
            Some((start, size_bytes)) => request.read(Arc::clone(&self.backend), start, size_bytes),
            None => request.reply.error(if facts.is_some() { Errno::INVAL } else { Errno::STALE }),
        }
    }
}

/// Answers a request about `inode` of `tree`, whose numbers begin at `first` in this connection: anything but READ.
/// `body` is what follows the header; whatever it is, there is an answer.
pub fn answer<'a>(tree: &'a dyn FileTree, opcode: u32, first: u64, inode: u64, body: &[u8]) -> Answer<'a> {
    let Some(facts) = tree.facts(inode) else { return Answer::Error(Errno::STALE) };
    let is = |kind: u32| facts.mode & libc::S_IFMT == kind;
    match opcode {
        opcode::LOOKUP if !is(libc::S_IFDIR) => Answer::Error(Errno::NOTDIR),
        opcode::LOOKUP => match name_in(body) {
            Some(name) => {
                let found = tree.child(inode, name).and_then(|child| entry(tree, first, child));
                Answer::of(&found.unwrap_or_else(no_entry))
            }
            None => Answer::Error(Errno::INVAL),
        },
        opcode::GETATTR => Answer::of(&attr_out(&facts, first.saturating_add(inode))),
        opcode::READLINK => match tree.target(inode) {
            Some(target) => Answer::Bytes(target),
            None => Answer::Error(Errno::INVAL),
        },
        opcode::READDIR | opcode::READDIRPLUS if !is(libc::S_IFDIR) => Answer::Error(Errno::NOTDIR),
        opcode::READDIR => list(tree, first, inode, body, false),
        opcode::READDIRPLUS => list(tree, first, inode, body, true),
        opcode::GETXATTR => match GetxattrIn::read_from_prefix(body) {
            Ok((wanted, name)) => match name_in(name).map(|name| tree.xattr(inode, name)) {
                Some(Some(value)) => sized(wanted.size_bytes, Answer::Bytes(value), value.len()),
                Some(None) => Answer::Error(Errno::NODATA),
                None => Answer::Error(Errno::INVAL),
            },
            Err(_) => Answer::Error(Errno::INVAL),
        },
        opcode::LISTXATTR => match GetxattrIn::read_from_prefix(body) {
            Ok((wanted, _)) => {
                let mut names = Vec::new();
                tree.xattr_names(inode, &mut |prefix, rest| {
                    names.extend_from_slice(prefix);
                    names.extend_from_slice(rest);
                    names.push(0);
                });
                let len = names.len();
                sized(wanted.size_bytes, Answer::Made(names), len)
            }
            Err(_) => Answer::Error(Errno::INVAL),
        },
        opcode::STATFS => Answer::of(&statfs(&tree.totals())),
        // What overlayfs makes of a file system without file flags.
        opcode::IOCTL => Answer::Error(Errno::NOTTY),
        // Once, and the kernel does not ask again: OPEN and OPENDIR (nothing is opened here: pages and names stay cached,
        // as with FOPEN_KEEP_CACHE and FOPEN_CACHE_DIR), FLUSH, STATX, LSEEK.
        _ => Answer::Error(Errno::NOSYS),
    }
}

/// A name up to its NUL.
fn name_in(body: &[u8]) -> Option<&[u8]> {
    let end = body.iter().position(|&byte| byte == 0)?;
    body.get(..end).filter(|name| !name.is_empty())
}

/// Asked with no room: how much there is. With too little: an error.
fn sized(room_bytes: u32, answer: Answer<'_>, len: usize) -> Answer<'_> {
    match u32::try_from(len) {
        Ok(size_bytes) if room_bytes == 0 => {
            let mut out = GetxattrOut::new_zeroed();
            out.size_bytes = size_bytes;
            Answer::of(&out)
        }
        Ok(size_bytes) if size_bytes <= room_bytes => answer,
        _ => Answer::Error(Errno::RANGE),
    }
}

fn list<'a>(tree: &'a dyn FileTree, first: u64, dir: u64, body: &[u8], plus: bool) -> Answer<'a> {
    let Ok((wanted, _)) = ReadIn::read_from_prefix(body) else { return Answer::Error(Errno::INVAL) };
    let mut listing = Listing::new(wanted.size_bytes, plus);
    tree.list(dir, wanted.offset, &mut |entry_of| {
        let name = entry_of.name;
        // The kernel knows these two.
        let dots = name == b"." || name == b"..";
        let look_up = || if dots { None } else { entry(tree, first, entry_of.inode) };
        let node = first.saturating_add(entry_of.inode) & ((1 << super::fuse::FILE_NUMBER_BITS) - 1);
        listing.add(node, entry_of.next, entry_of.kind, name, look_up)
    });
    Answer::Made(listing.into_bytes())
}

//! The files of a layer, for the frontend that serves them one by one: read from the EROFS metadata that the others show
//! as a device, so that all show the same.

use std::fs::File;
use std::io;

use crate::erofs::{ErofsError, Metadata};
use crate::frontend::fuse_fs::{FileFacts, FileName, FileTree, Totals};
use crate::sys::mapping::Mapping;
use crate::units::usize_from_u64;

/// Metadata in mapped memory: nothing is kept for each file, and what nobody asks for takes no memory.
pub(super) struct LayerFiles(Metadata<Mapping>);

impl LayerFiles {
    /// `metadata_bytes`: without the hole at the end of the file.
    pub(super) fn open(metadata: &File, metadata_bytes: u64) -> io::Result<Self> {
        let len = usize_from_u64(metadata_bytes).ok_or(io::ErrorKind::FileTooLarge)?;
        let damaged = |error: ErofsError| io::Error::new(io::ErrorKind::InvalidData, error);
        Ok(Self(Metadata::open(Mapping::new(metadata, len)?).map_err(damaged)?))
    }
}

/// Directory entries have the kernel's `FT_*` on disk, and `DT_*` for processes (Linux `fs/fs_types.c`).
fn dirent_type(file_type: u8) -> u8 {
    match file_type {
        1 => libc::DT_REG,
        2 => libc::DT_DIR,
        3 => libc::DT_CHR,
        4 => libc::DT_BLK,
        5 => libc::DT_FIFO,
        7 => libc::DT_LNK,
        _ => libc::DT_UNKNOWN,
    }
}

impl FileTree for LayerFiles {
    fn root(&self) -> u64 {
        self.0.root()
    }

    fn number_limit(&self) -> u64 {
        self.0.number_limit()
    }

    fn facts(&self, inode: u64) -> Option<FileFacts> {
        let inode = self.0.inode(inode)?;
        Some(FileFacts {
            mode: inode.mode().into(),
            uid: inode.uid(),
            gid: inode.gid(),
            nlink: inode.nlink(),
            size_bytes: inode.size_bytes(),
            device: inode.device(),
            mtime: inode.mtime(),
            data_start: inode.data_start(),
        })
    }

    fn child(&self, dir: u64, name: &[u8]) -> Option<u64> {
        self.0.inode(dir)?.child(name)
    }

    fn list(&self, dir: u64, from: u64, each: &mut dyn FnMut(&FileName<'_>) -> bool) {
        let entries = self.0.inode(dir).into_iter().flat_map(|dir| dir.entries(from));
        for entry in entries {
            let kind = dirent_type(entry.file_type);
            if !each(&FileName { name: entry.name, inode: entry.inode, kind, next: entry.next }) {
                return;
            }
        }
    }

    fn target(&self, inode: u64) -> Option<&[u8]> {
        self.0.inode(inode)?.target()
    }

    fn xattr(&self, inode: u64, name: &[u8]) -> Option<&[u8]> {
        self.0.inode(inode)?.xattr(name)
    }

    fn xattr_names(&self, inode: u64, each: &mut dyn FnMut(&[u8], &[u8])) {
        for xattr in self.0.inode(inode).into_iter().flat_map(|inode| inode.xattrs()) {
            each(xattr.prefix, xattr.rest);
        }
    }

    fn totals(&self) -> Totals {
        // 512 or 4096.
        let block_bytes = u32::try_from(self.0.block_bytes()).unwrap_or(u32::MAX);
        Totals { block_bytes, blocks: self.0.block_count(), inodes: self.0.inode_count() }
    }
}

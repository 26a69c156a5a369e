//! Files in memory.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::units::u64_from_usize;

/// The first bytes of a file, for reading. They take no memory of their own: the kernel drops what nobody reads.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which must stay as it is as long as the mapping lives: whoever shortens it
    /// ends this process (SIGBUS). For files that only we can write, and do not once they are there.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the file is shorter; what mmap(2) says, also for no bytes at all.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        if file.metadata()?.len() < u64_from_usize(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
        NonNull::new(start.cast()).map(|start| Self { start, len }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the mapping covers `len` readable bytes until `drop`, no longer than `self` is borrowed, and the file
        // behind it does not change (the condition of `new`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and all borrows have ended.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

// SAFETY: memory that is only read belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_mapping_shows_the_file_and_never_more_than_it_has() {
        let mut file = tempfile::tempfile().expect("file");
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        file.write_all(&bytes).expect("write");
        for len in [1, 4096, 9999, 10_000] {
            assert_eq!(Mapping::new(&file, len).expect("mapped").as_ref(), &bytes[..len]);
        }
        assert_eq!(Mapping::new(&file, 10_001).err().map(|e| e.kind()), Some(io::ErrorKind::UnexpectedEof));
        assert!(Mapping::new(&file, 0).is_err());
    }
}

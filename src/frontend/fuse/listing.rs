//! Answers to READDIR and READDIRPLUS.

use zerocopy::{FromZeros, IntoBytes};

use super::config::MAX_READ_BYTES;
use crate::sys::fuse::{Dirent, EntryOut};

/// A listing on its way, as long as there is room.
pub(in crate::frontend) struct Listing {
    bytes: Vec<u8>,
    room_bytes: usize,
    plus: bool,
}

impl Listing {
    /// `plus`: names come with what a look-up of them would answer.
    pub(in crate::frontend) fn new(room_bytes: u32, plus: bool) -> Self {
        let room_bytes = room_bytes.min(MAX_READ_BYTES) as usize;
        Self { bytes: Vec::with_capacity(room_bytes.min(64 << 10)), room_bytes, plus }
    }

    /// Adds a name; `false`: no room. `look_up` is called where its answer is wanted; without an answer the kernel looks
    /// the name up itself.
    pub(in crate::frontend) fn add(
        &mut self,
        inode: u64,
        next_offset: u64,
        kind: u8,
        name: &[u8],
        look_up: impl FnOnce() -> Option<EntryOut>,
    ) -> bool {
        let Ok(name_bytes) = u32::try_from(name.len()) else { return false };
        let ahead = if self.plus { size_of::<EntryOut>() } else { 0 };
        let entry_bytes = (ahead + size_of::<Dirent>() + name.len()).next_multiple_of(8);
        let end = self.bytes.len() + entry_bytes;
        if end > self.room_bytes {
            return false;
        }
        if self.plus {
            self.bytes.extend_from_slice(look_up().unwrap_or_else(EntryOut::new_zeroed).as_bytes());
        }
        let entry = Dirent { inode, next_offset, name_bytes, kind: kind.into() };
        self.bytes.extend_from_slice(entry.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }

    pub(in crate::frontend) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

//! Words shared by all: digests, offsets and ranges, each in its own number space.
//!
//! Three spaces exist and must never mix: **blob** bytes (the compressed layer as the registry serves it), **layer**
//! bytes (the uncompressed tar) and **device** bytes (the synthesized EROFS image). Each has an offset type here; a
//! plain `u64` of bytes is a bug outside of a struct that names its space. Nothing in this module does I/O.

mod digest;
mod id_map;
mod offset;

pub use digest::{Digest, DigestError, DigestHasher};
pub use id_map::{IdMap, IdRanges, IdRangesError};
pub use offset::{
    BlobOffset, BlobRange, ByteRange, DeviceOffset, DeviceRange, LayerOffset, LayerRange, Offset, SLICE_BYTES, SliceId,
    SpanId,
};

/// Number of bytes of deflate history that a checkpoint carries (RFC 1951, section 2: distances reach back 32 KiB).
pub const WINDOW_BYTES: usize = 32 * 1024;

/// Widens a memory size; lossless on every target that Linux ublk runs on.
#[must_use]
pub const fn u64_from_usize(n: usize) -> u64 {
    n as u64
}

/// Narrows a byte count to a memory size, or `None` where the machine cannot address it.
#[must_use]
pub fn usize_from_u64(n: u64) -> Option<usize> {
    usize::try_from(n).ok()
}

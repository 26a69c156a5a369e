//! Kernel requests in, bytes out. Frontends (`ublk`, `fuse_image`, `fuse_fs`) know devices and requests; what a device holds they
//! learn from a [`Backend`], one per layer, that `node` implements over `erofs`, `cache` and `fill`.

mod bell;
pub mod fuse;
pub mod fuse_fs;
pub mod fuse_image;
pub mod ublk;

use std::os::fd::BorrowedFd;

use smallvec::SmallVec;

use crate::units::{DeviceOffset, DeviceRange};

/// From which local file a piece of a device comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceFile {
    /// The metadata file: EROFS metadata followed by a hole of at least [`ZERO_HOLE_BYTES`], from which zeros are read.
    Metadata,
    /// The layer file: the layer's tar, sparse where spans are missing.
    Layer,
}

/// Length of the hole at the end of every metadata file. It is as long as the longest request, so that any run of
/// zeros inside one request is one read.
pub const ZERO_HOLE_BYTES: u64 = 1 << 20;

/// A run of device bytes that lies in one piece in one local file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Which file.
    pub file: SourceFile,
    /// Byte position in that file (layer bytes for [`SourceFile::Layer`]).
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len_bytes: u32,
}

/// The pieces of one request, in device order; inline up to the usual number (a file's data and its slack).
pub type Segments = SmallVec<[Segment; 4]>;

/// Why bytes cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// They could not be fetched, inflated or verified, or the time to hold the reader ran out: EIO.
    #[error("layer bytes could not be made present")]
    Unavailable,
    /// The request reaches beyond the device: EIO.
    #[error("request beyond the end of the device")]
    OutOfRange,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Whether the bytes of a request can be read from the local files right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// All there, and they stay until [`Backend::release`]: read now. The completion was dropped unused.
    Ready,
    /// The completion is called exactly once, from another thread. `Ok` means that the bytes came, not that they are
    /// still there: ask again. An error means that they cannot be had.
    Pending,
}

/// Called once when a pending read can ask again, or has failed. Must not block: it runs on the fill scheduler's threads.
pub type Completion = Box<dyn FnOnce(Result<(), ReadError>) + Send + 'static>;

/// What one device holds. Shared by ring threads; no call may block or wait for the network.
pub trait Backend: Send + Sync + 'static {
    /// Size of the device in bytes, a multiple of 4096.
    fn size(&self) -> DeviceOffset;

    /// The local file behind [`SourceFile`]. Valid as long as the backend lives.
    fn file(&self, which: SourceFile) -> BorrowedFd<'_>;

    /// Cuts `range` into pieces that cover it without gap or overlap.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] when the range reaches beyond [`Backend::size`].
    fn segments(&self, range: DeviceRange, out: &mut Segments) -> Result<(), ReadError>;

    /// Asks for the layer bytes of `segments` to be made present. With [`Readiness::Ready`] they are, and nothing takes
    /// them away before [`Backend::release`].
    fn ensure(&self, segments: &Segments, done: Completion) -> Readiness;

    /// The reads of `segments` are through, well or not. Called exactly once for each [`Readiness::Ready`], with the same
    /// segments.
    fn release(&self, segments: &Segments);

    /// A request was answered with an error; the backend counts and logs it.
    fn failed(&self, range: DeviceRange, error: &dyn std::error::Error);
}

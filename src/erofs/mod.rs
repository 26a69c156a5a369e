//! The device's address space: EROFS metadata bytes and the table that says where every other byte comes from. Pure.
//!
//! [`Image::build`](crate::erofs::Image::build) lays a [`Tree`](crate::tree::Tree) out as an EROFS image of which only
//! the metadata exist as bytes. The rest is *virtual*: [`Space`](crate::erofs::Space) translates a range of the device
//! into metadata, layer bytes and zeros.
//!
//! ```text
//! 4 KiB blocks (the device):   [metadata][every non-empty file at the next 4 KiB, in tar order][1 MiB of zeros]
//! 512-byte blocks (a file):    [metadata][the layer's tar, byte for byte][zeros to the next 512 bytes]
//! ```
//!
//! Every metadata byte follows from the tree, the options and [`WRITER_VERSION`](crate::erofs::WRITER_VERSION) alone: a
//! restarted daemon builds the same bytes again, since the kernel still holds what it has read of the old ones.
//!
//! What the kernel demands of the bytes is written down in `kernel-notes/erofs-*.md`; the only features used are
//! those of the first EROFS in Linux 5.4 (incompatible features: none).

mod dirs;
mod emit;
mod format;
mod inspect;
mod layout;
mod space;
mod view;
mod xattrs;

#[cfg(test)]
mod tests;

pub use inspect::root_owner;
pub use space::{Piece, Pieces, Space};
pub use view::{EntryView, InodeView, Metadata, XattrView};

use crate::tree::Tree;
use crate::units::{Digest, DigestHasher, LayerOffset, LayerRange};

/// Changes whenever the same layer would give other bytes. Part of an image's identity. A device keeps the bytes that it
/// was made with, also when a newer version takes it over: they lie beside its [`Space`].
pub const WRITER_VERSION: u32 = 1;

/// Size of the blocks of an image, and with it its form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockSize {
    /// 4096 bytes: the device. Mountable by every kernel with EROFS and 4 KiB pages.
    B4096,
    /// 512 bytes: metadata followed by the tar itself. Needs Linux 6.4 (kernel-notes/erofs-block-size.md).
    B512,
}

impl BlockSize {
    /// Block size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.bits()
    }

    /// Its base-2 logarithm.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::B4096 => 12,
            Self::B512 => 9,
        }
    }
}

/// What an image depends on beside the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterOptions {
    /// Block size and form.
    pub block_size: BlockSize,
    /// Identity of the file system; see [`image_uuid`].
    pub uuid: [u8; 16],
    /// Size of the layer in bytes, with everything that follows the last file.
    pub layer_size: LayerOffset,
}

/// The identity of the image of a layer: different for different layers, forms, variants and writers, never nil.
/// overlayfs switches `xino` and `index` off when two of its layers have the same or no identity.
///
/// `layer` is the digest that the layer is known by, `variant` what
/// [`Tree::inherit`](crate::tree::Tree::inherit) returned.
#[must_use]
pub fn image_uuid(layer: &Digest, variant: Option<&Digest>, block_size: BlockSize) -> [u8; 16] {
    let mut hasher = DigestHasher::new();
    hasher.update(b"sociblk erofs image");
    hasher.update(&WRITER_VERSION.to_le_bytes());
    hasher.update(&[block_size.bits()]);
    hasher.update(layer.as_bytes());
    if let Some(variant) = variant {
        hasher.update(variant.as_bytes());
    }
    let digest = hasher.finish();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_bytes()[..16]);
    // RFC 9562: version 8 (made by an own rule), variant 10.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// A laid out image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The first bytes of the image, a multiple of 4096.
    pub metadata: Vec<u8>,
    /// Where all bytes of the image come from.
    pub space: Space,
}

impl Image {
    /// Lays out `tree`.
    ///
    /// # Errors
    /// When the image would outgrow what EROFS addresses, or file data do not lie in the layer as files of a tar do.
    pub fn build(tree: &Tree, options: &WriterOptions) -> Result<Self, ErofsError> {
        let layout = layout::Layout::measure(tree, options)?;
        let metadata = emit::emit(tree, options, &layout);
        Ok(Self { metadata, space: layout.space })
    }
}

/// Why a tree has no image, or an image cannot be read from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErofsError {
    /// Metadata cannot be looked into.
    #[error("the metadata cannot be used: {reason}")]
    Unreadable {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A saved translation table cannot be used.
    #[error("the translation table on disk cannot be used: {reason}")]
    SavedSpace {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More blocks than 32 bits count: 16 TiB with 4 KiB blocks, 2 TiB with 512-byte blocks.
    #[error("the image would have {blocks} blocks of {} bytes; EROFS counts them in 32 bits", block_size.bytes())]
    TooManyBlocks {
        /// Blocks needed.
        blocks: u64,
        /// Their size.
        block_size: BlockSize,
    },
    /// File data that do not begin on a 512-byte boundary cannot be pointed at in the 512-byte form.
    #[error("file data at {data} of the layer do not begin on a 512-byte boundary, as they do in every tar")]
    Unaligned {
        /// Where the data lie.
        data: LayerRange,
    },
    /// Two files claim the same bytes of the layer.
    #[error("two files claim the same bytes of the layer: {first} and {second}")]
    Overlap {
        /// The one that begins first.
        first: LayerRange,
        /// The other one.
        second: LayerRange,
    },
    /// File data beyond the layer.
    #[error("file data at {data} reach beyond the layer of {layer_size_bytes} bytes")]
    BeyondLayer {
        /// Where the data lie.
        data: LayerRange,
        /// Size of the layer.
        layer_size_bytes: u64,
    },
    /// A request for bytes behind the end of the image.
    #[error("bytes up to {end} asked of an image of {size} bytes")]
    OutOfRange {
        /// End of the request.
        end: crate::units::DeviceOffset,
        /// Size of the image.
        size: crate::units::DeviceOffset,
    },
}

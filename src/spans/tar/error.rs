//! What can be wrong with a tar.

use crate::units::LayerOffset;

/// Why bytes are no tar that can be served lazily.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A block that should be a header has another checksum than it says.
    #[error("no tar header at layer byte {at}: its checksum is wrong; the layer is damaged or not a tar")]
    Checksum {
        /// Where the block begins.
        at: LayerOffset,
    },
    /// One zero block, with something else behind.
    #[error("tar with a single zero block before layer byte {at}, where two must stand at the end")]
    LoneZeroBlock {
        /// Where the block behind begins.
        at: LayerOffset,
    },
    /// The bytes end in the middle of a header or of data.
    #[error("tar cut short at layer byte {at}: {missing_bytes} bytes are missing from {part}")]
    Truncated {
        /// Where the bytes end.
        at: LayerOffset,
        /// How many are missing at least.
        missing_bytes: u64,
        /// What they belong to.
        part: String,
    },
    /// A number that cannot be read, or is outside of what the field can mean.
    #[error("tar entry {name:?} at layer byte {at} with an impossible {field}")]
    Number {
        /// Where its header begins.
        at: LayerOffset,
        /// Its name, made printable.
        name: String,
        /// Name of the field.
        field: &'static str,
    },
    /// A PAX header that is not made of `LENGTH KEY=VALUE` lines, or a value that cannot be read.
    #[error("tar with a bad PAX header before layer byte {at}: {what}")]
    Pax {
        /// Where the entry's own header begins, or where the PAX header ends.
        at: LayerOffset,
        /// What is wrong.
        what: &'static str,
    },
    /// A PAX or GNU extension header beyond what archive/tar takes.
    #[error("tar with an extension header of {size_bytes} bytes at layer byte {at}, more than 1 MiB")]
    ExtensionTooLarge {
        /// Where it begins.
        at: LayerOffset,
        /// Its size.
        size_bytes: u64,
    },
    /// An entry whose data do not lie in one piece, or whose meaning is not known.
    #[error("tar entry {name:?} at layer byte {at} is {what}, which cannot be served lazily")]
    Unsupported {
        /// Where its header begins.
        at: LayerOffset,
        /// Its name, made printable.
        name: String,
        /// What it is.
        what: String,
    },
    /// More entries or longer names than a zTOC can hold.
    #[error("tar whose table of contents is larger than 1 GiB, reached at layer byte {at}")]
    TooLarge {
        /// Where the entry begins that is one too many.
        at: LayerOffset,
    },
}

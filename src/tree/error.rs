//! Why entries make no tree.

use super::path::{MAX_DEPTH, MAX_NAME_BYTES, MAX_TARGET_BYTES};
use crate::units::LayerRange;

/// Why a layer's entries cannot be shown as a file system. Paths are shown lossily and only for people.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The table of contents itself could not be read.
    #[error("the table of contents of the layer cannot be read")]
    Entries {
        /// What the reader of the entries said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A path component does not fit into a directory.
    #[error("{path:?}: a name of {len_bytes} bytes is longer than {MAX_NAME_BYTES}")]
    NameTooLong {
        /// The entry's name.
        path: String,
        /// Length of the component.
        len_bytes: usize,
    },
    /// A name holds a zero byte.
    #[error("{path:?}: the name holds a zero byte")]
    NulInName {
        /// The entry's name.
        path: String,
    },
    /// More directories inside each other than any program can walk.
    #[error("{path:?}: more than {MAX_DEPTH} directories inside each other")]
    TooDeep {
        /// The entry's name.
        path: String,
    },
    /// The directories of a path go through symbolic links that have no end.
    #[error("{path:?}: too many symbolic links on the way to its directory")]
    TooManySymlinks {
        /// The entry's name.
        path: String,
    },
    /// A symbolic link that no kernel would create.
    #[error(
        "{path:?}: a symbolic link needs a target of 1 to {MAX_TARGET_BYTES} bytes without a zero byte, not {len_bytes}"
    )]
    BadSymlink {
        /// The entry's name.
        path: String,
        /// Length of the target.
        len_bytes: usize,
    },
    /// The target of a hard link is not in this layer.
    #[error(
        "hard link {path:?}: its target {target:?} is not in this layer; unpack the image instead of mounting it lazily"
    )]
    LinkTargetMissing {
        /// The link.
        path: String,
        /// What it should be another name of.
        target: String,
    },
    /// The target of a hard link is a directory.
    #[error("hard link {path:?}: its target {target:?} is a directory")]
    LinkToDirectory {
        /// The link.
        path: String,
        /// What it should be another name of.
        target: String,
    },
    /// Hard links that only name each other.
    #[error("hard link {path:?}: following its target {target:?} leads through hard links only")]
    LinkCycle {
        /// The link.
        path: String,
        /// What it should be another name of.
        target: String,
    },
    /// File data outside of the layer.
    #[error("{path:?}: its data {data} reach beyond the layer of {layer_size_bytes} bytes")]
    BeyondLayer {
        /// The entry's name.
        path: String,
        /// What the entry claims.
        data: LayerRange,
        /// Size of the layer.
        layer_size_bytes: u64,
    },
    /// A device number that Linux cannot express (12 bits major, 20 bits minor).
    #[error("{path:?}: device {major}:{minor} is beyond what Linux can express")]
    DeviceNumber {
        /// The entry's name.
        path: String,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// More entries than allowed.
    #[error("the layer has more than {limit} inodes")]
    TooManyInodes {
        /// [`super::TreeOptions::max_inodes`].
        limit: u32,
    },
    /// All names together outgrow what a 32-bit number addresses.
    #[error("the names of the layer take more than 4 GiB")]
    NamesTooLong,
}

/// A path for people.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

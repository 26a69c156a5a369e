//! Load orders: which spans of an image were read first when it was started, so that the next start fetches them in that
//! order. Pure but for the [`Shelf`], where a node keeps them.
//!
//! A [`LoadOrder`] is one recorded start. An image may have many, told apart by their labels; [`choose`] takes one, and
//! [`plan`] makes of it the few large pieces that are fetched. Whoever wrote the document may lie: at worst spans are
//! fetched that nobody reads, up to the limit of the plan. What a reader sees is proven by the spans' digests alone.

use std::path::PathBuf;

use crate::units::Digest;

mod choose;
mod document;
mod excerpt;
mod plan;
mod shelf;

pub use choose::{Candidate, Choice, choose};
pub use document::{LoadOrder, MAX_DOCUMENT_BYTES, OrderLayer, Read, check_label};
pub use excerpt::{EXCERPT_TYPE, ExcerptLayout, FRAME_SLICES};
pub use plan::{LayerShape, Limits, Plan, PlannedRun, Unusable, plan, runs};
pub use shelf::{Kept, Shelf, ShelfLimits};

/// Media type of the document, and artifact type of what carries it in a registry.
pub const ORDER_TYPE: &str = "application/vnd.sociblk.load-order.v1+json";
/// Annotation of the artifact: the order's label.
pub const LABEL_ANNOTATION: &str = "sociblk.load-order.label";
/// Annotation of the artifact: when the order was recorded, in milliseconds since 1970.
pub const CREATED_ANNOTATION: &str = "sociblk.load-order.created-at-ms";
/// Annotation of the artifact: the command that was recorded, a JSON list of texts.
pub const ENTRYPOINT_ANNOTATION: &str = "sociblk.load-order.entrypoint";
/// The label of orders that a node records by itself.
pub const AUTOMATIC_LABEL: &str = "last";

/// Why a load order cannot be read, or kept.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The document is larger than any that is written here.
    #[error("the load order has {bytes} bytes; at most {limit} are accepted")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// It is no load order.
    #[error("no load order: {reason}")]
    Document {
        /// What is wrong with it.
        reason: String,
    },
    /// It was written by a later version of this program.
    #[error("the load order has version {found}, this sociblk knows {known}; record it again, or use a later sociblk")]
    Version {
        /// Its version.
        found: u32,
        /// The version that is known here.
        known: u32,
    },
    /// A label that cannot be one.
    #[error("{label:?} cannot name a load order: 1 to {limit} letters, digits, `.`, `_` or `-`, the first no `.`")]
    Label {
        /// The text.
        label: String,
        /// Longest label.
        limit: usize,
    },
    /// It is of another image.
    #[error("the load order is of image {found}, not of {wanted}; record one of this image with `sociblk record`")]
    OtherImage {
        /// The manifest that it names.
        found: Digest,
        /// The manifest that is mounted.
        wanted: Digest,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

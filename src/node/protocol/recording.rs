//! Load orders that are recorded.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::order::LoadOrder;
use crate::units::Digest;

/// What `sociblk record` asks.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct RecordOrder {
    /// What to do.
    pub action: RecordAction,
    /// A mount point, or an image: its reference, or its manifest's digest.
    pub target: String,
    /// Label of the load order.
    pub label: Option<String>,
    /// The command that is recorded; absent: the image's own.
    pub entrypoint: Option<Vec<String>>,
    /// Make an excerpt, too.
    #[serde(default)]
    pub excerpt: bool,
}

/// What to do with a recording.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RecordAction {
    /// Begin anew.
    Start,
    /// Keep what was read, and go on.
    Save,
    /// Keep what was read, and forget the label.
    Stop,
}

/// A load order that was recorded, or begun.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct RecordReport {
    /// The image's manifest.
    pub image: Digest,
    /// How the image was named.
    pub reference: String,
    /// Its label.
    pub label: String,
    /// Spans that were read.
    pub spans: u64,
    /// Layers that were read.
    pub layers: usize,
    /// Blob bytes of these spans.
    pub bytes: u64,
    /// From the beginning to the last first read of a span, in milliseconds.
    pub duration_ms: u64,
    /// Where it is kept.
    pub path: Option<PathBuf>,
    /// Size of its excerpt, if it has one.
    #[serde(default)]
    pub excerpt_bytes: Option<u64>,
    /// Why it has none that was asked for.
    #[serde(default)]
    pub no_excerpt: Option<String>,
    /// The document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<Value>,
}

impl RecordReport {
    /// About an order.
    #[must_use]
    pub fn of(order: &LoadOrder, path: Option<PathBuf>, document: Option<Value>) -> Self {
        Self {
            image: order.image,
            reference: order.reference.clone().unwrap_or_default(),
            label: order.label.clone(),
            spans: order.spans(),
            layers: order.layers.len(),
            bytes: order.bytes,
            duration_ms: order.reads.last().map_or(0, |read| read.at_ms),
            path,
            excerpt_bytes: order.excerpt.as_ref().map(|excerpt| excerpt.bytes),
            no_excerpt: None,
            document,
        }
    }
}

//! Settings of load orders: what is recorded, what is kept, which one a start follows.

use serde::{Deserialize, Serialize};

use super::Size;
use super::docs::documented;

documented! {
    /// Settings of `[load_order]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct LoadOrder {
        /// Which of an image's load orders a start follows. "newest": the last one, those kept here before those in the
        /// registry; "label": the one with the label below; "entrypoint": the last one of the image's own command;
        /// "off": none, SOCI's prefetch artifacts included.
        pub policy: OrderPolicy,
        /// The label for the policy "label".
        pub label: String,
        /// Most bytes of blobs that one start fetches by its load order; 0: no limit.
        pub max_bytes: Size,
        /// Seconds for which background completion leaves an image's layers alone once a load order is followed for it.
        pub settle_s: u64,
        /// Keep the load order of each start by itself, under the label "last".
        pub record: bool,
        /// Seconds from the start until it is kept.
        pub record_s: u64,
        /// Most load orders that are kept; those that were not used for the longest time go first.
        pub keep: usize,
        /// Most bytes of them, their excerpts included.
        pub keep_bytes: Size,
        /// Whose excerpts are believed when they stand beside an image in its registry: a registry, or
        /// the first parts of a repository, as "registry.example/team"; "*": all. Bytes of an excerpt are believed on its maker's word until the layer's own have
        /// come, by all containers on the node that use the layer. Those that were recorded on this node are always used.
        pub trusted_excerpts: Vec<String>,
    }
}

/// Which load order a start follows.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OrderPolicy {
    /// None.
    Off,
    /// The last one.
    Newest,
    /// The one with a label.
    Label,
    /// The last one of the image's command.
    Entrypoint,
}

impl Default for LoadOrder {
    fn default() -> Self {
        Self {
            policy: OrderPolicy::Newest,
            label: String::new(),
            max_bytes: Size(0),
            // Longer than most starts; short beside the hours that a registry is out of order when it is.
            settle_s: 10,
            record: false,
            // Long enough for a slow service to become ready, short enough to leave out its daily work.
            record_s: 120,
            keep: 200,
            // An order of a thousand reads has 20 kB, the excerpt of a large image 100 MB.
            keep_bytes: Size(2 << 30),
            trusted_excerpts: Vec::new(),
        }
    }
}

impl LoadOrder {
    /// The setting that is wrong, and what it must be.
    pub(super) fn wrong(&self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            _ if self.policy == OrderPolicy::Label && self.label.is_empty() => {
                ("load_order.label", "must name a label, since load_order.policy is \"label\"")
            }
            _ if self.record_s == 0 => ("load_order.record_s", "must be at least 1 second"),
            _ if self.trusted_excerpts.iter().any(|prefix| prefix != "*" && !prefix.contains(['.', ':', '/'])) => (
                "load_order.trusted_excerpts",
                "must name images from their registry on, as \"docker.io/library/\" or \"registry.example/team\", or be \"*\"",
            ),
            _ if self.keep == 0 => ("load_order.keep", "must be at least 1"),
            _ => return None,
        })
    }
}

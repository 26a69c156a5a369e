//! Settings of the index builder.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Size;
use super::docs::documented;

/// Which index is made of an image.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum IndexVersion {
    /// An index beside the image, which stays as it is.
    V1,
    /// A converted image under another tag.
    V2,
}

documented! {
    /// Settings of `[builder]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Builder {
        /// `ADDRESS:PORT` or `unix:PATH` to listen on.
        pub listen: String,
        /// File whose first line is the bearer token that senders must show. Absent: none is needed.
        pub token_file: Option<PathBuf>,
        /// Registry (`host` or `host:port`) that is spoken to whatever host a notification names.
        pub registry: Option<String>,
        /// Globs of registries that notifications may name. None: any.
        pub registries: Vec<String>,
        /// Which index is made: "v1", beside the image, or "v2", in a converted image under another tag.
        pub index: IndexVersion,
        /// Tag of a converted image (v2); `{tag}` is the tag of its source.
        pub target_tag: String,
        /// Images that are worked on at the same time.
        pub jobs: usize,
        /// How often an image is tried before it counts as failed.
        pub max_attempts: u32,
        /// Upper bound of the first pause between two tries, in seconds.
        pub first_pause_s: u64,
        /// Upper bound of any such pause, in seconds.
        pub longest_pause_s: u64,
        /// Time limit of one try, in seconds.
        pub job_limit_s: u64,
        /// How long jobs may go on when the service is told to stop, in seconds; then they are put back.
        pub stop_grace_s: u64,
        /// Images whose layers are smaller than this in all get no index.
        pub min_image_size: Size,
        /// Layers smaller than this get no zTOC.
        pub min_layer_size: Size,
        /// Uncompressed bytes between two checkpoints.
        pub span_size: Size,
        /// Fetch first what an image's command needs to be loaded.
        pub prefetch_program: bool,
        /// Platforms that are indexed; none: all.
        pub platforms: Vec<String>,
        /// Globs of repositories that are indexed; none: all.
        pub repositories: Vec<String>,
        /// Globs of repositories that are not.
        pub exclude_repositories: Vec<String>,
        /// Globs of tags that are indexed; none: all.
        pub tags: Vec<String>,
        /// Globs of tags that are not.
        pub exclude_tags: Vec<String>,
        /// Whether images that were pushed without a tag are indexed. A push of several platforms pushes each without one.
        pub untagged: bool,
        /// Images that may wait; beyond it, notifications are refused for now.
        pub max_queued: u64,
        /// How long finished images are remembered, in days.
        pub keep_days: u64,
        /// How many finished images are remembered.
        pub keep_finished: u64,
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8789".to_owned(),
            token_file: None,
            registry: None,
            registries: Vec::new(),
            index: IndexVersion::V1,
            target_tag: "{tag}-soci".to_owned(),
            // Each indexes up to four layers side by side.
            jobs: 2,
            // With these pauses some 40 minutes: a registry's maintenance, not a weekend.
            max_attempts: 10,
            first_pause_s: 5,
            longest_pause_s: 600,
            job_limit_s: 3600,
            // Well below the 90 s after which systemd kills.
            stop_grace_s: 20,
            min_image_size: Size(0),
            // As `create` and SOCI have it.
            min_layer_size: Size(10 << 20),
            span_size: Size(4 << 20),
            prefetch_program: false,
            platforms: Vec::new(),
            repositories: Vec::new(),
            exclude_repositories: Vec::new(),
            tags: Vec::new(),
            exclude_tags: Vec::new(),
            untagged: false,
            // Some 300 bytes each on disk.
            max_queued: 100_000,
            keep_days: 90,
            keep_finished: 100_000,
        }
    }
}

impl Builder {
    /// The setting that is out of its range, and what it must be.
    pub(super) fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let named = |tag: &str| tag.matches("{tag}").count() == 1 && tag != "{tag}";
        Some(match self {
            _ if self.jobs == 0 || self.jobs > 64 => ("builder.jobs", "must be 1 to 64"),
            _ if self.max_attempts == 0 => ("builder.max_attempts", "must be at least 1"),
            _ if self.first_pause_s == 0 || self.longest_pause_s < self.first_pause_s => {
                ("builder.first_pause_s", "must be at least 1 and at most builder.longest_pause_s")
            }
            _ if self.job_limit_s == 0 => ("builder.job_limit_s", "must be at least 1"),
            _ if !(1 << 10..=1 << 40).contains(&self.span_size.0) => ("builder.span_size", "must be 1 KiB to 1 TiB"),
            _ if self.max_queued == 0 => ("builder.max_queued", "must be at least 1"),
            _ if self.token_file.as_ref().is_some_and(|file| !file.is_absolute()) => {
                ("builder.token_file", "must be an absolute file name")
            }
            _ if self.index == IndexVersion::V2 && !named(&self.target_tag) => {
                ("builder.target_tag", "must have {tag} in it once, and more: the source keeps its tag")
            }
            _ if self.index == IndexVersion::V2 && self.untagged => {
                ("builder.untagged", "a converted image needs a tag: only v1 indexes can be made of untagged images")
            }
            _ => return None,
        })
    }
}

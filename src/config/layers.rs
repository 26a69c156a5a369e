//! Settings of layers on this machine: their files, how they are filled, how they are shown, which index they get.

use serde::{Deserialize, Serialize};

use super::Size;
use super::docs::documented;

documented! {
    /// Settings of `[cache]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Cache {
        /// Disk space for layer files; unused layers go first, then parts of used ones. 0: no limit.
        pub max_bytes: Size,
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { max_bytes: Size(0) }
    }
}

documented! {
    /// Settings of `[fill]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Fill {
        /// Range requests under way at once, over all layers.
        pub max_requests: usize,
        /// Memory for bytes on their way (compressed and inflated).
        pub memory_bytes: Size,
        /// Threads that verify and inflate; 0: one for each CPU.
        pub threads: usize,
        /// How long a reader is held while the registry gives trouble before it sees an I/O error, in seconds.
        pub hold_limit_s: u64,
        /// Complete every layer in the background after its mount.
        pub background: bool,
        /// Bandwidth of background completion, in bytes a second; 0: no limit.
        pub background_bytes_per_s: Size,
    }
}

impl Default for Fill {
    fn default() -> Self {
        Self {
            // Enough to fill a 10 Gbit/s link of 10 ms with 1.5 MB requests; registries throttle far above it.
            max_requests: 16,
            // 16 requests of a usual span (1.5 MB compressed, 4 MiB inflated) and room for a large one.
            memory_bytes: Size(128 << 20),
            threads: 0,
            hold_limit_s: 600,
            background: false,
            background_bytes_per_s: Size(0),
        }
    }
}

documented! {
    /// Settings of `[ublk]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Ublk {
        /// Ring threads, 1 to 4; 0: chosen by the number of CPUs.
        pub rings: usize,
    }
}

#[expect(clippy::derivable_impls, reason = "every section states its defaults in the same place")]
impl Default for Ublk {
    fn default() -> Self {
        Self { rings: 0 }
    }
}

documented! {
    /// Settings of `[fuse]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Fuse {
        /// The frontend fuse-fs takes requests over io_uring where the kernel offers it. For comparison only: its mounts end
        /// with the daemon.
        pub io_uring: bool,
    }
}

#[expect(clippy::derivable_impls, reason = "every section states its defaults in the same place")]
impl Default for Fuse {
    fn default() -> Self {
        Self { io_uring: false }
    }
}

documented! {
    /// Settings of `[index]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Index {
        /// What is in the local store is taken before the registry is asked.
        pub prefer_local: bool,
        /// Local mappings of images to indexes are used.
        pub local_mappings: bool,
    }
}

impl Default for Index {
    fn default() -> Self {
        // What was built here is proven, and is here when the registry is not.
        Self { prefer_local: true, local_mappings: true }
    }
}

//! What the daemon says about itself.

use std::sync::Arc;

use super::Node;
use super::protocol::{LayerStatus, Listing, Totals};
use super::served::ServedLayer;

impl Node {
    /// Mounts, layers and sums, as of now.
    pub async fn listing(self: &Arc<Self>) -> Listing {
        let served = self.served.lock().await;
        let mut layers: Vec<LayerStatus> = served.layers.values().chain(&served.zombies).map(layer_status).collect();
        layers.sort_by(|a, b| a.device.cmp(&b.device));
        let sum = |field: fn(&LayerStatus) -> u64| layers.iter().map(field).sum();
        let usage = process_usage();
        let totals = Totals {
            fetched_bytes: sum(|l| l.fetched_bytes),
            requests: sum(|l| l.requests),
            retries: sum(|l| l.retries),
            cache_bytes: self.cache.usage_bytes(),
            ..usage
        };
        Listing { mounts: served.mounts.iter().map(|m| m.report.clone()).collect(), layers, totals }
    }
}

fn layer_status(served: &ServedLayer) -> LayerStatus {
    let status = served.layer.fill().status();
    LayerStatus {
        digest: served.record.digest,
        device: served.device.path(),
        frontend: served.device.describe(),
        used_by: served.users,
        blob_bytes: served.record.source.blob_bytes,
        layer_bytes: served.layer.file().table().layer_size().get(),
        present_bytes: status.present_bytes,
        fetched_bytes: status.fetched_bytes,
        requests: status.requests,
        retries: status.failures,
        proven: status.proven,
        waiting_readers: status.waiting as u64,
        oldest_wait_ms: u64::try_from(status.oldest_wait.as_millis()).unwrap_or(u64::MAX),
        failed_reads: served.layer.failed_reads(),
        last_error: status.last_error,
    }
}

/// Resident memory, threads and descriptors of this process, from proc(5); zeros where it cannot be read.
fn process_usage() -> Totals {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |key: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
    Totals { resident_bytes: number("VmRSS:") * 1024, threads: number("Threads:"), descriptors, ..Totals::default() }
}

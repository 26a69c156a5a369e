//! What the daemon says about itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Node;
use super::protocol::{
    Account, FollowedOrder, HeldLayer, LayerAccount, LayerStatus, Listing, MountAccount, SlowRead, Totals, WaitingRead,
};
use super::served::ServedLayer;
use crate::fill;
use crate::units::LayerRange;

/// Waiting reads of one layer that are told one by one.
const MAX_WAITING: usize = 16;

impl Node {
    /// Mounts, layers and sums, as of now.
    pub async fn listing(self: &Arc<Self>) -> Listing {
        let served = self.served.lock().await;
        let mut layers: Vec<LayerStatus> = served
            .layers
            .values()
            .chain(&served.zombies)
            .map(|layer| layer_status(layer, self.follows(layer)))
            .collect();
        layers.sort_by(|a, b| a.device.cmp(&b.device));
        let sum = |field: fn(&LayerStatus) -> u64| layers.iter().map(field).sum::<u64>();
        let usage = process_usage();
        let (excerpt_bytes, excerpt_requests, excerpt_failures) = self.orders.lent.totals();
        let totals = Totals {
            fetched_bytes: sum(|l| l.fetched_bytes) + excerpt_bytes,
            excerpt_bytes,
            requests: sum(|l| l.requests) + excerpt_requests,
            retries: sum(|l| l.retries) + excerpt_failures,
            cache_bytes: self.cache.usage_bytes(),
            ..usage
        };
        Listing { mounts: served.mounts.iter().map(|m| m.report.clone()).collect(), layers, totals }
    }
}

impl Node {
    /// What `explain` is made of, as of now.
    pub(super) async fn account(&self) -> Account {
        let served = self.served.lock().await;
        let mounts = served.mounts.iter();
        let held = served.holds.values().map(|hold| HeldLayer {
            owner: hold.owner.clone(),
            layer: hold.layer.name.clone(),
            digest: hold.layer.digest,
            image: hold.image.clone(),
            manifest: hold.layer.source.image.clone(),
            place: hold.place,
            way: hold.way.clone(),
        });
        let layers = served.layers.values().chain(&served.zombies);
        Account {
            mounts: mounts.map(|m| MountAccount { report: m.report.clone(), layers: m.layers.clone() }).collect(),
            layers: layers
                .map(|layer| (layer.record.name.clone(), layer_account(layer, self.follows(layer))))
                .collect(),
            held: held.collect(),
            left: self.fallbacks.left(),
        }
    }

    fn follows(&self, layer: &ServedLayer) -> Option<FollowedOrder> {
        self.orders.followed.of(layer.layer.fill())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn layer_account(served: &ServedLayer, load_order: Option<FollowedOrder>) -> LayerAccount {
    let waits = served.layer.fill().waits();
    let place = |range: LayerRange| served.layer.device_offset(range).map(|at| at.get());
    let now = Instant::now();
    let slow = |read: &fill::SlowRead| SlowRead {
        took_ms: millis(read.took),
        ago_ms: millis(now.saturating_duration_since(read.ended)),
        device_offset: place(read.range),
        layer_offset: read.range.start().get(),
        len_bytes: read.range.len_bytes(),
        waited_for: read.waited_for().word().to_owned(),
        queue_ms: millis(read.queue),
        retry_ms: millis(read.retry),
        network_ms: millis(read.network),
        inflate_ms: millis(read.inflate),
        failed: read.failed,
        file: None,
    };
    let waiting = |read: &fill::WaitingRead| WaitingRead {
        waited_ms: millis(read.waited),
        waits_for: read.waits_for.word().to_owned(),
        device_offset: place(read.range),
        layer_offset: read.range.start().get(),
        len_bytes: read.range.len_bytes(),
        file: None,
    };
    LayerAccount {
        status: layer_status(served, load_order),
        ztoc: served.record.ztoc,
        slowest: waits.slowest.iter().map(slow).collect(),
        waiting: waits.waiting.iter().take(MAX_WAITING).map(waiting).collect(),
    }
}

fn layer_status(served: &ServedLayer, load_order: Option<FollowedOrder>) -> LayerStatus {
    let status = served.layer.fill().status();
    let waits = served.layer.fill().waits();
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
        spans: u64::from(status.spans),
        present_spans: u64::from(status.present_spans),
        slices: u64::from(served.layer.file().slices()),
        contradicted: served.layer.file().is_contradicted(),
        background_spans: status.background_spans,
        waits: waits.reads,
        waited_ms: millis(waits.total),
        proven: status.proven,
        waiting_readers: status.waiting as u64,
        oldest_wait_ms: millis(status.oldest_wait),
        failed_reads: served.layer.failed_reads(),
        last_error: status.last_error,
        load_order,
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

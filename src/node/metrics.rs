//! The daemon's metrics: SOCI's names where they mean the same, and ours. docs/METRICS.md lists them.

use std::sync::Arc;

use super::Node;
use super::protocol::LayerStatus;
use crate::observe::page::{Page, histogram, sample};
use crate::snapshot::Counters;

impl Node {
    /// The page of metrics; `counters` are those of the snapshotter where there is one.
    pub async fn metrics(self: &Arc<Self>, counters: Option<&Counters>) -> String {
        let listing = self.listing().await;
        let mut page = Page::default();
        let layers = &listing.layers;
        let each = |value: fn(&LayerStatus) -> u64| -> Vec<(String, String)> {
            let labels = |layer: &LayerStatus| [layer.digest.to_string(), layer.device.display().to_string()];
            let with = |layer: &LayerStatus| {
                let [digest, device] = labels(layer);
                sample(&[("digest", &digest), ("mountpoint", &device)], value(layer))
            };
            layers.iter().map(with).collect()
        };
        // SOCI's own, of which dashboards know: what of a layer is here, and how large it is, compressed.
        page.family(
            "soci_fs_layer_fetched_size_bytes",
            "gauge",
            "Bytes of the layer's blob that came over the network.",
            &each(|l| l.fetched_bytes),
        );
        page.family("soci_fs_layer_size_bytes", "gauge", "Size of the layer's blob.", &each(|l| l.blob_bytes));
        page.family("sociblk_layer_bytes", "gauge", "Size of the uncompressed layer.", &each(|l| l.layer_bytes));
        page.family("sociblk_layer_present_bytes", "gauge", "Layer bytes on local disk.", &each(|l| l.present_bytes));
        page.family(
            "sociblk_layer_proven",
            "gauge",
            "1 when the whole layer was seen to have the image's diffID.",
            &each(|l| u64::from(l.proven)),
        );
        page.family("sociblk_layer_requests_total", "counter", "Range requests for the layer.", &each(|l| l.requests));
        page.family(
            "sociblk_layer_retries_total",
            "counter",
            "Attempts that failed and were made again.",
            &each(|l| l.retries),
        );
        page.family(
            "sociblk_layer_waiting_readers",
            "gauge",
            "Readers that wait for bytes of the layer now.",
            &each(|l| l.waiting_readers),
        );
        page.family(
            "sociblk_layer_oldest_wait_ms",
            "gauge",
            "How long the oldest of them has waited.",
            &each(|l| l.oldest_wait_ms),
        );
        page.family(
            "sociblk_layer_failed_reads_total",
            "counter",
            "Kernel requests answered with an error.",
            &each(|l| l.failed_reads),
        );
        page.family(
            "sociblk_layer_users",
            "gauge",
            "Mounts and snapshots that use the layer.",
            &each(|l| l.used_by as u64),
        );
        let totals = &listing.totals;
        page.plain("sociblk_layers", "gauge", "Layers that are shown.", layers.len() as u64);
        page.plain("sociblk_mounts", "gauge", "Images mounted by `sociblk mount`.", listing.mounts.len() as u64);
        page.plain("sociblk_cache_bytes", "gauge", "Disk space of layer files.", totals.cache_bytes);
        page.plain("process_resident_memory_bytes", "gauge", "Resident memory of the daemon.", totals.resident_bytes);
        page.plain("process_open_fds", "gauge", "Open descriptors of the daemon.", totals.descriptors);
        page.plain("process_threads", "gauge", "Threads of the daemon.", totals.threads);
        if let Some(counters) = counters {
            snapshots(&mut page, counters);
        }
        page.into_text()
    }
}

fn snapshots(page: &mut Page, counters: &Counters) {
    let outcome = |word, count: u64| sample(&[("outcome", word)], count);
    page.family(
        "sociblk_snapshots_prepared_total",
        "counter",
        "Image layers that containerd asked for, by what became of them.",
        &[
            outcome("lazy", counters.lazy()),
            outcome("local", counters.local()),
            outcome("deferred", counters.deferred()),
        ],
    );
    let operation = |kind, count: u64| sample(&[("operation_type", kind), ("layer", "")], count);
    page.family(
        "soci_fs_operation_count",
        "counter",
        "Operations, by kind.",
        &[
            operation("mount", counters.lazy() + counters.local()),
            operation("fuse_mount_failure_count", counters.show_failures()),
        ],
    );
    let (counts, sum_ms) = counters.times();
    page.family(
        "sociblk_prepare_milliseconds",
        "histogram",
        "Time to prepare a layer that is shown.",
        &histogram(&crate::snapshot::PREPARE_BOUNDS_MS, &counts, sum_ms),
    );
}

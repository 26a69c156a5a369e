//! The daemon's metrics: SOCI's names where they mean the same, and ours. docs/METRICS.md lists them.

use std::sync::Arc;

use super::Node;
use super::load_order::Outcome;
use super::protocol::{LayerStatus, Listing, Reason};
use crate::observe::page::{Page, histogram, sample};
use crate::snapshot::{Counters, PREPARE_BOUNDS_MS};

/// What follows a metric's name, and a value.
type Sample = (String, String);

/// Where a metric's values come from.
enum Values {
    /// One for each layer that is shown.
    Layer(fn(&LayerStatus) -> u64),
    /// One of the daemon.
    Once(fn(&Listing) -> u64),
    /// One for each reason why a layer is not lazy.
    Reason,
    /// One for each way in which a look for a load order ends.
    Orders,
    /// Those of the snapshotter, where there is one.
    Snapshotter(fn(&Counters) -> Vec<Sample>),
}

struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    values: Values,
}

const fn metric(name: &'static str, kind: &'static str, help: &'static str, values: Values) -> Metric {
    Metric { name, kind, help, values }
}

use Values::{Layer, Once, Snapshotter};

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// All of them. SOCI's own first, of which dashboards know: what of a layer is here, and how large it is, compressed.
#[rustfmt::skip]
const METRICS: &[Metric] = &[
    metric("soci_fs_layer_fetched_size_bytes", GAUGE, "Bytes of the layer's blob that came over the network.", Layer(|l| l.fetched_bytes)),
    metric("soci_fs_layer_size_bytes", GAUGE, "Size of the layer's blob.", Layer(|l| l.blob_bytes)),
    metric("soci_fs_operation_count", COUNTER, "Operations, by kind.", Snapshotter(operations)),
    metric("sociblk_snapshots_prepared_total", COUNTER, "Image layers that containerd asked for, by what became of them.", Snapshotter(outcomes)),
    metric("sociblk_prepare_milliseconds", "histogram", "Time to prepare a layer that is shown.", Snapshotter(times)),
    metric("sociblk_layer_fallbacks_total", COUNTER, "Image layers that are not lazy, by why.", Values::Reason),
    metric("sociblk_layer_bytes", GAUGE, "Size of the uncompressed layer.", Layer(|l| l.layer_bytes)),
    metric("sociblk_layer_present_bytes", GAUGE, "Layer bytes on local disk.", Layer(|l| l.present_bytes)),
    metric("sociblk_layer_spans", GAUGE, "Spans of the layer.", Layer(|l| l.spans)),
    metric("sociblk_layer_present_spans", GAUGE, "Spans on local disk.", Layer(|l| l.present_spans)),
    metric("sociblk_layer_background_spans_total", COUNTER, "Spans that were fetched in the background.", Layer(|l| l.background_spans)),
    metric("sociblk_layer_proven", GAUGE, "1 when the whole layer was seen to have the image's diffID.", Layer(|l| u64::from(l.proven))),
    metric("sociblk_layer_requests_total", COUNTER, "Range requests for the layer.", Layer(|l| l.requests)),
    metric("sociblk_layer_retries_total", COUNTER, "Attempts that failed and were made again.", Layer(|l| l.retries)),
    metric("sociblk_layer_waits_total", COUNTER, "Reads that had to wait for bytes of the layer.", Layer(|l| l.waits)),
    metric("sociblk_layer_wait_milliseconds_total", COUNTER, "How long they waited, all together.", Layer(|l| l.waited_ms)),
    metric("sociblk_layer_waiting_readers", GAUGE, "Readers that wait for bytes of the layer now.", Layer(|l| l.waiting_readers)),
    metric("sociblk_layer_oldest_wait_ms", GAUGE, "How long the oldest of them has waited.", Layer(|l| l.oldest_wait_ms)),
    metric("sociblk_layer_failed_reads_total", COUNTER, "Kernel requests answered with an error.", Layer(|l| l.failed_reads)),
    metric("sociblk_layer_users", GAUGE, "Mounts and snapshots that use the layer.", Layer(|l| l.used_by as u64)),
    metric("sociblk_layer_order_spans", GAUGE, "Spans that the layer's load order asked for.", Layer(|l| l.load_order.as_ref().map_or(0, |order| order.spans))),
    metric("sociblk_layer_slices", GAUGE, "Slices of the layer that an excerpt brought before their spans.", Layer(|l| l.slices)),
    metric("sociblk_layer_contradicted", GAUGE, "1 when an excerpt had other bytes than the layer: what was read may have been wrong.", Layer(|l| u64::from(l.contradicted))),
    metric("sociblk_excerpt_fetched_bytes", GAUGE, "Bytes fetched of excerpts of layers that are shown.", Once(|l| l.totals.excerpt_bytes)),
    metric("sociblk_load_orders_total", COUNTER, "Looks for an image's load order, by how they ended.", Values::Orders),
    metric("sociblk_layers", GAUGE, "Layers that are shown.", Once(|l| l.layers.len() as u64)),
    metric("sociblk_mounts", GAUGE, "Images mounted by `sociblk mount`.", Once(|l| l.mounts.len() as u64)),
    metric("sociblk_cache_bytes", GAUGE, "Disk space of layer files.", Once(|l| l.totals.cache_bytes)),
    metric("process_resident_memory_bytes", GAUGE, "Resident memory of the daemon.", Once(|l| l.totals.resident_bytes)),
    metric("process_open_fds", GAUGE, "Open descriptors of the daemon.", Once(|l| l.totals.descriptors)),
    metric("process_threads", GAUGE, "Threads of the daemon.", Once(|l| l.totals.threads)),
];

impl Node {
    /// The page of metrics; `counters` are those of the snapshotter where there is one.
    pub async fn metrics(self: &Arc<Self>, counters: Option<&Counters>) -> String {
        page(&self.listing().await, &self.fallbacks.counts(), &self.orders.followed.counts(), counters)
    }
}

fn page(
    listing: &Listing,
    fallbacks: &[(Reason, u64)],
    orders: &[(Outcome, u64)],
    counters: Option<&Counters>,
) -> String {
    let mut page = Page::default();
    for Metric { name, kind, help, values } in METRICS {
        let samples = match values {
            Layer(value) => {
                let with = |layer: &LayerStatus| {
                    let (digest, device) = (layer.digest.to_string(), layer.device.display().to_string());
                    sample(&[("digest", &digest), ("mountpoint", &device)], value(layer))
                };
                listing.layers.iter().map(with).collect()
            }
            Once(value) => vec![(String::new(), value(listing).to_string())],
            Values::Reason => {
                fallbacks.iter().map(|(reason, count)| sample(&[("reason", reason.word())], count)).collect()
            }
            Values::Orders => {
                orders.iter().map(|(outcome, count)| sample(&[("outcome", outcome.word())], count)).collect()
            }
            Snapshotter(values) => match counters {
                Some(counters) => values(counters),
                None => continue,
            },
        };
        page.family(name, kind, help, &samples);
    }
    page.into_text()
}

fn operations(counters: &Counters) -> Vec<Sample> {
    let operation = |kind, count: u64| sample(&[("operation_type", kind), ("layer", "")], count);
    vec![
        operation("mount", counters.lazy() + counters.local()),
        operation("fuse_mount_failure_count", counters.show_failures()),
    ]
}

fn outcomes(counters: &Counters) -> Vec<Sample> {
    let outcome = |word, count: u64| sample(&[("outcome", word)], count);
    vec![outcome("lazy", counters.lazy()), outcome("local", counters.local()), outcome("deferred", counters.deferred())]
}

fn times(counters: &Counters) -> Vec<Sample> {
    let (counts, sum_ms) = counters.times();
    histogram(&PREPARE_BOUNDS_MS, &counts, sum_ms)
}

#[cfg(test)]
mod tests;

//! A recording: first reads of an image's layers, as they are collected from the slots that each layer has for them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use super::excerpt::Material;
use crate::fill::{FillLayer, read_clock_us};
use crate::order::{LoadOrder, OrderLayer, Read};
use crate::units::{Digest, SliceId};

/// The label of an order that nobody named.
pub(super) const DEFAULT_LABEL: &str = "default";

/// How long a recording goes on that nobody asked for. A node with hundreds of mounts must not go through all their reads
/// with each new one; and what is read later is daily work.
const START_US: u64 = 600_000_000;

/// Whose reads are recorded.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(in crate::node) enum Key {
    /// A mount, by its mount point.
    Mount(PathBuf),
    /// An image that containerd shows, by its manifest.
    Image(Digest),
}

/// An image whose reads are recorded.
#[derive(Clone, Debug)]
pub(in crate::node) struct Recorded {
    /// Its manifest.
    pub image: Digest,
    /// How it was named.
    pub reference: String,
    /// The command that it runs by itself.
    pub command: Vec<String>,
}

/// A layer whose reads are recorded.
struct RecordedLayer {
    shape: OrderLayer,
    fill: Weak<FillLayer>,
}

/// A read: when, and blob bytes of the span.
type Touched = (u64, u64);

/// What is known of a start.
pub(super) struct Recording {
    pub(super) of: Recorded,
    /// Since when, by the clock of reads.
    pub(super) since_us: u64,
    /// Reads after this do not count.
    until_us: u64,
    /// All that counts was collected.
    closed: bool,
    /// The label that it was begun with by a user.
    pub(super) label: Option<String>,
    /// Whether it began with its layers: else reads may have been answered from the kernel's memory.
    pub(super) fresh: bool,
    layers: Vec<RecordedLayer>,
    /// What was read, by layer and span, as far as it was collected.
    reads: BTreeMap<(usize, u32), Touched>,
    /// When slices were read first, by layer and slice.
    slices: BTreeMap<(usize, SliceId), u64>,
}

/// All recordings.
#[derive(Default)]
pub(in crate::node) struct Recordings(Mutex<HashMap<Key, Recording>>);

impl Recording {
    pub(super) fn new(of: Recorded) -> Self {
        let since_us = read_clock_us();
        Self {
            of,
            since_us,
            until_us: since_us.saturating_add(START_US),
            closed: false,
            label: None,
            fresh: true,
            layers: Vec::new(),
            reads: BTreeMap::new(),
            slices: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, layer: Digest, ztoc: Digest, fill: &Arc<FillLayer>) {
        if self.layers.iter().any(|known| known.shape.layer == layer) {
            return;
        }
        let table = fill.file().table();
        let spans = u32::try_from(table.len()).unwrap_or(u32::MAX);
        let span_bytes = table.iter().map(|(_, span)| span.layer.len_bytes()).max().unwrap_or(0);
        let shape = OrderLayer { layer, ztoc, spans, span_bytes };
        self.layers.push(RecordedLayer { shape, fill: Arc::downgrade(fill) });
    }

    /// Takes in what was read since the last time, while the layers are there.
    pub(super) fn collect(&mut self) {
        if self.closed {
            return;
        }
        self.closed = read_clock_us() > self.until_us;
        for (at, layer) in self.layers.iter().enumerate() {
            let Some(fill) = layer.fill.upgrade() else { continue };
            for touch in fill.reads_since(self.since_us).into_iter().filter(|touch| touch.at_us <= self.until_us) {
                let bytes = fill.file().table().get(touch.what).map_or(0, |span| span.blob.len_bytes());
                let known = self.reads.entry((at, touch.what.0)).or_insert((touch.at_us, bytes));
                known.0 = known.0.min(touch.at_us);
            }
            for touch in fill.slices_since(self.since_us).into_iter().filter(|touch| touch.at_us <= self.until_us) {
                let known = self.slices.entry((at, touch.what)).or_insert(touch.at_us);
                *known = touch.at_us.min(*known);
            }
        }
    }

    fn has(&self, fill: &Arc<FillLayer>) -> bool {
        self.layers.iter().any(|layer| std::ptr::eq(layer.fill.as_ptr(), Arc::as_ptr(fill)))
    }

    /// What is read from now on does not count.
    pub(super) fn end(&mut self) {
        self.until_us = read_clock_us();
        self.label = None;
    }

    /// From now on reads are first again, until [`Recording::end`].
    pub(super) fn begin(&mut self, at_us: u64) {
        (self.since_us, self.until_us, self.closed) = (at_us, u64::MAX, false);
        self.fresh = false;
        self.reads.clear();
        self.slices.clear();
        self.layers.iter().filter_map(|layer| layer.fill.upgrade()).for_each(|fill| fill.begin_reads(at_us));
    }

    pub(super) fn order(&self, label: &str) -> LoadOrder {
        let mut reads: Vec<(u64, usize, u32)> = self.reads.iter().map(|((l, s), (at, _))| (*at, *l, *s)).collect();
        reads.sort_unstable();
        let mut layers: Vec<usize> = reads.iter().map(|(_, layer, _)| *layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let mut joined: Vec<Read> = Vec::new();
        for (at_us, layer, span) in reads {
            let layer = layers.binary_search(&layer).ok().and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX);
            match joined.last_mut() {
                Some(last) if last.layer == layer && last.first + last.count == span => last.count += 1,
                _ => {
                    let at_ms = at_us.saturating_sub(self.since_us) / 1000;
                    joined.push(Read { layer, first: span, count: 1, at_ms });
                }
            }
        }
        LoadOrder {
            image: self.of.image,
            reference: Some(self.of.reference.clone()),
            label: label.to_owned(),
            entrypoint: self.of.command.clone(),
            labels: BTreeMap::new(),
            created_at_ms: now_ms(),
            bytes: self.reads.values().map(|(_, bytes)| bytes).sum(),
            layers: layers.into_iter().filter_map(|at| Some(self.layers.get(at)?.shape)).collect(),
            reads: joined,
            excerpt: None,
        }
    }

    /// The slices that were read, in order, of the layers of `order`, which was made of the same reads.
    fn material(&self, order: &LoadOrder) -> Material {
        let known = |at: usize| self.layers.get(at).map(|layer| layer.shape.layer);
        let place = |digest: Digest| order.layers.iter().position(|layer| layer.layer == digest);
        let mut slices: Vec<(u64, usize, SliceId)> = self
            .slices
            .iter()
            .filter_map(|((at, slice), at_us)| Some((*at_us, known(*at).and_then(place)?, *slice)))
            .collect();
        slices.sort_unstable();
        let fill = |layer: &OrderLayer| {
            let recorded = self.layers.iter().find(|known| known.shape.layer == layer.layer);
            recorded.and_then(|recorded| recorded.fill.upgrade())
        };
        Material {
            layers: order.layers.iter().map(fill).collect(),
            slices: slices.into_iter().map(|(_, layer, slice)| (layer, slice)).collect(),
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Recordings {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Key, Recording>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what was read of a layer until now, which is about to go, or whose reads become first again.
    pub fn collect(&self, fill: &Arc<FillLayer>) {
        self.lock().values_mut().filter(|recording| recording.has(fill)).for_each(Recording::collect);
    }

    /// What was recorded.
    pub(super) fn order(&self, key: &Key, label: Option<&str>) -> Option<(LoadOrder, bool)> {
        let mut recordings = self.lock();
        let recording = recordings.get_mut(key)?;
        recording.collect();
        let label = label.or(recording.label.as_deref()).unwrap_or(DEFAULT_LABEL);
        Some((recording.order(label), recording.fresh))
    }

    /// What an excerpt of an order is made of.
    pub(super) fn material(&self, key: &Key, order: &LoadOrder) -> Option<Material> {
        self.lock().get(key).map(|recording| recording.material(order))
    }

    pub(super) fn reference(&self, key: &Key) -> Option<String> {
        self.lock().get(key).map(|recording| recording.of.reference.clone())
    }

    pub(super) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }
}

//! Following a load order: as layers are shown, the spans that it names are asked for, in its order, behind readers and
//! before the background.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use super::excerpt::{frames_of, places};
use super::find::{Artifact, Found, Hunt};
use crate::fill::{Excerpt, FillLayer};
use crate::node::{Node, one_line};
use crate::order::{
    ExcerptLayout, LayerShape, Limits, LoadOrder, OrderLayer, Plan, PlannedRun, Read, Unusable, plan, runs,
};
use crate::units::{Digest, LayerRange, SLICE_BYTES, SliceId, SpanId, usize_from_u64};

/// Layers of one image that are shown with less time between them are asked for together, in the order of all.
const TOGETHER: Duration = Duration::from_millis(300);

/// A layer that is shown now.
#[derive(Clone)]
pub(in crate::node) struct Shown {
    /// Digest of its blob.
    pub layer: Digest,
    /// Digest of the zTOC that numbers its spans.
    pub ztoc: Digest,
    /// What fills it.
    pub fill: Weak<FillLayer>,
}

/// Looks for the load order of an image and follows it for every layer that is sent, until the sender is gone.
pub(in crate::node) fn follow(node: &Arc<Node>, hunt: Hunt) -> mpsc::UnboundedSender<Shown> {
    let (sender, layers) = mpsc::unbounded_channel();
    if !hunt.is_off() {
        tokio::spawn(run(Arc::downgrade(node), hunt, layers));
    }
    sender
}

async fn run(node: Weak<Node>, hunt: Hunt, mut layers: mpsc::UnboundedReceiver<Shown>) {
    let mut shown = Vec::new();
    let mut open = true;
    // What has to be asked for is asked for only when something is missing here.
    while hunt.is_costly() && shown.iter().all(is_complete) {
        match layers.recv().await {
            Some(layer) => shown.push(layer),
            None => return,
        }
    }
    let Some(found) = found(&node, &hunt).await else { return };
    // Of one start, however many times layers are shown for it.
    let mut left_bytes = u64::MAX;
    let mut waiting = named(&found);
    waiting.retain(|named| shown.iter().all(|layer: &Shown| layer.layer != *named));
    while open {
        let next = match shown.is_empty() {
            true => Ok(layers.recv().await),
            false if waiting.is_empty() => Err(()),
            false => tokio::time::timeout(TOGETHER, layers.recv()).await.map_err(drop),
        };
        match next {
            Ok(Some(layer)) => {
                waiting.remove(&layer.layer);
                shown.push(layer);
                continue;
            }
            Ok(None) => open = false,
            Err(()) => {}
        }
        let Some(node) = node.upgrade() else { return };
        let limits = node.orders.limits();
        left_bytes = left_bytes.min(limits.total_bytes);
        let limits = Limits { total_bytes: left_bytes, ..limits };
        left_bytes -= submit(&node, &found, &std::mem::take(&mut shown), &hunt.image(), limits).min(left_bytes);
    }
}

async fn found(node: &Weak<Node>, hunt: &Hunt) -> Option<Found> {
    let node = node.upgrade()?;
    match hunt.run(&node).await {
        Found::Nothing => None,
        found => Some(found),
    }
}

/// The layers that are waited for, so that their spans are asked for in the order of all. Prefetch artifacts know no such order.
fn named(found: &Found) -> HashSet<Digest> {
    match found {
        Found::Order(order, ..) => order.layers.iter().map(|layer| layer.layer).collect(),
        Found::Prefetch(..) | Found::Nothing => HashSet::new(),
    }
}

fn is_complete(layer: &Shown) -> bool {
    layer.fill.upgrade().is_none_or(|fill| fill.file().is_complete())
}

/// Asks for what concerns these layers; how many bytes of blobs that are.
fn submit(node: &Node, found: &Found, shown: &[Shown], image: &str, limits: Limits) -> u64 {
    let mut fills: Vec<Arc<FillLayer>> = Vec::new();
    let mut shapes: Vec<LayerShape> = Vec::new();
    let fresh = shown.iter().filter_map(|layer| Some((layer, layer.fill.upgrade()?)));
    for (layer, fill) in fresh.filter(|(_, fill)| !fill.file().is_complete()) {
        let span_bytes = fill.file().table().iter().map(|(_, span)| span.blob.len_bytes()).collect();
        shapes.push(LayerShape { layer: layer.layer, ztoc: layer.ztoc, span_bytes });
        fills.push(fill);
    }
    if fills.is_empty() {
        return 0;
    }
    let loan = borrowed(node, found, &shapes, &fills, limits, image);
    let (plan, (label, chosen)) = match found {
        Found::Order(order, chosen, _) => {
            let rest = loan.as_ref().map(|loan| loan.rest(order, &shapes, &fills));
            let made = plan(rest.as_ref().unwrap_or(order), &shapes, limits);
            let mut unknown = HashSet::new();
            for unusable in &made.unusable {
                let Some(layer) = about(unusable).filter(|about| shown.iter().any(|shown| shown.layer == *about))
                else {
                    continue;
                };
                tracing::warn!(image, label = order.label, %unusable, "part of a load order is ignored");
                unknown.insert(layer);
            }
            // What is not asked for although the start needs it, the background may bring in time. So with a prefetch artifact
            // of SOCI, which names files that somebody chose.
            if !made.cut {
                let known = shapes.iter().zip(&fills).filter(|(shape, _)| !unknown.contains(&shape.layer));
                node.filler.settle(known.map(|(_, fill)| &**fill));
            }
            (made, (order.label.as_str(), chosen))
        }
        Found::Prefetch(found, chosen) => (artifacts(found, &shapes, limits, image), ("", chosen)),
        Found::Nothing => return 0,
    };
    let slices = loan.as_ref().map(Loan::counts).unwrap_or_default();
    if plan.runs.is_empty() && slices.iter().all(|slices| *slices == 0) {
        return 0;
    }
    tracing::info!(
        image,
        label,
        from = chosen.outcome.word(),
        why = chosen.why,
        spans = plan.spans,
        bytes = plan.bytes,
        pieces = plan.runs.len(),
        slices = slices.iter().sum::<u64>(),
        "following a load order"
    );
    node.orders.followed.put(found, &plan, &fills, &shapes, &slices);
    let runs = plan.runs.iter().filter_map(|PlannedRun { layer, spans }| {
        let fill = fills.get(*layer)?;
        Some((&**fill, layer_range(fill, spans)?))
    });
    // What the excerpt has is read first.
    let frames = loan.iter().flat_map(Loan::frames);
    node.filler.prefetch_in_order(&frames.chain(runs).collect::<Vec<_>>());
    if let Some(loan) = loan {
        for (fill, slices) in fills.iter().zip(loan.slices) {
            fill.borrow(&loan.excerpt, slices.into_iter());
        }
    }
    plan.bytes
}

/// What layers borrow from an excerpt.
struct Loan<'a> {
    layout: &'a ExcerptLayout,
    excerpt: Arc<Excerpt>,
    /// For each of the layers: its slices, and where they are.
    slices: Vec<Vec<(SliceId, SliceId)>>,
    /// Which layers of the order these are.
    layers: HashSet<u32>,
}

/// What these layers borrow; `None` where there is no excerpt that can be used.
fn borrowed<'a>(
    node: &Node,
    found: &'a Found,
    shapes: &[LayerShape],
    fills: &[Arc<FillLayer>],
    limits: Limits,
    image: &str,
) -> Option<Loan<'a>> {
    let Found::Order(order, _, Some(source)) = found else { return None };
    let layout = order.excerpt.as_ref().filter(|layout| layout.bytes <= limits.total_bytes)?;
    let mut layers = HashSet::new();
    let mut slices = Vec::new();
    for (shape, fill) in shapes.iter().zip(fills) {
        let at = order.layers.iter().position(|layer| layer.layer == shape.layer);
        let at = at.and_then(|at| u32::try_from(at).ok());
        layers.extend(at);
        let file = fill.file();
        let size = file.table().layer_size();
        // Whoever made it may have named slices that the layer does not have.
        let theirs = at.into_iter().flat_map(|at| places(layout, at)).filter(|(slice, _)| slice.range().start() < size);
        // Nor has it any twice.
        let theirs = theirs.take(usize_from_u64(size.get().div_ceil(SLICE_BYTES)).unwrap_or(0));
        slices.push(theirs.filter(|(slice, _)| !file.has_slice(*slice, slice.range())).collect());
    }
    match node.excerpt(layout, source) {
        Ok(excerpt) => Some(Loan { layout, excerpt, slices, layers }),
        Err(error) => {
            tracing::warn!(image, error = one_line(&error), "the excerpt of a load order is ignored");
            None
        }
    }
}

impl Loan<'_> {
    fn counts(&self) -> Vec<u64> {
        self.slices.iter().map(|slices| slices.len() as u64).collect()
    }

    fn frames(&self) -> Vec<(&FillLayer, LayerRange)> {
        let fill = self.excerpt.fill();
        let frames = frames_of(self.layout, &self.layers).into_iter();
        frames.filter_map(|frame| Some((&**fill, layer_range(fill, &(frame..frame + 1))?))).collect()
    }

    /// The order without the spans of which the excerpt has what was read.
    fn rest(&self, order: &LoadOrder, shapes: &[LayerShape], fills: &[Arc<FillLayer>]) -> LoadOrder {
        let mut lent: Vec<HashSet<u32>> = vec![HashSet::new(); order.layers.len()];
        for ((shape, fill), slices) in shapes.iter().zip(fills).zip(&self.slices) {
            let at = order.layers.iter().position(|layer| layer.layer == shape.layer);
            if let Some(lent) = at.and_then(|at| lent.get_mut(at)) {
                lent.extend(slices.iter().flat_map(|(slice, _)| fill.file().table().covering(slice.range())));
            }
        }
        // No more than the layers have, each once, whatever the order claims.
        let spans = |layer: &OrderLayer| {
            let shape = shapes.iter().find(|shape| shape.layer == layer.layer);
            shape.map_or(0, |shape| shape.span_bytes.len())
        };
        let mut left: Vec<Vec<bool>> = order.layers.iter().map(|layer| vec![true; spans(layer)]).collect();
        for (left, lent) in left.iter_mut().zip(&lent) {
            lent.iter().filter_map(|span| usize::try_from(*span).ok()).for_each(|span| {
                if let Some(left) = left.get_mut(span) {
                    *left = false;
                }
            });
        }
        let mut reads = Vec::new();
        for Read { layer, first, count, at_ms } in order.reads.iter().copied() {
            let Some(left) = left.get_mut(layer as usize) else { continue };
            let end = first.saturating_add(count).min(u32::try_from(left.len()).unwrap_or(u32::MAX));
            for span in first..end {
                if left.get_mut(span as usize).is_some_and(|left| std::mem::replace(left, false)) {
                    reads.push(Read { layer, first: span, count: 1, at_ms });
                }
            }
        }
        LoadOrder { reads, ..order.clone() }
    }
}

/// The layer that is served and cannot be followed; `None` for those that come later, or are complete.
fn about(unusable: &Unusable) -> Option<Digest> {
    match unusable {
        Unusable::NotServed { .. } => None,
        Unusable::OtherZtoc { layer, .. } | Unusable::OtherSpans { layer, .. } => Some(*layer),
    }
}

/// A plan of the prefetch artifacts, layer by layer. The last span that SOCI names may be one too many.
fn artifacts(found: &[Artifact], shapes: &[LayerShape], limits: Limits, image: &str) -> Plan {
    let mut reads: Vec<(usize, Range<u32>)> = Vec::new();
    for Artifact { layer, ztoc, spans: ranges, .. } in found {
        let Some(at) = shapes.iter().position(|shape| shape.layer == *layer && shape.ztoc == *ztoc) else { continue };
        let spans = shapes.get(at).map_or(0, |shape| shape.span_bytes.len());
        if let Some(beyond) = ranges.iter().find(|range| range.start_span as usize >= spans) {
            let start = beyond.start_span;
            tracing::warn!(image, layer = %layer.short(), start, spans, "a prefetch artifact names spans that its layer does not have; it is ignored");
            continue;
        }
        reads.extend(ranges.iter().map(|range| (at, range.start_span..range.end_span.saturating_add(1))));
    }
    runs(reads.into_iter(), shapes, limits)
}

fn layer_range(fill: &FillLayer, spans: &Range<u32>) -> Option<LayerRange> {
    let table = fill.file().table();
    let first = table.get(SpanId(spans.start))?;
    let last = table.get(SpanId(spans.end.checked_sub(1)?))?;
    LayerRange::new(first.layer.start(), last.layer.end())
}

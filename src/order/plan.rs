//! From an order to what is asked for: adjacent spans of a layer together, in few large pieces, the first needed first.

use std::collections::HashMap;
use std::ops::Range;

use super::{LoadOrder, Read};
use crate::units::Digest;

/// A layer as it is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerShape {
    /// Digest of its blob.
    pub layer: Digest,
    /// Digest of the zTOC that numbers its spans.
    pub ztoc: Digest,
    /// Blob bytes of each span.
    pub span_bytes: Vec<u64>,
}

/// How far a plan goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Blob bytes of one piece; a single span may have more.
    pub run_bytes: u64,
    /// A neighbour goes along when it is needed within so many blob bytes.
    pub ahead_bytes: u64,
    /// Blob bytes in all; what comes later in the order is left out.
    pub total_bytes: u64,
}

impl Default for Limits {
    /// A piece is as long as the longest transfer. What is needed four of them later may as well come now: it saves a
    /// request, and delays nobody by more than one.
    fn default() -> Self {
        Self { run_bytes: 8 << 20, ahead_bytes: 32 << 20, total_bytes: u64::MAX }
    }
}

/// Adjacent spans that are asked for together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedRun {
    /// Which of the layers that are served.
    pub layer: usize,
    /// Its spans.
    pub spans: Range<u32>,
}

/// A layer of the document that cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// The image has no such layer, or it is not served.
    NotServed {
        /// The layer.
        layer: Digest,
    },
    /// Its spans are numbered by another zTOC.
    OtherZtoc {
        /// The layer.
        layer: Digest,
        /// The zTOC of the document.
        recorded: Digest,
        /// The zTOC that is used here.
        served: Digest,
    },
    /// The zTOC is the same, but the document claims another number of spans.
    OtherSpans {
        /// The layer.
        layer: Digest,
        /// Spans by the document.
        recorded: u32,
        /// Spans that it has.
        served: usize,
    },
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotServed { layer } => write!(f, "layer {}: not served here", layer.short()),
            Self::OtherZtoc { layer, recorded, served } => {
                let (layer, recorded, served) = (layer.short(), recorded.short(), served.short());
                write!(f, "layer {layer}: recorded with zTOC {recorded}, and served with {served}; record it again")
            }
            Self::OtherSpans { layer, recorded, served } => {
                let layer = layer.short();
                write!(f, "layer {layer}: the order claims {recorded} spans, the zTOC has {served}")
            }
        }
    }
}

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The pieces, in order; no span is in two of them.
    pub runs: Vec<PlannedRun>,
    /// Their spans.
    pub spans: u64,
    /// Their blob bytes.
    pub bytes: u64,
    /// Whether the limit of bytes left out what is needed later.
    pub cut: bool,
    /// Layers of the document that are left out.
    pub unusable: Vec<Unusable>,
}

/// What of `order` concerns `layers`, as pieces.
#[must_use]
pub fn plan(order: &LoadOrder, layers: &[LayerShape], limits: Limits) -> Plan {
    let mut places: HashMap<Digest, usize> = HashMap::new();
    for (at, layer) in layers.iter().enumerate() {
        places.entry(layer.layer).or_insert(at);
    }
    let mut unusable = Vec::new();
    let known: Vec<Option<usize>> = order
        .layers
        .iter()
        .map(|recorded| {
            let layer = recorded.layer;
            let found = places.get(&layer).and_then(|at| Some((*at, layers.get(*at)?)));
            let wrong = match found {
                None => Unusable::NotServed { layer },
                Some((_, served)) if served.ztoc != recorded.ztoc => {
                    Unusable::OtherZtoc { layer, recorded: recorded.ztoc, served: served.ztoc }
                }
                Some((_, served)) if served.span_bytes.len() != recorded.spans as usize => {
                    Unusable::OtherSpans { layer, recorded: recorded.spans, served: served.span_bytes.len() }
                }
                Some((at, _)) => return Some(at),
            };
            unusable.push(wrong);
            None
        })
        .collect();
    let reads = order.reads.iter().filter_map(|Read { layer, first, count, .. }| {
        let at = known.get(*layer as usize).copied().flatten()?;
        Some((at, *first..first.saturating_add(*count)))
    });
    Plan { unusable, ..runs(reads, layers, limits) }
}

/// Spans in the order in which they are needed, as pieces. Spans that a layer does not have are left out. Takes memory for
/// the spans of `layers`, whatever `reads` says.
#[must_use]
pub fn runs(reads: impl Iterator<Item = (usize, Range<u32>)>, layers: &[LayerShape], limits: Limits) -> Plan {
    // For each span: how many bytes are needed before it, if it is needed; then whether it was taken.
    let mut needed: Vec<Vec<Option<u64>>> = layers.iter().map(|layer| vec![None; layer.span_bytes.len()]).collect();
    let mut sequence: Vec<(usize, u32)> = Vec::new();
    let (mut bytes, mut cut) = (0_u64, false);
    'reads: for (layer, spans) in reads {
        let (Some(needed), Some(shape)) = (needed.get_mut(layer), layers.get(layer)) else { continue };
        for span in spans.start..spans.end.min(u32::try_from(needed.len()).unwrap_or(u32::MAX)) {
            let (Some(slot), Some(more)) = (needed.get_mut(span as usize), shape.span_bytes.get(span as usize)) else {
                continue;
            };
            if slot.is_some() {
                continue;
            }
            if bytes.saturating_add(*more) > limits.total_bytes {
                cut = true;
                break 'reads;
            }
            *slot = Some(bytes);
            bytes += more;
            sequence.push((layer, span));
        }
    }
    let mut plan = Plan { spans: sequence.len() as u64, bytes, cut, ..Plan::default() };
    for (layer, span) in sequence {
        let (Some(needed), Some(shape)) = (needed.get_mut(layer), layers.get(layer)) else { continue };
        let Some(since) = needed.get_mut(span as usize).and_then(Option::take) else { continue };
        let size = |span: u32| shape.span_bytes.get(span as usize).copied().unwrap_or(0);
        let (mut spans, mut run_bytes) = (span..span + 1, size(span));
        let mut take = |next: u32, run_bytes: &mut u64| {
            let soon = |at: &u64| at.saturating_sub(since) <= limits.ahead_bytes;
            let fits = run_bytes.saturating_add(size(next)) <= limits.run_bytes;
            let taken = fits && needed.get_mut(next as usize).and_then(|slot| slot.take_if(|at| soon(at))).is_some();
            *run_bytes += if taken { size(next) } else { 0 };
            taken
        };
        while take(spans.end, &mut run_bytes) {
            spans.end += 1;
        }
        while spans.start > 0 && take(spans.start - 1, &mut run_bytes) {
            spans.start -= 1;
        }
        plan.runs.push(PlannedRun { layer, spans });
    }
    plan
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

//! What is told of load orders: which one each layer follows, and how the looks for one ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::find::{Chosen, Found};
use crate::fill::FillLayer;
use crate::node::protocol::FollowedOrder;
use crate::order::{LayerShape, Plan};
use crate::units::Digest;

/// How a look for a load order ended. The word is that of metrics, and of `from` in what is told of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::node) enum Outcome {
    /// A file that was named.
    File,
    /// One that is kept on this node.
    Kept,
    /// One beside the image in its registry.
    Registry,
    /// The prefetch artifacts of the image's index.
    Artifacts,
    /// There is none.
    Nothing,
    /// It could not be had, or is no good.
    Failed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::File, Self::Kept, Self::Registry, Self::Artifacts, Self::Nothing, Self::Failed];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Kept => "kept",
            Self::Registry => "registry",
            Self::Artifacts => "artifacts",
            Self::Nothing => "none",
            Self::Failed => "failed",
        }
    }
}

/// What layers follow, and how many looks ended how.
#[derive(Default)]
pub(in crate::node) struct Followed {
    /// By the address of what fills the layer, which nobody else has while it is remembered here.
    layers: Mutex<HashMap<usize, (Weak<FillLayer>, FollowedOrder)>>,
    looks: [AtomicU64; Outcome::ALL.len()],
}

fn address(fill: &Arc<FillLayer>) -> usize {
    Arc::as_ptr(fill).addr()
}

impl Followed {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, (Weak<FillLayer>, FollowedOrder)>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look ended.
    pub fn count(&self, outcome: Outcome) {
        if let Some((_, looks)) = Outcome::ALL.iter().zip(&self.looks).find(|(one, _)| **one == outcome) {
            looks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks since the daemon began, by how they ended.
    pub fn counts(&self) -> Vec<(Outcome, u64)> {
        Outcome::ALL.into_iter().zip(self.looks.iter().map(|looks| looks.load(Ordering::Relaxed))).collect()
    }

    /// These layers follow what was found, as planned; `slices` says how many each borrows from the order's excerpt.
    pub(super) fn put(
        &self,
        found: &Found,
        plan: &Plan,
        fills: &[Arc<FillLayer>],
        shapes: &[LayerShape],
        slices: &[u64],
    ) {
        let mut layers = self.lock();
        layers.retain(|_, (fill, _)| fill.strong_count() > 0);
        for (at, (fill, shape)) in fills.iter().zip(shapes).enumerate() {
            if let Some(order) = of_layer(found, plan, at, shape, slices.get(at).copied().unwrap_or(0)) {
                layers.insert(address(fill), (Arc::downgrade(fill), order));
            }
        }
    }

    /// What a layer follows.
    pub fn of(&self, fill: &Arc<FillLayer>) -> Option<FollowedOrder> {
        self.lock().get(&address(fill)).map(|(_, order)| order.clone())
    }
}

/// What the layer at `at` of a plan follows; `None` when nothing of it is asked for.
fn of_layer(found: &Found, plan: &Plan, at: usize, shape: &LayerShape, slices: u64) -> Option<FollowedOrder> {
    let (label, chosen) = match found {
        Found::Order(order, chosen, _) => (Some(order.label.clone()), chosen),
        Found::Prefetch(_, chosen) => (None, chosen),
        Found::Nothing => return None,
    };
    let runs =
        || plan.runs.iter().filter(|run| run.layer == at).map(|run| run.spans.start as usize..run.spans.end as usize);
    let spans_of = |run| shape.span_bytes.get::<std::ops::Range<usize>>(run).unwrap_or_default();
    let Chosen { outcome, digest, why } = chosen;
    let order = FollowedOrder {
        label,
        from: outcome.word().to_owned(),
        digest: digest.or_else(|| artifact(found, shape)),
        why: why.clone(),
        spans: runs().map(|run| spans_of(run).len() as u64).sum(),
        bytes: runs().flat_map(spans_of).sum(),
        pieces: runs().count() as u64,
        slices,
        excerpt: excerpt(found).filter(|_| slices > 0),
    };
    (order.pieces > 0 || slices > 0).then_some(order)
}

/// The excerpt of an order.
fn excerpt(found: &Found) -> Option<Digest> {
    let Found::Order(order, _, _) = found else { return None };
    order.excerpt.as_ref().map(|layout| layout.digest)
}

/// The prefetch artifact of a layer.
fn artifact(found: &Found, shape: &LayerShape) -> Option<Digest> {
    let Found::Prefetch(artifacts, _) = found else { return None };
    artifacts
        .iter()
        .find(|artifact| artifact.layer == shape.layer && artifact.ztoc == shape.ztoc)
        .map(|artifact| artifact.digest)
}

#[cfg(test)]
mod tests {
    use super::super::find::Artifact;
    use super::*;
    use crate::order::{LoadOrder, PlannedRun};

    fn shape(layer: &[u8]) -> LayerShape {
        LayerShape { layer: Digest::of(layer), ztoc: Digest::of(b"z"), span_bytes: vec![10, 20, 30, 40] }
    }

    fn chosen(outcome: Outcome, digest: Option<Digest>) -> Chosen {
        Chosen { outcome, digest, why: "because".to_owned() }
    }

    fn order() -> LoadOrder {
        LoadOrder {
            image: Digest::of(b"i"),
            reference: None,
            label: "web".to_owned(),
            entrypoint: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            created_at_ms: 1,
            bytes: 1,
            layers: Vec::new(),
            reads: Vec::new(),
            excerpt: None,
        }
    }

    #[test]
    fn a_layer_is_told_what_of_the_plan_is_its_own() {
        let run = |layer, spans| PlannedRun { layer, spans };
        let plan = Plan { runs: vec![run(0, 1..3), run(1, 0..1), run(0, 3..4)], ..Plan::default() };
        let found = Found::Order(order().into(), chosen(Outcome::Registry, Some(Digest::of(b"a"))), None);
        let told = |at| of_layer(&found, &plan, at, &shape(b"l"), 0);
        let first = told(0).expect("it has spans");
        assert_eq!((first.spans, first.bytes, first.pieces), (3, 90, 2));
        assert_eq!(
            (first.label.as_deref(), &*first.from, first.digest),
            (Some("web"), "registry", Some(Digest::of(b"a")))
        );
        assert_eq!(told(1).map(|order| (order.spans, order.bytes, order.pieces)), Some((1, 10, 1)));
        assert_eq!(told(2), None);
        let borrows = of_layer(&found, &plan, 2, &shape(b"l"), 7).expect("it has slices");
        assert_eq!((borrows.pieces, borrows.slices), (0, 7));
        assert_eq!(of_layer(&Found::Nothing, &plan, 0, &shape(b"l"), 0), None);
    }

    #[test]
    fn each_layer_has_its_own_prefetch_artifact() {
        let artifact = |layer: &[u8], digest: &[u8]| Artifact {
            layer: Digest::of(layer),
            ztoc: Digest::of(b"z"),
            digest: Digest::of(digest),
            spans: Vec::new(),
        };
        let artifacts = vec![artifact(b"k", b"of k"), artifact(b"l", b"of l")];
        let found = Found::Prefetch(artifacts, chosen(Outcome::Artifacts, None));
        let plan = Plan { runs: vec![PlannedRun { layer: 0, spans: 0..1 }], ..Plan::default() };
        let told = of_layer(&found, &plan, 0, &shape(b"l"), 0).expect("it has spans");
        assert_eq!((told.label, &*told.from, told.digest), (None, "artifacts", Some(Digest::of(b"of l"))));
    }

    #[test]
    fn looks_are_counted_by_how_they_ended() {
        let followed = Followed::default();
        for outcome in [Outcome::Kept, Outcome::Failed, Outcome::Kept] {
            followed.count(outcome);
        }
        let counts = followed.counts();
        let count = |outcome| counts.iter().find(|(one, _)| *one == outcome).map(|(_, count)| *count);
        assert_eq!(Outcome::ALL.map(count), [0, 2, 0, 0, 0, 1].map(Some));
    }
}

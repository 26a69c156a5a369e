//! Layers that are not lazy: how many for which reason, and which were left to containerd.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::protocol::{Because, LeftLayer, Reason};
use crate::snapshot::{Left, labels};

/// Layers left to containerd that are remembered: those of some dozens of images.
const MAX_LEFT: usize = 512;
/// Longest reason that is kept for one.
const MAX_DETAIL_CHARS: usize = 2000;

/// What is known of them. The counts are of this process, the layers outlive it.
#[derive(Default)]
pub(super) struct Fallbacks(Mutex<Known>);

#[derive(Default)]
struct Known {
    counts: BTreeMap<Reason, u64>,
    left: VecDeque<LeftLayer>,
}

impl Fallbacks {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layer is fetched whole.
    pub(super) fn count(&self, reason: Reason) {
        *self.known().counts.entry(reason).or_default() += 1;
    }

    /// A layer is left to containerd. Left again, only the last reason counts.
    pub(super) fn leave(&self, left: Left<'_>) {
        let reason = Reason::of_word(left.word).unwrap_or(Reason::Failed);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let layer = LeftLayer {
            chain_id: left.chain_id.to_owned(),
            digest: left.labels.get(labels::LAYER_DIGEST).and_then(|text| text.parse().ok()),
            image: left.labels.get(labels::IMAGE_REF).cloned(),
            because: Because::new(reason, left.reason.chars().take(MAX_DETAIL_CHARS).collect::<String>()),
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        };
        let mut known = self.known();
        *known.counts.entry(reason).or_default() += 1;
        known.left.retain(|other| other.chain_id != layer.chain_id || other.image != layer.image);
        known.keep(layer);
    }

    /// Takes up what an earlier daemon left.
    pub(super) fn take_over(&self, left: &[LeftLayer]) {
        let mut known = self.known();
        left.iter().for_each(|layer| known.keep(layer.clone()));
    }

    /// Layers that were left to containerd, the latest last.
    pub(super) fn left(&self) -> Vec<LeftLayer> {
        self.known().left.iter().cloned().collect()
    }

    /// How many layers were not lazy, for each reason that there is.
    pub(super) fn counts(&self) -> Vec<(Reason, u64)> {
        let known = self.known();
        Reason::FALLBACKS.map(|reason| (reason, known.counts.get(&reason).copied().unwrap_or(0))).to_vec()
    }
}

impl Known {
    fn keep(&mut self, layer: LeftLayer) {
        if self.left.len() == MAX_LEFT {
            self.left.pop_front();
        }
        self.left.push_back(layer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Labels;

    #[test]
    fn the_latest_reason_of_a_layer_counts_and_old_ones_go() {
        let fallbacks = Fallbacks::default();
        let image = Labels::from([(labels::IMAGE_REF.to_owned(), "app:1".to_owned())]);
        let leave = |chain_id: &str, word: &str| {
            fallbacks.leave(Left { chain_id, labels: &image, word, reason: "because" });
        };
        leave("first", "no-index");
        leave("first", "failed");
        leave("second", "a word of a later version");
        let left = fallbacks.left();
        let told: Vec<_> = left.iter().map(|l| (l.chain_id.as_str(), l.because.reason)).collect();
        assert_eq!(told, [("first", Reason::Failed), ("second", Reason::Failed)]);
        assert_eq!((left[0].image.as_deref(), left[0].digest), (Some("app:1"), None));
        for n in 0..MAX_LEFT {
            leave(&n.to_string(), "no-labels");
        }
        let next = Fallbacks::default();
        next.take_over(&fallbacks.left());
        assert_eq!((next.left().len(), next.left()[0].chain_id.as_str()), (MAX_LEFT, "0"));
        let counts = fallbacks.counts();
        assert_eq!(counts.len(), Reason::FALLBACKS.len());
        assert!(counts.contains(&(Reason::NoLabels, MAX_LEFT as u64)) && counts.contains(&(Reason::Failed, 2)));
        assert!(next.counts().iter().all(|(_, count)| *count == 0), "those of another process");
    }

    #[test]
    fn a_word_of_a_later_version_is_read() {
        assert_eq!(serde_json::from_str::<Reason>("\"eclipse\"").expect("json"), Reason::Failed);
    }

    #[test]
    fn every_reason_has_one_word_which_json_has_too() {
        for reason in Reason::FALLBACKS.into_iter().chain([Reason::Indexed]) {
            assert_eq!(Reason::of_word(reason.word()), Some(reason));
            assert_eq!(serde_json::to_value(reason).expect("json"), reason.word());
            assert_eq!(serde_json::from_value::<Reason>(reason.word().into()).expect("json"), reason);
        }
    }
}

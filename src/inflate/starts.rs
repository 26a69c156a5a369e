//! Which of the places where a decoder can start become checkpoints: one rule for all compressions.

use super::{Boundary, IndexError};
use crate::spans::Checkpoint;
use crate::units::{BlobOffset, LayerOffset, WINDOW_BYTES};

/// Limit of checkpoints: of gzip, at 32 KiB each, more would not fit the 2 GiB that a zTOC can have.
const MAX_CHECKPOINTS: usize = 65_000;

/// Which boundaries count.
enum Rule {
    /// Those more than so many layer bytes behind the last one that counted: they become checkpoints.
    SpanSize(u64),
    /// Those at these layer offsets, which increase; only their places are noted.
    At { wanted: Vec<LayerOffset>, next: usize },
}

/// Takes the boundaries of a stream in order and keeps those that count.
pub(super) struct Starts {
    rule: Rule,
    /// Found since they were last taken.
    checkpoints: Vec<Checkpoint>,
    boundaries: Vec<Boundary>,
    /// How many were found, and where the last one lies in the layer.
    found: usize,
    last: Option<u64>,
}

impl Starts {
    /// The first boundary counts, then each that lies more than `span_size_bytes` of layer behind the last one.
    pub(super) fn spans(span_size_bytes: u64) -> Self {
        Self::with(Rule::SpanSize(span_size_bytes))
    }

    /// Boundaries at these layer offsets, which increase, are noted.
    pub(super) fn watching(wanted: Vec<LayerOffset>) -> Self {
        Self::with(Rule::At { wanted, next: 0 })
    }

    fn with(rule: Rule) -> Self {
        Self { rule, checkpoints: Vec::new(), boundaries: Vec::new(), found: 0, last: None }
    }

    /// Layer offset from which on a boundary may count.
    pub(super) fn next(&self) -> u64 {
        match &self.rule {
            Rule::SpanSize(bytes) => self.last.unwrap_or(0).saturating_add(*bytes).saturating_add(1),
            Rule::At { wanted, next } => wanted.get(*next).map_or(u64::MAX, |at| at.get()),
        }
    }

    /// A decoder can be started at this place; notes it if it counts. `window` gives the history that it needs.
    pub(super) fn boundary(
        &mut self,
        here: Boundary,
        window: impl FnOnce() -> Option<Box<[u8; WINDOW_BYTES]>>,
    ) -> Result<(), IndexError> {
        let Boundary { blob, layer, bits } = here;
        let span_size_bytes = match &mut self.rule {
            Rule::SpanSize(bytes) => *bytes,
            Rule::At { wanted, next } => {
                *next += wanted.iter().skip(*next).take_while(|at| **at < layer).count();
                if wanted.get(*next) == Some(&layer) {
                    self.boundaries.push(here);
                }
                return Ok(());
            }
        };
        // SOCI would also repeat the first checkpoint behind empty blocks at the very start, and then refuse its own zTOC
        // for spans without bytes; one checkpoint at a place is enough.
        if self.last.is_some_and(|last| layer.get().saturating_sub(last) <= span_size_bytes) {
            return Ok(());
        }
        if self.found == MAX_CHECKPOINTS {
            return Err(IndexError::TooManySpans { limit: MAX_CHECKPOINTS, layer });
        }
        self.checkpoints.push(Checkpoint { blob, layer, bits, window: window() });
        self.found += 1;
        self.last = Some(layer.get());
        Ok(())
    }

    /// Whether none was met yet.
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    pub(super) fn take_checkpoints(&mut self) -> Vec<Checkpoint> {
        std::mem::take(&mut self.checkpoints)
    }

    pub(super) fn take_boundaries(&mut self) -> Vec<Boundary> {
        std::mem::take(&mut self.boundaries)
    }
}

impl Boundary {
    pub(super) fn new(blob: u64, layer: u64, bits: u8) -> Self {
        Self { blob: BlobOffset::new(blob), layer: LayerOffset::new(layer), bits }
    }
}

//! The scheduler: which spans are fetched, when, and together with which. Pure: time is an argument, nothing here
//! waits, reads or writes; tests feed it events.
//!
//! A wanted span that is missing has an *entry*: waiting in its layer's queue, or flying with a transfer. Whoever wants
//! it too joins the entry. Entries end when the span is in the layer file or has failed for good; then their waiters
//! are told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::{FillConfig, FillError, Priority};
use crate::units::SpanId;

mod event;
mod layer;
mod outcome;
mod pace;
mod pump;
mod readahead;

#[cfg(test)]
mod tests;

use layer::{Layer, Place};
use pace::Host;

pub use event::{Action, Ahead, Event, LayerId, Now, Pace, Presence, Transfer, TransferId, WaiterId};

/// A reader that waits.
struct Waiting {
    layer: LayerId,
    spans: Range<u32>,
    remaining: u32,
    since: Now,
}

/// A running transfer.
struct Flight {
    layer: LayerId,
    /// The highest that any of its spans has come to have.
    priority: Priority,
    /// What it was started for.
    origin: Priority,
    pace: Pace,
    /// Spans that have not been reported yet, with the memory reserved for each.
    remaining: BTreeMap<u32, u64>,
    /// Whether bytes still come.
    receiving: bool,
}

/// Numbers for people about a layer.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LayerNumbers {
    /// Readers that wait.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub oldest_wait: Duration,
    /// Transfers that run.
    pub transfers: usize,
}

/// The state machine. See the module's description.
pub struct Scheduler {
    config: FillConfig,
    layers: BTreeMap<LayerId, Layer>,
    flights: HashMap<TransferId, Flight>,
    waiters: HashMap<WaiterId, Waiting>,
    deadlines: BTreeSet<(Now, WaiterId)>,
    hosts: HashMap<Arc<str>, Host>,
    /// Requests that run, and those of them in the background.
    receiving: usize,
    receiving_background: usize,
    memory_used: u64,
    next_transfer: u64,
    next_seq: u64,
    /// When the background may go on, by its rate.
    background_at: Now,
    /// The layer that the background served last.
    background_last: Option<LayerId>,
}

impl Scheduler {
    /// A scheduler without layers.
    #[must_use]
    pub fn new(config: FillConfig) -> Self {
        Self {
            config,
            layers: BTreeMap::new(),
            flights: HashMap::new(),
            waiters: HashMap::new(),
            deadlines: BTreeSet::new(),
            hosts: HashMap::new(),
            receiving: 0,
            receiving_background: 0,
            memory_used: 0,
            next_transfer: 0,
            next_seq: 0,
            background_at: Duration::ZERO,
            background_last: None,
        }
    }

    /// Takes in what happened and appends what is to be done, in order.
    pub fn apply(&mut self, event: Event, now: Now, out: &mut Vec<Action>) {
        match event {
            Event::LayerAdded { layer, table, present, host, completes } => {
                self.hosts.entry(host.clone()).or_default();
                let mut added = Layer::new(table, present, host, &self.config);
                added.full |= !completes;
                added.background_until = now.saturating_add(self.config.background_begin);
                self.layers.insert(layer, added);
            }
            Event::LayerRemoved { layer } => self.remove_layer(layer, now, out),
            Event::Wanted { layer, spans, priority, waiter, ahead } => {
                self.wanted(layer, spans.clone(), priority, waiter, now, out);
                self.read_ahead(layer, spans, ahead, out);
            }
            Event::Recorded { order } => {
                for (layer, spans) in order {
                    self.wanted(layer, spans, Priority::Recorded, None, now, out);
                }
            }
            Event::Settling { layers } => {
                let until = now.saturating_add(self.config.background_settle);
                for layer in layers {
                    if let Some(layer) = self.layers.get_mut(&layer).filter(|layer| layer.settling_until.is_zero()) {
                        layer.settling_until = until;
                    }
                }
            }
            Event::MarkReached { layer, spans, ahead } => self.read_ahead(layer, spans, ahead, out),
            Event::SpanDone { layer, transfer, span } => self.span_done(layer, transfer, span, out),
            Event::SpanFailed { layer, transfer, span, error, refetch } => {
                self.span_failed(layer, transfer, span, (&error, refetch), now, out);
            }
            Event::WholeBlob { transfer } => self.whole_blob(transfer, now, out),
            Event::TransferEnded { transfer, handed, error } => self.ended(transfer, handed, error, now, out),
            Event::Tick => self.expire(now, out),
        }
        self.pump(now, out);
        self.set_paces(now, out);
    }

    /// When [`Event::Tick`] is due, if ever.
    #[must_use]
    pub fn next_timer(&self, now: Now) -> Option<Now> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let blocked = self.layers.values().filter(|l| l.has_queue()).filter_map(|l| l.blocked_until).min();
        let background = self.config.background.then(|| {
            let pauses = |l: &Layer| l.background_until.max(l.settling_until).max(l.blocked_until.unwrap_or_default());
            let idle = self.layers.values().filter(|l| !l.full);
            idle.map(|l| self.background_at.max(pauses(l))).filter(|at| *at > now).min()
        });
        let background = background.flatten();
        [deadline, blocked, background, self.next_quiet(now)].into_iter().flatten().min()
    }

    /// Numbers for people.
    #[must_use]
    pub fn numbers(&self, layer: LayerId, now: Now) -> LayerNumbers {
        let waiting = self.waiters.values().filter(|w| w.layer == layer);
        LayerNumbers {
            waiting: waiting.clone().count(),
            oldest_wait: waiting.map(|w| now.saturating_sub(w.since)).max().unwrap_or_default(),
            transfers: self.flights.values().filter(|f| f.layer == layer && f.receiving).count(),
        }
    }

    /// Memory reserved for bytes on their way.
    #[must_use]
    pub fn memory_used(&self) -> u64 {
        self.memory_used
    }

    fn wanted(
        &mut self,
        id: LayerId,
        spans: Range<u32>,
        priority: Priority,
        waiter: Option<WaiterId>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(layer) = self.layers.get_mut(&id) else {
            out.extend(waiter.map(|waiter| Action::Complete { waiter, result: Err(FillError::Stopping) }));
            return;
        };
        let spans = spans.start..spans.end.min(layer.len());
        let mut remaining = 0;
        let mut raised = BTreeSet::new();
        let present = layer.present.clone();
        for span in spans.clone().filter(|span| !present.has(SpanId(*span))) {
            self.next_seq += 1;
            layer.want(span, priority, self.next_seq, waiter);
            remaining += 1;
            if let Some(Place::Flying(transfer)) = layer.place(span) {
                raised.insert(transfer);
            }
        }
        for transfer in raised {
            self.raise(transfer, priority);
        }
        if let Some(waiter) = waiter {
            if remaining == 0 {
                out.push(Action::Complete { waiter, result: Ok(()) });
            } else {
                self.waiters.insert(waiter, Waiting { layer: id, spans: spans.clone(), remaining, since: now });
                self.deadlines.insert((now.saturating_add(self.config.hold_limit), waiter));
            }
        }
    }

    fn read_ahead(&mut self, id: LayerId, spans: Range<u32>, ahead: Ahead, out: &mut Vec<Action>) {
        let (Some(layer), Ahead::UpTo { link_bytes }) = (self.layers.get_mut(&id), ahead) else { return };
        let Some(ahead) = layer.reader_at(spans.start..spans.end.min(layer.len()), link_bytes) else { return };
        let present = layer.present.clone();
        let mut raised = BTreeSet::new();
        for span in ahead.clone().filter(|span| !present.has(SpanId(*span))) {
            self.next_seq += 1;
            layer.want(span, Priority::ReadAhead, self.next_seq, None);
            if let Some(Place::Flying(transfer)) = layer.place(span) {
                raised.insert(transfer);
            }
        }
        for transfer in raised {
            self.raise(transfer, Priority::ReadAhead);
        }
        out.push(Action::Mark { layer: id, span: SpanId(ahead.start) });
    }
}

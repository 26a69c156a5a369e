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
mod pump;
mod readahead;

#[cfg(test)]
mod tests;

use layer::{Layer, Place};

pub use event::{Action, Event, LayerId, Now, Presence, Transfer, TransferId, WaiterId};

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
    priority: Priority,
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
    hosts: HashMap<Arc<str>, usize>,
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
            Event::LayerAdded { layer, table, present, host } => {
                self.layers.insert(layer, Layer::new(table, present, host, &self.config));
            }
            Event::LayerRemoved { layer } => self.remove_layer(layer, out),
            Event::Wanted { layer, spans, priority, waiter, from_start } => {
                self.wanted(layer, spans.clone(), priority, waiter, now, out);
                if priority == Priority::Demand && from_start {
                    self.read_ahead(layer, spans, out);
                }
            }
            Event::MarkReached { layer, spans } => self.read_ahead(layer, spans, out),
            Event::SpanDone { layer, transfer, span } => self.span_done(layer, transfer, span, out),
            Event::SpanFailed { layer, transfer, span, error, refetch } => {
                self.span_failed(layer, transfer, span, (&error, refetch), now, out);
            }
            Event::WholeBlob { transfer } => self.whole_blob(transfer, out),
            Event::TransferEnded { transfer, handed, error } => self.ended(transfer, handed, error, now, out),
            Event::Tick => self.expire(now, out),
        }
        self.pump(now, out);
    }

    /// When [`Event::Tick`] is due, if ever.
    #[must_use]
    pub fn next_timer(&self, now: Now) -> Option<Now> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let blocked = self.layers.values().filter(|l| l.has_queue()).filter_map(|l| l.blocked_until).min();
        let background = self.config.background.then(|| {
            let idle = self.layers.values().filter(|l| !l.full);
            idle.map(|l| self.background_at.max(l.background_until).max(l.blocked_until.unwrap_or_default())).min()
        });
        let background = background.flatten().filter(|at| *at > now);
        [deadline, blocked, background].into_iter().flatten().min()
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
        let present = layer.present.clone();
        for span in spans.clone().filter(|span| !present.has(SpanId(*span))) {
            self.next_seq += 1;
            layer.want(span, priority, self.next_seq, waiter);
            remaining += 1;
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

    fn read_ahead(&mut self, id: LayerId, spans: Range<u32>, out: &mut Vec<Action>) {
        let Some(layer) = self.layers.get_mut(&id) else { return };
        let Some(ahead) = layer.reader_at(spans.start..spans.end.min(layer.len())) else { return };
        let present = layer.present.clone();
        for span in ahead.clone().filter(|span| !present.has(SpanId(*span))) {
            self.next_seq += 1;
            layer.want(span, Priority::ReadAhead, self.next_seq, None);
        }
        out.push(Action::Mark { layer: id, span: SpanId(ahead.start) });
    }

    fn span_done(&mut self, id: LayerId, transfer: TransferId, span: SpanId, out: &mut Vec<Action>) {
        self.settle(transfer, span);
        let Some(layer) = self.layers.get_mut(&id) else { return };
        layer.trouble_over();
        let waiters = layer.take(span.0).map(|entry| entry.waiters).unwrap_or_default();
        if !layer.full && layer.present.is_complete() {
            layer.full = true;
            out.push(Action::AllPresent { layer: id });
        }
        for waiter in waiters {
            let Some(waiting) = self.waiters.get_mut(&waiter) else { continue };
            waiting.remaining = waiting.remaining.saturating_sub(1);
            if waiting.remaining == 0 {
                self.finish(waiter, Ok(()), out);
            }
        }
    }

    fn span_failed(
        &mut self,
        id: LayerId,
        transfer: TransferId,
        span: SpanId,
        (error, refetch): (&FillError, bool),
        now: Now,
        out: &mut Vec<Action>,
    ) {
        self.settle(transfer, span);
        let Some(layer) = self.layers.get_mut(&id) else { return };
        layer.last_error = Some(error.clone());
        let place = layer.place(span.0);
        let from_whole = layer.whole == Some(transfer) && place == Some(Place::Queued);
        // Another transfer may have taken the span over meanwhile.
        if !from_whole && place != Some(Place::Flying(transfer)) {
            return;
        }
        if refetch && layer.refetch(span.0) {
            return;
        }
        layer.background_until = now.saturating_add(self.config.longest_pause);
        for waiter in layer.take(span.0).map(|entry| entry.waiters).unwrap_or_default() {
            self.finish(waiter, Err(error.clone()), out);
        }
    }

    /// The server sends everything: this transfer becomes the only one of its layer, and serves every span.
    fn whole_blob(&mut self, transfer: TransferId, out: &mut Vec<Action>) {
        let Some(id) = self.flights.get(&transfer).map(|flight| flight.layer) else { return };
        let Some(layer) = self.layers.get_mut(&id) else { return };
        if layer.whole.is_some_and(|other| other != transfer) {
            out.push(Action::Abort(transfer));
            self.ground(transfer);
            return;
        }
        layer.whole = Some(transfer);
        let others: Vec<_> = self
            .flights
            .iter()
            .filter(|(t, f)| f.layer == id && **t != transfer && f.receiving)
            .map(|(t, _)| *t)
            .collect();
        for other in others {
            out.push(Action::Abort(other));
            self.ground(other);
        }
    }

    fn ended(
        &mut self,
        transfer: TransferId,
        handed: SpanId,
        error: Option<FillError>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(flight) = self.flights.get(&transfer) else { return };
        let id = flight.layer;
        let lost: Vec<u32> = flight.remaining.keys().copied().filter(|span| *span >= handed.0).collect();
        self.landed(transfer);
        for span in &lost {
            self.settle(transfer, SpanId(*span));
        }
        let Some(layer) = self.layers.get_mut(&id) else { return };
        if layer.whole == Some(transfer) {
            layer.whole = None;
        }
        if let Some(error) = &error {
            layer.last_error = Some(error.clone());
            if error.is_transient() {
                layer.trouble(now, error.retry_after());
            } else {
                layer.background_until = now.saturating_add(self.config.longest_pause);
            }
        }
        let mut failed = Vec::new();
        for span in lost {
            if layer.place(span) != Some(Place::Flying(transfer)) {
                continue;
            }
            match &error {
                Some(error) if !error.is_transient() => {
                    let waiters = layer.take(span).map(|entry| entry.waiters).unwrap_or_default();
                    failed.extend(waiters.into_iter().map(|waiter| (waiter, error.clone())));
                }
                // Nobody waits for speculation: it is dropped rather than retried.
                Some(_) if layer.is_speculative(span) => drop(layer.take(span)),
                _ => layer.requeue(span),
            }
        }
        for (waiter, error) in failed {
            self.finish(waiter, Err(error), out);
        }
    }

    /// Fails the readers that were held for too long.
    fn expire(&mut self, now: Now, out: &mut Vec<Action>) {
        while let Some((at, waiter)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            let Some(waiting) = self.waiters.get(&waiter) else {
                self.deadlines.remove(&(at, waiter));
                continue;
            };
            let last = self.layers.get(&waiting.layer).and_then(|l| l.last_error.clone()).map(Arc::new);
            let waited = now.saturating_sub(waiting.since);
            self.finish(waiter, Err(FillError::Held { waited, last }), out);
        }
    }

    fn remove_layer(&mut self, id: LayerId, out: &mut Vec<Action>) {
        let flights: Vec<_> = self.flights.iter().filter(|(_, f)| f.layer == id).map(|(t, _)| *t).collect();
        for transfer in flights {
            out.push(Action::Abort(transfer));
            self.ground(transfer);
        }
        let waiters: Vec<_> = self.waiters.iter().filter(|(_, w)| w.layer == id).map(|(w, _)| *w).collect();
        for waiter in waiters {
            self.finish(waiter, Err(FillError::Stopping), out);
        }
        self.layers.remove(&id);
    }

    /// Tells a waiter, once, and takes it off all its spans.
    fn finish(&mut self, waiter: WaiterId, result: Result<(), FillError>, out: &mut Vec<Action>) {
        let Some(waiting) = self.waiters.remove(&waiter) else { return };
        self.deadlines.remove(&(waiting.since.saturating_add(self.config.hold_limit), waiter));
        if let Some(layer) = self.layers.get_mut(&waiting.layer) {
            layer.leave(waiting.spans, waiter);
        }
        out.push(Action::Complete { waiter, result });
    }

    /// A span of a transfer has been reported: its memory is free.
    fn settle(&mut self, transfer: TransferId, span: SpanId) {
        let Some(flight) = self.flights.get_mut(&transfer) else { return };
        self.memory_used -= flight.remaining.remove(&span.0).unwrap_or(0);
        if flight.remaining.is_empty() && !flight.receiving {
            self.flights.remove(&transfer);
        }
    }

    /// A transfer no longer occupies a request.
    fn landed(&mut self, transfer: TransferId) {
        let Some(flight) = self.flights.get_mut(&transfer) else { return };
        if !std::mem::take(&mut flight.receiving) {
            return;
        }
        self.receiving -= 1;
        self.receiving_background -= usize::from(flight.priority == Priority::Background);
        if let Some(layer) = self.layers.get_mut(&flight.layer) {
            layer.receiving -= 1;
            if let Some(count) = self.hosts.get_mut(&layer.host) {
                *count -= 1;
            }
            if self.hosts.get(&layer.host) == Some(&0) {
                self.hosts.remove(&layer.host);
            }
        }
        if flight.remaining.is_empty() {
            self.flights.remove(&transfer);
        }
    }

    /// Ends a transfer at once: its spans wait again.
    fn ground(&mut self, transfer: TransferId) {
        self.landed(transfer);
        let Some(flight) = self.flights.remove(&transfer) else { return };
        self.memory_used -= flight.remaining.values().sum::<u64>();
        let Some(layer) = self.layers.get_mut(&flight.layer) else { return };
        for span in flight.remaining.into_keys() {
            if layer.place(span) == Some(Place::Flying(transfer)) {
                layer.requeue(span);
            }
        }
    }
}

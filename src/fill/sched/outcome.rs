//! What came of transfers: spans that are here, spans that failed, requests that ended.

use std::sync::Arc;

use super::layer::Place;
use super::{Action, FillError, LayerId, Now, Priority, Scheduler, TransferId, WaiterId};
use crate::units::SpanId;

impl Scheduler {
    pub(super) fn span_done(&mut self, id: LayerId, transfer: TransferId, span: SpanId, out: &mut Vec<Action>) {
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

    pub(super) fn span_failed(
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
    pub(super) fn whole_blob(&mut self, transfer: TransferId, now: Now, out: &mut Vec<Action>) {
        let Some(id) = self.flights.get(&transfer).map(|flight| flight.layer) else { return };
        let Some(layer) = self.layers.get_mut(&id) else { return };
        if layer.whole.is_some_and(|other| other != transfer) {
            out.push(Action::Abort(transfer));
            self.ground(transfer, now);
            return;
        }
        layer.whole = Some(transfer);
        // Readers of any span may wait for it, and it cannot pause.
        self.raise(transfer, Priority::Demand);
        let others: Vec<_> = self
            .flights
            .iter()
            .filter(|(t, f)| f.layer == id && **t != transfer && f.receiving)
            .map(|(t, _)| *t)
            .collect();
        for other in others {
            out.push(Action::Abort(other));
            self.ground(other, now);
        }
    }

    pub(super) fn ended(
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
        self.landed(transfer, now);
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
    pub(super) fn expire(&mut self, now: Now, out: &mut Vec<Action>) {
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

    pub(super) fn remove_layer(&mut self, id: LayerId, now: Now, out: &mut Vec<Action>) {
        let flights: Vec<_> = self.flights.iter().filter(|(_, f)| f.layer == id).map(|(t, _)| *t).collect();
        for transfer in flights {
            out.push(Action::Abort(transfer));
            self.ground(transfer, now);
        }
        let waiters: Vec<_> = self.waiters.iter().filter(|(_, w)| w.layer == id).map(|(w, _)| *w).collect();
        for waiter in waiters {
            self.finish(waiter, Err(FillError::Stopping), out);
        }
        if let Some(gone) = self.layers.remove(&id)
            && !self.layers.values().any(|layer| layer.host == gone.host)
        {
            self.hosts.remove(&gone.host);
        }
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
    pub(super) fn landed(&mut self, transfer: TransferId, now: Now) {
        let Some(flight) = self.flights.get_mut(&transfer) else { return };
        if !std::mem::take(&mut flight.receiving) {
            return;
        }
        self.receiving -= 1;
        if let Some(layer) = self.layers.get_mut(&flight.layer) {
            layer.receiving -= 1;
            if let Some(host) = self.hosts.get_mut(&layer.host) {
                host.receiving -= 1;
                host.uncount(flight.priority, flight.origin);
                if flight.priority == Priority::Demand && host.demand == 0 {
                    host.quiet_until = now.saturating_add(self.config.background_quiet);
                }
            }
        }
        self.receiving_background -= usize::from(flight.priority == Priority::Background);
        if flight.remaining.is_empty() {
            self.flights.remove(&transfer);
        }
    }

    /// Ends a transfer at once: its spans wait again.
    pub(super) fn ground(&mut self, transfer: TransferId, now: Now) {
        self.landed(transfer, now);
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

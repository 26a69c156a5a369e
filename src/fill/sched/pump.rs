//! Starting transfers: who goes next, and what goes with it.

use super::layer::{Layer, Place};
use super::{Action, Flight, LayerId, Now, Pace, Priority, Scheduler, Transfer, TransferId};
use crate::units::SpanId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Transfers that complete layers in the background, at once. Two hide each other's round trip; more would only add
/// to what demand may meet on the link. Guessed.
const BACKGROUND_TRANSFERS: usize = 2;

/// Transfers of recorded load orders at a host, at once: one more, since what they bring will be read.
const RECORDED_TRANSFERS: usize = 3;

/// What may be started for a layer.
enum Room {
    /// A request is free, and so much memory.
    Yes { memory_bytes: u64 },
    /// No request, or no memory: others may have room.
    NotHere,
    /// The memory is in use: nobody less urgent may take what becomes free.
    Wait,
}

impl Scheduler {
    /// Starts whatever may start.
    pub(super) fn pump(&mut self, now: Now, out: &mut Vec<Action>) {
        while self.start_next(now, out) {}
        if self.config.background {
            while self.queue_background(now) {
                while self.start_next(now, out) {}
            }
        }
    }

    /// Starts the most urgent transfer that has room; false when there is none.
    fn start_next(&mut self, now: Now, out: &mut Vec<Action>) -> bool {
        let mut heads: Vec<(Priority, u64, u32, LayerId)> = Vec::new();
        for (id, layer) in &mut self.layers {
            if layer.blocked_until.is_some_and(|until| until <= now) {
                layer.blocked_until = None;
            }
            if layer.whole.is_none() && layer.blocked_until.is_none() {
                heads.extend(layer.head().map(|(priority, seq, span)| (priority, seq, span, *id)));
            }
        }
        heads.sort_unstable_by_key(|(priority, seq, ..)| (std::cmp::Reverse(*priority), *seq));
        for (priority, _, span, id) in heads {
            let Some(layer) = self.layers.get(&id) else { continue };
            match self.room(layer, priority, span, now) {
                Room::Yes { memory_bytes } => {
                    self.start(id, span, priority, memory_bytes, now, out);
                    return true;
                }
                Room::NotHere => {}
                Room::Wait => return false,
            }
        }
        false
    }

    fn room(&self, layer: &Layer, priority: Priority, span: u32, now: Now) -> Room {
        let config = &self.config;
        let demand = priority == Priority::Demand;
        // At least one request must be left to those who are not demand, or small limits would starve them.
        let usable = |limit: usize| {
            let limit = limit.max(1);
            if demand { limit } else { limit.saturating_sub(config.reserved_requests).max(1) }
        };
        let host = self.hosts.get(&layer.host);
        let at_host = host.map_or(0, |host| host.receiving);
        let makes_way = host.is_some_and(|host| host.holds(priority, now));
        let enough = match priority {
            Priority::Background => {
                self.receiving_background >= BACKGROUND_TRANSFERS
                    || self.background_at > now
                    || layer.settling_until > now
            }
            Priority::Recorded => host.is_some_and(|host| host.recorded >= RECORDED_TRANSFERS),
            Priority::ReadAhead | Priority::Demand => false,
        };
        if self.receiving >= usable(config.max_requests)
            || at_host >= usable(config.max_requests_per_host)
            || layer.receiving >= usable(config.max_requests_per_layer)
            || makes_way
            || enough
        {
            return Room::NotHere;
        }
        // A quarter of the memory is for demand alone.
        let budget = if demand { config.memory_bytes } else { config.memory_bytes / 4 * 3 };
        let free = budget.saturating_sub(self.memory_used);
        let needed = layer.memory_bytes(span);
        if needed <= free {
            Room::Yes { memory_bytes: free }
        } else if self.memory_used == 0 {
            Room::Yes { memory_bytes: needed }
        } else {
            Room::Wait
        }
    }

    /// Starts a transfer with `first` and the queued spans behind it.
    fn start(
        &mut self,
        id: LayerId,
        first: u32,
        priority: Priority,
        memory_bytes: u64,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(layer) = self.layers.get_mut(&id) else { return };
        let limit_bytes = match priority {
            Priority::Background | Priority::Recorded => self.config.background_transfer_bytes,
            _ => self.config.max_transfer_bytes,
        };
        let mut blob_bytes = layer.blob_bytes(first);
        let mut memory = layer.memory_bytes(first);
        let mut remaining = BTreeMap::from([(first, memory)]);
        let mut bridged = Vec::new();
        let mut end = first + 1;
        loop {
            let (next, gap_bytes) = next_queued(layer, end, self.config.bridge_bytes);
            let Some(next) = next else { break };
            let more_bytes = gap_bytes + layer.blob_bytes(next);
            let more_memory = layer.memory_bytes(next);
            // A reader's transfer takes read-ahead along, never what merely fills the layer.
            let fits_class = layer.priority(next).is_some_and(|p| p >= priority.min(Priority::ReadAhead));
            if !fits_class || blob_bytes + more_bytes > limit_bytes || memory + more_memory > memory_bytes {
                break;
            }
            bridged.extend((end..next).map(SpanId));
            blob_bytes += more_bytes;
            memory += more_memory;
            remaining.insert(next, more_memory);
            end = next + 1;
        }
        self.next_transfer += 1;
        let transfer = TransferId(self.next_transfer);
        for span in remaining.keys() {
            layer.fly(*span, transfer);
        }
        layer.receiving += 1;
        self.receiving += 1;
        self.memory_used += memory;
        let host = self.hosts.entry(layer.host.clone()).or_default();
        host.receiving += 1;
        host.count(priority, priority);
        if priority == Priority::Background {
            self.receiving_background += 1;
            let rate = self.config.background_bytes_per_sec;
            if let Some(pause_us) = blob_bytes.saturating_mul(1_000_000).checked_div(rate) {
                self.background_at = self.background_at.max(now).saturating_add(Duration::from_micros(pause_us));
            }
        }
        let pace = if priority >= Priority::ReadAhead { Pace::Full } else { Pace::Pieces };
        let flight = Flight { layer: id, priority, origin: priority, pace, remaining, receiving: true };
        self.flights.insert(transfer, flight);
        out.push(Action::Start(Transfer { id: transfer, layer: id, spans: first..end, bridged, priority }));
    }

    /// Queues a little background work if nothing else is to do; false when there is none or it is not its time.
    fn queue_background(&mut self, now: Now) -> bool {
        let to_do = |layer: &Layer| {
            layer.head().is_some_and(|(head, ..)| head > Priority::Background || layer.settling_until <= now)
        };
        let busy = self.receiving > self.receiving_background || self.layers.values().any(to_do);
        if busy || self.receiving_background >= BACKGROUND_TRANSFERS || self.background_at > now {
            return false;
        }
        // Layers take turns.
        let after = self.background_last;
        let ids: Vec<LayerId> = self.layers.keys().copied().collect();
        let turn = ids.iter().filter(|id| Some(**id) > after).chain(ids.iter().filter(|id| Some(**id) <= after));
        for id in turn.copied() {
            let Some(layer) = self.layers.get_mut(&id) else { continue };
            let paused = layer.blocked_until.is_some_and(|until| until > now)
                || layer.background_until.max(layer.settling_until) > now
                || self.hosts.get(&layer.host).is_some_and(|host| host.holds(Priority::Background, now));
            if layer.full || layer.whole.is_some() || paused {
                continue;
            }
            let Some(first) = layer.next_missing() else { continue };
            let mut bytes = 0;
            for span in first..layer.len() {
                bytes += layer.blob_bytes(span);
                let free = layer.place(span).is_none() && !layer.present.has(SpanId(span));
                if !free || (span > first && bytes > self.config.background_transfer_bytes) {
                    break;
                }
                self.next_seq += 1;
                layer.want(span, Priority::Background, self.next_seq, None);
                layer.background_next = span + 1;
            }
            self.background_last = Some(id);
            return true;
        }
        false
    }
}

/// The next queued span at or behind `end` that a transfer ending there can go on to, and the blob bytes of the present
/// spans between.
fn next_queued(layer: &Layer, end: u32, bridge_bytes: u64) -> (Option<u32>, u64) {
    let mut gap_bytes = 0;
    for span in end..layer.len() {
        match layer.place(span) {
            Some(Place::Queued) => return (Some(span), gap_bytes),
            Some(Place::Flying(_)) => break,
            None => {
                gap_bytes += layer.blob_bytes(span);
                if gap_bytes > bridge_bytes || !layer.present.has(SpanId(span)) {
                    break;
                }
            }
        }
    }
    (None, 0)
}

impl Layer {
    /// The next span that is neither here nor wanted, from where the background was; it starts over at the end, because
    /// spans may have failed or been evicted behind it.
    fn next_missing(&mut self) -> Option<u32> {
        let missing = |span: &u32| self.place(*span).is_none() && !self.present.has(SpanId(*span));
        let from = self.background_next.min(self.len());
        (from..self.len()).find(missing).or_else(|| (0..from).find(missing))
    }
}

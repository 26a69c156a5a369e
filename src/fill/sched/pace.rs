//! Who makes way for whom: while a reader is blocked, what fills layers behind its back leaves it the link.
//!
//! Background work of a registry host stands still while a demand read of that host is on its way, and for a short time
//! behind it: programs read again soon; and while a recorded load order is followed there. In the layers of that order it begins
//! nothing until their image has had time to start. A recorded load order stands still, too, but only for reads that are not in
//! it, and without the time behind. What stands still has no request open but the piece that was already asked for.

use super::{Action, Flight, Layer, Now, Pace, Priority, Scheduler, TransferId};

/// What runs at a registry host.
#[derive(Default)]
pub(super) struct Host {
    /// Requests.
    pub receiving: usize,
    /// Those that a reader is blocked on, and those of them that were started for one.
    pub demand: usize,
    pub fresh_demand: usize,
    /// Those of a recorded load order.
    pub recorded: usize,
    /// The background waits until then.
    pub quiet_until: Now,
}

impl Host {
    pub fn count(&mut self, priority: Priority, origin: Priority) {
        self.demand += usize::from(priority == Priority::Demand);
        self.fresh_demand += usize::from(priority == Priority::Demand && origin == Priority::Demand);
        self.recorded += usize::from(priority == Priority::Recorded);
    }

    pub fn uncount(&mut self, priority: Priority, origin: Priority) {
        self.demand -= usize::from(priority == Priority::Demand);
        self.fresh_demand -= usize::from(priority == Priority::Demand && origin == Priority::Demand);
        self.recorded -= usize::from(priority == Priority::Recorded);
    }

    /// Whether work of this priority makes way now.
    pub fn holds(&self, priority: Priority, now: Now) -> bool {
        match priority {
            Priority::Background => self.demand > 0 || self.recorded > 0 || now < self.quiet_until,
            Priority::Recorded => self.fresh_demand > 0,
            Priority::ReadAhead | Priority::Demand => false,
        }
    }
}

impl Scheduler {
    /// A span that flies with a transfer is wanted more urgently: so is the transfer.
    pub(super) fn raise(&mut self, transfer: TransferId, priority: Priority) {
        let Some(flight) = self.flights.get_mut(&transfer) else { return };
        if priority <= flight.priority {
            return;
        }
        let was = std::mem::replace(&mut flight.priority, priority);
        if !flight.receiving {
            return;
        }
        self.receiving_background -= usize::from(was == Priority::Background);
        if let Some(host) = self.layers.get(&flight.layer).and_then(|layer| self.hosts.get_mut(&layer.host)) {
            host.uncount(was, flight.origin);
            host.count(priority, flight.origin);
        }
    }

    fn pace_of(&self, flight: &Flight, now: Now) -> Pace {
        let host = self.layers.get(&flight.layer).and_then(|layer| self.hosts.get(&layer.host));
        match flight.priority {
            Priority::ReadAhead | Priority::Demand => Pace::Full,
            low if host.is_some_and(|host| host.holds(low, now)) => Pace::Held,
            _ => Pace::Pieces,
        }
    }

    /// Tells transfers that have to go slower or faster from now on.
    pub(super) fn set_paces(&mut self, now: Now, out: &mut Vec<Action>) {
        let mut changed: Vec<(TransferId, Pace)> = Vec::new();
        for (id, flight) in self.flights.iter().filter(|(_, flight)| flight.receiving) {
            let pace = self.pace_of(flight, now);
            if pace != flight.pace {
                changed.push((*id, pace));
            }
        }
        changed.sort_unstable_by_key(|(id, _)| *id);
        for (transfer, pace) in changed {
            if let Some(flight) = self.flights.get_mut(&transfer) {
                flight.pace = pace;
            }
            out.push(Action::SetPace { transfer, pace });
        }
    }

    /// When work that makes way may go on, if only time is lacking.
    pub(super) fn next_quiet(&self, now: Now) -> Option<Now> {
        let held = self.flights.values().any(|flight| flight.receiving && flight.pace == Pace::Held);
        let queued = |layer: &Layer| layer.head().is_some_and(|(priority, ..)| priority == Priority::Background);
        let queued = self.layers.values().any(queued);
        let missing = self.config.background && self.layers.values().any(|layer| !layer.full);
        if !(held || queued || missing) {
            return None;
        }
        let quiet = self.hosts.values().filter(|host| host.demand == 0).map(|host| host.quiet_until);
        // Of a layer that was full, something may be gone again.
        let incomplete = self.layers.values().filter(|layer| !layer.full || layer.has_queue());
        let settling = incomplete.map(|layer| layer.settling_until);
        let rate = queued.then_some(self.background_at);
        quiet.chain(settling).chain(rate).filter(|at| *at > now).min()
    }
}

//! Events in, actions out; no clock, no threads.

mod cases;
mod history;
mod yielding;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use super::*;
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{BlobOffset, BlobRange, Digest, LayerOffset, LayerRange};

const LAYER: LayerId = LayerId(1);
const SPAN_BYTES: u64 = 1000;
/// A link of which nothing is known.
const UNBOUNDED: Ahead = Ahead::UpTo { link_bytes: u64::MAX };

/// A plain tar of `spans` spans of [`SPAN_BYTES`].
fn table(spans: u64) -> Arc<SpanTable> {
    let cut = |i: u64| Span {
        blob: BlobRange::from_len(BlobOffset::new(i * SPAN_BYTES), SPAN_BYTES).expect("small"),
        layer: LayerRange::from_len(LayerOffset::new(i * SPAN_BYTES), SPAN_BYTES).expect("small"),
        bits: 0,
        digest: Digest::of(b""),
        window_at: None,
    };
    let size = spans * SPAN_BYTES;
    let spans = (0..spans).map(cut).collect();
    let made = SpanTable::new(Compression::Uncompressed, BlobOffset::new(size), LayerOffset::new(size), spans);
    Arc::new(made.expect("a good table"))
}

/// The layer file of a test.
struct Disk {
    spans: u32,
    present: Mutex<BTreeSet<u32>>,
}

impl Presence for Disk {
    fn has(&self, id: SpanId) -> bool {
        self.present.lock().expect("no panics").contains(&id.0)
    }
    fn is_complete(&self) -> bool {
        self.present.lock().expect("no panics").len() == self.spans as usize
    }
}

/// The world around a scheduler.
struct World {
    sched: Scheduler,
    disk: Arc<Disk>,
    now: Now,
    running: BTreeMap<TransferId, Transfer>,
    /// Of those that run.
    paces: BTreeMap<TransferId, Pace>,
    told: HashMap<WaiterId, Vec<Result<(), FillError>>>,
    starts: Vec<Transfer>,
    marks: BTreeSet<u32>,
    all_present: usize,
}

fn config() -> FillConfig {
    FillConfig {
        max_requests: 6,
        max_requests_per_host: 6,
        max_requests_per_layer: 4,
        reserved_requests: 2,
        memory_bytes: 1 << 30,
        max_transfer_bytes: 8 * SPAN_BYTES,
        background_transfer_bytes: 2 * SPAN_BYTES,
        background_quiet: Duration::ZERO,
        bridge_bytes: 0,
        read_ahead_bytes: 0,
        hold_limit: Duration::from_secs(600),
        ..FillConfig::default()
    }
}

impl World {
    fn new(config: FillConfig, spans: u32) -> Self {
        let disk = Arc::new(Disk { spans, present: Mutex::default() });
        let mut world = Self {
            sched: Scheduler::new(config),
            disk: disk.clone(),
            now: Duration::ZERO,
            running: BTreeMap::new(),
            paces: BTreeMap::new(),
            told: HashMap::new(),
            starts: Vec::new(),
            marks: BTreeSet::new(),
            all_present: 0,
        };
        let table = table(u64::from(spans));
        world.apply(Event::LayerAdded { layer: LAYER, table, present: disk, host: "registry".into(), completes: true });
        world
    }

    fn apply(&mut self, event: Event) {
        if let Event::TransferEnded { transfer, .. } = &event {
            self.running.remove(transfer);
            self.paces.remove(transfer);
        }
        let mut actions = Vec::new();
        self.sched.apply(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Start(transfer) => {
                    self.starts.push(transfer.clone());
                    let full = transfer.priority >= Priority::ReadAhead;
                    self.paces.insert(transfer.id, if full { Pace::Full } else { Pace::Pieces });
                    self.running.insert(transfer.id, transfer);
                }
                Action::SetPace { transfer, pace } => {
                    let before = self.paces.insert(transfer, pace);
                    assert!(before.is_some_and(|before| before != pace), "only changes are told, of what runs");
                }
                Action::Abort(transfer) => {
                    self.running.remove(&transfer);
                    self.paces.remove(&transfer);
                }
                Action::Complete { waiter, result } => self.told.entry(waiter).or_default().push(result),
                Action::Mark { span, .. } => drop(self.marks.insert(span.0)),
                Action::AllPresent { .. } => self.all_present += 1,
            }
        }
    }

    fn want(&mut self, spans: Range<u32>, priority: Priority, waiter: u64) {
        let ahead = if priority == Priority::Demand { UNBOUNDED } else { Ahead::Nothing };
        self.apply(Event::Wanted { layer: LAYER, spans, priority, waiter: Some(WaiterId(waiter)), ahead });
    }

    fn deliver(&mut self, transfer: TransferId, span: u32) {
        self.disk.present.lock().expect("no panics").insert(span);
        self.apply(Event::SpanDone { layer: LAYER, transfer, span: SpanId(span) });
    }

    /// The transfer brings everything and ends well.
    fn complete(&mut self, transfer: TransferId) {
        let spans = self.running[&transfer].spans.clone();
        for span in spans.clone() {
            self.deliver(transfer, span);
        }
        self.apply(Event::TransferEnded { transfer, handed: SpanId(spans.end), error: None });
    }

    fn fail(&mut self, transfer: TransferId, error: FillError) {
        let handed = SpanId(self.running[&transfer].spans.start);
        self.apply(Event::TransferEnded { transfer, handed, error: Some(error) });
    }

    fn started(&self) -> Vec<(Range<u32>, Priority)> {
        self.starts.iter().map(|t| (t.spans.clone(), t.priority)).collect()
    }

    fn only(&self) -> TransferId {
        assert_eq!(self.running.len(), 1, "one transfer expected: {:?}", self.running);
        *self.running.keys().next().expect("one")
    }

    fn tick_at(&mut self, now: Now) {
        self.now = now;
        self.apply(Event::Tick);
    }
}

fn transient() -> FillError {
    FillError::Stalled { layer: Digest::of(b""), from: "test".into(), limit_ms: 1 }
}

fn permanent() -> FillError {
    FillError::Misplaced {
        layer: Digest::of(b""),
        from: "test".into(),
        asked: BlobOffset::new(1),
        got: BlobOffset::new(2),
    }
}

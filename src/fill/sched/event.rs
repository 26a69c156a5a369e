//! The scheduler's words: what happened, what is to be done.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::fill::{FillError, Priority};
use crate::spans::SpanTable;
use crate::units::SpanId;

/// Time since some fixed moment; never goes back.
pub type Now = Duration;

/// A layer in the scheduler.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LayerId(pub u64);

/// A transfer in the scheduler.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransferId(pub u64);

/// Somebody who waits for spans.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WaiterId(pub u64);

/// Says which spans are in the layer file.
pub trait Presence: Send + Sync {
    /// Whether the span is there.
    fn has(&self, id: SpanId) -> bool;
    /// Whether all are there.
    fn is_complete(&self) -> bool;
}

/// What may be fetched ahead of a reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead {
    /// Nothing: it jumps about, or nobody reads.
    Nothing,
    /// It came in at the beginning of a span, as one does who reads on from the span before. So many blob bytes on their way
    /// keep the link busy; more would only be fetched in vain if the reader stopped.
    UpTo {
        /// Blob bytes.
        link_bytes: u64,
    },
}

/// What happened.
pub enum Event {
    /// A layer can be read from now on.
    LayerAdded {
        /// Its number, never used before.
        layer: LayerId,
        /// Its spans.
        table: Arc<SpanTable>,
        /// Its layer file.
        present: Arc<dyn Presence>,
        /// The registry host, for the limit of parallel requests to it.
        host: Arc<str>,
        /// Whether the background completes it.
        completes: bool,
    },
    /// A layer is taken down.
    LayerRemoved {
        /// Its number.
        layer: LayerId,
    },
    /// Somebody wants spans.
    Wanted {
        /// Of which layer.
        layer: LayerId,
        /// Which.
        spans: Range<u32>,
        /// How urgently.
        priority: Priority,
        /// Who is to be told, if anybody.
        waiter: Option<WaiterId>,
        /// What may be fetched ahead.
        ahead: Ahead,
    },
    /// Spans will be read, in this order, says a record: they are fetched at [`Priority::Recorded`]. All at once, so that
    /// neighbours can go together.
    Recorded {
        /// What, of which layer. Layers may take turns.
        order: Vec<(LayerId, Range<u32>)>,
    },
    /// A record says what the start of an image needs: the background leaves its layers alone for
    /// [`FillConfig::background_settle`](crate::fill::FillConfig::background_settle), each once.
    Settling {
        /// The layers of the image.
        layers: Vec<LayerId>,
    },
    /// A reader has come to a marked span, by its beginning.
    MarkReached {
        /// Of which layer.
        layer: LayerId,
        /// What it reads.
        spans: Range<u32>,
        /// What may be fetched ahead of it.
        ahead: Ahead,
    },
    /// A span is in the layer file.
    SpanDone {
        /// Of which layer.
        layer: LayerId,
        /// With which transfer it came.
        transfer: TransferId,
        /// Which.
        span: SpanId,
    },
    /// The bytes of a span are no good, or could not be written.
    SpanFailed {
        /// Of which layer.
        layer: LayerId,
        /// With which transfer it came.
        transfer: TransferId,
        /// Which.
        span: SpanId,
        /// Why.
        error: FillError,
        /// Whether fetching it once more may help.
        refetch: bool,
    },
    /// The server ignores the range and sends the blob from its first byte on.
    WholeBlob {
        /// On which transfer.
        transfer: TransferId,
    },
    /// No more bytes come with a transfer. Spans before `handed` are being hashed and inflated and report for
    /// themselves.
    TransferEnded {
        /// Which.
        transfer: TransferId,
        /// The first span that was not received.
        handed: SpanId,
        /// What stopped it, if it did not end well.
        error: Option<FillError>,
    },
    /// Time has passed: [`Scheduler::next_timer`] was reached.
    Tick,
}

/// One request to a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Its number.
    pub id: TransferId,
    /// The layer.
    pub layer: LayerId,
    /// The spans whose bytes are requested.
    pub spans: Range<u32>,
    /// Those of them that are not wanted, only bridged.
    pub bridged: Vec<SpanId>,
    /// The highest priority of its spans.
    pub priority: Priority,
}

/// How a transfer asks for its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// All at once.
    Full,
    /// In pieces, so that it can stop soon.
    Pieces,
    /// Not at all: what was asked for still comes, nothing else is asked for.
    Held,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Begin a transfer, at [`Pace::Full`] for read-ahead and demand, else at [`Pace::Pieces`].
    Start(Transfer),
    /// A transfer goes on at another pace.
    SetPace {
        /// Which.
        transfer: TransferId,
        /// How.
        pace: Pace,
    },
    /// Stop a transfer; nothing that it still reports matters.
    Abort(TransferId),
    /// Tell a waiter.
    Complete {
        /// Whom.
        waiter: WaiterId,
        /// What.
        result: Result<(), FillError>,
    },
    /// Report [`Event::MarkReached`] when a reader comes to this span.
    Mark {
        /// Of which layer.
        layer: LayerId,
        /// Which.
        span: SpanId,
    },
    /// All spans of a layer have come to be present.
    AllPresent {
        /// Which layer.
        layer: LayerId,
    },
}

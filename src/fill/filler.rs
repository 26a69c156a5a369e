//! The shell around the scheduler: carries out its actions on a tokio runtime and the CPU pool.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use super::excerpt::Excerpt;
use super::layer::{FillLayer, LayerInner, LayerSpec, Waiter};
use super::link::Link;
use super::sched::{Action, Ahead, Event, LayerId, LayerNumbers, Now, Pace, Scheduler, TransferId, WaiterId};
use super::workers::{JobQueue, Pool};
use super::{FillConfig, FillError, Priority, lock};
use crate::cache::CacheError;
use crate::units::LayerRange;

/// Fills layers. Dropping it fails all waiters with [`FillError::Stopping`] and ends its threads.
pub struct Filler {
    shared: Arc<Shared>,
    timer: AbortHandle,
    pool: Mutex<Pool>,
}

/// What layers, transfers and jobs share.
pub(super) struct Shared {
    pub config: FillConfig,
    pub jobs: Arc<JobQueue>,
    runtime: Handle,
    started: Instant,
    /// By registry host, of layers that are here.
    links: Mutex<HashMap<Arc<str>, Weak<Link>>>,
    core: Mutex<Core>,
    timer: Arc<Notify>,
    next_id: AtomicU64,
}

/// The scheduler and what its numbers stand for.
struct Core {
    sched: Scheduler,
    layers: HashMap<LayerId, Arc<LayerInner>>,
    waiters: HashMap<WaiterId, Waiter>,
    tasks: HashMap<TransferId, Task>,
    /// When the timer task will look next.
    armed: Option<Now>,
}

/// A transfer under way.
struct Task {
    abort: AbortHandle,
    pace: watch::Sender<Pace>,
}

/// A waiter and what it is to be told.
type Call = (Waiter, Result<(), FillError>);

impl Filler {
    /// A filler without layers, whose transfers run on `runtime`.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(config: FillConfig, runtime: Handle) -> io::Result<Arc<Self>> {
        let pool = Pool::start(config.cpu_threads)?;
        let shared = Arc::new(Shared {
            core: Mutex::new(Core {
                sched: Scheduler::new(config.clone()),
                layers: HashMap::new(),
                waiters: HashMap::new(),
                tasks: HashMap::new(),
                armed: None,
            }),
            config,
            jobs: pool.queue.clone(),
            runtime: runtime.clone(),
            started: Instant::now(),
            links: Mutex::default(),
            timer: Arc::default(),
            next_id: AtomicU64::new(0),
        });
        let timer = runtime.spawn(run_timer(Arc::downgrade(&shared), shared.timer.clone())).abort_handle();
        Ok(Arc::new(Self { shared, timer, pool: Mutex::new(pool) }))
    }

    /// Takes in a layer. It is filled until the returned handle is dropped.
    #[must_use]
    pub fn add_layer(&self, spec: LayerSpec) -> Arc<FillLayer> {
        self.add(spec, true)
    }

    /// Takes in an excerpt, from which layers borrow; its table is one of [`super::excerpt_table`]. Only what is borrowed is
    /// fetched.
    #[must_use]
    pub fn add_excerpt(&self, spec: LayerSpec) -> Arc<Excerpt> {
        Excerpt::new(self.add(spec, false))
    }

    fn add(&self, spec: LayerSpec, completes: bool) -> Arc<FillLayer> {
        let shared = &self.shared;
        let id = LayerId(shared.next_id.fetch_add(1, Ordering::Relaxed));
        // `registry.example/repo@...`; for a path, which begins with a slash, the host is empty.
        let host = shared_host(&spec.source.describe());
        let inner = Arc::new(LayerInner::new(id, spec, shared.link(&host)));
        lock(&shared.core).layers.insert(id, inner.clone());
        let (table, present) = (inner.table.clone(), inner.file.clone());
        shared.apply(Event::LayerAdded { layer: id, table, present, host, completes });
        if inner.file.is_complete() {
            shared.prove(&inner);
        }
        Arc::new(FillLayer { shared: shared.clone(), inner })
    }

    /// Fetches layer ranges in the order in which a record says that they will be read, at [`Priority::Recorded`]: before the
    /// background, and out of the way of readers that want something else. Layers may take turns. Nobody waits for it.
    pub fn prefetch_in_order(&self, order: &[(&FillLayer, LayerRange)]) {
        let order = order.iter().map(|(layer, range)| (layer.inner.id, layer.inner.table.covering(*range))).collect();
        self.shared.apply(Event::Recorded { order });
    }

    /// What the start of an image needs is known, and is asked for: the background leaves its layers alone for a while
    /// ([`FillConfig::background_settle`]). Once for each layer, as long as it is filled: whoever starts something on it every few
    /// seconds shall not keep it from ever being complete.
    pub fn settle<'a>(&self, layers: impl Iterator<Item = &'a FillLayer>) {
        self.shared.apply(Event::Settling { layers: layers.map(|layer| layer.inner.id).collect() });
    }

    /// Memory reserved for bytes on their way.
    #[must_use]
    pub fn memory_used(&self) -> u64 {
        lock(&self.shared.core).sched.memory_used()
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.timer.abort();
        let layers: Vec<_> = lock(&self.shared.core).layers.keys().copied().collect();
        for layer in layers {
            self.shared.remove(layer);
        }
        lock(&self.pool).stop();
    }
}

fn shared_host(description: &str) -> Arc<str> {
    description.split('/').next().unwrap_or_default().into()
}

/// Reports [`Event::Tick`] when the scheduler wants it.
async fn run_timer(shared: Weak<Shared>, changed: Arc<Notify>) {
    loop {
        let Some(wait) = shared.upgrade().map(|shared| shared.until_timer()) else { return };
        let fired = match wait {
            Some(wait) => tokio::time::timeout(wait, changed.notified()).await.is_err(),
            None => {
                changed.notified().await;
                false
            }
        };
        if fired {
            let Some(shared) = shared.upgrade() else { return };
            shared.apply(Event::Tick);
        }
    }
}

impl Shared {
    pub fn now(&self) -> Now {
        self.started.elapsed()
    }

    /// What is known of the way to a host, as long as one of its layers is here.
    fn link(&self, host: &Arc<str>) -> Arc<Link> {
        let mut links = lock(&self.links);
        if let Some(link) = links.get(host).and_then(Weak::upgrade) {
            return link;
        }
        links.retain(|_, link| link.strong_count() > 0);
        let link = Arc::new(Link::default());
        links.insert(host.clone(), Arc::downgrade(&link));
        link
    }

    /// Runs something beside the transfers.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Somebody wants spans. The waiter is never called inside of this.
    pub fn want(
        self: &Arc<Self>,
        layer: LayerId,
        spans: Range<u32>,
        priority: Priority,
        ahead: Ahead,
        waiter: Option<Waiter>,
    ) {
        let calls = {
            let mut core = lock(&self.core);
            let waiter = waiter.map(|waiter| {
                let id = WaiterId(self.next_id.fetch_add(1, Ordering::Relaxed));
                core.waiters.insert(id, waiter);
                id
            });
            self.step(&mut core, Event::Wanted { layer, spans, priority, waiter, ahead })
        };
        if !calls.is_empty() {
            self.runtime.spawn(async move { tell(calls) });
        }
    }

    /// Reports an event and carries out what follows from it.
    pub fn apply(self: &Arc<Self>, event: Event) {
        let calls = self.step(&mut lock(&self.core), event);
        tell(calls);
    }

    /// Takes a layer down.
    pub fn remove(self: &Arc<Self>, layer: LayerId) {
        self.apply(Event::LayerRemoved { layer });
        let gone = lock(&self.core).layers.remove(&layer);
        drop(gone);
    }

    pub fn numbers(&self, layer: LayerId) -> LayerNumbers {
        lock(&self.core).sched.numbers(layer, self.now())
    }

    /// Proves a complete layer on the CPU pool, behind everything else.
    fn prove(self: &Arc<Self>, layer: &Arc<LayerInner>) {
        let Some(diff_id) = layer.diff_id.filter(|_| !layer.file.is_proven()) else { return };
        if layer.tail_damaged.load(Ordering::Relaxed) {
            tracing::warn!(layer = %layer.digest.short(), "complete, but damaged behind its end mark: it cannot be proven");
            return;
        }
        let (layer, jobs) = (layer.clone(), self.jobs.clone());
        let job = move |_: &mut _| match layer.file.verify_against(diff_id, &jobs.stopped) {
            Ok(()) => tracing::info!(layer = %layer.digest.short(), %diff_id, "layer complete and proven"),
            // A span was evicted meanwhile, or the daemon stops.
            Err(CacheError::Incomplete { .. } | CacheError::Stopped) => {}
            Err(error) => {
                tracing::error!(layer = %layer.digest.short(), %error, "layer complete but not proven");
                layer.note(&error);
            }
        };
        self.jobs.push(Priority::Background, Box::new(job));
    }

    fn until_timer(&self) -> Option<std::time::Duration> {
        let mut core = lock(&self.core);
        let now = self.now();
        core.armed = core.sched.next_timer(now);
        core.armed.map(|at| at.saturating_sub(now))
    }

    fn step(self: &Arc<Self>, core: &mut Core, event: Event) -> Vec<Call> {
        let mut actions = Vec::new();
        let now = self.now();
        if let Event::TransferEnded { transfer, .. } = &event {
            core.tasks.remove(transfer);
        }
        core.sched.apply(event, now, &mut actions);
        let mut calls = Vec::new();
        for action in actions {
            match action {
                Action::Start(transfer) => {
                    let Some(layer) = core.layers.get(&transfer.layer) else { continue };
                    let id = transfer.id;
                    // What ends one transfer starts the next: that is no reason to tell them as one.
                    let span = tracing::debug_span!(
                        parent: None,
                        "transfer",
                        layer = %layer.digest.short(),
                        number = id.0,
                        spans = ?transfer.spans,
                        reason = ?transfer.priority
                    );
                    let full = transfer.priority >= Priority::ReadAhead;
                    let (pace, paced) = watch::channel(if full { Pace::Full } else { Pace::Pieces });
                    let task = super::transfer::run(self.clone(), layer.clone(), transfer, paced).instrument(span);
                    core.tasks.insert(id, Task { abort: self.runtime.spawn(task).abort_handle(), pace });
                }
                Action::Abort(transfer) => {
                    if let Some(task) = core.tasks.remove(&transfer) {
                        task.abort.abort();
                    }
                }
                Action::SetPace { transfer, pace } => {
                    if let Some(task) = core.tasks.get(&transfer) {
                        task.pace.send_replace(pace);
                    }
                }
                Action::Complete { waiter, result } => {
                    calls.extend(core.waiters.remove(&waiter).map(|waiter| (waiter, result)));
                }
                Action::Mark { layer, span } => {
                    if let Some(layer) = core.layers.get(&layer) {
                        layer.marks.set(span.0);
                    }
                }
                Action::AllPresent { layer } => {
                    if let Some(layer) = core.layers.get(&layer) {
                        self.prove(layer);
                    }
                }
            }
        }
        let next = core.sched.next_timer(now);
        if next.is_some_and(|next| core.armed.is_none_or(|armed| next < armed)) {
            core.armed = next;
            self.timer.notify_one();
        }
        calls
    }
}

/// Calls waiters, outside of all locks.
fn tell(calls: Vec<Call>) {
    for (waiter, result) in calls {
        waiter(result);
    }
}

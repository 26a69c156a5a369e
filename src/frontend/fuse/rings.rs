//! Requests over io_uring: threads with a ring each, which answer what is present and hand the rest to the reply threads.
//!
//! The kernel has a queue for each CPU and brings a request over the queue of the CPU that asks. An entry that waits for
//! bytes brings no other request meanwhile, so there are many of them. Threads run on any CPU: tied to those of their queues
//! they would take turns with their readers (docs/decisions/fuse-fs.md). Entries end with the thread that owns their ring:
//! a panic in one ends the process, and with it the connection, where readers would wait for good.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::channel::{ReadBuffer, Reply};
use super::config::MAX_READ_BYTES;
use super::postbox::{Entry, Postbox};
use super::server::Shared;
use crate::sys::fuse::OVER_IO_URING;
use crate::sys::fuse_ring::{FuseEvent, FuseRing, FuseRingSizes, Held};
use crate::sys::thread::{AbortOnPanic, become_io_flusher};

/// Requests of one CPU that may be in our hands at a time. Address space, not memory: [`MAX_READ_BYTES`] each.
const DEPTH: u16 = 128;
/// Threads at most; each serves several CPUs where there are more of these.
const MAX_THREADS: usize = 8;
/// How long a ring must be idle before it gives its memory back.
const TRIM_AFTER: Duration = Duration::from_secs(1);
/// How long the kernel may take to give entries back after the connection was cut.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The threads. They end when this is dropped.
pub(super) struct Rings {
    threads: Vec<Handle>,
}

struct Handle {
    postbox: Arc<Postbox>,
    /// Gone once the thread has what it serves.
    start: Option<SyncSender<Arc<Shared>>>,
    started: Receiver<io::Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rings {
    /// Makes the rings. The kernel hears of them by [`start`](Self::start); this comes first, because a connection that
    /// has agreed on rings waits for them.
    pub(super) fn prepare() -> io::Result<Self> {
        let cpus = possible_cpus()?;
        let count = usize::from(cpus).min(MAX_THREADS);
        let mut rings = Self { threads: Vec::with_capacity(count) };
        for number in 0..count {
            let queues = (0..cpus).skip(number).step_by(count).collect();
            rings.threads.push(spawn(number, queues)?);
        }
        Ok(rings)
    }

    /// Serves the connection whose INIT agreed on `flags` by these rings; `None`, after a word about it, where that cannot be:
    /// requests come by `/dev/fuse` then.
    pub(super) fn start_where(mut self, flags: u64, shared: &Arc<Shared>) -> Option<Self> {
        if flags & OVER_IO_URING == 0 {
            say_why(
                &"the kernel does not offer it: it needs Linux 6.14 with CONFIG_FUSE_IO_URING, and \
                Y in /sys/module/fuse/parameters/enable_uring",
            );
            return None;
        }
        let started = self.start(shared);
        or_say_why(Some(started)).map(|()| {
            tracing::info!(threads = self.threads.len(), "FUSE requests come over io_uring");
            self
        })
    }

    /// Tells the kernel of all entries of the connection, which must have agreed on rings. After an error it sends requests
    /// by `/dev/fuse` again.
    fn start(&mut self, shared: &Arc<Shared>) -> io::Result<()> {
        for handle in &mut self.threads {
            if let Some(start) = handle.start.take() {
                // A thread that is gone does not answer below.
                let _ = start.send(Arc::clone(shared));
            }
        }
        let gone = |_| Err(io::ErrorKind::BrokenPipe.into());
        self.threads.iter().try_for_each(|handle| handle.started.recv().unwrap_or_else(gone))
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        for handle in &mut self.threads {
            handle.start = None;
            handle.postbox.end();
        }
        for thread in self.threads.iter_mut().filter_map(|handle| handle.thread.take()) {
            // One that panicked would have ended the process.
            let _ = thread.join();
        }
    }
}

/// What was tried, unless it failed, which is logged.
pub(super) fn or_say_why<T>(tried: Option<io::Result<T>>) -> Option<T> {
    tried?.inspect_err(|error| say_why(error)).ok()
}

fn say_why(reason: &dyn std::fmt::Display) {
    tracing::warn!(%reason, "no FUSE over io_uring, which the settings ask for; requests come by /dev/fuse");
}

/// The number of CPUs that there may ever be, which is the kernel's number of queues.
fn possible_cpus() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    last_cpu(&text).and_then(|last| last.checked_add(1)).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/sys/devices/system/cpu/possible says {text:?}"))
    })
}

/// The last number of a list such as `0-3,8`.
fn last_cpu(list: &str) -> Option<u16> {
    list.trim_end().rsplit([',', '-']).next()?.parse().ok()
}

fn spawn(number: usize, queues: Vec<u16>) -> io::Result<Handle> {
    let postbox = Postbox::new()?;
    let (ready, is_ready) = sync_channel(1);
    let (start, starting) = sync_channel::<Arc<Shared>>(1);
    let (report, started) = sync_channel(1);
    let own = Arc::clone(&postbox);
    let thread = std::thread::Builder::new().name(format!("fuse-ring-{number}")).spawn(move || {
        let _abort = AbortOnPanic;
        become_io_flusher();
        // Whoever makes a ring, or starts it, waits for the answer; where nobody does the thread ends.
        match FuseRing::new(FuseRingSizes { queues, depth: DEPTH, payload_bytes: MAX_READ_BYTES as usize }) {
            Ok(ring) => {
                let _ = ready.send(Ok(()));
                if let Ok(shared) = starting.recv() {
                    RingThread { ring, shared, postbox: own, used: false }.run(&report);
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
    Ok(Handle { postbox, start: Some(start), started, thread: Some(thread) })
}

struct RingThread {
    ring: FuseRing,
    shared: Arc<Shared>,
    postbox: Arc<Postbox>,
    /// Requests came since the memory was given back.
    used: bool,
}

impl RingThread {
    fn run(mut self, report: &SyncSender<io::Result<()>>) {
        let registered = self.register();
        let failed = registered.is_err();
        // The other side waits for this.
        let _ = report.send(registered);
        if failed {
            return;
        }
        self.ring.watch(self.postbox.event());
        let (mut buffer, mut answers, mut end) = (ReadBuffer::new(), Vec::new(), None);
        loop {
            if self.postbox.take(&mut answers) && end.is_none() {
                end = Some(Instant::now() + END_PATIENCE);
            }
            for held in answers.drain(..) {
                self.ring.commit(self.shared.channel.as_fd(), held);
            }
            let limit = match end {
                Some(until) if self.ring.in_flight() == 0 || until <= Instant::now() => break,
                Some(_) => Some(LOOK_AGAIN),
                None => self.used.then_some(TRIM_AFTER),
            };
            if let Err(error) = self.ring.submit_and_wait(limit) {
                panic!("io_uring_enter: {error}");
            }
            self.look(&mut buffer);
        }
    }

    /// Registers all entries. The kernel says no at once, or nothing until the first request.
    fn register(&mut self) -> io::Result<()> {
        self.ring.register(self.shared.channel.as_fd())?;
        let mut buffer = ReadBuffer::new();
        while let Some(event) = self.ring.next_event() {
            match event {
                FuseEvent::Refused(error) => return Err(io::Error::from_raw_os_error(-error)),
                FuseEvent::Request(held) => self.handle(held, &mut buffer),
                FuseEvent::Woken { .. } => {}
            }
        }
        Ok(())
    }

    /// Handles what has come.
    fn look(&mut self, buffer: &mut ReadBuffer) {
        let mut idle = true;
        self.postbox.awake();
        while let Some(event) = self.ring.next_event() {
            idle = false;
            match event {
                FuseEvent::Request(held) => self.handle(held, buffer),
                // The connection was cut: who did that tells us to end.
                FuseEvent::Refused(_) => {}
                FuseEvent::Woken { watching } => {
                    self.postbox.clear();
                    if !watching {
                        self.ring.watch(self.postbox.event());
                    }
                }
            }
        }
        if idle && self.used {
            self.ring.trim();
            self.used = false;
        }
    }

    fn handle(&mut self, mut held: Held, buffer: &mut ReadBuffer) {
        self.used = true;
        match held.request(buffer.bytes()) {
            Ok((header, body)) => {
                let entry = Entry { held, postbox: Arc::clone(&self.postbox) };
                let reply = Reply::over_ring(&self.shared.channel, &header, entry);
                self.shared.handle(&header, body, reply);
            }
            // Its reader waits until the connection ends; the kernel never sends such a request to a server of our size.
            Err(error) => tracing::error!(%error, "a FUSE request cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn lists_of_cpus_end_with_the_last() {
        assert_eq!(last_cpu("0\n"), Some(0));
        assert_eq!(last_cpu("0-1\n"), Some(1));
        assert_eq!(last_cpu("0-3,8\n"), Some(8));
        assert_eq!(last_cpu("0,2,4-127\n"), Some(127));
        assert_eq!(last_cpu("\n"), None);
    }

    #[test]
    fn rings_that_were_never_started_end() {
        match Rings::prepare() {
            Ok(rings) => drop(rings),
            Err(error) => {
                let test = "rings_that_were_never_started_end";
                writeln!(io::stderr(), "SKIPPED: {test}: no io_uring here: {error}").expect("stderr");
            }
        }
    }
}

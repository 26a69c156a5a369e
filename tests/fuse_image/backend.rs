//! A layer whose bytes are there at once, later, never, or when the test says so.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use sociblk::frontend::{Backend, Completion, ReadError, Readiness, Segment, Segments, SourceFile};
use sociblk::units::{DeviceOffset, DeviceRange};

/// When the bytes are there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// At once.
    Ready,
    /// After a trip through another thread.
    Later,
    /// When the test says so.
    Held,
}

/// Requests are cut here, so that most have several segments.
const CUT_BYTES: u64 = 48 * 1024;

pub struct TestBackend {
    file: File,
    size_bytes: u64,
    answer: Mutex<Answer>,
    fail_from: AtomicU64,
    failures: AtomicU64,
    held: Mutex<Vec<Completion>>,
    later: Mutex<Sender<(Completion, Result<(), ReadError>)>>,
    /// First offsets of requests whose bytes came and that have not asked again yet.
    came: Arc<Mutex<Vec<u64>>>,
    /// Readers that rely on the bytes.
    readers: AtomicU64,
}

impl TestBackend {
    pub fn new(image: &Path, answer: Answer) -> Arc<Self> {
        let file = File::open(image).expect("image");
        let size_bytes = file.metadata().expect("stat").len();
        let (later, jobs) = channel::<(Completion, Result<(), ReadError>)>();
        std::thread::spawn(move || jobs.into_iter().for_each(|(done, result)| done(result)));
        Arc::new(Self {
            file,
            size_bytes,
            answer: Mutex::new(answer),
            fail_from: AtomicU64::new(u64::MAX),
            failures: AtomicU64::new(0),
            held: Mutex::new(Vec::new()),
            later: Mutex::new(later),
            came: Arc::default(),
            readers: AtomicU64::new(0),
        })
    }

    /// From now on.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().expect("lock") = answer;
    }

    /// Bytes from here on cannot be had.
    pub fn fail_from(&self, offset: u64) {
        self.fail_from.store(offset, Ordering::SeqCst);
    }

    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Readers that rely on the bytes right now.
    pub fn readers(&self) -> u64 {
        self.readers.load(Ordering::SeqCst)
    }

    pub fn held(&self) -> usize {
        self.held.lock().expect("lock").len()
    }

    pub fn let_go(&self) {
        let held = std::mem::take(&mut *self.held.lock().expect("lock"));
        held.into_iter().for_each(|done| done(Ok(())));
    }

    pub fn forget_held(&self) {
        self.held.lock().expect("lock").clear();
    }
}

impl Backend for TestBackend {
    fn size(&self) -> DeviceOffset {
        DeviceOffset::new(self.size_bytes)
    }

    fn file(&self, _: SourceFile) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn segments(&self, range: DeviceRange, out: &mut Segments) -> Result<(), ReadError> {
        if range.end().get() > self.size_bytes {
            return Err(ReadError::OutOfRange);
        }
        let mut at = range.start().get();
        while at < range.end().get() {
            let end = ((at / CUT_BYTES + 1) * CUT_BYTES).min(range.end().get());
            let len_bytes = u32::try_from(end - at).expect("short");
            out.push(Segment { file: SourceFile::Layer, offset: at, len_bytes });
            at = end;
        }
        Ok(())
    }

    fn ensure(&self, segments: &Segments, done: Completion) -> Readiness {
        let fail_from = self.fail_from.load(Ordering::SeqCst);
        let fails = segments.iter().any(|segment| segment.offset + u64::from(segment.len_bytes) > fail_from);
        let result = if fails { Err(ReadError::Unavailable) } else { Ok(()) };
        let first = segments.first().map_or(0, |segment| segment.offset);
        let came = Arc::clone(&self.came);
        let arrival = {
            let mut came = came.lock().expect("lock");
            came.iter().position(|at| *at == first).map(|at| came.swap_remove(at))
        };
        let answer = *self.answer.lock().expect("lock");
        if answer == Answer::Ready || arrival.is_some() {
            self.readers.fetch_add(1, Ordering::SeqCst);
            return Readiness::Ready;
        }
        let done: Completion = Box::new(move |result| {
            if result.is_ok() {
                came.lock().expect("lock").push(first);
            }
            done(result);
        });
        match answer {
            Answer::Ready => {}
            Answer::Later => self.later.lock().expect("lock").send((done, result)).expect("completer"),
            Answer::Held => self.held.lock().expect("lock").push(done),
        }
        Readiness::Pending
    }

    fn release(&self, _: &Segments) {
        assert_ne!(self.readers.fetch_sub(1, Ordering::SeqCst), 0, "released more often than it was ready");
    }

    fn failed(&self, _: DeviceRange, _: &dyn std::error::Error) {
        self.failures.fetch_add(1, Ordering::SeqCst);
    }
}

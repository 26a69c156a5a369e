use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use super::*;
use crate::frontend::ublk::mailbox::Message;
use crate::frontend::{Completion, Segment, Segments, SourceFile};
use crate::units::{DeviceOffset, DeviceRange};

const DEPTH: u16 = 4;
const MIB: u64 = 1 << 20;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Done {
    Fetch(TagId, CommandAddress),
    Commit(TagId, i32, CommandAddress),
    Read { offset: u64, target: Target, len: u32, request: u32, piece: u16 },
    CopyOut { tag: TagId, from: u32, len: u32, request: u32 },
}

/// Notes what the engine wants; the tests answer.
struct Notes {
    done: Vec<Done>,
    free: Vec<BufferId>,
}

impl Port for Notes {
    fn fetch(&mut self, tag: TagId, address: CommandAddress) {
        self.done.push(Done::Fetch(tag, address));
    }
    fn commit(&mut self, tag: TagId, result: i32, address: CommandAddress) {
        if let CommandAddress::Buffer(buffer) = address {
            self.free.push(buffer);
        }
        self.done.push(Done::Commit(tag, result, address));
    }
    fn read(&mut self, _: BorrowedFd<'_>, offset: u64, target: Target, len: u32, token: Token) {
        let Token::Read { request, piece } = token else { panic!("{token:?}") };
        self.done.push(Done::Read { offset, target, len, request, piece });
    }
    fn copy_out(&mut self, tag: TagId, _: BufferId, from: u32, len: u32, token: Token) {
        let Token::Write { request } = token else { panic!("{token:?}") };
        self.done.push(Done::CopyOut { tag, from, len, request });
    }
    fn take_buffer(&mut self) -> Option<BufferId> {
        self.free.pop()
    }
    fn give_back(&mut self, buffer: BufferId) {
        self.free.push(buffer);
    }
}

/// What `ensure` does with a request that nothing came for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Script {
    Ready,
    Pending,
    /// Says pending and drops the completion at once.
    Forget,
}

/// 4 MiB: the first MiB metadata, the second layer bytes in two pieces per request, the third covered short, the fourth
/// refused.
struct Scripted {
    file: File,
    script: Mutex<Script>,
    held: Mutex<Vec<Completion>>,
    /// So many requests find their bytes when they ask again.
    came: Mutex<u32>,
    /// Readers that rely on the bytes.
    readers: Mutex<u32>,
    failed: Mutex<Vec<String>>,
}

impl Backend for Scripted {
    fn size(&self) -> DeviceOffset {
        DeviceOffset::new(4 * MIB)
    }
    fn file(&self, _: SourceFile) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
    fn segments(&self, range: DeviceRange, out: &mut Segments) -> Result<(), ReadError> {
        let (start, len) = (range.start().get(), range.len_bytes() as u32);
        let segment = |file, offset, len_bytes| Segment { file, offset, len_bytes };
        match start / MIB {
            0 => out.push(segment(SourceFile::Metadata, start, len)),
            1 => {
                out.push(segment(SourceFile::Layer, start + 7, len - 100));
                out.push(segment(SourceFile::Metadata, 0, 100));
            }
            2 => out.push(segment(SourceFile::Metadata, start, len - 1)),
            _ => return Err(ReadError::OutOfRange),
        }
        Ok(())
    }
    fn ensure(&self, _: &Segments, done: Completion) -> Readiness {
        let mut came = self.came.lock().expect("lock");
        let again = came.checked_sub(1).inspect(|left| *came = *left).is_some();
        match *self.script.lock().expect("lock") {
            script if again || script == Script::Ready => {
                *self.readers.lock().expect("lock") += 1;
                return Readiness::Ready;
            }
            Script::Pending => self.held.lock().expect("lock").push(done),
            Script::Ready | Script::Forget => {}
        }
        Readiness::Pending
    }
    fn release(&self, segments: &Segments) {
        assert!(segments.iter().any(|s| s.file == SourceFile::Layer));
        let mut readers = self.readers.lock().expect("lock");
        *readers = readers.checked_sub(1).expect("released once for each that was ready");
    }
    fn failed(&self, _: DeviceRange, error: &dyn std::error::Error) {
        self.failed.lock().expect("lock").push(error.to_string());
    }
}

struct Bench {
    engine: Engine,
    port: Notes,
    backend: Arc<Scripted>,
    stats: Arc<DeviceStats>,
    mailbox: Arc<Mailbox>,
}

fn tag(tag: u16) -> TagId {
    TagId { slot: 0, queue: 1, tag }
}

fn read_of(start: u64, len: u64) -> Option<IoDesc> {
    Some(IoDesc { op_flags: 0x700, nr_sectors: (len / 512) as u32, start_sector: start / 512, addr: 0 })
}

impl Bench {
    fn new(mode: DataMode, fixed: Option<SlotRun>, buffers: u16, script: Script) -> Self {
        let backend = Arc::new(Scripted {
            file: tempfile::tempfile().expect("file"),
            script: Mutex::new(script),
            held: Mutex::default(),
            came: Mutex::default(),
            readers: Mutex::default(),
            failed: Mutex::default(),
        });
        let mailbox = Arc::new(Mailbox::new().expect("eventfd"));
        let stats = Arc::new(DeviceStats::default());
        let mut engine = Engine::new(Arc::clone(&mailbox));
        let mut port = Notes { done: Vec::new(), free: (0..buffers).map(BufferId::new).collect() };
        let setup = DeviceSetup {
            id: 0,
            queues: 2,
            depth: DEPTH,
            mode,
            fixed,
            backend: Arc::clone(&backend) as _,
            stats: Arc::clone(&stats),
        };
        assert_eq!(engine.next_slot(), 0);
        engine.attach(&mut port, 0, setup);
        let fetched: Vec<Done> = std::mem::take(&mut port.done);
        assert_eq!(fetched.len(), 2 * usize::from(DEPTH));
        Self { engine, port, backend, stats, mailbox }
    }

    fn request(&mut self, n: u16, start: u64, len: u64) -> Vec<Done> {
        self.engine.commanded(&mut self.port, tag(n), 0, read_of(start, len));
        self.settled()
    }

    fn settled(&mut self) -> Vec<Done> {
        assert!(self.engine.settle(&mut self.port).is_empty());
        std::mem::take(&mut self.port.done)
    }

    fn read_done(&mut self, request: u32, piece: u16, result: i32) -> Vec<Done> {
        self.engine.read_done(&mut self.port, request, piece, result);
        self.settled()
    }

    /// Delivers what is in the mailbox.
    fn mail(&mut self) -> Vec<Done> {
        for message in self.mailbox.drain() {
            match message {
                Message::Ensured(id, result) => self.engine.ensured(&mut self.port, id, result),
                _ => panic!("unexpected message"),
            }
        }
        self.settled()
    }

    fn complete(&self, result: Result<(), ReadError>) {
        *self.backend.came.lock().expect("lock") += u32::from(result.is_ok());
        let done = self.backend.held.lock().expect("lock").remove(0);
        done(result);
    }

    fn readers(&self) -> u32 {
        *self.backend.readers.lock().expect("lock")
    }
}

#[test]
fn copy_mode_reads_into_a_buffer_and_commits_it() {
    let mut bench = Bench::new(DataMode::Copy, None, 1, Script::Ready);
    let buffer = BufferId::new(0);
    let want =
        |at, offset, len, piece| Done::Read { offset, target: Target::Pool { buffer, at }, len, request: 0, piece };
    assert_eq!(bench.request(2, MIB, 8192), [want(0, MIB + 7, 8092, 0), want(8092, 0, 100, 1)]);
    assert_eq!(bench.read_done(0, 1, 100), []);
    assert_eq!(bench.read_done(0, 0, 8092), [Done::Commit(tag(2), 8192, CommandAddress::Buffer(buffer))]);
    let counters = bench.stats.read();
    assert_eq!((counters.requests, counters.bytes, counters.errors), (1, 8192, 0));
}

#[test]
fn user_copy_writes_to_the_device_before_it_commits() {
    let mut bench = Bench::new(DataMode::UserCopy, None, 1, Script::Ready);
    assert!(matches!(*bench.request(0, 0, 4096), [Done::Read { target: Target::Pool { at: 0, .. }, .. }]));
    let copy = |from, len| Done::CopyOut { tag: tag(0), from, len, request: 0 };
    assert_eq!(bench.read_done(0, 0, 4096), [copy(0, 4096)]);
    assert!(bench.port.free.is_empty(), "the buffer is in use until the copy is done");
    // A short copy goes on where it stopped.
    bench.engine.copied_out(&mut bench.port, 0, 1000);
    assert_eq!(bench.settled(), [copy(1000, 3096)]);
    bench.engine.copied_out(&mut bench.port, 0, 3096);
    assert_eq!(bench.settled(), [Done::Commit(tag(0), 4096, CommandAddress::None)]);
    assert_eq!(bench.port.free.len(), 1);
}

#[test]
fn registered_pages_are_read_into_directly_and_unregistered_ones_are_copied() {
    let run = SlotRun { first: 64, len: 8 };
    let mut bench = Bench::new(DataMode::AutoBufReg, Some(run), 1, Script::Ready);
    let slot = 64 + DEPTH + 3;
    let wish = CommandAddress::Register(auto_buffer_address(slot));
    let reads = bench.request(3, MIB, 4096);
    assert!(
        matches!(reads[1], Done::Read { target: Target::Fixed { slot: s, at: 3996 }, .. } if s == slot),
        "{reads:?}"
    );
    bench.read_done(0, 0, 3996);
    assert_eq!(bench.read_done(0, 1, 100), [Done::Commit(tag(3), 4096, wish)]);

    let desc = IoDesc { op_flags: io_op::NEED_REG_BUF, nr_sectors: 8, start_sector: 0, addr: 0 };
    bench.engine.commanded(&mut bench.port, tag(3), 0, Some(desc));
    assert!(matches!(*bench.settled(), [Done::Read { target: Target::Pool { .. }, .. }]));
    assert!(matches!(*bench.read_done(0, 0, 4096), [Done::CopyOut { len: 4096, .. }]));
    bench.engine.copied_out(&mut bench.port, 0, 4096);
    assert_eq!(bench.settled(), [Done::Commit(tag(3), 4096, wish)]);
}

#[test]
fn without_table_entries_the_fetches_name_one_that_no_table_has() {
    let mut bench = Bench::new(DataMode::AutoBufReg, None, 1, Script::Ready);
    let wish = CommandAddress::Register(auto_buffer_address(u16::MAX));
    assert!(matches!(*bench.request(0, 0, 4096), [Done::Read { target: Target::Pool { .. }, .. }]));
    bench.read_done(0, 0, 4096);
    bench.engine.copied_out(&mut bench.port, 0, 4096);
    assert_eq!(bench.settled(), [Done::Commit(tag(0), 4096, wish)]);
}

#[test]
fn short_reads_go_on_and_the_end_of_a_file_is_an_error() {
    let mut bench = Bench::new(DataMode::Copy, None, 1, Script::Ready);
    bench.request(0, 0, 8192);
    let buffer = BufferId::new(0);
    let rest = |from: u32| Done::Read {
        offset: from.into(),
        target: Target::Pool { buffer, at: from },
        len: 8192 - from,
        request: 0,
        piece: 0,
    };
    assert_eq!(bench.read_done(0, 0, 512), [rest(512)]);
    assert_eq!(bench.read_done(0, 0, -libc::EINTR), [rest(512)]);
    assert_eq!(bench.read_done(0, 0, 7000), [rest(7512)]);
    assert_eq!(bench.read_done(0, 0, 0), [Done::Commit(tag(0), -libc::EIO, CommandAddress::Any)]);
    assert!(bench.backend.failed.lock().expect("lock")[0].contains("Metadata file ends at 7512"));
    assert_eq!((bench.stats.read().errors, bench.port.free.len()), (1, 1));
}

#[test]
fn an_answer_waits_for_every_piece_even_after_an_error() {
    let mut bench = Bench::new(DataMode::UserCopy, None, 1, Script::Ready);
    bench.request(0, MIB, 4096);
    assert_eq!(bench.read_done(0, 0, -libc::EIO), [], "the other read still writes to the buffer");
    assert_eq!(bench.read_done(0, 1, 100), [Done::Commit(tag(0), -libc::EIO, CommandAddress::None)]);
}

#[test]
fn misses_come_back_once_and_late_words_about_others_are_ignored() {
    let mut bench = Bench::new(DataMode::Copy, None, 2, Script::Pending);
    assert_eq!(bench.request(0, MIB, 4096), []);
    assert_eq!(bench.stats.read().waiting, 1);
    bench.complete(Ok(()));
    assert_eq!(bench.mail().len(), 2);
    assert_eq!(bench.stats.read().waiting, 0);
    // The same word again, and one about a request that has gone: nothing.
    bench.engine.ensured(&mut bench.port, RequestId { index: 0, serial: 0 }, Err(ReadError::Unavailable));
    bench.engine.ensured(&mut bench.port, RequestId { index: 0, serial: 99 }, Ok(()));
    bench.engine.ensured(&mut bench.port, RequestId { index: 7, serial: 0 }, Ok(()));
    assert_eq!(bench.settled(), []);
    bench.read_done(0, 0, 3996);
    assert!(matches!(*bench.read_done(0, 1, 100), [Done::Commit(_, 4096, _)]));

    bench.request(1, MIB, 4096);
    bench.complete(Err(ReadError::Unavailable));
    assert_eq!(bench.mail(), [Done::Commit(tag(1), -libc::EIO, CommandAddress::Any)]);
}

#[test]
fn bytes_that_went_again_are_asked_for_again() {
    let mut bench = Bench::new(DataMode::UserCopy, None, 1, Script::Pending);
    bench.request(0, MIB, 4096);
    for _ in 0..3 {
        bench.complete(Ok(()));
        *bench.backend.came.lock().expect("lock") = 0;
        assert_eq!(bench.mail(), [], "evicted before it was asked for");
        assert_eq!((bench.stats.read().waiting, bench.readers()), (1, 0));
    }
    bench.complete(Ok(()));
    assert_eq!(bench.mail().len(), 2);
    assert_eq!((bench.stats.read().waiting, bench.readers()), (0, 1));
}

#[test]
fn bytes_are_held_from_ready_to_the_answer_and_let_go_once() {
    let run = SlotRun { first: 0, len: 8 };
    for (mode, fixed) in [(DataMode::Copy, None), (DataMode::UserCopy, None), (DataMode::AutoBufReg, Some(run))] {
        for last in [100, -libc::EIO] {
            let mut bench = Bench::new(mode, fixed, 1, Script::Ready);
            bench.request(0, MIB, 4096);
            assert_eq!(bench.readers(), 1);
            bench.read_done(0, 0, 3996);
            assert_eq!(bench.readers(), 1, "one read is still to come");
            bench.read_done(0, 1, last);
            bench.engine.copied_out(&mut bench.port, 0, 4096);
            assert!(matches!(*bench.settled(), [] | [Done::Commit(..)]));
            assert_eq!(bench.readers(), 0, "{mode:?} {last}");
        }
    }
    // Nothing is held for the metadata file, and an engine that goes lets go.
    let mut bench = Bench::new(DataMode::Copy, None, 2, Script::Ready);
    bench.request(0, 0, 4096);
    assert_eq!(bench.readers(), 0);
    bench.request(1, MIB, 4096);
    bench.engine.leave();
    assert_eq!(bench.readers(), 1, "the kernel may still be reading");
    bench.engine = Engine::new(Arc::clone(&bench.mailbox));
    assert_eq!(bench.readers(), 0);
}

#[test]
fn a_forgotten_completion_fails_the_request() {
    // Dropped inside the call, and dropped later.
    for script in [Script::Forget, Script::Pending] {
        let mut bench = Bench::new(DataMode::Copy, None, 1, script);
        let mut done = bench.request(0, MIB, 4096);
        bench.backend.held.lock().expect("lock").clear();
        done.extend(bench.mail());
        assert_eq!(done, [Done::Commit(tag(0), -libc::EIO, CommandAddress::Any)], "{script:?}");
        assert_eq!(bench.stats.read().waiting, 0);
    }
}

#[test]
fn a_stopping_backend_leaves_the_request_to_the_next_server() {
    let mut bench = Bench::new(DataMode::Copy, None, 1, Script::Pending);
    bench.request(0, MIB, 4096);
    bench.complete(Err(ReadError::Stopping));
    assert_eq!(bench.mail(), []);
    assert_eq!(bench.stats.read().waiting, 1);
}

#[test]
fn unusable_requests_are_refused_without_a_read() {
    let mut bench = Bench::new(DataMode::UserCopy, None, 1, Script::Ready);
    let refused = [Done::Commit(tag(0), -libc::EIO, CommandAddress::None)];
    for (start, len) in
        [(2 * MIB, 4096), (3 * MIB, 4096), (4 * MIB, 4096), (4 * MIB - 4096, 8192), (0, 2 * MIB), (0, 0)]
    {
        assert_eq!(bench.request(0, start, len), refused, "{start} {len}");
    }
    let write = IoDesc { op_flags: 1, nr_sectors: 8, start_sector: 0, addr: 0 };
    bench.engine.commanded(&mut bench.port, tag(0), 0, Some(write));
    assert_eq!(bench.settled(), refused);
    let flush = IoDesc { op_flags: io_op::FLUSH.into(), ..write };
    bench.engine.commanded(&mut bench.port, tag(0), 0, Some(flush));
    assert_eq!(bench.settled(), [Done::Commit(tag(0), 0, CommandAddress::None)]);
    assert_eq!(bench.stats.read().errors, 7);
}

#[test]
fn requests_beyond_the_pool_wait_in_order() {
    let mut bench = Bench::new(DataMode::Copy, None, 1, Script::Ready);
    assert_eq!(bench.request(0, 0, 4096).len(), 1);
    assert_eq!(bench.request(1, 4096, 4096), []);
    assert_eq!(bench.request(2, 8192, 4096), []);
    for n in 0..3_u16 {
        let done = bench.read_done(n.into(), 0, 4096);
        assert!(matches!(done[0], Done::Commit(t, 4096, _) if t == tag(n)), "{done:?}");
        assert_eq!(done.len(), if n < 2 { 2 } else { 1 }, "the next one starts");
    }
}

#[test]
fn a_buffer_that_comes_back_goes_to_the_one_who_waits_for_it() {
    let mut bench = Bench::new(DataMode::Copy, None, 1, Script::Ready);
    bench.request(0, 0, 4096);
    assert_eq!(bench.request(1, 4096, 4096), []);
    // In one batch of events: the buffer comes back, and a new request arrives.
    bench.engine.read_done(&mut bench.port, 0, 0, 4096);
    bench.engine.commanded(&mut bench.port, tag(2), 0, read_of(8192, 4096));
    let done = bench.settled();
    assert!(matches!(*done, [Done::Commit(t, ..), Done::Read { offset: 4096, .. }] if t == tag(0)), "{done:?}");
    assert!(matches!(bench.read_done(1, 0, 4096)[1], Done::Read { offset: 8192, .. }));
}

#[test]
fn removal_answers_waiting_requests_and_reports_when_all_tags_are_back() {
    let mut bench = Bench::new(DataMode::Copy, None, 1, Script::Pending);
    bench.request(0, MIB, 4096);
    assert_eq!(bench.request(1, 0, 4096).len(), 1, "this one is being read");
    bench.engine.fail_slot(&mut bench.port, 0);
    assert_eq!(bench.settled(), [Done::Commit(tag(0), -libc::EIO, CommandAddress::Any)]);
    assert_eq!(bench.request(2, MIB, 4096), [Done::Commit(tag(2), -libc::EIO, CommandAddress::Any)]);
    bench.complete(Ok(()));
    assert_eq!(bench.mail(), []);
    assert!(matches!(*bench.read_done(1, 0, 4096), [Done::Commit(_, 4096, _)]));

    let (reply, answer) = sync_channel(1);
    bench.engine.release(0, reply);
    for n in 0..2 * DEPTH {
        assert!(bench.engine.settle(&mut bench.port).is_empty(), "{n} of the tags are back");
        let id = TagId { slot: 0, queue: n / DEPTH, tag: n % DEPTH };
        bench.engine.commanded(&mut bench.port, id, RESULT_ABORT, None);
    }
    let done = bench.engine.settle(&mut bench.port);
    assert_eq!(done.iter().map(|d| d.0).collect::<Vec<_>>(), [0]);
    assert!(answer.try_recv().is_err(), "the reply is the ring thread's to send");
    assert_eq!(bench.engine.next_slot(), 0);
}

#[test]
fn refused_fetches_are_told() {
    let mut bench = Bench::new(DataMode::Copy, None, 1, Script::Ready);
    assert_eq!(bench.engine.refused(0), None);
    bench.engine.commanded(&mut bench.port, tag(1), -libc::EINVAL, None);
    assert_eq!(bench.engine.refused(0), Some(libc::EINVAL));
}

#[test]
fn a_lost_request_is_answered_with_eio_and_counted() {
    let mut bench = Bench::new(DataMode::UserCopy, None, 1, Script::Pending);
    bench.request(0, MIB, 4096);
    drop(bench.engine.forget(0));
    assert_eq!(bench.settled(), [Done::Commit(tag(0), -libc::EIO, CommandAddress::None)]);
    assert_eq!(bench.stats.read().lost, 1);
}

#[test]
fn after_leaving_nothing_is_answered_or_started() {
    let mut bench = Bench::new(DataMode::Copy, None, 2, Script::Pending);
    bench.request(0, MIB, 4096);
    bench.request(1, 0, 4096);
    bench.engine.leave();
    bench.complete(Err(ReadError::Unavailable));
    assert_eq!(bench.mail(), []);
    assert_eq!(bench.read_done(1, 0, 4096), []);
    assert_eq!(bench.request(2, 0, 4096), []);
    // The end of the thread drops the engine with its open requests; their guards have nobody to tell.
}

/// Against a slow model: whatever the order of events, each request is answered once, with the right length or EIO, and
/// every buffer comes back.
#[test]
fn every_request_is_answered_exactly_once() {
    use proptest::prelude::*;
    let config = ProptestConfig { cases: 64, ..ProptestConfig::default() };
    proptest!(config, |(mode in 0_u8..3, choices in prop::collection::vec((any::<u8>(), any::<u16>()), 1..300))| {
        let (mode, fixed) = match mode {
            0 => (DataMode::Copy, None),
            1 => (DataMode::UserCopy, None),
            _ => (DataMode::AutoBufReg, Some(SlotRun { first: 0, len: 2 * DEPTH })),
        };
        let mut bench = Bench::new(mode, fixed, 2, Script::Pending);
        let mut open: HashMap<TagId, i32> = HashMap::new();
        let mut work: Vec<Done> = Vec::new();
        let (mut asked, mut answered) = (0_u32, 0_u32);
        let mut check = |done: Vec<Done>, open: &mut HashMap<TagId, i32>, work: &mut Vec<Done>| {
            for step in done {
                if let Done::Commit(tag, result, _) = step {
                    let want = open.remove(&tag).expect("answered while nothing was asked");
                    assert!(result == want || result == -libc::EIO);
                    answered += 1;
                } else {
                    work.push(step);
                }
            }
        };
        // After the random part, everything is answered in order until nothing is left.
        let rest = std::iter::repeat_n((1, 0), 3000);
        for (kind, pick) in choices.into_iter().chain(rest) {
            let done = match kind % 4 {
                0 => {
                    let id = TagId { slot: 0, queue: pick % 2, tag: pick / 2 % DEPTH };
                    if open.contains_key(&id) { continue }
                    let (start, len) = (u64::from(pick % 5) * MIB, u64::from(pick % 7 + 1) * 4096);
                    open.insert(id, len as i32);
                    asked += 1;
                    bench.engine.commanded(&mut bench.port, id, 0, read_of(start, len));
                    bench.settled()
                }
                1 | 2 if !work.is_empty() => {
                    let step = work.swap_remove(usize::from(pick) % work.len());
                    let short = |len: u32| if pick % 5 == 1 { len.div_ceil(2) } else { len } as i32;
                    match step {
                        Done::Read { request, piece, len, .. } => {
                            let result = if pick % 11 == 1 { -libc::EIO } else { short(len) };
                            bench.read_done(request, piece, result)
                        }
                        Done::CopyOut { request, len, .. } => {
                            bench.engine.copied_out(&mut bench.port, request, short(len));
                            bench.settled()
                        }
                        Done::Fetch(..) | Done::Commit(..) => Vec::new(),
                    }
                }
                _ => {
                    if bench.backend.held.lock().expect("lock").is_empty() { continue }
                    bench.complete(if pick % 3 == 1 { Err(ReadError::Unavailable) } else { Ok(()) });
                    bench.mail()
                }
            };
            check(done, &mut open, &mut work);
        }
        prop_assert!(open.is_empty(), "unanswered: {:?}", open);
        prop_assert_eq!(asked, answered);
        prop_assert_eq!((bench.port.free.len(), bench.readers()), (2, 0));
        let counters = bench.stats.read();
        prop_assert_eq!((counters.requests, counters.waiting, counters.lost), (u64::from(asked), 0, 0));
    });
}

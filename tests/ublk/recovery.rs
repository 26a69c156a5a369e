//! Cases in which the server goes away.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use sociblk::frontend::ublk::{DataMode, DeviceState, UblkConfig, UblkError, UblkFrontend};

use crate::cases::{Bed, MODES, config, gone};
use crate::image::{LATE, Late, Served};
use crate::readers::{buffered, compare_all, compare_random, direct, read};
use crate::say;

/// A server process: `DIR SEED LATE new MODE COUNT`, MODE a number or `auto`, or `DIR SEED LATE recover ID`. Says "id N" for
/// each device (or "none") and stays until its input ends.
pub fn serve(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [dir, seed, late, what @ ..] = words.as_slice() else { panic!("--serve: {words:?}") };
    let seed: u64 = seed.parse().expect("seed");
    let late = if *late == "arrive" { Late::Arrive } else { Late::Hang };
    let backend = || Arc::new(Served::open(Path::new(dir), seed, late));
    let start = |data_mode| UblkFrontend::start(UblkConfig { data_mode, ..config() }).expect("start");
    let say = |line: &str| {
        let mut out = std::io::stdout();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("stdout");
    };
    let frontend = match what {
        ["new", mode, count] => {
            let frontend = start(mode.parse::<usize>().ok().map(|n| MODES[n]));
            let shared = backend();
            for n in 0..count.parse().expect("count") {
                match frontend.add(Arc::clone(&shared) as _, seed + n) {
                    Ok(device) => say(&format!("id {}\n", device.id)),
                    Err(UblkError::NoSuchMode { .. }) => say("none\n"),
                    Err(error) => panic!("{error}"),
                }
            }
            frontend
        }
        ["recover", id] => {
            let frontend = start(None);
            let device = frontend.recover(id.parse().expect("id"), backend(), seed).expect("recover");
            say(&format!("id {}\n", device.id));
            frontend
        }
        other => panic!("--serve: {other:?}"),
    };
    std::io::stdin().read_to_end(&mut Vec::new()).expect("stdin");
    drop(frontend);
}

/// A server process, killed at the end of the test, whatever happens.
pub struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// A server of `count` new devices.
    pub fn start(bed: &Bed, late: &str, mode: &str, count: u64) -> Self {
        Self::spawn(bed, &[late, "new", mode, &count.to_string()])
    }

    /// A server that takes over a device.
    pub fn recover(bed: &Bed, late: &str, id: u32) -> Self {
        Self::spawn(bed, &[late, "recover", &id.to_string()])
    }

    fn spawn(bed: &Bed, arguments: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .arg("--serve")
            .arg(bed.dir.path())
            .arg(bed.seed.to_string())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("server");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// The next device's number; `None` when the kernel lacks the mode.
    pub fn next_id(&mut self) -> Option<u32> {
        let line = self.lines.next().expect("the server lives").expect("line");
        line.strip_prefix("id ").map(|id| id.parse().expect("id"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn block(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// Waits until `done`, without a limit of its own: the run has one.
fn wait_until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

/// Whether the thread is in an uninterruptible wait, as a reader of a block device is.
fn is_waiting(tid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('D'))
}

pub fn a_killed_server_is_replaced_without_an_error() {
    for (n, mode) in MODES.into_iter().enumerate() {
        let bed = Bed::new(600 + n as u64);
        let mut server = Server::start(&bed, "hang", &n.to_string(), 1);
        let Some(id) = server.next_id() else {
            say(&format!("SKIPPED: a_killed_server_is_replaced_without_an_error: this kernel has no {mode:?}"));
            continue;
        };
        let path = block(id);
        // Whatever is there reads well; then a reader gets stuck on bytes that never come.
        let early = read(&direct(&path), 0..65536).expect("read");
        assert!(early == bed.image.expected(0..65536));
        let late = bed.image.device_range_of(&LATE);
        let frontend = std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (image, path) = (&bed.image, &path);
            let stuck = late.clone();
            let reader = scope.spawn(move || {
                tell.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("told");
                let got = read(&direct(path), stuck.clone()).expect("a read without an error");
                assert!(got == image.expected(stuck), "wrong bytes after the recovery");
                compare_all(image, &buffered(path), 128 << 10);
            });
            let tid = told.recv().expect("tid");
            wait_until(|| is_waiting(tid));
            server.kill();

            let frontend = UblkFrontend::start(config()).expect("start");
            let begin = Instant::now();
            let wrong_size = Bed::new(999);
            assert_ne!(wrong_size.image.size(), bed.image.size());
            let refused = frontend.recover(id, wrong_size.backend(Late::Arrive), bed.seed);
            assert!(matches!(refused, Err(UblkError::SizeChanged { .. })), "{refused:?}");
            let device = frontend.recover(id, bed.backend(Late::Arrive), bed.seed).expect("recover");
            say(&format!("  {mode:?}: recovered in {:?}", begin.elapsed()));
            assert_eq!((device.id, device.mode), (id, mode));
            reader.join().expect("the reader saw no error");
            frontend
        });
        assert_eq!(frontend.counters(id).map(|c| (c.lost, c.waiting)), Some((0, 0)));
        frontend.remove(id).expect("remove");
        assert!(gone(id));
    }
}

/// Kills at no chosen moment: whatever requests are then on their way in whichever step, no reader may notice.
pub fn readers_survive_one_kill_after_another() {
    for (n, mode) in MODES.into_iter().enumerate() {
        let bed = Bed::new(650 + n as u64);
        let mut server = Server::start(&bed, "arrive", &n.to_string(), 1);
        let Some(id) = server.next_id() else {
            say(&format!("SKIPPED: readers_survive_one_kill_after_another: this kernel has no {mode:?}"));
            continue;
        };
        let path = block(id);
        let stop = AtomicBool::new(false);
        let rounds = AtomicU64::new(0);
        let read_on = |seed: u64, file: &std::fs::File| {
            compare_random(&bed.image, file, seed + rounds.fetch_add(1, Ordering::Relaxed), 20);
        };
        std::thread::scope(|scope| {
            for reader in 0..4_u64 {
                let (path, stop, read_on) = (&path, &stop, &read_on);
                scope.spawn(move || {
                    let file = if reader < 3 { direct(path) } else { buffered(path) };
                    while !stop.load(Ordering::Relaxed) {
                        read_on(reader << 32, &file);
                    }
                });
            }
            for _ in 0..6 {
                let before = rounds.load(Ordering::Relaxed);
                wait_until(|| rounds.load(Ordering::Relaxed) > before + 3);
                server.kill();
                server = Server::recover(&bed, "arrive", id);
                assert_eq!(server.next_id(), Some(id));
            }
            stop.store(true, Ordering::Relaxed);
        });
        say(&format!("  {mode:?}: {} rounds of reads", rounds.load(Ordering::Relaxed)));
        server.kill();
        UblkFrontend::start(config()).expect("start").remove(id).expect("remove");
        assert!(gone(id));
    }
}

pub fn a_planned_stop_hands_devices_over() {
    for mode in [None, Some(DataMode::Copy)] {
        let bed = Bed::new(700);
        let settings = || UblkConfig { data_mode: mode, ..config() };
        let first = UblkFrontend::start(settings()).expect("start");
        let id = first.add(bed.backend(Late::Hang), 5).expect("add").id;
        let other = first.add(bed.backend(Late::Arrive), 6).expect("add").id;
        let path = block(id);
        let late = bed.image.device_range_of(&LATE);
        let second = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&direct(&path), late.clone()).expect("no error"));
            wait_until(|| first.counters(id).is_some_and(|c| c.waiting > 0));
            let begin = Instant::now();
            assert_eq!(first.detach_all(), Vec::<u32>::new());
            say(&format!("  detached in {:?}", begin.elapsed()));
            let left = first.list_own().expect("list");
            assert!(left.len() == 2 && left.iter().all(|d| d.state == DeviceState::Quiesced), "{left:?}");
            assert!(first.add(bed.backend(Late::Arrive), 8).is_err(), "it has stopped");

            let second = UblkFrontend::start(settings()).expect("start");
            second.recover(id, bed.backend(Late::Arrive), 5).expect("recover");
            second.recover(other, bed.backend(Late::Arrive), 6).expect("recover");
            assert!(reader.join().expect("reader") == bed.image.expected(late.clone()));
            second
        });
        compare_all(&bed.image, &direct(&path), 256 << 10);
        compare_all(&bed.image, &direct(&block(other)), 256 << 10);
        for id in [id, other] {
            second.remove(id).expect("remove");
            assert!(gone(id));
        }
    }
}

pub fn leftovers_are_removed() {
    let bed = Bed::new(800);
    let first = UblkFrontend::start(config()).expect("start");
    let [id, read_by_somebody] = [1, 2].map(|tag| first.add(bed.backend(Late::Hang), tag).expect("add").id);
    let late = bed.image.device_range_of(&LATE);
    let path = block(read_by_somebody);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&direct(&path), late.clone()));
        wait_until(|| first.counters(read_by_somebody).is_some_and(|c| c.waiting > 0));
        drop(first);
        let second = UblkFrontend::start(config()).expect("start");
        let quiesced =
            |id| second.list_own().expect("list").iter().any(|d| d.id == id && d.state == DeviceState::Quiesced);
        wait_until(|| quiesced(id) && quiesced(read_by_somebody));
        second.remove(id).expect("remove");
        assert!(gone(id));
        if second.features().safe_stop() {
            assert!(matches!(second.remove(read_by_somebody), Err(UblkError::Busy { .. })));
        }
        second.remove_in_use(read_by_somebody).expect("remove");
        assert!(reader.join().expect("reader").is_err(), "the bytes are lost and the reader knows");
        assert!(gone(read_by_somebody));
    });
}

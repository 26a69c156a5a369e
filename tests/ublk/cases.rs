//! Cases that need one server process.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sociblk::frontend::ublk::{DataMode, UblkConfig, UblkDevice, UblkError, UblkFrontend};

use crate::image::{BROKEN, Image, Late, Served};
use crate::readers::{buffered, compare_all, compare_random, direct, read};
use crate::recovery::Server;
use crate::say;

pub const MODES: [DataMode; 3] = [DataMode::Copy, DataMode::UserCopy, DataMode::AutoBufReg];

/// Limits that survive a slow emulator.
pub fn config() -> UblkConfig {
    let limit = Duration::from_secs(60);
    UblkConfig { control_limit: limit, drain_limit: limit, ..UblkConfig::default() }
}

pub struct Bed {
    pub dir: tempfile::TempDir,
    pub image: Image,
    pub seed: u64,
}

impl Bed {
    pub fn new(seed: u64) -> Self {
        let bed = Self { dir: tempfile::tempdir().expect("dir"), image: Image::new(seed), seed };
        bed.image.write_files(bed.dir.path());
        bed
    }

    pub fn backend(&self, late: Late) -> Arc<Served> {
        Arc::new(Served::open(self.dir.path(), self.seed, late))
    }
}

/// Removes what earlier cases left behind when they failed.
pub fn clean() {
    let Ok(frontend) = UblkFrontend::start(config()) else { return };
    for device in frontend.list_own().expect("list") {
        if let Err(error) = frontend.remove(device.id) {
            say(&format!("  left over: ublk{}: {error}", device.id));
        }
    }
}

pub fn gone(id: u32) -> bool {
    !Path::new(&format!("/sys/class/ublk-char/ublkc{id}")).exists()
}

/// Adds a device in a forced mode, or says why not.
fn add_forced(frontend: &UblkFrontend, bed: &Bed, mode: DataMode, case: &str) -> Option<UblkDevice> {
    match frontend.add(bed.backend(Late::Arrive), bed.seed) {
        Ok(device) => {
            assert_eq!(device.mode, mode);
            Some(device)
        }
        Err(UblkError::NoSuchMode { .. }) => {
            say(&format!("SKIPPED: {case}: this kernel has no {mode:?}"));
            None
        }
        Err(error) => panic!("{mode:?}: {error}"),
    }
}

pub fn modes_return_the_right_bytes() {
    for (n, mode) in MODES.into_iter().enumerate() {
        let bed = Bed::new(100 + n as u64);
        let frontend = UblkFrontend::start(UblkConfig { data_mode: Some(mode), ..config() }).expect("start");
        let Some(device) = add_forced(&frontend, &bed, mode, "modes_return_the_right_bytes") else { continue };
        let (id, path) = (device.id, device.block_path.as_path());
        let begin = Instant::now();

        // Direct first, while the late parts are not there; then buffered, small and large; then both at once.
        compare_all(&bed.image, &direct(path), 1 << 20);
        compare_random(&bed.image, &direct(path), 7, 200);
        compare_all(&bed.image, &buffered(path), 4096);
        std::thread::scope(|scope| {
            for reader in 0..8 {
                let image = &bed.image;
                scope.spawn(move || {
                    let file = if reader % 2 == 0 { direct(path) } else { buffered(path) };
                    compare_random(image, &file, 1000 + reader, 100);
                });
            }
        });

        let broken = bed.image.device_range_of(&BROKEN);
        for file in [direct(path), buffered(path)] {
            let error = read(&file, broken.start..broken.start + 4096).expect_err("broken bytes");
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
        let counters = frontend.counters(id).expect("served");
        assert!(counters.errors > 0 && counters.lost == 0 && counters.waiting == 0, "{counters:?}");
        assert!(counters.bytes >= bed.image.size(), "{counters:?}");

        let queue = |name: &str| {
            let path = format!("/sys/block/ublkb{id}/{name}");
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
        };
        assert_eq!(queue("ro"), "1");
        assert_eq!(queue("queue/logical_block_size"), "512");
        assert_eq!(queue("queue/physical_block_size"), "4096");
        assert_eq!(queue("queue/max_sectors_kb"), "1024");
        let write = fs::OpenOptions::new().write(true).open(path).and_then(|file| file.write_at(&[0; 4096], 0));
        assert!(write.is_err(), "the device is read-only");
        let (_, workers) = threads(std::process::id());
        say(&format!("  {mode:?}: {counters:?} in {:?}, {workers} kernel workers", begin.elapsed()));

        frontend.remove(id).expect("remove");
        assert!(gone(id));
        assert_eq!(frontend.counters(id), None);
        assert_eq!(frontend.list_own().expect("list"), []);
    }
}

pub fn requests_beyond_the_pool_wait() {
    for (n, mode) in [DataMode::Copy, DataMode::UserCopy].into_iter().enumerate() {
        let bed = Bed::new(200 + n as u64);
        let one_buffer = UblkConfig { data_mode: Some(mode), copy_buffers: 1, ring_threads: 1, ..config() };
        let frontend = UblkFrontend::start(one_buffer).expect("start");
        let Some(device) = add_forced(&frontend, &bed, mode, "requests_beyond_the_pool_wait") else { continue };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| compare_all(&bed.image, &direct(&device.block_path), 1 << 20));
            }
        });
        assert_eq!(frontend.counters(device.id).map(|c| c.lost), Some(0));
        frontend.remove(device.id).expect("remove");
    }
}

pub fn a_full_table_falls_back_to_copies() {
    let bed = Bed::new(300);
    // The driver never gives more queues than processors; with one processor the table holds twice the devices.
    let frontend = UblkFrontend::start(UblkConfig { ring_threads: 1, depth: 1024, ..config() }).expect("start");
    if !frontend.features().auto_buf_reg() {
        say("SKIPPED: a_full_table_falls_back_to_copies: this kernel has no AutoBufReg");
        return;
    }
    let add = || frontend.add(bed.backend(Late::Arrive), bed.seed).expect("add");
    let devices: Vec<UblkDevice> = (0..9).map(|_| add()).collect();
    assert!(devices[..8].iter().all(|d| d.mode == DataMode::AutoBufReg));
    assert_eq!(devices[8].mode, DataMode::UserCopy);
    for device in &devices[7..] {
        compare_random(&bed.image, &direct(&device.block_path), 5, 50);
    }
    frontend.remove(devices[3].id).expect("remove");
    let again = add();
    assert_eq!(again.mode, DataMode::AutoBufReg, "the entries came back");
    compare_random(&bed.image, &direct(&again.block_path), 6, 50);
    for device in frontend.list_own().expect("list") {
        frontend.remove(device.id).expect("remove");
    }
}

/// Names of a process's threads, and how many of them are the kernel's io_uring workers, which come and go under a bound
/// of their own.
fn threads(pid: u32) -> (Vec<String>, usize) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok().map(|n| n.trim().to_owned());
    let (workers, own): (Vec<_>, Vec<_>) = tasks.flatten().filter_map(name).partition(|n| n.starts_with("iou-"));
    (own, workers.len())
}

/// Resident memory of a process, all of it and the anonymous part.
fn resident(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let lines = text.lines().filter(|l| l.starts_with("Rss") || l.starts_with("Anonymous:"));
    lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

pub fn sixty_four_devices_take_no_more_threads() {
    for mode in ["auto", "1"] {
        let bed = Bed::new(400);
        let mut server = Server::start(&bed, "hang", mode, 64);
        let mut next = || server.next_id().expect("the kernel has the mode");
        let first = next();
        let (own, _) = threads(server.pid());
        let (memory, begin) = (resident(server.pid()), Instant::now());
        let mut next = || server.next_id().expect("the kernel has the mode");
        let ids: Vec<u32> = std::iter::once(first).chain((1..64).map(|_| next())).collect();
        let (added, memory_live) = (begin.elapsed(), resident(server.pid()));
        std::thread::scope(|scope| {
            for id in &ids {
                let image = &bed.image;
                // What needs no fill: the server of this case has none.
                scope.spawn(move || {
                    let file = direct(Path::new(&format!("/dev/ublkb{id}")));
                    for n in 0..16 {
                        let range = n * 40_960..(n + 1) * 40_960;
                        assert!(read(&file, range.clone()).expect("read") == image.expected(range));
                    }
                });
            }
        });
        let (own_after, workers) = threads(server.pid());
        assert_eq!(own_after, own);
        say(&format!(
            "  {mode}: 63 more devices in {added:?}; with 1: {memory}; with 64: {memory_live}; after reads: {}; threads {own:?}, kernel workers {workers}",
            resident(server.pid())
        ));
        server.kill();
        let frontend = UblkFrontend::start(config()).expect("start");
        assert_eq!(frontend.list_own().expect("list").len(), 64);
        let begin = Instant::now();
        for id in &ids {
            frontend.remove(*id).expect("remove");
        }
        say(&format!("  removed in {:?}", begin.elapsed()));
        assert!(ids.iter().all(|id| gone(*id)));
    }
}

/// A child that inherits the character device would stand in the way of every recovery.
pub fn descriptors_do_not_leak_into_children() {
    let bed = Bed::new(450);
    let frontend = UblkFrontend::start(config()).expect("start");
    let device = frontend.add(bed.backend(Late::Arrive), 1).expect("add");
    let mut seen = 0;
    for entry in fs::read_dir("/proc/self/fd").expect("fds").flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if !["/dev/ublk", "io_uring", "eventfd"].iter().any(|word| target.contains(word)) {
            continue;
        }
        let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
        let info = fs::read_to_string(info).expect("fdinfo");
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim).expect("flags");
        let flags = i32::from_str_radix(flags, 8).expect("octal");
        assert_ne!(flags & libc::O_CLOEXEC, 0, "{target}");
        seen += 1;
    }
    // The control device, its ring, a ring thread's ring and eventfd, and one for the device.
    assert!(seen >= 5, "{seen}");
    frontend.remove(device.id).expect("remove");
}

pub fn devices_in_use_and_foreign_ones_are_refused() {
    let bed = Bed::new(500);
    let frontend = UblkFrontend::start(config()).expect("start");
    let device = frontend.add(bed.backend(Late::Arrive), 77).expect("add");
    let own = frontend.list_own().expect("list");
    assert!(own.len() == 1 && own[0].carries(77) && !own[0].carries(78));

    if frontend.features().safe_stop() {
        let file = buffered(&device.block_path);
        assert!(matches!(frontend.remove(device.id), Err(UblkError::Busy { .. })));
        compare_random(&bed.image, &file, 3, 10);
    } else {
        say("SKIPPED: devices_in_use_and_foreign_ones_are_refused: open devices (no SAFE_STOP_DEV in this kernel)");
    }
    let wrong = frontend.recover(device.id, bed.backend(Late::Arrive), 78);
    assert!(matches!(wrong, Err(UblkError::NotOurs { .. })), "{wrong:?}");
    assert!(frontend.remove(device.id + 1).is_err(), "there is no such device");
    frontend.remove(device.id).expect("remove");
    assert!(gone(device.id));
    assert!(frontend.remove(device.id).is_err(), "it is gone");
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).stdout(std::process::Stdio::null()).status().is_ok_and(|s| s.success())
}

pub fn erofs_mounts_and_reads() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().expect("utf-8").to_owned();
    fs::create_dir_all(path("tree/sub")).expect("tree");
    for n in 0..200_u32 {
        let body: Vec<u8> = (0..n * n).map(|i| (i ^ n) as u8).collect();
        fs::write(path(&format!("tree/sub/file{n}")), body).expect("file");
    }
    if !run("mkfs.erofs", &["--quiet", &text("image"), &text("tree")]) {
        say("SKIPPED: erofs_mounts_and_reads: mkfs.erofs does not run");
        return;
    }
    let frontend = UblkFrontend::start(config()).expect("start");
    let device = frontend.add(Arc::new(Whole::open(&path("image"))), 9).expect("add");
    fs::create_dir(path("mount")).expect("mount point");
    let block = device.block_path.to_str().expect("utf-8");
    assert!(run("mount", &["-t", "erofs", "-o", "ro", block, &text("mount")]), "mount");
    assert!(matches!(frontend.remove(device.id), Err(UblkError::Busy { .. })));
    let same = run("diff", &["-r", &text("tree"), &text("mount")]);
    assert!(run("umount", &[&text("mount")]), "umount");
    assert!(same, "the trees differ");
    frontend.remove(device.id).expect("remove");
    assert!(gone(device.id));
}

mod whole {
    use super::*;
    use sociblk::frontend::{Backend, Completion, ReadError, Readiness, Segment, Segments, SourceFile};
    use sociblk::units::{DeviceOffset, DeviceRange};
    use std::os::fd::{AsFd, BorrowedFd};

    /// One file as a device, all of it there.
    pub struct Whole {
        file: fs::File,
        size: u64,
    }

    impl Whole {
        pub fn open(path: &Path) -> Self {
            let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("image");
            let size = file.metadata().expect("size").len().next_multiple_of(4096);
            file.set_len(size).expect("padding");
            Self { file, size }
        }
    }

    impl Backend for Whole {
        fn size(&self) -> DeviceOffset {
            DeviceOffset::new(self.size)
        }
        fn file(&self, _: SourceFile) -> BorrowedFd<'_> {
            self.file.as_fd()
        }
        fn segments(&self, range: DeviceRange, out: &mut Segments) -> Result<(), ReadError> {
            let len_bytes = range.len_bytes() as u32;
            out.push(Segment { file: SourceFile::Layer, offset: range.start().get(), len_bytes });
            Ok(())
        }
        fn ensure(&self, _: &Segments, _: Completion) -> Readiness {
            Readiness::Ready
        }
        fn failed(&self, range: DeviceRange, error: &dyn std::error::Error) {
            panic!("{range}: {error}");
        }
    }
}
use whole::Whole;

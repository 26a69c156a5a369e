//! Layers as files of the FUSE mount, with the kernel's EROFS on top of them. Needs root, /dev/fuse and mkfs.erofs.
//!
//! Every test works in a mount namespace of its own thread, so that nothing stays mounted, whatever happens.

mod backend;
mod support;
mod takeover;

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backend::{Answer, TestBackend};
use rustix::process::Signal;
use sociblk::frontend::fuse::{FuseConfig, FuseError, FuseServer};
use sociblk::frontend::fuse_image::image;
use sociblk::mount::{MountOp, execute, is_mountpoint, mounts_under};
use sociblk::sys::loop_device::LoopDevice;
use support::{Stage, compare_trees, parallel_compare, run, skipped};

/// Where a release must arrive in time, however slow the machine.
const PATIENT: Duration = Duration::from_secs(60);
/// Where a file is known to be open.
const IMPATIENT: Duration = Duration::from_millis(1);

fn config(release_wait: Duration) -> FuseConfig {
    FuseConfig { release_wait, ..FuseConfig::default() }
}

fn serve(stage: &Stage, answer: Answer) -> (Arc<FuseServer>, Arc<TestBackend>, std::path::PathBuf) {
    serve_with(stage, answer, PATIENT)
}

fn serve_with(
    stage: &Stage,
    answer: Answer,
    release_wait: Duration,
) -> (Arc<FuseServer>, Arc<TestBackend>, std::path::PathBuf) {
    let images = FuseServer::mount(&stage.path("images"), &config(release_wait)).expect("FUSE mount");
    let backend = TestBackend::new(&stage.image(), answer);
    let image = images.add("layer.erofs", image(backend.clone())).expect("add");
    (images, backend, image.path)
}

fn erofs_on(image: &Path, target: &Path) -> Result<(), sociblk::mount::MountError> {
    erofs_with_metadata(image, target, 0)
}

fn erofs_with_metadata(image: &Path, target: &Path, metadata_bytes: u64) -> Result<(), sociblk::mount::MountError> {
    let image = image.into();
    execute(&[
        MountOp::MakeDir { path: target.into(), mode: 0o700 },
        MountOp::Erofs { image, target: target.into(), metadata_bytes, context: None },
    ])
}

fn unmount(target: &Path) {
    execute(&[MountOp::Unmount { target: target.into(), lazy: false }]).expect("unmount");
    assert!(!is_mountpoint(target).expect("mountinfo"));
}

#[test]
fn the_file_itself_reads_like_its_backend() {
    let Some(stage) = Stage::new("the_file_itself_reads_like_its_backend") else { return };
    let (images, _, path) = serve_with(&stage, Answer::Ready, IMPATIENT);
    let want = fs::read(stage.image()).expect("image");
    assert_eq!(fs::metadata(&path).expect("stat").len(), want.len() as u64);
    assert!(fs::read(&path).expect("read") == want, "bytes differ");

    let file = fs::File::open(&path).expect("open");
    let mut tail = vec![1; 100_000];
    let offset = want.len() as u64 - 4096 - 5;
    let got = file.read_at(&mut tail, offset).expect("read at the end");
    assert_eq!(tail[..got], want[want.len() - 4096 - 5..]);
    assert_eq!(file.read_at(&mut tail, want.len() as u64).expect("read behind the end"), 0);
    assert_eq!(fs::read_dir(images.dir()).expect("list").count(), 1);

    assert!(matches!(images.close(), Err(FuseError::Busy { .. })));
    drop(file);
    run("close once the kernel has let go", || images.close().is_ok());
    assert!(!is_mountpoint(images.dir()).expect("mountinfo"));
    assert!(matches!(
        images.add("late", image(TestBackend::new(&stage.image(), Answer::Ready))),
        Err(FuseError::Closed)
    ));
}

#[test]
fn a_mebibyte_is_one_request() {
    let Some(stage) = Stage::new("a_mebibyte_is_one_request") else { return };
    let (images, _, path) = serve(&stage, Answer::Ready);
    let file = fs::File::open(path).expect("open");
    // 256 whole pages, as a page cache has them.
    let mut buffer = vec![0_u8; (1 << 20) + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    file.read_exact_at(&mut buffer[start..start + (1 << 20)], 1 << 20).expect("read");
    run("counted", || images.counters().read_bytes == 1 << 20);
    assert_eq!(images.counters().reads, 1);
    drop(file);
    images.close().expect("close");
}

#[test]
fn metadata_are_read_ahead_of_anybody() {
    let Some(stage) = Stage::new("metadata_are_read_ahead_of_anybody") else { return };
    let (images, _, path) = serve(&stage, Answer::Ready);
    let target = stage.path("erofs");
    erofs_with_metadata(&path, &target, 1 << 20).expect("mount");
    run("read", || images.counters().read_bytes >= 1 << 20);
    assert!(images.counters().reads < 40, "in few requests: {}", images.counters().reads);
    compare_trees(&stage.tree(), &target);
    unmount(&target);
    images.close().expect("close");
}

#[test]
fn names_are_checked_and_files_come_and_go() {
    let Some(stage) = Stage::new("names_are_checked_and_files_come_and_go") else { return };
    let images = FuseServer::mount(&stage.path("images"), &config(IMPATIENT)).expect("FUSE mount");
    let backend = TestBackend::new(&stage.image(), Answer::Ready);
    for bad in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        assert!(matches!(images.add(bad, image(backend.clone())), Err(FuseError::BadName { .. })), "{bad:?}");
    }
    for number in 0..300 {
        images.add(format!("layer-{number}"), image(backend.clone())).expect("add");
    }
    assert!(matches!(images.add("layer-7", image(backend.clone())), Err(FuseError::Exists { .. })));
    assert_eq!(fs::read_dir(images.dir()).expect("list").count(), 300);

    let path = images.dir().join("layer-7");
    let open = fs::File::open(&path).expect("open");
    assert!(matches!(images.remove("layer-7"), Err(FuseError::Busy { .. })));
    drop(open);
    run("wait for the release", || images.remove("layer-7").is_ok());
    assert!(!path.exists());
    assert!(matches!(images.remove("layer-7"), Err(FuseError::NotFound { .. })));
    images.add("layer-7", image(backend)).expect("the name is free again");
    assert!(path.exists());

    assert!(matches!(FuseServer::mount(images.dir(), &config(IMPATIENT)), Err(FuseError::AlreadyMounted { .. })));
    images.close().expect("close");
}

#[test]
fn erofs_on_it_shows_every_byte_and_leaves_nothing() {
    let Some(stage) = Stage::new("erofs_on_it_shows_every_byte_and_leaves_nothing") else { return };
    for answer in [Answer::Ready, Answer::Later] {
        let (images, backend, path) = serve(&stage, answer);
        let target = stage.path("erofs");
        erofs_on(&path, &target).expect("mount");
        compare_trees(&stage.tree(), &target);
        unmount(&target);
        // A new mount starts with an empty page cache.
        erofs_on(&path, &target).expect("mount again");
        parallel_compare(&stage.tree(), &target, 8);
        unmount(&target);
        images.remove("layer.erofs").expect("remove");
        let counters = images.counters();
        assert_eq!((counters.failed, counters.dropped, backend.failures()), (0, 0, 0));
        run("all reads are over", || images.counters().waiting == 0 && backend.readers() == 0);
        assert_eq!(counters.pending > 0, answer == Answer::Later);
        images.close().expect("close");
        assert!(!is_mountpoint(images.dir()).expect("mountinfo"));
    }
}

#[test]
fn anybody_reads_through_erofs_but_nobody_else_opens_images() {
    let Some(stage) = Stage::new("anybody_reads_through_erofs_but_nobody_else_opens_images") else { return };
    let (images, _, path) = serve(&stage, Answer::Later);
    let target = stage.path("erofs");
    erofs_on(&path, &target).expect("mount");
    for dir in [stage.path(""), target.clone(), images.dir().to_owned()] {
        // The root directories of read-only file systems keep what they have.
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
    }
    let nobody = |path: &Path| Command::new("cat").arg(path).uid(65534).gid(65534).output().expect("cat");
    let got = nobody(&target.join("big"));
    assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    assert!(got.stdout == fs::read(stage.tree().join("big")).expect("origin"));
    assert!(!nobody(&path).status.success());
    unmount(&target);
    images.close().expect("close");
}

#[test]
fn a_loop_device_on_it_serves_kernels_before_6_12() {
    let Some(stage) = Stage::new("a_loop_device_on_it_serves_kernels_before_6_12") else { return };
    if !Path::new("/dev/loop-control").exists() {
        return skipped("a_loop_device_on_it_serves_kernels_before_6_12", "/dev/loop-control");
    }
    let (images, _, path) = serve(&stage, Answer::Later);
    let target = stage.path("erofs");
    let image = fs::File::open(&path).expect("open");
    let device = LoopDevice::attach_read_only(image.as_fd(), path.as_os_str()).expect("loop device");
    drop(image);
    erofs_on(device.path(), &target).expect("mount");
    drop(device);
    parallel_compare(&stage.tree(), &target, 4);
    unmount(&target);
    images.remove("layer.erofs").expect("the loop device has let go");
    images.close().expect("close");
}

#[test]
fn a_dead_mount_of_an_earlier_process_is_replaced() {
    let Some(stage) = Stage::new("a_dead_mount_of_an_earlier_process_is_replaced") else { return };
    let dir = stage.path("images");
    fs::create_dir(&dir).expect("mkdir");
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = std::ffi::CString::new(options).expect("no NUL");
    rustix::mount::mount("dead", &dir, "fuse", rustix::mount::MountFlags::empty(), options.as_c_str()).expect("mount");
    drop(device);
    assert!(fs::metadata(&dir).is_err());
    let (images, _, path) = serve(&stage, Answer::Ready);
    assert!(path.exists());
    assert_eq!(mounts_under(&dir).expect("mountinfo").len(), 1);
    images.close().expect("close");
}

#[test]
fn a_missing_range_is_an_io_error_and_heals() {
    let Some(stage) = Stage::new("a_missing_range_is_an_io_error_and_heals") else { return };
    let (images, backend, path) = serve(&stage, Answer::Later);
    let target = stage.path("erofs");
    erofs_on(&path, &target).expect("mount");
    backend.fail_from(stage.image_bytes() / 2);
    let big = target.join("big");
    let error = fs::read(&big).expect_err("half of the file cannot be had");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(backend.failures() > 0 && images.counters().failed > 0);
    backend.fail_from(u64::MAX);
    assert!(fs::read(&big).expect("read after repair") == fs::read(stage.tree().join("big")).expect("origin"));
    unmount(&target);
    images.close().expect("close");
}

#[test]
fn a_held_read_holds_up_nobody_else() {
    let Some(stage) = Stage::new("a_held_read_holds_up_nobody_else") else { return };
    let (images, held, _) = serve(&stage, Answer::Held);
    let other = images.add("other.erofs", image(TestBackend::new(&stage.image(), Answer::Ready))).expect("add");
    let slow: Vec<_> = (0..40_u64)
        .map(|number| {
            let path = images.dir().join("layer.erofs");
            stage.spawn(move || {
                let mut block = vec![0; 4096];
                fs::File::open(path).expect("open").read_exact_at(&mut block, number * 4096).expect("read");
                block
            })
        })
        .collect();
    run("the reads arrive", || held.held() == 40);
    assert_eq!(images.counters().waiting, 40);
    let target = stage.path("erofs");
    erofs_on(&other.path, &target).expect("mount while others wait");
    compare_trees(&stage.tree(), &target);
    unmount(&target);
    held.let_go();
    let image = fs::read(stage.image()).expect("image");
    for (number, reader) in slow.into_iter().enumerate() {
        assert!(reader.join().expect("reader") == image[number * 4096..(number + 1) * 4096]);
    }
    images.close().expect("close");
}

#[test]
fn an_unanswered_read_gets_eio_and_abort_never_hangs() {
    let Some(stage) = Stage::new("an_unanswered_read_gets_eio_and_abort_never_hangs") else { return };
    let (images, backend, path) = serve(&stage, Answer::Held);
    let read = |path: &Path| {
        let path = path.to_owned();
        stage.spawn(move || {
            fs::File::open(path).expect("open").read_exact_at(&mut [0; 4096], 0).map_err(|e| e.raw_os_error())
        })
    };
    let reader = read(&path);
    run("the read arrives", || backend.held() == 1);
    backend.forget_held();
    assert_eq!(reader.join().expect("reader"), Err(Some(5)));
    assert_eq!(images.counters().dropped, 1);

    let reader = read(&path);
    run("the read arrives", || backend.held() == 1);
    images.abort().expect("abort");
    assert!(reader.join().expect("reader").is_err());
    backend.let_go();
    assert!(!is_mountpoint(images.dir()).expect("mountinfo"));
}

#[test]
fn erofs_on_an_aborted_session_fails_and_can_be_unmounted() {
    let Some(stage) = Stage::new("erofs_on_an_aborted_session_fails_and_can_be_unmounted") else { return };
    let (images, _, path) = serve_with(&stage, Answer::Later, IMPATIENT);
    let target = stage.path("erofs");
    erofs_on(&path, &target).expect("mount");
    assert!(matches!(images.close(), Err(FuseError::Busy { .. })));
    assert!(matches!(images.remove("layer.erofs"), Err(FuseError::Busy { .. })));
    drop(images);
    assert!(fs::read(target.join("big")).is_err());
    unmount(&target);
    assert!(mounts_under(&stage.path("")).expect("mountinfo").is_empty());
}

/// Reads 64 KiB of the image itself, a request that the kernel waits for in the reader's own system call.
const READ_ONCE: &str = "
import ctypes, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(65536)
got = libc.read(os.open(sys.argv[1], os.O_RDONLY), buffer, 65536)
sys.exit(0 if got == 65536 else ctypes.get_errno())
";

fn read_once(image: &Path) -> std::process::Child {
    Command::new("python3").args(["-c", READ_ONCE]).arg(image).spawn().expect("python3")
}

#[test]
fn a_signal_ends_a_waiting_read_only_if_it_ends_the_reader() {
    let Some(stage) = Stage::new("a_signal_ends_a_waiting_read_only_if_it_ends_the_reader") else { return };
    let (images, backend, path) = serve(&stage, Answer::Held);
    let signal = |child: &std::process::Child, signal| {
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).expect("signal");
    };

    let mut reader = read_once(&path);
    run("the read arrives", || backend.held() == 1);
    signal(&reader, Signal::USR1);
    run("the signal is told", || images.counters().interrupted == 1);
    backend.answer(Answer::Ready);
    backend.let_go();
    assert_eq!(reader.wait().expect("wait").code(), Some(0), "a handled signal is no reason for EINTR");
    assert_eq!(images.counters().killed, 0);

    for deadly in [Signal::KILL, Signal::TERM] {
        let killed = images.counters().killed;
        backend.answer(Answer::Held);
        let reader = Mutex::new(read_once(&path));
        run("the read arrives", || backend.held() == 1);
        signal(&reader.lock().expect("lock"), deadly);
        run("the reader dies", || reader.lock().expect("lock").try_wait().expect("wait").is_some());
        assert_eq!(images.counters().killed, killed + 1);
        backend.forget_held();
    }

    // A handled signal first, then one that kills: the kernel tells of the first only.
    backend.answer(Answer::Held);
    let reader = Mutex::new(read_once(&path));
    run("the read arrives", || backend.held() == 1);
    let before = images.counters().interrupted;
    signal(&reader.lock().expect("lock"), Signal::USR1);
    run("the signal is told", || images.counters().interrupted > before);
    signal(&reader.lock().expect("lock"), Signal::KILL);
    run("the reader dies", || reader.lock().expect("lock").try_wait().expect("wait").is_some());
    backend.forget_held();
    run("nothing waits", || images.counters().waiting == 0);
    assert_eq!(images.counters().failed, 0);
    images.close().expect("close");
}

#[test]
fn a_waiting_reader_can_be_killed() {
    let Some(stage) = Stage::new("a_waiting_reader_can_be_killed") else { return };
    let (images, backend, path) = serve(&stage, Answer::Ready);
    let target = stage.path("erofs");
    erofs_on(&path, &target).expect("mount");
    fs::metadata(target.join("big")).expect("stat");
    backend.answer(Answer::Held);
    let mut reader = Command::new("cat").arg(target.join("big")).stdout(Stdio::null()).spawn().expect("cat");
    run("the read arrives", || backend.held() > 0);
    reader.kill().expect("kill");
    let reader = Mutex::new(reader);
    run("the reader dies", || reader.lock().expect("lock").try_wait().expect("wait").is_some());
    backend.answer(Answer::Ready);
    backend.let_go();
    assert!(fs::read(target.join("big")).expect("read") == fs::read(stage.tree().join("big")).expect("origin"));
    unmount(&target);
    images.close().expect("close");
    assert_eq!(images.counters().waiting, 0);
}

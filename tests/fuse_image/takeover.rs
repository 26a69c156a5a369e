//! A server that dies, and the next one. The dying one is a process of its own: this test program, started once more.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::mount::UnmountFlags;
use sociblk::frontend::fuse::holder::{Holder, HolderProgram};
use sociblk::frontend::fuse::{FuseError, FuseServer, FuseSession};
use sociblk::frontend::fuse_image::image;
use sociblk::sys::loop_device::LoopDevice;

use crate::backend::{Answer, TestBackend};
use crate::support::{Stage, parallel_compare, run, skipped};
use crate::{IMPATIENT, PATIENT, config, erofs_on, unmount};

const NAME: &str = "layer.erofs";
/// Tells the second process where to serve.
const STAGE: &str = "SOCIBLK_TEST_STAGE";

fn holder_at(dir: &Path) -> HolderProgram {
    let exe = env!("CARGO_BIN_EXE_sociblk").into();
    HolderProgram { exe, args: vec!["__hold".into()], socket: dir.join("holder.sock") }
}

/// What the second process does; in a usual run of all tests, nothing.
#[test]
fn a_server_in_a_process_of_its_own() {
    let Some(stage) = std::env::var_os(STAGE).map(PathBuf::from) else { return };
    let images = FuseServer::mount(&stage.join("images"), &config(PATIENT)).expect("FUSE mount");
    // One that is gone: its inode number must not come again.
    images.add("gone", image(TestBackend::new(&stage.join("image"), Answer::Ready))).expect("add");
    images.remove("gone").expect("remove");
    // Reads at the beginning are for mounting; all others are never answered.
    let backend = TestBackend::new(&stage.join("image"), Answer::Ready);
    let image = images.add(NAME, image(backend.clone())).expect("add");
    let _holder = Holder::start(&holder_at(&stage), None, images.connection()).expect("holder");
    let session = serde_json::to_string(&images.session()).expect("JSON");
    // Past the test runner, which begins a line of its own first.
    let mut out = std::io::stdout();
    writeln!(out, "\nserving {} {session}", image.inode).expect("stdout");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a word");
    backend.answer(Answer::Held);
    writeln!(out, "\nholding").expect("stdout");
    loop {
        std::thread::park();
    }
}

/// The second process.
struct Server {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    fn start(stage: &Stage) -> (Self, u64, FuseSession) {
        let exe = std::env::current_exe().expect("this program");
        let mut child = Command::new(exe)
            .args(["--exact", "takeover::a_server_in_a_process_of_its_own", "--nocapture"])
            .env(STAGE, stage.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let lines = BufReader::new(child.stdout.take().expect("pipe")).lines();
        let mut server = Self { child, lines };
        let line = server.wait_for("serving ");
        let (inode, session) = line.split_once(' ').expect("two words");
        (server, inode.parse().expect("number"), serde_json::from_str(session).expect("JSON"))
    }

    fn wait_for(&mut self, word: &str) -> String {
        let mut lines = self.lines.by_ref().map(|line| line.expect("text"));
        lines.find_map(|line| line.strip_prefix(word).map(str::to_owned)).expect("the second process said it")
    }

    fn hold(&mut self) {
        self.child.stdin.take().expect("pipe").write_all(b"hold\n").expect("write");
        self.wait_for("holding");
    }

    fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The mount of the dead server is in this namespace; that of a daemon would have gone with its own.
fn drop_mount(dir: &Path) {
    rustix::mount::unmount(dir, UnmountFlags::DETACH).expect("unmount");
}

fn take_over(stage: &Stage, mount: impl FnOnce(&Path, &Path)) {
    let (mut server, inode, session) = Server::start(stage);
    let (dir, target) = (stage.path("images"), stage.path("erofs"));
    mount(&dir.join(NAME), &target);
    server.hold();
    let big = target.join("big");
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let big = big.clone();
            stage.spawn(move || fs::read(big).expect("no reader sees an error"))
        })
        .collect();
    let waiting = format!("/sys/fs/fuse/connections/{}/waiting", session.device);
    if Path::new(&waiting).exists() {
        run("requests wait", || fs::read_to_string(&waiting).is_ok_and(|n| n.trim() != "0"));
    }
    server.kill();
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    drop_mount(&dir);

    let holder = Holder::connect(&holder_at(&stage.path("")).socket).expect("reachable").expect("there");
    let kept = holder.take().expect("the connection");
    let images = FuseServer::adopt(kept, &dir, &config(PATIENT), &session).expect("taken over");
    let backend = TestBackend::new(&stage.image(), Answer::Later);
    assert!(
        matches!(images.restore(NAME, 1, image(backend.clone())), Err(FuseError::Exists { .. })),
        "that is the root"
    );
    images.restore(NAME, inode, image(backend.clone())).expect("restore");
    assert!(matches!(images.restore("other", inode, image(backend.clone())), Err(FuseError::Exists { .. })));
    images.start().expect("start");
    for reader in readers {
        assert!(reader.join().expect("reader") == fs::read(stage.tree().join("big")).expect("origin"), "other bytes");
    }
    parallel_compare(&stage.tree(), &target, 4);
    let another = images.add("another", image(backend)).expect("add");
    assert!(another.inode > session.last_inode && another.inode > inode);
    assert!(fs::read(&another.path).expect("read") == fs::read(stage.image()).expect("image"));
    assert_eq!(images.counters().failed, 0);
    unmount(&target);
    images.remove(NAME).expect("its one user is gone");
    images.close().expect("close");
    holder.end().expect("the holder goes");
}

#[test]
fn erofs_on_a_file_outlives_its_server() {
    let Some(stage) = Stage::new("erofs_on_a_file_outlives_its_server") else { return };
    take_over(&stage, |image, target| erofs_on(image, target).expect("mount"));
}

#[test]
fn erofs_on_a_loop_device_outlives_its_server() {
    let Some(stage) = Stage::new("erofs_on_a_loop_device_outlives_its_server") else { return };
    if !Path::new("/dev/loop-control").exists() {
        return skipped("erofs_on_a_loop_device_outlives_its_server", "/dev/loop-control");
    }
    take_over(&stage, |path, target| {
        let image = fs::File::open(path).expect("open");
        let device = LoopDevice::attach_read_only(image.as_fd(), path.as_os_str()).expect("loop device");
        erofs_on(device.path(), target).expect("mount");
    });
}

#[test]
fn what_is_not_the_connection_is_not_taken_over() {
    let Some(stage) = Stage::new("what_is_not_the_connection_is_not_taken_over") else { return };
    let (server, inode, session) = Server::start(&stage);
    let (dir, target) = (stage.path("images"), stage.path("erofs"));
    erofs_on(&dir.join(NAME), &target).expect("mount");
    server.kill();
    drop_mount(&dir);
    let holder = Holder::connect(&holder_at(&stage.path("")).socket).expect("reachable").expect("there");
    let take = || holder.take().expect("the connection");
    let adopt = |connection, session: &FuseSession| FuseServer::adopt(connection, &dir, &config(IMPATIENT), session);
    let other = FuseSession { device: session.device + 1, ..session };
    // Whoever gets hold of the wrong one cuts it: its readers must not wait for good.
    assert!(matches!(adopt(take(), &other), Err(FuseError::OtherConnection)));
    unmount(&target);
    // Now nobody has it in use.
    run("the kernel lets go", || matches!(adopt(take(), &session), Err(FuseError::Gone)));
    holder.end().expect("the holder goes");
    assert!(Holder::connect(&holder_at(&stage.path("")).socket).expect("no error").is_none());
    // Device numbers come again; inode numbers do not, so that no image is ever taken for another one's.
    let images = FuseServer::mount(&dir, &config(IMPATIENT)).expect("FUSE mount");
    let image = images.add(NAME, image(TestBackend::new(&stage.image(), Answer::Ready))).expect("add");
    assert!(image.inode.abs_diff(inode) > 1 << 16, "{} {inode}", image.inode);
    images.close().expect("close");
}

#[test]
fn a_server_that_leaves_answers_nobody_with_an_error() {
    let Some(stage) = Stage::new("a_server_that_leaves_answers_nobody_with_an_error") else { return };
    let images = FuseServer::mount(&stage.path("images"), &config(IMPATIENT)).expect("FUSE mount");
    let backend = TestBackend::new(&stage.image(), Answer::Held);
    let image = images.add(NAME, image(Arc::clone(&backend) as _)).expect("add");
    let path = image.path;
    let reader = stage.spawn(move || fs::read(path).is_ok());
    run("the read arrives", || backend.held() > 0);
    images.leave();
    backend.forget_held();
    assert_eq!((images.counters().dropped, backend.failures()), (0, 0));
    assert!(!reader.is_finished());
    // Nobody follows here: cut.
    rustix::mount::unmount(images.dir(), UnmountFlags::FORCE | UnmountFlags::DETACH).expect("unmount");
    assert!(!reader.join().expect("reader"));
}

//! A root directory, the binary, a registry to speak to, and the certainty that nothing stays behind.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use sociblk::mount::mounts_under;
use sociblk::sys::namespace::detach_own;

/// Long enough for a machine that is ten times slower; only a failure waits for so long.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at something that will change.
const PAUSE: Duration = Duration::from_millis(20);

/// One place to mount in: a root directory of its own, in a mount namespace of the test's own thread.
pub struct Host {
    dir: tempfile::TempDir,
    root: PathBuf,
    /// Arguments of every command.
    global: Vec<String>,
}

impl Host {
    /// `None`, after a word about it, when the machine lacks something.
    pub fn new(test: &str) -> Option<Self> {
        if let Some(missing) = missing() {
            skipped(test, &missing);
            return None;
        }
        detach_own().expect("a mount namespace of our own");
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().join("root");
        let host = Self { dir, root, global: Vec::new() };
        fs::write(host.path("config.toml"), "").expect("config");
        host.dir("home");
        Some(host)
    }

    /// Settings for every command from now on; before the daemon starts.
    pub fn config(&self, toml: &str) {
        fs::write(self.path("config.toml"), toml).expect("config");
    }

    /// Another root directory.
    pub fn set_root(&mut self, root: PathBuf) {
        self.root = root;
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory, made if need be.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        match fs::create_dir_all(&dir) {
            // Also when a dead file system lies there.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.expect("directory"),
        }
        dir
    }

    /// The binary with this root and nothing of the user's settings.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_sociblk")), args)
    }

    /// The same with another copy of the binary.
    pub fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        // Whoever runs the tests in the background of a shell has us, and all that we start, ignore Ctrl-C.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(program);
        command.arg("--root").arg(&self.root).arg("--config").arg(self.path("config.toml"));
        command.args(&self.global).args(args);
        command.env("HOME", self.path("home")).env("DOCKER_CONFIG", self.path("home"));
        command.env_remove("SOCIBLK_ROOT").env_remove("SOCIBLK_CONFIG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a command that may take a while, in a process group of its own.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args))
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        self.start(args).end()
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> Answer {
        let answer = self.run(args);
        assert!(answer.success, "sociblk {args:?}: {}\n{}", answer.stderr, self.log());
        answer
    }

    /// Runs a command that must fail with status 1 and one line that holds all of `words`.
    pub fn fails(&self, args: &[&str], words: &[&str]) -> String {
        let answer = self.run(args);
        assert!(!answer.success, "sociblk {args:?} should have failed: {}", answer.stdout);
        assert_eq!(answer.code, Some(1), "sociblk {args:?}: {}", answer.stderr);
        assert_eq!(answer.stderr.trim_end().lines().count(), 1, "one line: {}", answer.stderr);
        for word in words {
            assert!(answer.stderr.contains(word), "sociblk {args:?}: {word:?} is not in {:?}", answer.stderr);
        }
        answer.stderr
    }

    /// Mounts on `name` under the temporary directory, over the frontend of this suite; returns the mount point and the report.
    pub fn mount(&self, image: &str, name: &str) -> (PathBuf, Value) {
        self.mount_with(image, name, &[])
    }

    pub fn mount_with(&self, image: &str, name: &str, more: &[&str]) -> (PathBuf, Value) {
        let dir = self.dir(name);
        let mut args = vec!["mount", image, utf8(&dir), "--frontend", crate::FRONTEND, "--json"];
        args.extend(more);
        (dir.clone(), self.ok(&args).json())
    }

    /// Files that a test had open may stay so for a moment: a process that another test starts has them until its exec.
    pub fn umount(&self, dir: &Path) {
        wait_until("an unmount", || {
            let answer = self.run(&["umount", utf8(dir)]);
            assert!(answer.success || answer.stderr.contains("is in use"), "{}\n{}", answer.stderr, self.log());
            answer.success
        });
    }

    pub fn ls(&self) -> Value {
        self.ok(&["ls", "--json"]).json()
    }

    /// How many readers wait for bytes of the first layer.
    pub fn waiting_readers(&self) -> u64 {
        self.ls()["layers"][0]["waiting_readers"].as_u64().unwrap_or(0)
    }

    /// The process id of this root's daemon.
    pub fn daemon(&self) -> Option<Pid> {
        let answer = self.run(&["daemon", "status"]);
        let pid = answer.stdout.strip_prefix("running: pid ")?.split(',').next()?.parse().ok()?;
        Pid::from_raw(pid)
    }

    /// Kills the daemon without a chance to clean up.
    pub fn kill_daemon(&self) {
        let pid = self.daemon().expect("a daemon runs");
        let handle = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd");
        kill_process(pid, Signal::KILL).expect("kill");
        assert!(ended(&handle, PATIENCE), "the daemon does not die");
    }

    /// Starts the next daemon, as systemd would, and waits until it answers.
    pub fn next_daemon(&self) -> Running {
        self.next_daemon_as(&["-v", "daemon", "run"])
    }

    /// The same by another command.
    pub fn next_daemon_as(&self, args: &[&str]) -> Running {
        fs::create_dir_all(&self.root).expect("root");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("daemon.log")).expect("log");
        let mut command = self.command(args);
        let running = Running(Some(command.process_group(0).stderr(log).spawn().expect("sociblk starts")));
        wait_until("the next daemon answers", || self.daemon().is_some());
        running
    }

    /// The process that keeps the FUSE connection of this root.
    pub fn holder(&self) -> Option<Pid> {
        let socket = self.root.join("run").join(crate::HOLDER_SOCKET);
        fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
            let ours = words.get(1) == Some(&&b"__hold"[..]) && words.get(2) == Some(&utf8(&socket).as_bytes());
            Pid::from_raw(pid).filter(|_| ours)
        })
    }

    pub fn kill_holder(&self) {
        let holder = self.holder().expect("a holder");
        kill_process(holder, Signal::KILL).expect("kill");
        wait_until("the holder dies", || self.holder() != Some(holder));
    }

    /// Fails unless nothing of a daemon is left.
    pub fn assert_no_trace(&self) {
        assert_eq!((self.daemon(), self.holder()), (None, None));
        assert!(self.mounts().is_empty(), "{:?}", self.mounts());
        for socket in [Path::new(crate::HOLDER_SOCKET), &Path::new(crate::HOLDER_SOCKET).with_extension("new")] {
            assert!(!self.root.join("run").join(socket).exists(), "{}", socket.display());
        }
        let findings = self.run(&["doctor", "--json"]).json();
        for finding in findings.as_array().expect("findings") {
            let left = finding["name"].as_str().is_some_and(|name| name.starts_with("leftover"));
            assert!(!left || finding["state"] == "ok", "{finding}");
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("daemon.log")).unwrap_or_default()
    }

    /// Mount points under the temporary directory that this thread sees.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let under = mounts_under(self.dir.path()).expect("mountinfo");
        under.into_iter().map(|m| m.mount_point).filter(|m| !m.ends_with("small-disk")).collect()
    }

    /// Fails unless nothing is mounted and served.
    pub fn assert_clean(&self) {
        wait_until("all mounts are gone", || self.mounts().is_empty());
        let listing = self.ls();
        assert_eq!(listing["mounts"], Value::Array(Vec::new()), "{listing}");
        assert_eq!(listing["layers"], Value::Array(Vec::new()), "{listing}");
    }

    /// What `doctor` finds left over.
    pub fn leftovers(&self) -> String {
        let findings = self.run(&["doctor", "--json"]).json();
        let findings = findings.as_array().expect("findings");
        let of = |name: &str| findings.iter().find(|f| f["name"] == name).map(|f| f["detail"].to_string());
        of("leftover mounts").unwrap_or_else(|| panic!("no such finding in {findings:?}"))
    }

    pub fn stop_daemon(&self) {
        self.ok(&["daemon", "stop"]);
        assert!(!self.root.join("run/control.sock").exists());
    }

    fn end_daemon(&self) {
        let Some(pid) = self.daemon() else { return };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        let _ = self.run(&["daemon", "stop"]);
        if !ended(&handle, Duration::from_secs(30)) {
            let _ = kill_process(pid, Signal::KILL);
            ended(&handle, Duration::from_secs(30));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut out = std::io::stderr();
            let _ = writeln!(out, "--- daemon.log of the failed test\n{}---", self.log());
        }
        self.end_daemon();
        if let Some(holder) = self.holder() {
            let _ = kill_process(holder, Signal::KILL);
        }
        for mount in mounts_under(self.dir.path()).unwrap_or_default().iter().rev() {
            let _ = rustix::mount::unmount(&mount.mount_point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A command on its way. Killed when dropped.
pub struct Running(Option<Child>);

impl Running {
    pub fn start(mut command: Command) -> Self {
        Self(Some(command.process_group(0).spawn().expect("sociblk starts")))
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.0.as_ref().expect("running");
        kill_process(Pid::from_child(child), signal).expect("kill");
    }

    pub fn end(mut self) -> Answer {
        let child = self.0.take().expect("running");
        let pid = Pid::from_child(&child);
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            // Nobody may be there any more.
            let _ = sender.send(child.wait_with_output());
        });
        match done.recv_timeout(PATIENCE) {
            Ok(out) => Answer::of(&out.expect("output")),
            Err(_) => {
                let _ = kill_process(pid, Signal::KILL);
                panic!("a command takes longer than {PATIENCE:?}");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a command left.
pub struct Answer {
    pub success: bool,
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    fn of(out: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            success: out.status.success(),
            code: out.status.code(),
            stdout: text(&out.stdout),
            stderr: text(&out.stderr),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {} {}", self.stdout, self.stderr))
    }
}

/// A read that may have to wait, on a thread of its own.
pub struct Reading(mpsc::Receiver<std::io::Result<Vec<u8>>>);

impl Reading {
    pub fn of(path: PathBuf) -> Self {
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(fs::read(path));
        });
        Self(done)
    }

    pub fn is_waiting(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }

    pub fn end(self) -> std::io::Result<Vec<u8>> {
        self.0.recv_timeout(PATIENCE).expect("the read ends")
    }
}

/// Fails when `seen` does not come true in time.
pub fn wait_until(what: &str, mut seen: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !seen() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

fn ended(process: &std::os::fd::OwnedFd, patience: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).is_ok_and(|n| n == 1)
}

/// Says so on standard error, past the test runner's capture.
pub fn skipped(test: &str, missing: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {test}: {missing}").expect("stderr");
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("/dev/fuse".to_owned());
    }
    for file_system in ["erofs", "overlay"] {
        // A module that is not loaded yet is not listed; where there are no modules modprobe fails, which is fine.
        let _ = Command::new("modprobe").arg(file_system).output();
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !known.lines().any(|line| line.split_whitespace().last() == Some(file_system)) {
            return Some(format!("{file_system} in the kernel"));
        }
    }
    None
}

pub fn utf8(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

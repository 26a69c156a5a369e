//! Runs the helper process and bounds its time.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::helper::{Event, Request, Task};
use super::ops::Undo;
use super::{MountEntry, MountError, MountInfoError, MountOp, mounts, mounts_in};

/// How long a killed helper may take to die, and an undo to be done.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How much of the helper's standard error is kept for an error message.
const STDERR_BYTES: usize = 2048;

/// Has [`MountOp`]s done by a short-lived process, so that this one never waits inside mount(2) for I/O that it has to
/// do itself.
#[derive(Debug)]
pub struct MountHelper {
    exe: PathBuf,
    args: Vec<OsString>,
    namespace: Option<OwnedFd>,
}

impl MountHelper {
    /// `exe` with `args` must call [`helper::run`](super::helper::run) with its standard input and output. Mounts
    /// appear in `namespace` (from [`leave_host_namespace`](super::leave_host_namespace)), or in that of the caller.
    #[must_use]
    pub fn new(exe: impl Into<PathBuf>, args: &[&str], namespace: Option<OwnedFd>) -> Self {
        Self { exe: exe.into(), args: args.iter().map(OsString::from).collect(), namespace }
    }

    /// Does all of `ops` or none, within `timeout`. Blocks: not for async threads, and not for threads that serve what
    /// is to be mounted.
    ///
    /// # Errors
    /// What [`execute`](super::execute) returns; [`MountError::TimedOut`]; [`MountError::Helper`] when the process
    /// cannot be started or dies. In each case what was done has been undone, or the error says that it could not be.
    pub fn run(&self, ops: &[MountOp], timeout: Duration) -> Result<(), MountError> {
        let outcome = self.talk(Task::Execute(ops.to_vec()), timeout)?;
        let error = match outcome.ending {
            Ending::Done(result) => return result,
            Ending::Died(reason) => MountError::Helper { reason },
            Ending::TimedOut { dead } => {
                let undone = dead && self.undo(&outcome.announced).is_ok();
                let limit_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                return Err(MountError::TimedOut { limit_ms, undone });
            }
        };
        self.undo(&outcome.announced)?;
        Err(error)
    }

    /// What is mounted where this helper mounts. Waits for no file system.
    ///
    /// # Errors
    /// [`MountInfoError`].
    pub fn mounts(&self) -> Result<Vec<MountEntry>, MountInfoError> {
        match &self.namespace {
            Some(namespace) => mounts_in(namespace.as_fd()),
            None => mounts(),
        }
    }

    fn undo(&self, steps: &[Undo]) -> Result<(), MountError> {
        if steps.is_empty() {
            return Ok(());
        }
        match self.talk(Task::Undo(steps.to_vec()), LAST_PATIENCE)?.ending {
            Ending::Done(result) => result,
            Ending::Died(reason) => Err(MountError::Helper { reason }),
            Ending::TimedOut { .. } => Err(MountError::Helper { reason: "undoing took too long".to_owned() }),
        }
    }

    fn talk(&self, task: Task, timeout: Duration) -> Result<Outcome, MountError> {
        let broken =
            |what: &str, error: &dyn std::fmt::Display| MountError::Helper { reason: format!("{what}: {error}") };
        let namespace =
            self.namespace.as_ref().map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into());
        let request =
            serde_json::to_vec(&Request { namespace, task }).map_err(|error| broken("encoding the request", &error))?;
        let child = Command::new(&self.exe)
            .arg0("sociblk")
            .args(&self.args)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| broken(&format!("cannot start {}", self.exe.display()), &error))?;
        let mut conversation = Conversation::new(child, request).map_err(|error| broken("its pipes", &error))?;
        let finished = conversation.run_until(Instant::now() + timeout);
        Ok(conversation.end(finished))
    }
}

struct Outcome {
    announced: Vec<Undo>,
    ending: Ending,
}

enum Ending {
    Done(Result<(), MountError>),
    Died(String),
    TimedOut { dead: bool },
}

/// The pipes of a running helper.
struct Conversation {
    child: Child,
    request: Vec<u8>,
    sent_bytes: usize,
    answer: Vec<u8>,
    complaint: Vec<u8>,
}

impl Conversation {
    fn new(mut child: Child, request: Vec<u8>) -> io::Result<Self> {
        let nonblocking = |fd: &dyn AsFd| rustix::io::ioctl_fionbio(fd, true);
        let made = match (&child.stdin, &child.stdout, &child.stderr) {
            (Some(stdin), Some(stdout), Some(stderr)) => nonblocking(&stdin.as_fd())
                .and_then(|()| nonblocking(&stdout.as_fd()))
                .and_then(|()| nonblocking(&stderr.as_fd()))
                .map_err(io::Error::from),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if let Err(error) = made {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(Self { child, request, sent_bytes: 0, answer: Vec::new(), complaint: Vec::new() })
    }

    /// Sends and receives until the helper closes its output. `false` when the time is up first.
    fn run_until(&mut self, deadline: Instant) -> bool {
        loop {
            self.send();
            let mut waits: Vec<PollFd<'_>> = Vec::with_capacity(3);
            let Some(stdout) = &self.child.stdout else { return true };
            waits.push(PollFd::new(stdout, PollFlags::IN));
            if let Some(stderr) = &self.child.stderr {
                waits.push(PollFd::new(stderr, PollFlags::IN));
            }
            if let Some(stdin) = &self.child.stdin {
                waits.push(PollFd::new(stdin, PollFlags::OUT));
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            let left = rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            // An error here (EINTR) only means another round.
            let _ = poll(&mut waits, Some(&left));
            self.receive();
        }
    }

    fn send(&mut self) {
        let Some(stdin) = &mut self.child.stdin else { return };
        let rest = self.request.get(self.sent_bytes..).unwrap_or_default();
        match stdin.write(rest) {
            Ok(count) => self.sent_bytes += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            // A helper that is gone says so by closing its output.
            Err(_) => self.sent_bytes = self.request.len(),
        }
        if self.sent_bytes >= self.request.len() {
            // The end of the request is the end of the helper's input.
            self.child.stdin = None;
        }
    }

    fn receive(&mut self) {
        if let Some(stdout) = &mut self.child.stdout
            && drain(stdout, &mut self.answer)
        {
            self.child.stdout = None;
        }
        if let Some(stderr) = &mut self.child.stderr
            && drain(stderr, &mut self.complaint)
        {
            self.child.stderr = None;
        }
        self.complaint.truncate(STDERR_BYTES);
    }

    /// Sees the helper off and reads its events.
    fn end(mut self, finished: bool) -> Outcome {
        if !finished {
            let _ = self.child.kill();
        }
        // Also of a helper that closed its output the end is awaited, so that no zombie stays.
        let dead = self.await_death(Instant::now() + LAST_PATIENCE);
        self.receive();
        let (announced, result) = parse_events(&self.answer);
        let ending = match result {
            Some(result) => Ending::Done(result),
            None if !finished => Ending::TimedOut { dead },
            None => {
                Ending::Died(format!("it ended without a result: {}", String::from_utf8_lossy(&self.complaint).trim()))
            }
        };
        if !dead {
            // Stuck in the kernel: it dies as soon as it gets out of there.
            let mut child = self.child;
            let _ = std::thread::Builder::new().name("mount-reaper".into()).spawn(move || child.wait());
        }
        Outcome { announced, ending }
    }

    fn await_death(&mut self, deadline: Instant) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            return matches!(self.child.try_wait(), Ok(Some(_)));
        };
        loop {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            let left = rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
        }
    }
}

/// Reads what is there. `true` at the end of the stream.
fn drain(from: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => into.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// Reads the events; anything else on a line (such as what a wrapper prints) is passed over, and so is a line that a
/// killed helper left unfinished.
fn parse_events(answer: &[u8]) -> (Vec<Undo>, Option<Result<(), MountError>>) {
    let mut announced = Vec::new();
    let mut result = None;
    for line in answer.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Event::Will(undo)) => announced.push(undo),
            Ok(Event::Done(done)) => result = Some(done),
            Err(_) => {}
        }
    }
    (announced, result)
}

//! The command line's side of the control socket: find the daemon or start it, ask, pass progress on.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::paths::Paths;
use super::protocol::{
    CONFIRMATION, Envelope, MountOrder, MountReport, Outcome, PROTOCOL_VERSION, Progress, Reply, Request,
};
use crate::sys::process::OWN_PROGRAM;

/// Longest log of a daemon that was started on demand that the next one goes on writing.
const LOG_BYTES: u64 = 8 << 20;

/// Why the daemon could not be asked, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon runs for this root.
    #[error("no sociblk daemon runs for {root}: nothing is mounted there; `sociblk doctor` finds what a dead one left")]
    NotRunning {
        /// The root.
        root: PathBuf,
    },
    /// The daemon did not come up.
    #[error("the daemon did not start: {reason}")]
    Start {
        /// What it said, or how it ended.
        reason: String,
    },
    /// The socket is not for this user.
    #[error("{socket}: only root may talk to the daemon; try `sudo sociblk ...`")]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket broke.
    #[error("talking to the daemon at {socket}: {source}; see {log} for what became of it")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// The daemon's log file.
        log: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon hung up without an answer.
    #[error("the daemon ended before it answered; {log} says why")]
    Ended {
        /// The daemon's log file.
        log: PathBuf,
    },
    /// The answer was no answer.
    #[error("the daemon's answer could not be understood ({reason}); is it of another version? restart it")]
    Protocol {
        /// What was wrong.
        reason: String,
    },
    /// The daemon said no.
    #[error("{message}")]
    Refused {
        /// The daemon's words.
        message: String,
    },
}

/// Environment variable with the registry user of a command.
pub const USER_VARIABLE: &str = "SOCIBLK_REGISTRY_USER";
/// Environment variable with that user's password.
pub const PASSWORD_VARIABLE: &str = "SOCIBLK_REGISTRY_PASSWORD";

/// Extra arguments for a daemon that is started on demand.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// Arguments placed before `daemon run`.
    pub global_args: Vec<String>,
}

/// Seconds without a mount after which a daemon that was started on demand ends. Long enough to serve a script that
/// mounts one image after another, short enough that nobody finds it the next day.
const ON_DEMAND_IDLE_EXIT_S: u64 = 20;

/// A mount that the daemon has made. Dropping it undoes the mount, and so does the end of this process.
#[must_use]
pub struct Unconfirmed {
    /// What the daemon says of it.
    pub report: MountReport,
    conversation: Conversation,
}

impl Unconfirmed {
    /// Keeps the mount.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn confirm(mut self) -> Result<MountReport, ClientError> {
        self.conversation.send(&[CONFIRMATION])?;
        Ok(self.report)
    }

    /// Undoes the mount, lazily where it is in use, and waits until that is done.
    ///
    /// # Errors
    /// What the daemon says.
    pub fn undo(mut self) -> Result<(), ClientError> {
        self.conversation.hang_up()?;
        self.conversation.answer(&mut |_| {}).map(drop)
    }
}

/// Asks the daemon of `paths`; starts none.
///
/// # Errors
/// [`ClientError::NotRunning`] when nobody listens; else what went wrong or what the daemon refused.
pub fn ask(paths: &Paths, request: Request, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, ClientError> {
    let mut conversation = Conversation::open(paths)?;
    conversation.ask(&request)?;
    conversation.answer(progress)
}

/// Has the daemon of `paths` make a mount, starting it first where none runs.
///
/// # Errors
/// As [`ask`], and [`ClientError::Start`].
pub fn mount(
    paths: &Paths,
    options: &StartOptions,
    order: MountOrder,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unconfirmed, ClientError> {
    let request = Request::Mount(Box::new(order));
    let mut again = true;
    loop {
        let mut conversation = match Conversation::open(paths) {
            Err(ClientError::NotRunning { .. }) => {
                let started = start_daemon(paths, options);
                match Conversation::open(paths) {
                    // Somebody else's daemon may have been quicker than ours.
                    Ok(conversation) => conversation,
                    Err(error) => return Err(started.err().unwrap_or(error)),
                }
            }
            opened => opened?,
        };
        let mut silent = true;
        let mut heard = |step| {
            silent = false;
            progress(step);
        };
        let answer = conversation.ask(&request).and_then(|()| conversation.answer(&mut heard));
        match answer {
            // A daemon that was just ending because it had nothing to do.
            Err(ClientError::Ended { .. }) if silent && again => again = false,
            Ok(Outcome::Mounted(report)) => return Ok(Unconfirmed { report, conversation }),
            Ok(_) => return Err(ClientError::Protocol { reason: "not what was asked for".to_owned() }),
            Err(error) => return Err(error),
        }
    }
}

/// Has the daemon undo all mounts and end, and waits until its process is gone.
///
/// # Errors
/// As [`ask`].
pub fn stop(paths: &Paths) -> Result<(), ClientError> {
    let process = match ask(paths, Request::Ping, &mut |_| {})? {
        Outcome::Pong { pid, .. } => i32::try_from(pid).ok().and_then(Pid::from_raw),
        _ => None,
    };
    let handle = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let answer = ask(paths, Request::Stop, &mut |_| {});
    if let Some(handle) = handle {
        // Whoever starts the next daemon right away need not wait for this one. No error worth telling: it was told to
        // end, and what it could not undo is in its answer.
        let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&STOP_LIMIT));
    }
    answer.map(drop)
}

/// How long an ending daemon is waited for.
const STOP_LIMIT: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// A connection to the daemon.
struct Conversation {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
    log: PathBuf,
}

impl Conversation {
    fn open(paths: &Paths) -> Result<Self, ClientError> {
        let (socket, log) = (paths.control_socket(), paths.daemon_log());
        match UnixStream::connect(&socket) {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream), socket, log }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Err(ClientError::NotRunning { root: paths.root().to_owned() })
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(ClientError::NotPermitted { socket }),
            Err(source) => Err(ClientError::Io { socket, log, source }),
        }
    }

    fn error(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                ClientError::Ended { log: self.log.clone() }
            }
            _ => ClientError::Io { socket: self.socket.clone(), log: self.log.clone(), source },
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.stream.get_mut().write_all(bytes).map_err(|e| self.error(e))
    }

    fn hang_up(&mut self) -> Result<(), ClientError> {
        self.stream.get_mut().shutdown(Shutdown::Write).map_err(|e| self.error(e))
    }

    fn ask(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(&Envelope { version: PROTOCOL_VERSION, request })
            .map_err(|e| ClientError::Protocol { reason: e.to_string() })?;
        line.push(b'\n');
        self.send(&line)
    }

    fn answer(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, ClientError> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).map_err(|e| self.error(e))? == 0 {
                return Err(self.error(io::ErrorKind::UnexpectedEof.into()));
            }
            match serde_json::from_str(&line).map_err(|e| ClientError::Protocol { reason: e.to_string() })? {
                Reply::Progress(p) => progress(p),
                Reply::Done(outcome) => return Ok(*outcome),
                Reply::Failed { message } => return Err(ClientError::Refused { message }),
            }
        }
    }
}

/// Starts `sociblk daemon run` for this root and waits until it says on its standard output that it is ready.
fn start_daemon(paths: &Paths, options: &StartOptions) -> Result<(), ClientError> {
    let failed = |what: &str, e: &dyn std::fmt::Display| ClientError::Start { reason: format!("{what}: {e}") };
    std::fs::create_dir_all(paths.root()).map_err(|e| failed(&paths.root().display().to_string(), &e))?;
    let log =
        open_log(&paths.daemon_log(), LOG_BYTES).map_err(|e| failed(&paths.daemon_log().display().to_string(), &e))?;
    let mut child = Command::new(OWN_PROGRAM)
        .arg0("sociblk")
        .arg("--root")
        .arg(paths.root())
        .args(&options.global_args)
        .args(["daemon", "run", "--idle-exit", &ON_DEMAND_IDLE_EXIT_S.to_string()])
        .current_dir("/")
        // They are this command's; the daemon is told them with the request.
        .env_remove(USER_VARIABLE)
        .env_remove(PASSWORD_VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| failed(OWN_PROGRAM, &e))?;
    let Some(stdout) = child.stdout.take() else {
        return Err(ClientError::Start { reason: "no pipe to the daemon".to_owned() });
    };
    let mut first = String::new();
    BufReader::new(stdout).read_line(&mut first).map_err(|e| failed("waiting for the daemon", &e))?;
    match first.trim() {
        super::daemon::READY_LINE => Ok(()),
        "" => {
            let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
            Err(ClientError::Start { reason: format!("{} ({status})", last_words(&paths.daemon_log())) })
        }
        said => Err(ClientError::Start { reason: said.to_owned() }),
    }
}

/// Opens a log to go on with. One longer than `limit_bytes` is set aside first, with `.old` behind its name, in the place of the
/// one before.
fn open_log(path: &Path, limit_bytes: u64) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > limit_bytes) {
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        std::fs::rename(path, old)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The last line of the log: what a daemon said that ended at once.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
    last.strip_prefix("sociblk: ").unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_set_aside_and_a_short_one_goes_on() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("daemon.log");
        let say = |words: &str| open_log(&path, 10).expect("opens").write_all(words.as_bytes()).expect("written");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        say("first,");
        say("second");
        assert_eq!((read("daemon.log"), read("daemon.log.old")), ("first,second".into(), String::new()));
        say("third");
        assert_eq!((read("daemon.log"), read("daemon.log.old")), ("third".into(), "first,second".into()));
        say("fourth");
        say("fifth");
        assert_eq!((read("daemon.log"), read("daemon.log.old")), ("fifth".into(), "thirdfourth".into()));
    }
}

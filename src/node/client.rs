//! The command line's side of the control socket: find the daemon or start it, ask, pass progress on.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::paths::Paths;
use super::protocol::{Envelope, Outcome, PROTOCOL_VERSION, Progress, Reply, Request};

/// Why the daemon could not be asked, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon runs for this root.
    #[error("no sociblk daemon runs for {root}; `sociblk mount` starts one")]
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

/// Extra arguments for a daemon that is started on demand.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// Arguments placed before `daemon run`.
    pub global_args: Vec<String>,
}

/// Seconds without a mount after which a daemon that was started on demand ends. Long enough to serve a script that
/// mounts one image after another, short enough that nobody finds it the next day.
const ON_DEMAND_IDLE_EXIT_S: u64 = 20;

/// Asks the daemon of `paths`; starts none.
///
/// # Errors
/// [`ClientError::NotRunning`] when nobody listens; else what went wrong or what the daemon refused.
pub fn ask(paths: &Paths, request: Request, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, ClientError> {
    let stream = UnixStream::connect(paths.control_socket())
        .map_err(|_| ClientError::NotRunning { root: paths.root().to_owned() })?;
    converse(paths, stream, request, progress)
}

/// Asks the daemon of `paths`, starting it first where none runs.
///
/// # Errors
/// As [`ask`], and [`ClientError::Start`].
pub fn ask_or_start(
    paths: &Paths,
    options: &StartOptions,
    request: Request,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, ClientError> {
    let stream = match UnixStream::connect(paths.control_socket()) {
        Ok(stream) => stream,
        Err(_) => match start_daemon(paths, options) {
            Ok(()) => UnixStream::connect(paths.control_socket()).map_err(|source| io_error(paths, source))?,
            // Somebody else may have been faster.
            Err(error) => UnixStream::connect(paths.control_socket()).map_err(|_| error)?,
        },
    };
    converse(paths, stream, request, progress)
}

fn io_error(paths: &Paths, source: io::Error) -> ClientError {
    ClientError::Io { socket: paths.control_socket(), log: paths.daemon_log(), source }
}

fn converse(
    paths: &Paths,
    mut stream: UnixStream,
    request: Request,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, ClientError> {
    let mut line = serde_json::to_vec(&Envelope { version: PROTOCOL_VERSION, request })
        .map_err(|e| ClientError::Protocol { reason: e.to_string() })?;
    line.push(b'\n');
    stream.write_all(&line).map_err(|source| io_error(paths, source))?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|source| io_error(paths, source))?;
        match serde_json::from_str(&line).map_err(|e| ClientError::Protocol { reason: e.to_string() })? {
            Reply::Progress(p) => progress(p),
            Reply::Done(outcome) => return Ok(*outcome),
            Reply::Failed { message } => return Err(ClientError::Refused { message }),
        }
    }
    Err(io_error(paths, io::ErrorKind::UnexpectedEof.into()))
}

/// Starts `sociblk daemon run` for this root and waits until it says on its standard output that it is ready.
fn start_daemon(paths: &Paths, options: &StartOptions) -> Result<(), ClientError> {
    let failed = |what: &str, e: &dyn std::fmt::Display| ClientError::Start { reason: format!("{what}: {e}") };
    std::fs::create_dir_all(paths.root()).map_err(|e| failed(&paths.root().display().to_string(), &e))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(paths.daemon_log())
        .map_err(|e| failed(&paths.daemon_log().display().to_string(), &e))?;
    let exe = std::env::current_exe().map_err(|e| failed("finding the sociblk binary", &e))?;
    let mut child = Command::new(&exe)
        .arg("--root")
        .arg(paths.root())
        .args(&options.global_args)
        .args(["daemon", "run", "--idle-exit", &ON_DEMAND_IDLE_EXIT_S.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| failed(&exe.display().to_string(), &e))?;
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

/// The last line of the log: what a daemon said that ended at once.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

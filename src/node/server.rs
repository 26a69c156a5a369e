//! The daemon's side of the control socket.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use super::paths::Paths;
use super::protocol::{CONFIRMATION, Envelope, MountOrder, Outcome, PROTOCOL_VERSION, Progress, Reply, Request};
use super::{Node, one_line};

/// Longest request line. A request is a few paths and names.
const MAX_REQUEST_BYTES: u64 = 1 << 20;

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon answers on it.
    #[error("another sociblk daemon already serves {socket}")]
    Taken {
        /// The socket.
        socket: PathBuf,
    },
    /// Binding failed.
    #[error("control socket {socket}: {source}")]
    Bind {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The right to be the daemon of a root, held until dropped. Waits while another daemon is on its way in or out.
///
/// # Errors
/// [`ServerError::Taken`] as soon as another daemon answers; [`ServerError::Bind`] when the lock cannot be had.
pub async fn take_root(paths: &Paths) -> Result<File, ServerError> {
    const LIMIT: Duration = Duration::from_secs(60);
    const PAUSE: Duration = Duration::from_millis(20);
    let (socket, path) = (paths.control_socket(), paths.daemon_lock());
    let failed = |source| ServerError::Bind { socket: path.clone(), source };
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    let started = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if answers(&socket).await || started.elapsed() > LIMIT => {
                return Err(ServerError::Taken { socket });
            }
            Err(Errno::WOULDBLOCK) => tokio::time::sleep(PAUSE).await,
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// Whether a daemon answers. One that is being killed has its socket and its lock for some moments more, and says
/// nothing: to take it for alive would leave its readers to nobody.
async fn answers(socket: &Path) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut line = serde_json::to_vec(&Envelope { version: PROTOCOL_VERSION, request: Request::Ping })?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        // Any answer will do: one of another version only refuses.
        stream.read_u8().await
    };
    matches!(tokio::time::timeout(PATIENCE, asked).await, Ok(Ok(_)))
}

/// Binds the control socket, mode 0600, in place of what a dead daemon left. Only who holds the root may.
///
/// # Errors
/// [`ServerError::Bind`].
pub fn bind(socket: &Path) -> Result<UnixListener, ServerError> {
    let bind_error = |source| ServerError::Bind { socket: socket.to_owned(), source };
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(bind_error(e)),
        _ => {}
    }
    // Bound under a private name first: there must be no moment at which others may connect.
    let private = socket.with_extension("new");
    let _ = std::fs::remove_file(&private);
    let listener = UnixListener::bind(&private).map_err(bind_error)?;
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).map_err(bind_error)?;
    std::fs::rename(&private, socket).map_err(bind_error)?;
    Ok(listener)
}

/// Accepts connections until `stop` says so. Each request runs in a task of its own.
pub async fn serve(listener: UnixListener, node: Arc<Node>, stop: watch::Sender<bool>) {
    let mut stopping = stop.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|s| *s) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, Arc::clone(&node), stop.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: let others finish instead of spinning.
                tracing::warn!(%error, "accepting a control connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, node: Arc<Node>, stop: watch::Sender<bool>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(MAX_REQUEST_BYTES));
    let mut line = String::new();
    let request = match read.read_line(&mut line).await {
        Ok(_) => parse(&line),
        Err(error) => Err(error.to_string()),
    };
    let request = match request {
        Ok(request) => request,
        Err(message) => return send(&mut write, &Reply::Failed { message }).await,
    };
    let mut peer = read.into_inner().into_inner();
    let stops = matches!(request, Request::Stop);
    let reply = answer(request, &node, &mut peer, &mut write).await;
    send(&mut write, &reply).await;
    if stops {
        // Also when a mount could not be undone: the frontends have ended.
        stop.send_replace(true);
        return;
    }
    if let Reply::Done(outcome) = reply
        && let Outcome::Mounted(report) = *outcome
        && !matches!(peer.read_u8().await, Ok(CONFIRMATION))
    {
        tracing::info!(dir = %report.dir.display(), "its client is gone: the mount is undone");
        let reply = match node.umount_this(&report).await {
            Ok(()) => Reply::Done(Box::new(Outcome::Undone)),
            Err(error) => Reply::Failed { message: one_line(&error) },
        };
        send(&mut write, &reply).await;
    }
}

fn parse(line: &str) -> Result<Request, String> {
    // The version is read before the request: a request of another version may not parse at all.
    let value: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("not a request: {e}"))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(PROTOCOL_VERSION)) {
        return Err(format!(
            "the running daemon is of another version of sociblk (it speaks protocol {PROTOCOL_VERSION}); \
             stop it with its own `sociblk daemon stop`, then try again"
        ));
    }
    serde_json::from_value::<Envelope<Request>>(value).map(|e| e.request).map_err(|e| format!("not a request: {e}"))
}

/// Runs the request; passes progress on; cancels when the client hangs up.
async fn answer(request: Request, node: &Arc<Node>, peer: &mut OwnedReadHalf, write: &mut OwnedWriteHalf) -> Reply {
    let (progress, mut steps) = mpsc::unbounded_channel::<Progress>();
    let (cancel, cancelled) = watch::channel(false);
    let work = tokio::spawn(run(request, Arc::clone(node), progress, cancelled));
    let mut byte = [0_u8; 1];
    let mut connected = true;
    loop {
        tokio::select! {
            step = steps.recv() => match step {
                Some(step) => send(write, &Reply::Progress(step)).await,
                None => break,
            },
            got = peer.read(&mut byte), if connected => {
                if !matches!(got, Ok(n) if n > 0) {
                    connected = false;
                    cancel.send_replace(true);
                }
            }
        }
    }
    match work.await {
        Ok(Ok(outcome)) => Reply::Done(Box::new(outcome)),
        Ok(Err(error)) => Reply::Failed { message: one_line(&error) },
        Err(join) => Reply::Failed { message: format!("internal error in the daemon: {join}") },
    }
}

async fn run(
    request: Request,
    node: Arc<Node>,
    progress: mpsc::UnboundedSender<Progress>,
    cancelled: watch::Receiver<bool>,
) -> anyhow::Result<Outcome> {
    Ok(match request {
        Request::Ping => Outcome::Pong {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mounts: node.mount_count().await,
        },
        Request::Mount(order) => {
            let MountOrder { request, login } = *order;
            Outcome::Mounted(node.mount(request, login, progress, cancelled).await?)
        }
        Request::Umount { dir, lazy } => {
            node.umount(&dir, lazy).await?;
            Outcome::Undone
        }
        Request::List => Outcome::Listing(node.listing().await),
        Request::Explain => Outcome::Explained(Box::new(node.account().await)),
        Request::Record(asked) => Outcome::Recorded(node.record_order(asked).await?),
        Request::Stop => {
            node.umount_all().await?;
            Outcome::Undone
        }
    })
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) {
    let mut line = match serde_json::to_vec(reply) {
        Ok(line) => line,
        Err(error) => {
            tracing::error!(%error, "a reply could not be written as JSON");
            return;
        }
    };
    line.push(b'\n');
    // A client that is gone needs no answer.
    let _ = write.write_all(&line).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_other_versions_and_garbage_are_refused_with_a_reason() {
        let line =
            serde_json::to_string(&Envelope { version: PROTOCOL_VERSION, request: Request::Ping }).expect("json");
        assert!(matches!(parse(&line), Ok(Request::Ping)));
        for (bad, want) in [
            ("", "not a request"),
            ("{\"version\":4}", "not a request"),
            ("{\"version\":3,\"request\":{\"op\":\"ping\"}}", "another version"),
            ("{\"version\":4,\"request\":{\"op\":\"format\"}}", "not a request"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(want), "{bad:?}: {error}");
        }
    }
}

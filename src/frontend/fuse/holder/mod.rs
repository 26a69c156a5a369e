//! The holder: a process that keeps the FUSE connection open while no daemon does.
//!
//! A FUSE connection lives as long as any process has its open file, and requests that nobody has answered stay in it.
//! The holder has that file, waits, and gives it to the next daemon. It ends when it is told to, when the connection is
//! gone, and when a daemon died before handing anything over. It looks at the connection only while no daemon is
//! connected to it: a second waiter would be woken by every request.
//!
//! Two bytes make a message, version and kind, in a packet of their own; the file travels beside them. This must not
//! change: a holder outlives updates of the program.

mod process;
mod wire;

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

pub use process::hold;
use wire::{Kind, receive, send};

/// How long the other side may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a holder is started.
#[derive(Debug)]
pub struct HolderProgram {
    /// A program that calls [`hold`], with its first arguments; the socket and the mount namespace follow.
    pub exe: PathBuf,
    /// Its first arguments.
    pub args: Vec<OsString>,
    /// Where the holder can be reached.
    pub socket: PathBuf,
}

/// Why a holder is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// It cannot be started or reached.
    #[error("the holder of the FUSE connection, {}: {source}", socket.display())]
    Io {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It answered strangely.
    #[error("the holder of the FUSE connection, {}, does not understand us; `sociblk doctor --clean` ends it", socket.display())]
    Protocol {
        /// Its socket.
        socket: PathBuf,
    },
}

/// A connection to a holder. As long as it is open the holder takes us for the server of what it keeps.
#[derive(Debug)]
pub struct Holder {
    conversation: OwnedFd,
    socket: PathBuf,
    child: Option<Child>,
}

impl Holder {
    /// Starts a holder for `connection`. Its root and working directory are those of the mount namespace `namespace`,
    /// a path under `/proc`; of this process it keeps nothing.
    ///
    /// # Errors
    /// [`HolderError::Io`]; no process is left.
    pub fn start(
        program: &HolderProgram,
        namespace: Option<&Path>,
        connection: BorrowedFd<'_>,
    ) -> Result<Self, HolderError> {
        let failed = |source| HolderError::Io { socket: program.socket.clone(), source };
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| failed(errno.into()))?;
        let child = Command::new(&program.exe)
            .arg0("sociblk")
            .args(&program.args)
            .arg(&program.socket)
            .args(namespace)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut holder = Self { conversation: ours, socket: program.socket.clone(), child: Some(child) };
        let kept = holder.limit_waits().and_then(|()| holder.ask(Kind::Keep, Some(connection)));
        match kept {
            Ok((Kind::Done, _)) => Ok(holder),
            other => {
                holder.kill();
                Err(other.err().unwrap_or(HolderError::Protocol { socket: holder.socket.clone() }))
            }
        }
    }

    /// Reaches the holder at `socket`; `None` when there is none.
    ///
    /// # Errors
    /// [`HolderError::Io`]; somebody who is not this user is one, too.
    pub fn connect(socket: &Path) -> Result<Option<Self>, HolderError> {
        let failed = |errno: Errno| HolderError::Io { socket: socket.to_owned(), source: errno.into() };
        let address = SocketAddrUnix::new(socket).map_err(failed)?;
        let conversation =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(failed)?;
        match rustix::net::connect(&conversation, &address) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        }
        let peer = sockopt::socket_peercred(&conversation).map_err(failed)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(failed(Errno::PERM));
        }
        let holder = Self { conversation, socket: socket.to_owned(), child: None };
        holder.limit_waits()?;
        Ok(Some(holder))
    }

    /// Takes what it keeps; it goes on keeping it.
    ///
    /// # Errors
    /// [`HolderError`].
    pub fn take(&self) -> Result<OwnedFd, HolderError> {
        match self.ask(Kind::Take, None)? {
            (Kind::Done, Some(connection)) => Ok(connection),
            _ => Err(HolderError::Protocol { socket: self.socket.clone() }),
        }
    }

    /// Its process; `None` when that cannot be found out.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        match &self.child {
            Some(child) => Some(child.id()),
            None => {
                let peer = sockopt::socket_peercred(&self.conversation).ok()?;
                u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
            }
        }
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut waits = [PollFd::new(&self.conversation, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut waits, Some(&now)).is_ok_and(|ready| ready == 0)
    }

    /// Ends it, and with it the connection unless somebody else has that open. Returns when it is gone.
    ///
    /// # Errors
    /// [`HolderError`] when it does not go.
    pub fn end(mut self) -> Result<(), HolderError> {
        // One that is gone already is as good.
        let _ = send(&self.conversation, Kind::End, None);
        let ended = match receive(&self.conversation) {
            Ok(None) | Err(Errno::CONNRESET) => Ok(()),
            Ok(Some(_)) => Err(HolderError::Protocol { socket: self.socket.clone() }),
            Err(errno) => Err(self.error(errno)),
        };
        if ended.is_err() {
            self.kill();
        } else if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(&self.socket);
        ended
    }

    /// For a child that does not do as it is told.
    fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn limit_waits(&self) -> Result<(), HolderError> {
        sockopt::set_socket_timeout(&self.conversation, sockopt::Timeout::Recv, Some(PATIENCE))
            .map_err(|errno| self.error(errno))
    }

    fn ask(&self, kind: Kind, file: Option<BorrowedFd<'_>>) -> Result<(Kind, Option<OwnedFd>), HolderError> {
        send(&self.conversation, kind, file).map_err(|errno| self.error(errno))?;
        match receive(&self.conversation) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.error(Errno::CONNRESET)),
            Err(errno) => Err(self.error(errno)),
        }
    }

    fn error(&self, errno: Errno) -> HolderError {
        HolderError::Io { socket: self.socket.clone(), source: errno.into() }
    }
}

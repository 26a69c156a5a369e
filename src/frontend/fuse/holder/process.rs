//! The holder's process: one thread, one loop, no allocations after its start worth speaking of.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::wire::{Kind, receive, send};
use crate::sys::namespace;
use crate::sys::process::{heed_termination, ignore_termination, take_name};

/// Daemon, next daemon, doctor; more at once mean nothing good.
const MAX_CONVERSATIONS: usize = 8;

/// Runs the holder until it has nothing to do any more. Standard input is the first conversation.
///
/// # Errors
/// When it cannot start; nothing has been promised to anybody then.
pub fn hold(socket: &Path, namespace: Option<&Path>) -> io::Result<()> {
    // Out of the session and the group of the terminal, and out of reach of their signals. Fails for a group leader.
    let _ = rustix::process::setsid();
    ignore_termination();
    let first = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    // Not the daemon's: that one must go with the daemon, and the FUSE mount in it with it.
    if let Some(path) = namespace {
        namespace::enter(File::open(path)?)?;
    }
    rustix::process::chdir("/")?;
    // Only for those who look at a list of processes.
    take_name(c"sociblk-hold");
    // Next to no memory, and much depends on it. Refused without CAP_SYS_RESOURCE, which is no reason to give up.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let (listener, address) = listen(socket)?;
    let mut holding = Holding { listener, conversations: vec![Conversation { peer: first, serves: true }], kept: None };
    while holding.wait()? {}
    address.remove();
    Ok(())
}

struct Conversation {
    peer: OwnedFd,
    /// Its other side is the daemon that serves what is kept.
    serves: bool,
}

struct Holding {
    listener: OwnedFd,
    conversations: Vec<Conversation>,
    kept: Option<OwnedFd>,
}

impl Holding {
    /// Waits for something to happen and acts on it; `false` at the end.
    fn wait(&mut self) -> io::Result<bool> {
        let served = self.conversations.iter().any(|conversation| conversation.serves);
        if served {
            ignore_termination();
        } else {
            // Whoever ends all processes of this machine need not wait for us.
            heed_termination();
        }
        let mut waits = vec![PollFd::new(&self.listener, PollFlags::IN)];
        waits.extend(self.conversations.iter().map(|c| PollFd::new(&c.peer, PollFlags::IN)));
        if let Some(kept) = self.kept.as_ref().filter(|_| !served) {
            // No events: all that is told is the end.
            waits.push(PollFd::new(kept, PollFlags::empty()));
        }
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let happened: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        drop(waits);
        let (conversations, rest) = happened.split_at(1 + self.conversations.len());
        if rest.contains(&true) {
            // Unmounted, or cut.
            return Ok(false);
        }
        for (at, happened) in conversations.iter().enumerate().skip(1).rev() {
            if *happened && !self.hear(at - 1) {
                return Ok(false);
            }
        }
        if conversations.first() == Some(&true) {
            self.accept();
        }
        Ok(self.kept.is_some() || !self.conversations.is_empty())
    }

    fn accept(&mut self) {
        // One that hung up again, or no descriptor left: the next round comes.
        let Ok(peer) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        let ours = sockopt::socket_peercred(&peer).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if ours && self.conversations.len() < MAX_CONVERSATIONS {
            self.conversations.push(Conversation { peer, serves: false });
        }
    }

    /// Hears one side out; `false`: it said that we are to end.
    fn hear(&mut self, at: usize) -> bool {
        let Some(conversation) = self.conversations.get_mut(at) else { return true };
        let answered = match receive(&conversation.peer) {
            Ok(Some((Kind::End, _))) => return false,
            Ok(Some((Kind::Keep, Some(file)))) => {
                self.kept = Some(file);
                conversation.serves = true;
                send(&conversation.peer, Kind::Done, None)
            }
            Ok(Some((Kind::Take, _))) => match &self.kept {
                Some(kept) => {
                    conversation.serves = true;
                    send(&conversation.peer, Kind::Done, Some(kept.as_fd()))
                }
                None => send(&conversation.peer, Kind::No, None),
            },
            Ok(Some(_)) | Err(Errno::PROTO) => send(&conversation.peer, Kind::No, None),
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Ok(None) => Err(Errno::CONNRESET),
            Err(errno) => Err(errno),
        };
        if answered.is_err() {
            self.conversations.swap_remove(at);
        }
        true
    }
}

/// The socket's file.
struct Address {
    path: PathBuf,
    inode: u64,
}

impl Address {
    /// Unless another holder's lies there by now.
    fn remove(&self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|facts| facts.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Bound under a private name first: there must be no moment at which others may connect.
fn listen(path: &Path) -> io::Result<(OwnedFd, Address)> {
    let private = path.with_extension("new");
    let _ = std::fs::remove_file(&private);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(&private)?)?;
    std::fs::set_permissions(&private, Permissions::from_mode(0o600))?;
    rustix::net::listen(&listener, 8)?;
    let inode = std::fs::symlink_metadata(&private)?.ino();
    std::fs::rename(&private, path)?;
    Ok((listener, Address { path: path.to_owned(), inode }))
}

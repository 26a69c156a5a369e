//! The FUSE mount and its threads: made by [`FuseServer::mount`] or taken over by [`FuseServer::adopt`], gone after
//! [`FuseServer::close`].

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::channel::Channel;
use super::identity::{FuseNode, FuseSession};
use super::live::Live;
use super::mount::{Agreed, file_system_on, mount_device, prepare_directory, set_readahead, shake_hands};
use super::rings::{self, Rings};
use super::server::Shared;
use super::{Content, FuseConfig, FuseCounters, FuseError, FuseKind};
use crate::sys::fuse::{HAS_RESEND, OVER_IO_URING};
use crate::sys::thread::become_io_flusher;

/// How long the end of the session may take after the connection was cut.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// How often an image that is in use is looked at again, where no release tells of the end.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The FUSE file system of the daemon, mounted and served.
pub struct FuseServer {
    dir: PathBuf,
    config: FuseConfig,
    shared: Arc<Shared>,
    agreed: Agreed,
    device: u32,
    live: Arc<Live>,
    phase: Mutex<Phase>,
    /// Where requests come over io_uring.
    rings: Mutex<Option<Rings>>,
}

enum Phase {
    /// Taken over and not served yet.
    Adopted,
    Serving(Vec<JoinHandle<()>>),
    Closed,
}

impl FuseServer {
    /// Mounts on `dir` (made when missing) and starts serving; no image yet. The mount appears in the mount namespace
    /// of the calling thread. Needs CAP_SYS_ADMIN and `/dev/fuse`, no helper program.
    ///
    /// A dead mount that an earlier process left on `dir` is removed first.
    ///
    /// # Errors
    /// [`FuseError`] says what is missing. Nothing stays mounted.
    pub fn mount(dir: &Path, config: &FuseConfig) -> Result<Arc<Self>, FuseError> {
        prepare_directory(dir)?;
        let rings = rings::or_say_why(config.io_uring.then(Rings::prepare));
        let config = &FuseConfig { io_uring: rings.is_some(), ..config.clone() };
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let channel = Channel::new(device.map_err(|source| FuseError::Device { source })?.into());
        mount_device(&*channel, dir, config.kind)?;
        let served = (|| {
            let agreed = shake_hands(&channel, config)?;
            let images = Self::new(channel, dir, config, agreed, file_system_on(dir)?);
            images.shared.table.choose_inodes(config.kind.number_bits());
            if config.kind == FuseKind::Files {
                set_readahead(images.device);
            }
            // The kernel holds all requests back until it knows the rings.
            *images.rings() = rings.and_then(|rings| rings.start_where(agreed.flags, &images.shared));
            images.start_threads(&mut images.phase())?;
            Ok(images)
        })();
        served.inspect_err(|_| unmount_forcibly(dir))
    }

    /// Takes over the connection of a server that is dead, from a descriptor of it that somebody kept, and mounts it on
    /// `dir`. Nothing is served before [`start`](Self::start); until then come the images, by
    /// [`restore`](Self::restore). The dead server must be wholly gone: requests would be answered twice, or never.
    ///
    /// # Errors
    /// [`FuseError::Gone`] when nobody has a file of it open any more; [`FuseError::OtherConnection`] when it is not
    /// the one that `session` speaks of. The descriptor is closed then, and nothing stays mounted.
    pub fn adopt(
        device: OwnedFd,
        dir: &Path,
        config: &FuseConfig,
        session: &FuseSession,
    ) -> Result<Arc<Self>, FuseError> {
        prepare_directory(dir)?;
        let channel = Channel::new(device);
        mount_device(&*channel, dir, config.kind).map_err(|error| match error {
            FuseError::Mount { source, .. } if Errno::from_io_error(&source) == Some(Errno::NOTCONN) => FuseError::Gone,
            other => other,
        })?;
        let adopted = file_system_on(dir).and_then(|device| {
            if device != session.device {
                return Err(FuseError::OtherConnection);
            }
            let agreed = Agreed { minor: session.minor, flags: session.flags };
            let images = Self::new(channel, dir, config, agreed, device);
            images.shared.table.skip_inodes(session.last_inode);
            Ok(images)
        });
        adopted.inspect_err(|_| unmount_forcibly(dir))
    }

    fn new(channel: Arc<Channel>, dir: &Path, config: &FuseConfig, agreed: Agreed, device: u32) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            config: config.clone(),
            shared: Shared::new(channel, config.reply_threads),
            agreed,
            device,
            live: Arc::default(),
            phase: Mutex::new(Phase::Adopted),
            rings: Mutex::default(),
        })
    }

    /// Begins to serve what was taken over. Requests that the dead server had read and not answered come again, where
    /// the kernel can do that (Linux 6.9); else their readers wait for good, which is logged.
    ///
    /// # Errors
    /// [`FuseError::Thread`].
    pub fn start(&self) -> Result<(), FuseError> {
        let mut phase = self.phase();
        if matches!(*phase, Phase::Adopted) {
            // Before the first request is read: what is sent again is what others have read.
            if let Err(errno) = self.shared.channel.resend() {
                tracing::warn!(%errno, offered = self.agreed.flags & HAS_RESEND != 0,
                    "this kernel cannot send requests again (it needs Linux 6.9): readers that waited for the dead \
                     daemon at its end go on waiting; `echo 1 > /sys/fs/fuse/connections/{}/abort` ends them, and all \
                     other mounts over FUSE with them", self.device);
            }
            self.start_threads(&mut phase)?;
        }
        Ok(())
    }

    fn start_threads(&self, phase: &mut Phase) -> Result<(), FuseError> {
        let thread_error = |source| FuseError::Thread { source };
        let replies = &self.shared.replies;
        let mut threads = vec![replies.start().map_err(thread_error)?];
        // Beside rings there is little to do: signals, and what the kernel forgets.
        let threads_wanted = if self.is_over_io_uring() { 1 } else { self.config.session_threads.get() };
        for number in 0..threads_wanted {
            let (shared, live) = (Arc::clone(&self.shared), Arc::clone(&self.live));
            live.add(1);
            let started = std::thread::Builder::new().name(format!("fuse-session-{number}")).spawn(move || {
                become_io_flusher();
                if let Err(error) = shared.serve() {
                    tracing::error!(%error, "a FUSE thread ended with an error; its images may not be readable any more");
                }
                live.add(-1);
            });
            match started {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    self.live.add(-1);
                    drop(replies.close());
                    return Err(thread_error(source));
                }
            }
        }
        *phase = Phase::Serving(threads);
        Ok(())
    }

    /// Serves `content` as `name`.
    ///
    /// # Errors
    /// [`FuseError::BadName`], [`FuseError::Exists`], [`FuseError::Closed`].
    pub fn add(&self, name: impl AsRef<OsStr>, content: Content) -> Result<FuseNode, FuseError> {
        let name = name.as_ref();
        if matches!(*self.phase(), Phase::Closed) {
            return Err(FuseError::Closed);
        }
        let inode = self.shared.table.add(name, content)?;
        self.shared.channel.forget_listing();
        Ok(FuseNode { path: self.dir.join(name), inode })
    }

    /// Serves `content` again as what the dead server called `name` and `inode`. It must show the same bytes.
    ///
    /// # Errors
    /// [`FuseError::BadName`], [`FuseError::Exists`].
    pub fn restore(&self, name: impl AsRef<OsStr>, inode: u64, content: Content) -> Result<FuseNode, FuseError> {
        let name = name.as_ref();
        self.shared.table.restore(name, inode, content)?;
        Ok(FuseNode { path: self.dir.join(name), inode })
    }

    /// Stops serving `name`. May block for [`FuseConfig::release_wait`]; not for async threads.
    ///
    /// # Errors
    /// [`FuseError::Busy`] while somebody holds it open, [`FuseError::NotFound`].
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), FuseError> {
        let name = name.as_ref();
        let inode = self.shared.table.inode_of(name).ok_or_else(|| FuseError::NotFound { name: name.to_owned() })?;
        self.wait_unused(name, inode, Instant::now() + self.config.release_wait)?;
        self.shared.table.remove(name);
        Ok(())
    }

    /// Waits until the kernel has nothing left of an image.
    fn wait_unused(&self, name: &OsStr, inode: u64, deadline: Instant) -> Result<(), FuseError> {
        while self.shared.in_use(name, inode) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FuseError::Busy { name: name.to_owned() });
            }
            self.shared.table.await_release(left.min(LOOK_AGAIN));
        }
        Ok(())
    }

    /// Whether requests come over io_uring. What the kernel has put into entries of this process nobody else can take
    /// over, so the connection should end with it.
    #[must_use]
    pub fn is_over_io_uring(&self) -> bool {
        self.rings().is_some()
    }

    /// What the next server must know.
    #[must_use]
    pub fn session(&self) -> FuseSession {
        let Agreed { minor, mut flags } = self.agreed;
        if !self.is_over_io_uring() {
            flags &= !OVER_IO_URING;
        }
        FuseSession { minor, flags, device: self.device, last_inode: self.shared.table.last_inode() }
    }

    /// The connection. It lives as long as any process has this open file.
    #[must_use]
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.shared.channel.as_fd()
    }

    /// Reads the counters.
    #[must_use]
    pub fn counters(&self) -> FuseCounters {
        self.shared.counters.snapshot()
    }

    /// The mount point.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves the mount and what waits to the next server: from now on no reader gets an error because this one ends.
    /// What can be answered still is, until the end of the process.
    pub fn leave(&self) {
        self.shared.channel.leave();
        *self.phase() = Phase::Closed;
    }

    /// Unmounts and ends all threads. Closing again does nothing. May block for [`FuseConfig::release_wait`].
    ///
    /// # Errors
    /// [`FuseError::Busy`] while an image is open: the session then goes on as before.
    pub fn close(&self) -> Result<(), FuseError> {
        if matches!(*self.phase(), Phase::Closed) {
            return Ok(());
        }
        let deadline = Instant::now() + self.config.release_wait;
        for (first, name, content) in self.shared.table.list_after(0, usize::MAX) {
            self.wait_unused(&name, first + content.served().root(), deadline)?;
        }
        self.abort()
    }

    /// Cuts the connection, whatever is open: readers get an error at once. Then as [`close`](Self::close).
    ///
    /// # Errors
    /// [`FuseError::Unmount`] when the mount stays; the threads have been left to themselves if they did not end.
    pub fn abort(&self) -> Result<(), FuseError> {
        let threads = match std::mem::replace(&mut *self.phase(), Phase::Closed) {
            Phase::Closed => return Ok(()),
            Phase::Adopted => Vec::new(),
            Phase::Serving(threads) => threads,
        };
        // FORCE cuts the connection even where DETACH has to leave the file system to those who hold it.
        let unmounted =
            rustix::mount::unmount(&self.dir, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let helpers = self.shared.replies.close();
        self.shared.table.clear();
        if self.live.wait_for_none(JOIN_PATIENCE) {
            for thread in threads.into_iter().chain(helpers) {
                // A panicked thread has already reported itself; there is nothing more to learn from it here.
                let _ = thread.join();
            }
        } else {
            tracing::error!(dir = %self.dir.display(), "the FUSE session did not end; leaving its threads behind");
        }
        drop(self.rings().take());
        unmounted.map_err(|errno| FuseError::Unmount { dir: self.dir.clone(), source: errno.into() })
    }

    fn rings(&self) -> MutexGuard<'_, Option<Rings>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FuseServer {
    fn drop(&mut self) {
        if let Err(error) = self.abort() {
            tracing::warn!(%error, "while dropping the FUSE session");
        }
    }
}

/// Takes away a mount that came to nothing, and all that waits for it.
fn unmount_forcibly(dir: &Path) {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    // INVAL: not mounted any more.
    if let Err(errno) = rustix::mount::unmount(dir, flags)
        && errno != Errno::INVAL
    {
        tracing::warn!(dir = %dir.display(), %errno, "a FUSE mount that cannot be served stays");
    }
}

//! The FUSE mount and its threads: made by [`FuseImages::mount`], gone after [`FuseImages::close`].

use std::ffi::OsStr;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::config::MAX_READ_BYTES;
use super::filesystem::{ImagesFs, Shared};
use super::table::ROOT_INODE;
use super::{Backend, FuseConfig, FuseCounters, FuseError};
use crate::sys::thread::become_io_flusher;

/// How long the end of the session may take after the connection was cut.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// A served image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FuseImage {
    /// Where it can be opened, in the mount namespace of this process.
    pub path: PathBuf,
}

/// Set when the last session thread has ended.
#[derive(Default)]
struct Ended {
    flag: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    fn set(&self) {
        *self.flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, patience: Duration) -> bool {
        let flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        let (flag, _) =
            self.changed.wait_timeout_while(flag, patience, |ended| !*ended).unwrap_or_else(PoisonError::into_inner);
        *flag
    }
}

/// The FUSE file system of the daemon, mounted and served.
pub struct FuseImages {
    dir: PathBuf,
    shared: Arc<Shared>,
    release_wait: Duration,
    ended: Arc<Ended>,
    /// Taken when the session is closed.
    running: Mutex<Option<Running>>,
}

struct Running {
    notifier: Notifier,
    threads: Vec<JoinHandle<()>>,
}

impl FuseImages {
    /// Mounts on `dir` (made when missing) and starts serving; no image yet. The mount appears in the mount namespace
    /// of the calling thread. Needs CAP_SYS_ADMIN and `/dev/fuse`, no helper program.
    ///
    /// A dead mount that an earlier process left on `dir` is removed first.
    ///
    /// # Errors
    /// [`FuseError`] says what is missing. Nothing stays mounted.
    pub fn mount(dir: &Path, config: &FuseConfig) -> Result<Arc<Self>, FuseError> {
        prepare_directory(dir)?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device: OwnedFd = device.map_err(|source| FuseError::Device { source })?.into();
        mount_device(&device, dir)?;
        match Self::serve(device, dir, config) {
            Ok(images) => Ok(images),
            Err(error) => {
                let _ = rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::FORCE);
                Err(error)
            }
        }
    }

    fn serve(device: OwnedFd, dir: &Path, config: &FuseConfig) -> Result<Arc<Self>, FuseError> {
        let shared = Arc::new(Shared::default());
        let filesystem = ImagesFs { shared: Arc::clone(&shared), max_background: config.max_background };
        let mut session_config = Config::default();
        session_config.acl = SessionACL::All;
        session_config.n_threads = Some(config.session_threads.get());
        let session = Session::from_fd(filesystem, device, SessionACL::All, session_config)
            .map_err(|source| FuseError::Handshake { source })?;
        let notifier = session.notifier();
        let thread_error = |source| FuseError::Thread { source };

        let mut threads = shared.replies.start(config.reply_threads.get(), become_io_flusher).map_err(thread_error)?;
        let ended = Arc::new(Ended::default());
        let session_thread = {
            let ended = Arc::clone(&ended);
            std::thread::Builder::new().name("fuse-session".into()).spawn(move || {
                // Session threads are started from here and inherit the flag.
                become_io_flusher();
                if let Err(error) = session.run() {
                    tracing::error!(%error, "the FUSE session ended with an error; its images cannot be read any more");
                }
                ended.set();
            })
        };
        match session_thread {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                shared.replies.close();
                return Err(thread_error(source));
            }
        }
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            shared,
            release_wait: config.release_wait,
            ended,
            running: Mutex::new(Some(Running { notifier, threads })),
        }))
    }

    /// Serves `backend` as the file `name`.
    ///
    /// # Errors
    /// [`FuseError::BadName`], [`FuseError::Exists`], [`FuseError::Closed`].
    pub fn add(&self, name: impl AsRef<OsStr>, backend: Arc<dyn Backend>) -> Result<FuseImage, FuseError> {
        let name = name.as_ref();
        if self.lock_running().is_none() {
            return Err(FuseError::Closed);
        }
        self.shared.table.add(name, backend)?;
        Ok(FuseImage { path: self.dir.join(name) })
    }

    /// Stops serving `name`. May block for [`FuseConfig::release_wait`]; not for async threads.
    ///
    /// # Errors
    /// [`FuseError::Busy`] while somebody holds it open, [`FuseError::NotFound`].
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), FuseError> {
        let name = name.as_ref();
        self.shared.table.remove(name, self.release_wait)?;
        let notifier = self.lock_running().as_ref().map(|running| running.notifier.clone());
        if let Some(notifier) = notifier {
            // Only frees kernel memory early: the inode number is never used again.
            if let Err(error) = notifier.inval_entry(INodeNo(ROOT_INODE), name) {
                tracing::debug!(%error, ?name, "the kernel did not drop the name of a removed image");
            }
        }
        Ok(())
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

    /// Unmounts and ends all threads. Closing again does nothing. May block for [`FuseConfig::release_wait`].
    ///
    /// # Errors
    /// [`FuseError::Busy`] while an image is open: the session then goes on as before.
    pub fn close(&self) -> Result<(), FuseError> {
        if self.lock_running().is_some() {
            self.shared.table.wait_unused(self.release_wait)?;
            self.abort()?;
        }
        Ok(())
    }

    /// Cuts the connection, whatever is open: readers get an error at once. Then as [`close`](Self::close).
    ///
    /// # Errors
    /// [`FuseError::Unmount`] when the mount stays; the threads have been left to themselves if they did not end.
    pub fn abort(&self) -> Result<(), FuseError> {
        let Some(running) = self.lock_running().take() else { return Ok(()) };
        // FORCE cuts the connection even where DETACH has to leave the file system to those who hold it.
        let unmounted =
            rustix::mount::unmount(&self.dir, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        self.shared.replies.close();
        self.shared.table.clear();
        let Running { notifier, threads } = running;
        drop(notifier);
        if self.ended.wait(JOIN_PATIENCE) {
            for thread in threads {
                // A panicked thread has already reported itself; there is nothing more to learn from it here.
                let _ = thread.join();
            }
        } else {
            tracing::error!(dir = %self.dir.display(), "the FUSE session did not end; leaving its threads behind");
        }
        unmounted.map_err(|errno| FuseError::Unmount { dir: self.dir.clone(), source: errno.into() })
    }

    fn lock_running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FuseImages {
    fn drop(&mut self) {
        if let Err(error) = self.abort() {
            tracing::warn!(%error, "while dropping the FUSE session");
        }
    }
}

/// Makes the directory, clears a dead mount off it, and refuses a living one.
fn prepare_directory(dir: &Path) -> Result<(), FuseError> {
    let failed = |source: io::Error| FuseError::Directory { dir: dir.to_owned(), source };
    let attributes = || {
        statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE).map_err(io::Error::from)
    };
    match attributes() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        // CONNREFUSED: it died before the first handshake (seen on 7.2).
        Err(error) if [Some(Errno::NOTCONN), Some(Errno::CONNREFUSED)].contains(&Errno::from_io_error(&error)) => {
            rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|errno| failed(errno.into()))?;
        }
        Err(error) => return Err(failed(error)),
        Ok(_) => {}
    }
    let now = attributes().map_err(failed)?;
    if now.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(FuseError::AlreadyMounted { dir: dir.to_owned() });
    }
    Ok(())
}

fn mount_device(device: &OwnedFd, dir: &Path) -> Result<(), FuseError> {
    let refused = |source| FuseError::Mount { dir: dir.to_owned(), source };
    // allow_other: EROFS reads the image with the credentials of whoever reads a file; the directory's mode keeps
    // everybody but root from opening images themselves.
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_READ_BYTES}",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).map_err(|error| refused(error.into()))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount("sociblk", dir, "fuse.sociblk", flags, options.as_c_str())
        .map_err(|errno| refused(errno.into()))
}

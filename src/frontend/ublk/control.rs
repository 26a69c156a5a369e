//! The control thread: every ublk control command of the process, one at a time, each with a limit.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, process};

use zerocopy::{FromBytes, IntoBytes};

use super::UblkError;
use super::own::{Features, char_path};
use crate::sys::thread::become_io_flusher;
use crate::sys::ublk::{CONTROL_PATH, DevInfo, Params, opcode};
use crate::sys::ublk_control::{Command, CommandError, ControlRing};

/// How long a command may take to be refused for EBUSY before it is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

type Job = Box<dyn FnOnce(&mut ControlRing) + Send>;

/// Handle on the control thread.
pub(super) struct Control {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    wedged: Arc<AtomicBool>,
    limit: Duration,
}

impl Control {
    /// Opens the control device, loading the module if need be, and starts the thread.
    pub(super) fn start(limit: Duration) -> Result<Self, UblkError> {
        if !Path::new(CONTROL_PATH).exists() {
            load_module();
        }
        let (jobs, work) = channel();
        let (ready, is_ready) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("ublk-control".into())
            .spawn(move || {
                become_io_flusher();
                match ControlRing::open() {
                    Ok(ring) => {
                        // The receiver waits.
                        let _ = ready.send(Ok(()));
                        serve(ring, &work);
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })
            .map_err(|source| UblkError::Ring { source })?;
        match is_ready.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(UblkError::NoDriver),
            Ok(Err(source)) => return Err(UblkError::NotAllowed { source }),
            Err(_) => return Err(UblkError::Stopped),
        }
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            wedged: Arc::new(AtomicBool::new(false)),
            limit,
        })
    }

    /// Runs one command on the control thread and waits for it.
    fn call(
        &self,
        name: &'static str,
        opcode: u32,
        id: Option<u32>,
        data: u64,
        path: &[u8],
        payload: &[u8],
    ) -> Result<Vec<u8>, UblkError> {
        if self.wedged.load(Ordering::Relaxed) {
            return Err(UblkError::Wedged);
        }
        let dev_path_len = u16::try_from(path.len()).unwrap_or(u16::MAX);
        let command = Command { opcode, dev_id: id.unwrap_or(u32::MAX), data, dev_path_len, limit: self.limit };
        let payload = [path, payload].concat();
        let wedged = Arc::clone(&self.wedged);
        let (reply, answer) = sync_channel(1);
        let job: Job = Box::new(move |ring| {
            let result =
                if wedged.load(Ordering::Relaxed) { Err(CommandError::TimedOut) } else { ring.run(&command, payload) };
            if opcode == opcode::ADD_DEV && matches!(result, Err(CommandError::TimedOut)) {
                wedged.store(true, Ordering::Relaxed);
            }
            // The caller waits.
            let _ = reply.send(result);
        });
        {
            let jobs = lock(&self.jobs);
            jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or(UblkError::Stopped)?;
        }
        match answer.recv().map_err(|_| UblkError::Stopped)? {
            Ok((_, mut payload)) => {
                payload.drain(..path.len().min(payload.len()));
                Ok(payload)
            }
            Err(CommandError::TimedOut) if self.wedged.load(Ordering::Relaxed) => Err(UblkError::Wedged),
            Err(CommandError::TimedOut) => Err(UblkError::TimedOut { command: name, id }),
            Err(CommandError::Refused(source) | CommandError::Ring(source)) => {
                Err(UblkError::Command { command: name, id, source })
            }
        }
    }

    /// What the driver can do; kernels before 6.5 cannot tell.
    pub(super) fn features(&self) -> Result<Features, UblkError> {
        match self.call("GET_FEATURES", opcode::GET_FEATURES, None, 0, &[], &[0; 8]) {
            Ok(bytes) => Ok(Features { flags: bytes.try_into().ok().map(u64::from_ne_bytes) }),
            Err(UblkError::Command { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EINVAL)) =>
            {
                Ok(Features { flags: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Adds a device and returns what the driver made of the wish.
    pub(super) fn add(&self, wish: &DevInfo) -> Result<DevInfo, UblkError> {
        let bytes = self.call("ADD_DEV", opcode::ADD_DEV, None, 0, &[], wish.as_bytes())?;
        parse("ADD_DEV", None, &bytes)
    }

    pub(super) fn info(&self, id: u32) -> Result<DevInfo, UblkError> {
        // The payload starts with the character device's path, NUL included, even for root.
        let path = [char_path(id).as_os_str().as_bytes(), &[0]].concat();
        let empty = DevInfo::default();
        let bytes = self.call("GET_DEV_INFO2", opcode::GET_DEV_INFO2, Some(id), 0, &path, empty.as_bytes())?;
        parse("GET_DEV_INFO2", Some(id), &bytes)
    }

    pub(super) fn set_params(&self, id: u32, params: &Params) -> Result<(), UblkError> {
        self.call("SET_PARAMS", opcode::SET_PARAMS, Some(id), 0, &[], params.as_bytes()).map(drop)
    }

    pub(super) fn params(&self, id: u32) -> Result<Params, UblkError> {
        let ask = Params { len: size_of::<Params>() as u32, ..Params::default() };
        let bytes = self.call("GET_PARAMS", opcode::GET_PARAMS, Some(id), 0, &[], ask.as_bytes())?;
        parse("GET_PARAMS", Some(id), &bytes)
    }

    pub(super) fn start_device(&self, id: u32) -> Result<(), UblkError> {
        self.call("START_DEV", opcode::START_DEV, Some(id), own_pid(), &[], &[]).map(drop)
    }

    /// Stops the device, in use or not.
    pub(super) fn stop(&self, id: u32) -> Result<(), UblkError> {
        self.call("STOP_DEV", opcode::STOP_DEV, Some(id), 0, &[], &[]).map(drop)
    }

    /// Stops the device unless it is open.
    pub(super) fn try_stop(&self, id: u32) -> Result<(), UblkError> {
        match self.call("TRY_STOP_DEV", opcode::TRY_STOP_DEV, Some(id), 0, &[], &[]) {
            Err(UblkError::Command { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                Err(UblkError::Busy { id })
            }
            other => other.map(drop),
        }
    }

    /// Deletes a stopped device; where the kernel can without waiting for its last reference.
    pub(super) fn delete(&self, id: u32) -> Result<(), UblkError> {
        match self.call("DEL_DEV_ASYNC", opcode::DEL_DEV_ASYNC, Some(id), 0, &[], &[]) {
            Err(UblkError::Command { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.call("DEL_DEV", opcode::DEL_DEV, Some(id), 0, &[], &[]).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Hands the idle tags back, so that the server can leave without a request in between.
    pub(super) fn quiesce(&self, id: u32, limit: Duration) -> Result<(), UblkError> {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.call("QUIESCE_DEV", opcode::QUIESCE_DEV, Some(id), millis, &[], &[]).map(drop)
    }

    /// Waits until the old server is wholly gone, which takes the driver a moment after its exit.
    pub(super) fn start_recovery(&self, id: u32) -> Result<(), UblkError> {
        let deadline = Instant::now() + self.limit;
        loop {
            match self.call("START_USER_RECOVERY", opcode::START_USER_RECOVERY, Some(id), 0, &[], &[]) {
                Err(UblkError::Command { source, .. })
                    if source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
                {
                    thread::sleep(BUSY_PAUSE);
                }
                other => return other.map(drop),
            }
        }
    }

    pub(super) fn end_recovery(&self, id: u32) -> Result<(), UblkError> {
        self.call("END_USER_RECOVERY", opcode::END_USER_RECOVERY, Some(id), own_pid(), &[], &[]).map(drop)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let jobs = lock(&self.jobs).take();
        let thread = lock(&self.thread).take();
        if self.wedged.load(Ordering::Relaxed) {
            // At its exit the kernel would wait for the worker that hangs in the driver: the thread stays, idle.
            std::mem::forget(jobs);
            return;
        }
        drop(jobs);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the ublk control thread panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut ring: ControlRing, work: &Receiver<Job>) {
    while let Ok(job) = work.recv() {
        job(&mut ring);
    }
}

fn own_pid() -> u64 {
    process::id().into()
}

fn parse<T: FromBytes>(command: &'static str, id: Option<u32>, bytes: &[u8]) -> Result<T, UblkError> {
    let short = || UblkError::Command { command, id, source: io::ErrorKind::UnexpectedEof.into() };
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| short())
}

/// Tries to load the driver. Failure shows when the control device is opened.
fn load_module() {
    let result = Process::new("modprobe")
        .arg("ublk_drv")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match result {
        Ok(status) if status.success() => tracing::info!("loaded ublk_drv"),
        Ok(status) => tracing::info!(%status, "modprobe ublk_drv"),
        Err(error) => tracing::info!(%error, "cannot run modprobe"),
    }
}

//! The frontend's public face: devices come, are recovered, and go.

mod departure;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use self::departure::stop_rings;
use super::config::MAX_REQUEST_BYTES;
use super::control::Control;
use super::engine::DeviceSetup;
use super::mailbox::{Mailbox, Message};
use super::own::{OwnDevice, block_path, char_path, mark, numbers};
use super::slots::{SlotRun, SlotTable};
use super::stats::DeviceStats;
use super::{DataMode, DeviceCounters, DeviceState, Features, UblkConfig, UblkError, ring_thread, self_test};
use crate::frontend::Backend;
use crate::sys::ring::MAX_FIXED_BUFFERS;
use crate::sys::ublk::{DevInfo, Params, SECTOR_BYTES, flag};

const SYSFS_CLASS: &str = "/sys/class/ublk-char";
/// Flags of every device: readers survive the server.
const ALWAYS: u64 = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::CMD_IOCTL_ENCODE;
/// Flags that are asked for where the driver knows them; old drivers drop the others silently.
const WHERE_KNOWN: u64 = flag::QUIESCE | flag::SAFE_STOP_DEV | flag::NO_AUTO_PART_SCAN;
const POLL_PAUSE: Duration = Duration::from_millis(2);

/// A device that is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UblkDevice {
    /// The N of /dev/ublkbN.
    pub id: u32,
    /// /dev/ublkbN.
    pub block_path: PathBuf,
    /// How its requests are filled.
    pub mode: DataMode,
}

/// All ublk devices of this process. Calls block (some for tens of milliseconds): keep them off async threads. Dropping
/// it stops the ring threads and leaves the devices, quiesced, to the next server.
pub struct UblkFrontend {
    config: UblkConfig,
    control: Control,
    features: Features,
    rings: Vec<Ring>,
    devices: Mutex<HashMap<u32, Attached>>,
    stopped: AtomicBool,
    /// New devices may use registered buffers.
    registers: AtomicBool,
}

struct Ring {
    mailbox: Arc<Mailbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
    table: Mutex<SlotTable>,
}

struct Attached {
    ring: usize,
    slot: u32,
    flags: u64,
    fixed: Option<SlotRun>,
    stats: Arc<DeviceStats>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UblkFrontend {
    /// Opens the driver (loading its module if need be), starts the ring threads, and where the driver registers buffers, tries that out
    /// on a small device.
    ///
    /// # Errors
    /// [`UblkError::NoDriver`], [`UblkError::Wedged`] and [`UblkError::NotAllowed`] say that another frontend is needed.
    pub fn start(config: UblkConfig) -> Result<Arc<Self>, UblkError> {
        if let Some(problem) = config.problem() {
            return Err(UblkError::Config { problem });
        }
        let control = Control::start(config.control_limit)?;
        let features = control.features()?;
        let fixed = features.auto_buf_reg();
        let mut rings: Vec<Ring> = Vec::new();
        for number in 0..config.ring_threads {
            let mailbox = Arc::new(Mailbox::new().map_err(|source| UblkError::Ring { source })?);
            let entries = if fixed { MAX_FIXED_BUFFERS } else { 0 };
            match ring_thread::spawn(number, entries, config.copy_buffers, Arc::clone(&mailbox)) {
                Ok(thread) => rings.push(Ring {
                    mailbox,
                    thread: Mutex::new(Some(thread)),
                    table: Mutex::new(SlotTable::new(fixed)),
                }),
                Err(error) => {
                    stop_rings(&rings, Duration::ZERO);
                    return Err(error);
                }
            }
        }
        let forced = config.data_mode;
        let may_register = fixed && matches!(forced, None | Some(DataMode::AutoBufReg));
        let frontend = Arc::new(Self {
            config,
            control,
            features,
            rings,
            devices: Mutex::new(HashMap::new()),
            stopped: AtomicBool::new(false),
            registers: AtomicBool::new(may_register),
        });
        // Making and removing a device takes time, and readers of a daemon that is gone wait for this one.
        let registers =
            may_register && (forced.is_some() || frontend.trusted_before()? || self_test::passes(&frontend)?);
        frontend.registers.store(registers, Ordering::Relaxed);
        tracing::info!(features = ?features.flags, registers, rings = frontend.rings.len(), "ublk is up");
        Ok(frontend)
    }

    /// What the driver says it can do.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether this host has a ublk driver that answers, without starting anything that stays.
    ///
    /// # Errors
    /// As [`UblkFrontend::start`].
    pub fn probe() -> Result<Features, UblkError> {
        Control::start(UblkConfig::default().control_limit)?.features()
    }

    /// Makes a device that shows `backend` and carries `tag` (see [`OwnDevice::carries`]). It is live when this returns.
    ///
    /// # Errors
    /// Whatever step failed; nothing of the device is left then, unless the driver itself hangs.
    pub fn add(&self, backend: Arc<dyn Backend>, tag: u64) -> Result<UblkDevice, UblkError> {
        self.refuse_if_stopped()?;
        let bytes = backend.size().get();
        if bytes == 0 || !bytes.is_multiple_of(4096) {
            return Err(UblkError::BadSize { bytes });
        }
        let ring = self.emptiest_ring();
        let registers = self.registers.load(Ordering::Relaxed);
        let mut fixed = if registers { self.take_fixed(ring, self.config.queues, self.config.depth) } else { None };
        let added = self.add_device(tag, fixed.is_some());
        let (info, mode) = match added {
            Ok(added) => added,
            Err(error) => {
                self.give_fixed_back(ring, fixed);
                return Err(error);
            }
        };
        if mode != DataMode::AutoBufReg {
            self.give_fixed_back(ring, fixed.take());
        }
        let id = info.dev_id;
        let result = self
            .control
            .set_params(id, &self.wanted_params(bytes))
            .and_then(|()| self.attach(ring, &info, mode, fixed, backend))
            .and_then(|()| self.control.start_device(id));
        if let Err(error) = result {
            if let Err(cleanup) = self.discard(id, fixed, ring) {
                tracing::warn!(dev = id, error = %cleanup, "cannot remove a device that did not start");
            }
            return Err(error);
        }
        Ok(UblkDevice { id, block_path: block_path(id), mode })
    }

    /// Takes over a device whose server is gone. Readers that wait go on; nothing is remounted.
    ///
    /// # Errors
    /// [`UblkError::NotOurs`] when the device does not carry `tag`, [`UblkError::SizeChanged`] when the backend does not fit it. The
    /// device stays quiesced then.
    pub fn recover(&self, id: u32, backend: Arc<dyn Backend>, tag: u64) -> Result<UblkDevice, UblkError> {
        self.refuse_if_stopped()?;
        let own = OwnDevice::from_info(&self.control.info(id)?).filter(|own| own.carries(tag));
        if own.is_none() {
            return Err(UblkError::NotOurs { id });
        }
        let device_bytes = self.control.params(id)?.dev_sectors * SECTOR_BYTES;
        let backend_bytes = backend.size().get();
        if device_bytes != backend_bytes {
            return Err(UblkError::SizeChanged { id, device_bytes, backend_bytes });
        }
        self.control.start_recovery(id)?;
        let info = self.control.info(id)?;
        let mode = mode_of(info.flags);
        let ring = self.emptiest_ring();
        let fixed = match mode {
            DataMode::AutoBufReg => self.take_fixed(ring, info.nr_hw_queues, info.queue_depth),
            DataMode::Copy | DataMode::UserCopy => None,
        };
        if let Err(error) = self.attach(ring, &info, mode, fixed, backend) {
            self.give_fixed_back(ring, fixed);
            return Err(error);
        }
        self.control.end_recovery(id)?;
        Ok(UblkDevice { id, block_path: block_path(id), mode })
    }

    /// All devices of the kernel that carry our mark, served or not.
    ///
    /// # Errors
    /// Only what stops the control thread; devices that vanish meanwhile are left out.
    pub fn list_own(&self) -> Result<Vec<OwnDevice>, UblkError> {
        self.infos().filter_map(|info| info.map(|info| OwnDevice::from_info(&info)).transpose()).collect()
    }

    /// Whether a daemon before this one has entrusted layers to registered buffers, which it had tried, under this kernel. Asks
    /// for no more devices than it takes to know.
    fn trusted_before(&self) -> Result<bool, UblkError> {
        for info in self.infos() {
            let info = info?;
            let served = |own: OwnDevice| own.state != DeviceState::Dead && !own.carries(self_test::TAG);
            if OwnDevice::from_info(&info).is_some_and(served) && mode_of(info.flags) == DataMode::AutoBufReg {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the driver says of each device, ours or not; those that vanish meanwhile are left out.
    fn infos(&self) -> impl Iterator<Item = Result<DevInfo, UblkError>> {
        numbers(Path::new(SYSFS_CLASS)).into_iter().filter_map(|id| match self.control.info(id) {
            Err(error) if !matches!(error, UblkError::Wedged | UblkError::Stopped) => {
                tracing::debug!(dev = id, %error, "no information");
                None
            }
            told => Some(told),
        })
    }

    /// The counters of a device served here.
    #[must_use]
    pub fn counters(&self, id: u32) -> Option<DeviceCounters> {
        lock(&self.devices).get(&id).map(|attached| attached.stats.read())
    }

    pub(super) fn control_limit(&self) -> Duration {
        self.config.control_limit
    }

    fn refuse_if_stopped(&self) -> Result<(), UblkError> {
        if self.stopped.load(Ordering::Relaxed) { Err(UblkError::Stopped) } else { Ok(()) }
    }

    fn add_device(&self, tag: u64, fixed: bool) -> Result<(DevInfo, DataMode), UblkError> {
        let wanted = match self.config.data_mode {
            Some(DataMode::Copy) => 0,
            Some(DataMode::UserCopy) => flag::USER_COPY,
            // With USER_COPY for the requests whose pages cannot be registered; never SUPPORT_ZERO_COPY.
            Some(DataMode::AutoBufReg) => flag::AUTO_BUF_REG | flag::USER_COPY,
            None if fixed => flag::AUTO_BUF_REG | flag::USER_COPY,
            None => flag::USER_COPY,
        };
        let info = self.control.add(&DevInfo {
            nr_hw_queues: self.config.queues,
            queue_depth: self.config.depth,
            max_io_buf_bytes: MAX_REQUEST_BYTES,
            dev_id: u32::MAX,
            flags: ALWAYS | WHERE_KNOWN | wanted,
            ublksrv_flags: mark(tag),
            ..DevInfo::default()
        })?;
        let mode = mode_of(info.flags);
        match self.config.data_mode {
            Some(forced) if forced != mode => {
                self.control.delete(info.dev_id)?;
                Err(UblkError::NoSuchMode { mode: forced })
            }
            _ => Ok((info, mode)),
        }
    }

    fn wanted_params(&self, bytes: u64) -> Params {
        Params {
            len: size_of::<Params>() as u32,
            types: Params::TYPE_BASIC,
            attrs: Params::ATTR_READ_ONLY,
            logical_bs_shift: 9,
            physical_bs_shift: 12,
            io_min_shift: 12,
            io_opt_shift: self.config.io_opt_bytes.trailing_zeros() as u8,
            max_sectors: MAX_REQUEST_BYTES / SECTOR_BYTES as u32,
            dev_sectors: bytes / SECTOR_BYTES,
            ..Params::default()
        }
    }

    fn attach(
        &self,
        ring_number: usize,
        info: &DevInfo,
        mode: DataMode,
        fixed: Option<SlotRun>,
        backend: Arc<dyn Backend>,
    ) -> Result<(), UblkError> {
        let id = info.dev_id;
        let cdev = open_char(id, self.config.control_limit)?;
        let stats = Arc::new(DeviceStats::default());
        let setup = DeviceSetup {
            id,
            queues: info.nr_hw_queues,
            depth: info.queue_depth,
            mode,
            fixed,
            backend,
            stats: Arc::clone(&stats),
        };
        let ring = self.rings.get(ring_number).ok_or(UblkError::Stopped)?;
        let (reply, answer) = sync_channel(1);
        ring.mailbox.send(Message::Attach(Box::new(setup), cdev, reply));
        let slot = answer.recv_timeout(self.config.control_limit).map_err(|_| UblkError::Stopped)??;
        let attached = Attached { ring: ring_number, slot, flags: info.flags, fixed, stats };
        lock(&self.devices).insert(id, attached);
        Ok(())
    }

    fn emptiest_ring(&self) -> usize {
        let mut load = vec![0_usize; self.rings.len()];
        for attached in lock(&self.devices).values() {
            if let Some(n) = load.get_mut(attached.ring) {
                *n += 1;
            }
        }
        load.iter().enumerate().min_by_key(|&(_, n)| n).map_or(0, |(ring, _)| ring)
    }

    fn take_fixed(&self, ring: usize, queues: u16, depth: u16) -> Option<SlotRun> {
        lock(&self.rings.get(ring)?.table).take(queues.checked_mul(depth)?)
    }

    fn give_fixed_back(&self, ring: usize, fixed: Option<SlotRun>) {
        if let (Some(ring), Some(run)) = (self.rings.get(ring), fixed) {
            lock(&ring.table).give_back(run);
        }
    }
}

impl Drop for UblkFrontend {
    fn drop(&mut self) {
        stop_rings(&self.rings, self.config.drain_limit);
    }
}

fn mode_of(flags: u64) -> DataMode {
    // Without USER_COPY beside it there would be no way to fill a request whose registration failed.
    if flags & flag::AUTO_BUF_REG != 0 {
        DataMode::AutoBufReg
    } else if flags & flag::USER_COPY != 0 {
        DataMode::UserCopy
    } else {
        DataMode::Copy
    }
}

fn state_of(info: &DevInfo) -> DeviceState {
    OwnDevice::from_info(info).map_or(DeviceState::Other(info.state), |own| own.state)
}

/// Opens the character device, which devtmpfs makes with ADD_DEV; where udev makes it, that may take a moment. One
/// opener is allowed at a time. Non-blocking, so that io_uring copies into requests without handing them to a worker.
fn open_char(id: u32, limit: Duration) -> Result<OwnedFd, UblkError> {
    let path = char_path(id);
    let deadline = Instant::now() + limit;
    loop {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let opened: io::Result<File> = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        match opened {
            Ok(file) => return Ok(file.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::sleep(POLL_PAUSE);
            }
            Err(source) => return Err(UblkError::Open { path, source }),
        }
    }
}

//! How devices go: removed, or left to the next server.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use super::{POLL_PAUSE, Ring, UblkFrontend, lock, state_of};
use crate::frontend::ublk::mailbox::Message;
use crate::frontend::ublk::own::{OwnDevice, block_path};
use crate::frontend::ublk::slots::SlotRun;
use crate::frontend::ublk::{DeviceState, UblkError};
use crate::sys::ublk::{DevInfo, flag};

const QUIESCE_LIMIT: Duration = Duration::from_secs(1);

impl UblkFrontend {
    /// Stops and deletes a device of ours, served by this process or by none.
    ///
    /// # Errors
    /// [`UblkError::Busy`] while it is mounted or (where the driver can tell, from Linux 7.0) open; it goes on being served.
    /// [`UblkError::NotOurs`] for devices without our mark.
    pub fn remove(&self, id: u32) -> Result<(), UblkError> {
        let info = self.own_info(id)?;
        if state_of(&info) == DeviceState::Dead {
            return self.remove_in_use(id);
        }
        if info.flags & flag::SAFE_STOP_DEV != 0 {
            self.control.try_stop(id)?;
            self.let_go(id)?;
            return self.control.delete(id);
        }
        self.refuse_if_claimed(id, &info)?;
        self.remove_in_use(id)
    }

    /// Stops and deletes a device of ours although it may be open or mounted: who reads it gets EIO, now and for ever. For
    /// devices whose layer is lost, and whose readers would wait without end.
    ///
    /// # Errors
    /// [`UblkError::NotOurs`] for devices without our mark.
    pub fn remove_in_use(&self, id: u32) -> Result<(), UblkError> {
        self.own_info(id)?;
        // The driver's stop waits for the requests that we hold.
        if let Some(attached) = lock(&self.devices).get(&id)
            && let Some(ring) = self.rings.get(attached.ring)
        {
            ring.mailbox.send(Message::Fail(attached.slot));
        }
        self.control.stop(id)?;
        self.let_go(id)?;
        self.control.delete(id)
    }

    fn own_info(&self, id: u32) -> Result<DevInfo, UblkError> {
        let info = self.control.info(id)?;
        if OwnDevice::from_info(&info).is_some() { Ok(info) } else { Err(UblkError::NotOurs { id }) }
    }

    /// Planned stop: hands every device to the next server, quiesced, and ends the ring threads. Readers wait meanwhile.
    /// Returns the devices that are not quiesced yet when the time is up.
    pub fn detach_all(&self) -> Vec<u32> {
        self.stopped.store(true, Ordering::Relaxed);
        let devices: Vec<(u32, u64)> = lock(&self.devices).drain().map(|(id, a)| (id, a.flags)).collect();
        for &(id, flags) in &devices {
            // Without it the driver treats our leaving like a crash, which costs nothing but a requeue.
            if flags & flag::QUIESCE != 0
                && let Err(error) = self.control.quiesce(id, QUIESCE_LIMIT)
            {
                tracing::warn!(dev = id, %error, "not quiesced; it will be recovered like after a crash");
            }
        }
        stop_rings(&self.rings, self.config.drain_limit);
        let deadline = Instant::now() + self.config.control_limit;
        devices.into_iter().map(|(id, _)| id).filter(|&id| !self.is_quiesced_by(id, deadline)).collect()
    }

    /// After the stop: waits until the ring thread has every tag back and closed the character device.
    fn let_go(&self, id: u32) -> Result<(), UblkError> {
        let Some(attached) = lock(&self.devices).remove(&id) else { return Ok(()) };
        let Some(ring) = self.rings.get(attached.ring) else { return Ok(()) };
        let (reply, answer) = sync_channel(1);
        ring.mailbox.send(Message::Fail(attached.slot));
        ring.mailbox.send(Message::Release(attached.slot, reply));
        match answer.recv_timeout(self.config.drain_limit) {
            Ok(()) => {
                self.give_fixed_back(attached.ring, attached.fixed);
                Ok(())
            }
            // The thread keeps the device and its table entries until it is done.
            Err(_) => Err(UblkError::TimedOut { command: "release", id: Some(id) }),
        }
    }

    /// Undoes a half-made device.
    pub(super) fn discard(&self, id: u32, fixed: Option<SlotRun>, ring: usize) -> Result<(), UblkError> {
        self.control.stop(id)?;
        if !lock(&self.devices).contains_key(&id) {
            self.give_fixed_back(ring, fixed);
        }
        self.let_go(id)?;
        self.control.delete(id)
    }

    /// `Busy` when the block device is mounted or otherwise claimed: an exclusive open says so.
    fn refuse_if_claimed(&self, id: u32, info: &DevInfo) -> Result<(), UblkError> {
        if DeviceState::Quiesced == state_of(info) && !lock(&self.devices).contains_key(&id) {
            // Nobody would answer what an open might read; the caller unmounted first or wants the readers failed.
            return Ok(());
        }
        let path = block_path(id);
        let flags = libc::O_CLOEXEC | libc::O_EXCL | libc::O_NONBLOCK;
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(UblkError::Busy { id }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(UblkError::Open { path, source }),
        }
    }

    fn is_quiesced_by(&self, id: u32, deadline: Instant) -> bool {
        loop {
            match self.control.info(id) {
                Ok(info) if state_of(&info) == DeviceState::Quiesced => return true,
                Ok(_) if Instant::now() < deadline => thread::sleep(POLL_PAUSE),
                _ => return false,
            }
        }
    }
}

/// Ends the ring threads; each may finish its local reads within `limit`.
pub(super) fn stop_rings(rings: &[Ring], limit: Duration) {
    for ring in rings {
        ring.mailbox.send(Message::Leave(limit));
    }
    for ring in rings {
        if let Some(thread) = lock(&ring.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("a ublk ring thread panicked");
        }
    }
}

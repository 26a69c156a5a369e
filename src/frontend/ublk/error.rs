//! What can go wrong outside of single requests.

use std::io;
use std::path::PathBuf;

use crate::sys::ublk::CONTROL_PATH;

/// Errors of the ublk frontend.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// No driver: the kernel lacks `CONFIG_BLK_DEV_UBLK`, or its module, or /dev hides it.
    #[error("{CONTROL_PATH} is missing: load ublk_drv (Linux 6.0+), or use the fuse-image frontend")]
    NoDriver,
    /// The control device or io_uring is closed to us.
    #[error("cannot use ublk: {source} (root, the sysctl kernel.io_uring_disabled, seccomp?)")]
    NotAllowed {
        /// What the kernel said.
        source: io::Error,
    },
    /// A setting is out of range.
    #[error("ublk setting: {problem}")]
    Config {
        /// Which and why.
        problem: &'static str,
    },
    /// ADD_DEV hung: this kernel's ublk is broken until the next boot (known: 6.18.4, 6.18.5, some Ubuntu 6.17).
    #[error(
        "the ublk driver hangs; it is unusable until the next boot: update the kernel, or use the fuse-image frontend"
    )]
    Wedged,
    /// See [`Features::survives_kills`](super::Features::survives_kills).
    #[error(
        "this kernel's ublk driver can crash the machine when the daemon is killed under load; it is repaired from Linux \
         6.16 on (`frontend = \"ublk\"` uses it all the same)"
    )]
    CannotBeKilled,
    /// A control command ran into its limit.
    #[error("ublk {command} of device {id:?} did not finish in time")]
    TimedOut {
        /// The command's name.
        command: &'static str,
        /// The device, if one was named.
        id: Option<u32>,
    },
    /// A control command was refused.
    #[error("ublk {command} of device {id:?}: {source}")]
    Command {
        /// The command's name.
        command: &'static str,
        /// The device, if one was named.
        id: Option<u32>,
        /// What the driver said.
        source: io::Error,
    },
    /// A node under /dev could not be opened.
    #[error("cannot open {path}: {source}", path = path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A ring thread could not be set up or could not take the device.
    #[error("ublk ring: {source}")]
    Ring {
        /// Why.
        source: io::Error,
    },
    /// Somebody has the block device open or mounted.
    #[error("/dev/ublkb{id} is in use")]
    Busy {
        /// The device.
        id: u32,
    },
    /// The device is not one of ours, or carries another tag: numbers are reused.
    #[error("ublk device {id} does not carry our mark for this layer")]
    NotOurs {
        /// The device.
        id: u32,
    },
    /// The device to recover has another size than its backend now.
    #[error("ublk device {id} has {device_bytes} bytes, its layer now {backend_bytes}")]
    SizeChanged {
        /// The device.
        id: u32,
        /// What the kernel knows.
        device_bytes: u64,
        /// What the backend says.
        backend_bytes: u64,
    },
    /// The backend's size is no device size.
    #[error("a device of {bytes} bytes: the size must be a positive multiple of 4096")]
    BadSize {
        /// The size.
        bytes: u64,
    },
    /// The driver does not grant the data mode that the settings force.
    #[error("the ublk driver does not offer the data mode {mode:?}")]
    NoSuchMode {
        /// Which.
        mode: super::DataMode,
    },
    /// The frontend was detached or its threads are gone.
    #[error("the ublk frontend is stopping")]
    Stopped,
}

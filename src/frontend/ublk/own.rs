//! Recognising our devices, and what the driver can do.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::ublk::{DevInfo, flag, state};

/// Upper half of `ublksrv_flags` on every device of ours ("sblk").
const MAGIC: u64 = 0x7362_6c6b;

/// Folds a tag to the 32 bits that a device can carry.
fn fold(tag: u64) -> u32 {
    (tag ^ tag >> 32) as u32
}

/// The mark for `ublksrv_flags`.
pub(super) fn mark(tag: u64) -> u64 {
    MAGIC << 32 | u64::from(fold(tag))
}

/// What a device of ours is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceState {
    /// Never started, or stopped: only to be removed.
    Dead,
    /// A process serves it.
    Live,
    /// Its server is gone; readers wait for [`super::UblkFrontend::recover`].
    Quiesced,
    /// A state that this code does not use (`FAIL_IO`).
    Other(u16),
}

/// A device that carries our mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnDevice {
    /// The N of /dev/ublkbN. Numbers are reused: check the tag before acting on one.
    pub id: u32,
    /// What it is doing.
    pub state: DeviceState,
    /// Process that serves it, or -1.
    pub server_pid: i32,
    folded_tag: u32,
}

impl OwnDevice {
    /// The device, if it carries our mark.
    pub(super) fn from_info(info: &DevInfo) -> Option<Self> {
        (info.ublksrv_flags >> 32 == MAGIC).then_some(Self {
            id: info.dev_id,
            state: match info.state {
                state::DEAD => DeviceState::Dead,
                state::LIVE => DeviceState::Live,
                state::QUIESCED => DeviceState::Quiesced,
                other => DeviceState::Other(other),
            },
            server_pid: info.ublksrv_pid,
            folded_tag: info.ublksrv_flags as u32,
        })
    }

    /// Whether the device was made with `tag`. 32 bits of it are compared: enough to tell a node's layers apart by
    /// accident, not against an attacker (who would need root to make a device).
    #[must_use]
    pub fn carries(&self, tag: u64) -> bool {
        self.folded_tag == fold(tag)
    }
}

/// What the driver says it can do. Advisory: what a device got is read back after it was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// `UBLK_F_*`, or `None` before Linux 6.5, which cannot tell.
    pub flags: Option<u64>,
}

impl Features {
    fn has(self, bit: u64) -> bool {
        self.flags.is_some_and(|flags| flags & bit != 0)
    }

    /// A device can be stopped unless somebody has it open.
    #[must_use]
    pub fn safe_stop(self) -> bool {
        self.has(flag::SAFE_STOP_DEV)
    }

    /// The driver survives it that its server is killed while requests arrive. Before Linux 6.15 it may end a command
    /// twice then, which corrupts the kernel's memory (`kernel-notes/ublk-recovery.md`); the repair has no feature bit
    /// of its own, `QUIESCE_DEV` came with the release after it.
    #[must_use]
    pub fn survives_kills(self) -> bool {
        self.has(flag::QUIESCE)
    }

    /// Request pages can be registered as fixed buffers.
    #[must_use]
    pub fn auto_buf_reg(self) -> bool {
        self.has(flag::AUTO_BUF_REG)
    }

    /// Requests can be filled through the character device.
    #[must_use]
    pub fn user_copy(self) -> bool {
        self.has(flag::USER_COPY)
    }
}

/// The character device of `id`.
pub(super) fn char_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

/// The block device of `id`.
pub(super) fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// Numbers of all ublk devices of the kernel, from /sys/class/ublk-char.
pub(super) fn numbers(class: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(class) else { return Vec::new() };
    let mut numbers: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_tells_own_devices_and_their_tags() {
        let tag = 0x0123_4567_89ab_cdef;
        let info = DevInfo { dev_id: 7, state: state::QUIESCED, ublksrv_flags: mark(tag), ..DevInfo::default() };
        let own = OwnDevice::from_info(&info).expect("ours");
        assert_eq!((own.id, own.state), (7, DeviceState::Quiesced));
        assert!(own.carries(tag) && !own.carries(tag + 1) && !own.carries(tag ^ 1 << 40));
        for foreign in [0, u64::MAX, mark(tag) ^ 1 << 63] {
            assert_eq!(OwnDevice::from_info(&DevInfo { ublksrv_flags: foreign, ..info }), None);
        }
    }

    #[test]
    fn numbers_come_from_names_alone() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["ublkc12", "ublkc3", "ublkb3", "ublkcx", "ublkc"] {
            fs::write(dir.path().join(name), "").expect("file");
        }
        assert_eq!(numbers(dir.path()), [3, 12]);
        assert_eq!(numbers(&dir.path().join("none")), Vec::<u32>::new());
    }
}

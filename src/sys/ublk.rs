//! The kernel's ublk interface (`include/uapi/linux/ublk_cmd.h`): structs, opcodes, flags, and the request descriptors
//! that the driver shares with its server.
//!
//! Written by hand rather than generated: what a read-only server needs is small, and each size is asserted below.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The control device; one for the whole kernel.
pub const CONTROL_PATH: &str = "/dev/ublk-control";

/// Bytes of a sector in every ublk number that is named so.
pub const SECTOR_BYTES: u64 = 512;

/// `UBLK_IO_RES_ABORT`: the tag will see no further request.
pub const RESULT_ABORT: i32 = -libc::ENODEV;

/// Feature and device flags (`UBLK_F_*`).
pub mod flag {
    /// While no server runs, requests wait instead of failing.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// Requests that a dead server owned are sent to the next one.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Commands are encoded like ioctl numbers.
    pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// The server fills requests by `pwrite` on the character device.
    pub const USER_COPY: u64 = 1 << 7;
    /// The driver puts a request's pages into the server's fixed-buffer table.
    pub const AUTO_BUF_REG: u64 = 1 << 11;
    /// [`super::opcode::QUIESCE_DEV`] exists.
    pub const QUIESCE: u64 = 1 << 12;
    /// [`super::opcode::TRY_STOP_DEV`] exists.
    pub const SAFE_STOP_DEV: u64 = 1 << 17;
    /// No partition scan after the start.
    pub const NO_AUTO_PART_SCAN: u64 = 1 << 18;
}

/// Device states (`UBLK_S_DEV_*`).
pub mod state {
    /// Not started, or stopped.
    pub const DEAD: u16 = 0;
    /// Served.
    pub const LIVE: u16 = 1;
    /// Without a server; requests wait.
    pub const QUIESCED: u16 = 2;
}

/// Request operations and flags in [`IoDesc::op_flags`].
pub mod io_op {
    /// Read.
    pub const READ: u8 = 0;
    /// Flush.
    pub const FLUSH: u8 = 2;
    /// `UBLK_IO_F_NEED_REG_BUF`: the pages could not be registered; the server must copy.
    pub const NEED_REG_BUF: u32 = 1 << 17;
}

const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | ((b'u' as u32) << 8) | number
}
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

/// Command opcodes in their ioctl encoding (asm-generic layout: x86, arm64, riscv).
pub mod opcode {
    use super::{CtrlCmd, IoCmd, READ, READ_WRITE, ioc};

    const fn control(direction: u32, number: u32) -> u32 {
        ioc(direction, number, size_of::<CtrlCmd>())
    }
    const fn io(number: u32) -> u32 {
        ioc(READ_WRITE, number, size_of::<IoCmd>())
    }

    /// Makes a device.
    pub const ADD_DEV: u32 = control(READ_WRITE, 0x04);
    /// Removes a device and waits until its number is free.
    pub const DEL_DEV: u32 = control(READ_WRITE, 0x05);
    /// Shows the block device; waits for every fetch.
    pub const START_DEV: u32 = control(READ_WRITE, 0x06);
    /// Takes the block device away, mounted or not.
    pub const STOP_DEV: u32 = control(READ_WRITE, 0x07);
    /// Sets [`super::Params`], before the start only.
    pub const SET_PARAMS: u32 = control(READ_WRITE, 0x08);
    /// Reads [`super::Params`].
    pub const GET_PARAMS: u32 = control(READ, 0x09);
    /// Prepares a device without a server for a new one.
    pub const START_USER_RECOVERY: u32 = control(READ_WRITE, 0x10);
    /// Lets the new server take over; waits for every fetch.
    pub const END_USER_RECOVERY: u32 = control(READ_WRITE, 0x11);
    /// Reads [`super::DevInfo`]; the payload starts with the character device's path.
    pub const GET_DEV_INFO2: u32 = control(READ, 0x12);
    /// Reads the driver's feature flags (6.5).
    pub const GET_FEATURES: u32 = control(READ, 0x13);
    /// Removes a device without waiting (6.7).
    pub const DEL_DEV_ASYNC: u32 = control(READ, 0x14);
    /// Hands idle tags back so that the server can leave (6.16).
    pub const QUIESCE_DEV: u32 = control(READ_WRITE, 0x16);
    /// Stops the device unless somebody has it open (7.0).
    pub const TRY_STOP_DEV: u32 = control(READ_WRITE, 0x17);
    /// Waits for the first request of a tag.
    pub const FETCH_REQ: u32 = io(0x20);
    /// Answers a request and waits for the tag's next one.
    pub const COMMIT_AND_FETCH_REQ: u32 = io(0x21);
}

/// `struct ublksrv_ctrl_cmd`: travels inside the 128-byte submission entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CtrlCmd {
    /// Device number, or `u32::MAX` to let the driver choose.
    pub dev_id: u32,
    /// `u16::MAX` for commands that concern no queue.
    pub queue_id: u16,
    /// Length of the payload.
    pub len: u16,
    /// Address of the payload.
    pub addr: u64,
    /// Inline argument.
    pub data: u64,
    /// Length of the path at the payload's start, with its NUL.
    pub dev_path_len: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub reserved: u32,
}

/// `struct ublksrv_ctrl_dev_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DevInfo {
    /// Hardware queues.
    pub nr_hw_queues: u16,
    /// Requests in flight per queue.
    pub queue_depth: u16,
    /// One of [`state`].
    pub state: u16,
    /// Zero.
    pub pad0: u16,
    /// Longest request in bytes.
    pub max_io_buf_bytes: u32,
    /// Device number.
    pub dev_id: u32,
    /// Process that serves the device, or -1.
    pub ublksrv_pid: i32,
    /// Zero.
    pub pad1: u32,
    /// [`flag`] bits; after ADD_DEV those that the driver granted.
    pub flags: u64,
    /// Opaque to the driver; carries our mark.
    pub ublksrv_flags: u64,
    /// Owner, set by the driver.
    pub owner_uid: u32,
    /// Owner, set by the driver.
    pub owner_gid: u32,
    /// Zero.
    pub reserved1: u64,
    /// Zero.
    pub reserved2: u64,
}

/// The head of `struct ublk_params` up to the basic parameters; the driver takes any prefix of the whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Params {
    /// `size_of::<Params>()`.
    pub len: u32,
    /// Which groups are set: [`Params::TYPE_BASIC`].
    pub types: u32,
    /// [`Params::ATTR_READ_ONLY`] and others.
    pub attrs: u32,
    /// log2 of the logical block.
    pub logical_bs_shift: u8,
    /// log2 of the physical block.
    pub physical_bs_shift: u8,
    /// log2 of the preferred request; the kernel's readahead is twice that.
    pub io_opt_shift: u8,
    /// log2 of the smallest sensible request.
    pub io_min_shift: u8,
    /// Longest request in sectors.
    pub max_sectors: u32,
    /// Requests never cross a multiple of this; 0 for none.
    pub chunk_sectors: u32,
    /// Device size in sectors.
    pub dev_sectors: u64,
    /// 0 for none.
    pub virt_boundary_mask: u64,
}

impl Params {
    /// The basic group is set.
    pub const TYPE_BASIC: u32 = 1;
    /// Writes are refused by the block layer.
    pub const ATTR_READ_ONLY: u32 = 1;
}

/// `struct ublksrv_io_desc`: a request, in memory shared with the driver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoDesc {
    /// Operation in bits 0 to 7, flags above.
    pub op_flags: u32,
    /// Length.
    pub nr_sectors: u32,
    /// Position.
    pub start_sector: u64,
    /// Unused by us.
    pub addr: u64,
}

impl IoDesc {
    /// The operation, one of [`io_op`].
    #[must_use]
    pub const fn op(&self) -> u8 {
        self.op_flags.to_le_bytes()[0]
    }
}

/// `struct ublksrv_io_cmd`: travels inside the submission entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoCmd {
    /// Queue.
    pub q_id: u16,
    /// Tag.
    pub tag: u16,
    /// Bytes delivered, or a negated errno.
    pub result: i32,
    /// Buffer address in copy mode, else 0.
    pub addr: u64,
}

const _: () = {
    assert!(size_of::<CtrlCmd>() == 32);
    assert!(size_of::<DevInfo>() == 64);
    assert!(size_of::<Params>() == 40);
    assert!(size_of::<IoDesc>() == 24);
    assert!(size_of::<IoCmd>() == 16);
};

const MAX_QUEUE_DEPTH: usize = 4096;
const IO_BUF_OFFSET: u64 = 0x8000_0000;
const TAG_SHIFT: u32 = 25;
const QUEUE_SHIFT: u32 = TAG_SHIFT + 16;

/// Where a `pwrite` on the character device must go to reach byte `at` of the request (`queue`, `tag`).
/// `at` stays below 32 MiB (`UBLK_IO_BUF_BITS`).
#[must_use]
pub fn copy_position(queue: u16, tag: u16, at: u32) -> u64 {
    debug_assert!(at < 1 << TAG_SHIFT);
    IO_BUF_OFFSET + (u64::from(queue) << QUEUE_SHIFT) + (u64::from(tag) << TAG_SHIFT) + u64::from(at)
}

/// The `addr` of a fetch or commit that asks for automatic registration into `slot` of the fixed-buffer table. With the
/// fallback bit (bit 16) a failed registration delivers the request with [`io_op::NEED_REG_BUF`] instead of failing it.
#[must_use]
pub fn auto_buffer_address(slot: u16) -> u64 {
    u64::from(slot) | (1 << 16)
}

/// The request descriptors of one queue, written by the driver.
#[derive(Debug)]
pub struct QueueDescs {
    base: NonNull<c_void>,
    len_bytes: usize,
    depth: u16,
}

// SAFETY: the mapping belongs to the process, not to a thread; every access goes through `desc`, which only reads.
unsafe impl Send for QueueDescs {}

impl QueueDescs {
    /// Maps the descriptors of `queue` from an open character device.
    ///
    /// # Errors
    /// What `mmap` says; `EINVAL` when the driver knows no such queue.
    pub fn map(cdev: BorrowedFd<'_>, queue: u16, depth: u16) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let len_bytes = (usize::from(depth) * size_of::<IoDesc>()).next_multiple_of(page);
        let stride = (MAX_QUEUE_DEPTH * size_of::<IoDesc>()).next_multiple_of(page);
        let offset = u64::from(queue) * stride as u64;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours. It is read-only, as the
        // driver demands.
        let base = unsafe {
            mmap(std::ptr::null_mut(), len_bytes, ProtFlags::READ, MapFlags::SHARED | MapFlags::POPULATE, cdev, offset)?
        };
        let base = NonNull::new(base).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { base, len_bytes, depth })
    }

    /// The request of `tag`, or `None` for a tag beyond the depth. Meaningful after the tag's command completed with 0
    /// and until its answer.
    #[must_use]
    pub fn desc(&self, tag: u16) -> Option<IoDesc> {
        if tag >= self.depth {
            return None;
        }
        // SAFETY: `tag < depth`, and the mapping holds `depth` descriptors (checked in `map`); its start is page-aligned,
        // hence each descriptor 8-byte aligned. Volatile, since the driver writes it behind the compiler's back.
        Some(unsafe { self.base.cast::<IoDesc>().add(usize::from(tag)).as_ptr().read_volatile() })
    }
}

impl Drop for QueueDescs {
    fn drop(&mut self) {
        // SAFETY: base and length are those of our own mapping, and no reference into it exists (`desc` copies).
        if let Err(error) = unsafe { munmap(self.base.as_ptr(), self.len_bytes) } {
            tracing::error!(%error, "cannot unmap ublk descriptors");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_those_of_the_kernel_header() {
        // As the C preprocessor computes them from linux/ublk_cmd.h on x86-64.
        for (opcode, want) in [
            (opcode::ADD_DEV, 0xc020_7504),
            (opcode::DEL_DEV, 0xc020_7505),
            (opcode::START_DEV, 0xc020_7506),
            (opcode::STOP_DEV, 0xc020_7507),
            (opcode::SET_PARAMS, 0xc020_7508),
            (opcode::GET_PARAMS, 0x8020_7509),
            (opcode::START_USER_RECOVERY, 0xc020_7510),
            (opcode::END_USER_RECOVERY, 0xc020_7511),
            (opcode::GET_DEV_INFO2, 0x8020_7512),
            (opcode::GET_FEATURES, 0x8020_7513),
            (opcode::DEL_DEV_ASYNC, 0x8020_7514),
            (opcode::QUIESCE_DEV, 0xc020_7516),
            (opcode::TRY_STOP_DEV, 0xc020_7517),
            (opcode::FETCH_REQ, 0xc010_7520),
            (opcode::COMMIT_AND_FETCH_REQ, 0xc010_7521),
        ] {
            assert_eq!(opcode, want, "{opcode:#x} != {want:#x}");
        }
    }

    #[test]
    fn copy_positions_keep_queue_tag_and_offset_apart() {
        for (queue, tag, at, want) in [
            (0, 0, 0, 0x8000_0000_u64),
            (0, 1, 0, 0x8200_0000),
            (1, 0, 0, 0x200_8000_0000),
            (1, 31, 0xf_f000, 0x200_8000_0000 + 31 * 0x200_0000 + 0xf_f000),
        ] {
            assert_eq!(copy_position(queue, tag, at), want);
        }
    }

    #[test]
    fn automatic_registration_asks_for_the_fallback() {
        assert_eq!(auto_buffer_address(0), 0x1_0000);
        assert_eq!(auto_buffer_address(0x3fff), 0x1_3fff);
    }
}

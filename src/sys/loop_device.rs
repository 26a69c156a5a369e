//! Loop devices: a file as a block device (Linux `include/uapi/linux/loop.h`, loop(4)).

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

const LOOP_CONFIGURE: Opcode = opcode::none(b'L', 0x0A);
const LOOP_CTL_GET_FREE: Opcode = opcode::none(b'L', 0x82);
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LO_NAME_BYTES: usize = 64;

/// How often a device may be snatched away between finding and taking it.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LO_NAME_BYTES],
    crypt_name: [u8; LO_NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// A loop device that undoes itself: the kernel frees it when this value and all mounts of it are gone.
#[derive(Debug)]
pub struct LoopDevice {
    _open: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Binds a free loop device to `image`, read-only, with direct I/O where `image` can do it. `name` is what
    /// `losetup` shows, cut to 63 bytes.
    ///
    /// # Errors
    /// ENOENT without `/dev/loop-control` or without the device's node; EPERM without CAP_SYS_ADMIN.
    pub fn attach_read_only(image: BorrowedFd<'_>, name: &OsStr) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut config = LoopConfig {
            fd: image.as_raw_fd().unsigned_abs(),
            block_size: 0,
            info: LoopInfo64 {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
                file_name: [0; LO_NAME_BYTES],
                crypt_name: [0; LO_NAME_BYTES],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        for (to, from) in config.info.file_name.iter_mut().take(LO_NAME_BYTES - 1).zip(name.as_bytes()) {
            *to = *from;
        }
        let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
        for _ in 0..ATTEMPTS {
            let path = PathBuf::from(format!("/dev/loop{}", free_number(control.as_fd())?));
            let open = OpenOptions::new().read(true).open(&path)?;
            // SAFETY: LOOP_CONFIGURE reads one `struct loop_config` from its argument; `LoopConfig` has that layout
            // (sizes asserted above) and outlives the call.
            match unsafe { ioctl(&open, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) } {
                Ok(()) => return Ok(Self { _open: open, path }),
                Err(rustix::io::Errno::BUSY) => last = rustix::io::Errno::BUSY.into(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(last)
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The number of a device that was free a moment ago; the kernel makes one when there is none.
///
/// # Errors
/// What LOOP_CTL_GET_FREE returns.
pub fn free_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns the number as the result of the call.
    let number = unsafe { ioctl(control, GetFree(NoArg::<LOOP_CTL_GET_FREE>::new())) }?;
    Ok(number)
}

/// LOOP_CTL_GET_FREE, whose answer is the return value of ioctl(2).
struct GetFree(NoArg<LOOP_CTL_GET_FREE>);

// SAFETY: opcode and (absent) argument are those of `NoArg`; the output is the non-negative result of the call.
unsafe impl rustix::ioctl::Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.0.opcode()
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        self.0.as_ptr()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(out.unsigned_abs())
    }
}

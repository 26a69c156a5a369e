//! What this kernel and machine can do for us, found out by trying. Nothing is left behind: whatever has to be mounted
//! is a mount that no path leads to.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::attach::FsContext;
use super::overlay::takes_single_lowers;
use crate::sys::loop_device::{LoopDevice, free_number};

/// How a probe ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// There.
    Ok,
    /// Not there; something else takes its place.
    Fallback,
    /// Not there, and needed.
    Missing,
    /// Could not be found out.
    Unknown,
}

/// One fact about the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Probe {
    /// A short name, stable over versions.
    pub name: &'static str,
    /// Whether it is there.
    pub state: ProbeState,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty when nothing need be done.
    pub remedy: String,
}

impl Probe {
    fn new(name: &'static str, state: ProbeState, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state, detail: detail.into(), remedy: remedy.into() }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, ProbeState::Ok, detail, "")
    }

    /// For a refused call: not permitted says nothing about the kernel.
    fn refused(name: &'static str, error: &io::Error, missing: ProbeState, remedy: &str) -> Self {
        if matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::ACCESS)) {
            return Self::new(name, ProbeState::Unknown, error.to_string(), "run as root (CAP_SYS_ADMIN)");
        }
        Self::new(name, missing, error.to_string(), remedy)
    }
}

/// Tries everything that mounting leans on, in the order in which a person would look for trouble. `scratch` is a
/// directory on the file system that holds the cache; a small file is made there and removed.
#[must_use]
pub fn probe_all(scratch: &Path) -> Vec<Probe> {
    vec![
        erofs(),
        erofs_from_file(scratch),
        loop_device(scratch),
        overlay(),
        overlay_single_lowers(),
        fuse(),
        fuse_over_io_uring(),
        io_flusher(),
    ]
}

fn erofs() -> Probe {
    const NAME: &str = "erofs";
    // Asking for it makes the kernel load the module.
    match FsContext::open(c"erofs") {
        Ok(_) => Probe::ok(NAME, "registered"),
        Err(Errno::NODEV) => Probe::new(
            NAME,
            ProbeState::Missing,
            "the kernel does not know the file system",
            "install the kernel's extra modules and `modprobe erofs`, or use a kernel with CONFIG_EROFS_FS",
        ),
        Err(errno) => Probe::refused(NAME, &errno.into(), ProbeState::Unknown, "see the kernel's log (`dmesg`)"),
    }
}

fn erofs_from_file(scratch: &Path) -> Probe {
    const NAME: &str = "erofs-file-backed";
    const REMEDY: &str = "Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE; until then loop devices are used";
    let try_it = || -> io::Result<()> {
        let image = tiny_image(scratch)?;
        let context = FsContext::open(c"erofs")?;
        context.set(c"source", format!("/proc/self/fd/{}", image.as_raw_fd()))?;
        context.set_flag(c"ro")?;
        Ok(context.create()?)
    };
    match try_it() {
        Ok(()) => Probe::ok(NAME, "a file was mounted without a loop device"),
        Err(error) => Probe::refused(NAME, &error, ProbeState::Fallback, REMEDY),
    }
}

fn loop_device(scratch: &Path) -> Probe {
    const NAME: &str = "loop";
    let control = || -> io::Result<()> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        free_number(control.as_fd()).map(drop)
    };
    let try_it = || -> io::Result<String> {
        control()?;
        let image = tiny_image(scratch)?;
        let device = LoopDevice::attach_read_only(image.as_fd(), OsStr::new("sociblk-probe"))?;
        Ok(format!("{} was bound and freed", device.path().display()))
    };
    match try_it() {
        Ok(detail) => Probe::ok(NAME, detail),
        Err(error) => {
            Probe::refused(NAME, &error, ProbeState::Missing, "`modprobe loop`; needed before Linux 6.12 only")
        }
    }
}

fn overlay() -> Probe {
    const NAME: &str = "overlay";
    match FsContext::open(c"overlay") {
        Ok(_) => Probe::ok(NAME, "registered"),
        Err(Errno::NODEV) => Probe::new(
            NAME,
            ProbeState::Missing,
            "the kernel does not know the file system",
            "`modprobe overlay`, or use a kernel with CONFIG_OVERLAY_FS",
        ),
        Err(errno) => Probe::refused(NAME, &errno.into(), ProbeState::Unknown, "see the kernel's log (`dmesg`)"),
    }
}

fn overlay_single_lowers() -> Probe {
    const NAME: &str = "overlay-lowerdir-append";
    match takes_single_lowers() {
        Ok(true) => Probe::ok(NAME, "layers are added one by one, up to 500"),
        Ok(false) => Probe::new(
            NAME,
            ProbeState::Fallback,
            "all layers must fit one page of options: about 220",
            "Linux 6.8 for images with more layers",
        ),
        Err(errno) => Probe::refused(NAME, &errno.into(), ProbeState::Unknown, "see the kernel's log (`dmesg`)"),
    }
}

fn fuse() -> Probe {
    const NAME: &str = "fuse";
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Probe::ok(NAME, "/dev/fuse opens"),
        Err(error) => Probe::refused(
            NAME,
            &error,
            ProbeState::Missing,
            "`modprobe fuse`; in a container pass the device /dev/fuse through; needed for the frontends fuse-image and fuse-fs",
        ),
    }
}

/// Nothing is missing where it is not: nobody gets it unasked.
fn fuse_over_io_uring() -> Probe {
    const NAME: &str = "fuse-over-io_uring";
    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
    Probe::ok(
        NAME,
        match std::fs::read_to_string(SWITCH).as_deref().map(str::trim) {
            Ok("Y") => "offered by the kernel; the setting fuse.io_uring makes use of it".to_owned(),
            Ok(_) => format!("switched off ({SWITCH}); nothing but the setting fuse.io_uring would use it"),
            Err(_) => {
                "not in this kernel (or the module fuse is not loaded); nothing but the setting fuse.io_uring would \
                use it"
                    .to_owned()
            }
        },
    )
}

fn io_flusher() -> Probe {
    const NAME: &str = "io-flusher";
    const REMEDY: &str = "give the daemon CAP_SYS_RESOURCE: without it reads may block each other when memory is short";
    match rustix::process::is_io_flusher() {
        Ok(_) => Probe::ok(NAME, "PR_SET_IO_FLUSHER is permitted"),
        Err(Errno::PERM) => Probe::new(NAME, ProbeState::Fallback, "PR_SET_IO_FLUSHER is refused", REMEDY),
        Err(errno) => Probe::refused(NAME, &errno.into(), ProbeState::Fallback, REMEDY),
    }
}

/// The smallest EROFS: one block with a super block and an empty root directory, in a file without a name.
fn tiny_image(scratch: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(scratch, flags, Mode::RUSR | Mode::WUSR)?);
    // Field positions: Linux fs/erofs/erofs_fs.h. Everything else is zero.
    const ROOT_NID: u64 = 36;
    const ROOT_INODE: u64 = ROOT_NID * 32;
    const ROOT_ENTRIES: u64 = ROOT_INODE + 32;
    let fields: [(u64, &[u8]); 11] = [
        (1024, &0xE0F5_E1E2_u32.to_le_bytes()),
        (1024 + 12, &[12]),             // blkszbits
        (1024 + 14, &[ROOT_NID as u8]), // root_nid
        (1024 + 16, &[1]),              // inos
        (1024 + 36, &[1]),              // blocks
        (ROOT_INODE, &[4]),             // i_format: compact, data behind the inode
        (ROOT_INODE + 4, &0o040_755_u16.to_le_bytes()),
        (ROOT_INODE + 6, &[2]),  // nlink
        (ROOT_INODE + 8, &[27]), // size of the two entries and their names
        (ROOT_ENTRIES, &[ROOT_NID as u8, 0, 0, 0, 0, 0, 0, 0, 24, 0, 2, 0]),
        (ROOT_ENTRIES + 12, &[ROOT_NID as u8, 0, 0, 0, 0, 0, 0, 0, 25, 0, 2, 0, b'.', b'.', b'.']),
    ];
    for (offset, bytes) in fields {
        file.write_all_at(bytes, offset)?;
    }
    // Two blocks: a loop device wants more than the file system does.
    file.set_len(8192)?;
    Ok(file)
}

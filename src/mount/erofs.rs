//! EROFS from a block device, from a file, or from a file through a loop device.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::attach::{FSCONFIG_VALUE_BYTES, FsContext};
use super::{MountError, MountPath};
use crate::sys::loop_device::LoopDevice;

/// Where the super block lies and how it starts (Linux `fs/erofs/erofs_fs.h`).
const SUPER_OFFSET_BYTES: u64 = 1024;
const SUPER_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

/// What statfs(2) calls FUSE (Linux `include/uapi/linux/magic.h`).
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// Most bytes of metadata that are read ahead, those of about 200,000 files: more is rather a burden than a help.
const MAX_READ_AHEAD_BYTES: u64 = 16 << 20;

/// What is asked for at once: of more the kernel takes only the first part (Linux `mm/readahead.c`,
/// `force_page_cache_ra`: at most the device's readahead, by default this).
const ADVICE_BYTES: usize = 128 << 10;

/// An image that was opened where its path is valid; a later change of the mount namespace does not lose it.
pub(super) struct OpenImage {
    file: File,
    path: MountPath,
    is_block_device: bool,
}

impl OpenImage {
    /// Opens `path` and looks whether EROFS lies on it.
    pub(super) fn open(path: &MountPath) -> Result<Self, MountError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => MountError::SourceMissing { path: path.clone() },
            _ => MountError::system("open", path.clone(), error),
        };
        // NONBLOCK: a FIFO in the image's place must not hold us up.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(MountError::ImageKind { image: path.clone() });
        }
        let mut magic = [0; 4];
        match file.read_exact_at(&mut magic, SUPER_OFFSET_BYTES) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(MountError::system("read the super block of", path.clone(), error));
            }
            _ if magic != SUPER_MAGIC => return Err(MountError::NotErofs { image: path.clone() }),
            _ => {}
        }
        Ok(Self { file, path: path.clone(), is_block_device: kind.is_block_device() })
    }

    /// Whether a FUSE server answers for the image: then EROFS shall read it with direct I/O.
    fn is_on_fuse(&self) -> bool {
        !self.is_block_device && rustix::fs::fstatfs(&self.file).is_ok_and(|fs| fs.f_type == FUSE_SUPER_MAGIC)
    }

    /// Has the kernel read the first bytes of the image into its cache, and does not wait for it. EROFS asks for metadata
    /// block by block and waits for each: a walk of 100,000 files takes twice as long without this. To be called once EROFS
    /// is made: opening the image or choosing its block size throws the cache away.
    ///
    /// Never from the process that serves the image: who has no more room for requests waits here, and could not be killed.
    pub(super) fn read_ahead(&self, bytes: u64) {
        let bytes = bytes.min(MAX_READ_AHEAD_BYTES);
        for at in (0..bytes).step_by(ADVICE_BYTES) {
            let len = NonZeroU64::new((bytes - at).min(ADVICE_BYTES as u64));
            if let Err(errno) = rustix::fs::fadvise(&self.file, at, len, rustix::fs::Advice::WillNeed) {
                tracing::debug!(%errno, image = %self.path, "metadata come as they are needed");
                return;
            }
        }
    }

    /// A path that leads to the image in the mount namespace of this moment. The plain one where it still leads there,
    /// since it is what people will see in the list of mounts.
    fn reachable_path(&self) -> Result<PathBuf, MountError> {
        let failed = |error: io::Error| MountError::system("look at", self.path.clone(), error);
        let ours = self.file.metadata().map_err(failed)?;
        let same = |theirs: &std::fs::Metadata| {
            if self.is_block_device {
                theirs.file_type().is_block_device() && theirs.rdev() == ours.rdev()
            } else {
                theirs.dev() == ours.dev() && theirs.ino() == ours.ino()
            }
        };
        let short = self.path.as_os_str().len() <= FSCONFIG_VALUE_BYTES;
        if short && self.path.is_absolute() && std::fs::metadata(&self.path).is_ok_and(|theirs| same(&theirs)) {
            return Ok(self.path.to_path_buf());
        }
        Ok(format!("/proc/self/fd/{}", self.file.as_raw_fd()).into())
    }
}

/// Whether the loop device is the only way tried: for tests and probes of the way that older kernels need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Directly, else through a loop device.
    Best,
    /// Directly or not at all.
    #[cfg(test)]
    Direct,
    /// Through a loop device.
    #[cfg(test)]
    Loop,
}

/// Makes a mount of the image that no path leads to yet.
pub(super) fn prepare(image: &OpenImage, context: Option<&str>, way: Way) -> Result<OwnedFd, MountError> {
    #[cfg(test)]
    if way == Way::Loop {
        return through_loop(image, context);
    }
    let path = image.reachable_path()?;
    match direct(&path, image.is_on_fuse(), context) {
        Ok(mount) => Ok(mount),
        // Before 6.12 ENOTBLK; later also for files on stacked file systems, EINVAL for files without a page cache.
        Err(Refusal::Create(Errno::NOTBLK | Errno::INVAL | Errno::OPNOTSUPP, _))
            if way == Way::Best && !image.is_block_device =>
        {
            through_loop(image, context)
        }
        Err(refusal) => Err(refusal.explain(&image.path)),
    }
}

enum Refusal {
    Open(Errno),
    Create(Errno, String),
    Label(Errno, String),
}

impl Refusal {
    fn explain(self, image: &MountPath) -> MountError {
        match self {
            Self::Open(Errno::NODEV) => MountError::NoErofs,
            Self::Open(errno) => MountError::system("mount EROFS from", image.clone(), errno),
            Self::Label(errno, detail) => {
                let detail = format!("{detail}; is SELinux on, and does its policy know snapshotter.selinux_context?");
                MountError::system_with("label the files of", image.clone(), errno, detail)
            }
            Self::Create(errno, detail) => MountError::system_with("mount EROFS from", image.clone(), errno, detail),
        }
    }
}

fn direct(path: &Path, direct_io: bool, label: Option<&str>) -> Result<OwnedFd, Refusal> {
    let context = FsContext::open(c"erofs").map_err(Refusal::Open)?;
    if let Some(label) = label {
        context.set(c"context", label).map_err(|errno| Refusal::Label(errno, context.messages()))?;
    }
    let configure = || {
        context.set(c"source", path)?;
        context.set_flag(c"ro")?;
        if direct_io && let Err(errno) = context.set_flag(c"directio") {
            tracing::debug!(%errno, "this kernel's EROFS has no choice about direct I/O");
        }
        context.create()?;
        // Layers are looked at through the overlay, whose own flags count there.
        context.mount(
            MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOATIME,
        )
    };
    configure().map_err(|errno| Refusal::Create(errno, context.messages()))
}

fn through_loop(image: &OpenImage, label: Option<&str>) -> Result<OwnedFd, MountError> {
    let device = LoopDevice::attach_read_only(image.file.as_fd(), image.path.as_os_str())
        .map_err(|error| MountError::NoLoop { image: image.path.clone(), source: error.into() })?;
    // The mount holds the device; when it goes, the kernel frees the device.
    direct(device.path(), false, label).map_err(|refusal| refusal.explain(&image.path))
}

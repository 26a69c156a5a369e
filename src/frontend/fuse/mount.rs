//! The mount of the FUSE file system, and the handshake with the kernel.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use zerocopy::FromZeros;

use super::channel::{Channel, ReadBuffer, Reply};
use super::config::MAX_READ_BYTES;
use super::{FuseConfig, FuseError, FuseKind};
use crate::sys::bdi::Bdi;
use crate::sys::fuse::{InitIn, InitOut, MAJOR, MIN_MINOR, MINOR, init_in, opcode};

/// Pages of a request.
const MAX_PAGES_OF_REQUEST: u16 = (MAX_READ_BYTES / 4096) as u16;

/// What was agreed with the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Agreed {
    pub(super) minor: u32,
    pub(super) flags: u64,
}

/// Makes the directory, clears a dead mount off it, and refuses a living one.
pub(super) fn prepare_directory(dir: &Path) -> Result<(), FuseError> {
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

/// Mounts on `dir`. A device that has a file system already gets one more mount of it (5.14), as long as anybody has
/// that in use; ENOTCONN when nobody has.
pub(super) fn mount_device(device: impl AsFd, dir: &Path, kind: FuseKind) -> Result<(), FuseError> {
    let refused = |source| FuseError::Mount { dir: dir.to_owned(), source };
    // allow_other: EROFS reads the image with the credentials of whoever reads a file; the directory's mode keeps
    // everybody but root from opening images themselves.
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_READ_BYTES}",
        device.as_fd().as_raw_fd()
    );
    let options = std::ffi::CString::new(options).map_err(|error| refused(error.into()))?;
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    // Files are looked at through an overlay, whose own flags count there, and mounted as EROFS is.
    if kind == FuseKind::Images {
        flags |= MountFlags::NOEXEC;
    }
    rustix::mount::mount("sociblk", dir, "fuse.sociblk", flags, options.as_c_str())
        .map_err(|errno| refused(errno.into()))
}

/// The device number of the file system on `dir`: which connection it is. Asks its server nothing.
pub(super) fn file_system_on(dir: &Path) -> Result<u32, FuseError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let facts = statx(CWD, dir, flags, StatxFlags::empty())
        .map_err(|errno| FuseError::Directory { dir: dir.to_owned(), source: errno.into() })?;
    Ok(facts.stx_dev_minor)
}

/// Has the kernel read ahead in files by the longest request. It takes no more than its default (128 KiB) from INIT; best
/// effort, without /sys it stays so.
pub(super) fn set_readahead(device: u32) {
    let bdi = Bdi::Device { major: 0, minor: device };
    if let Err(error) = bdi.set_read_ahead(MAX_READ_BYTES) {
        tracing::debug!(%error, ?bdi, "readahead stays at the kernel's default");
    }
}

/// Answers the kernel's INIT, which is the first request of every connection and comes once.
pub(super) fn shake_hands(channel: &Arc<Channel>, config: &FuseConfig) -> Result<Agreed, FuseError> {
    let handshake = |source| FuseError::Handshake { source };
    let odd = |what: String| handshake(io::Error::new(io::ErrorKind::InvalidData, what));
    let mut buffer = ReadBuffer::new();
    loop {
        let (header, body) = channel
            .receive(&mut buffer)
            .map_err(handshake)?
            .ok_or_else(|| handshake(io::ErrorKind::NotConnected.into()))?;
        let reply = Reply::new(channel, &header);
        if header.opcode != opcode::INIT {
            reply.error(Errno::IO);
            return Err(odd(format!("the first request is of kind {}", header.opcode)));
        }
        let Some(init) = init_in(body) else { return Err(odd(format!("an INIT of {} bytes", body.len()))) };
        if init.major > MAJOR {
            // It asks again, in our version.
            reply.with(&answer(&init, 0, config));
            continue;
        }
        if (init.major, init.minor) < (MAJOR, MIN_MINOR) {
            reply.error(Errno::PROTO);
            let source = io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel speaks FUSE {}.{}, at least 7.31 (Linux 5.4) is needed", init.major, init.minor),
            );
            return Err(handshake(source));
        }
        let flags = (u64::from(init.flags2) << 32 | u64::from(init.flags)) & config.wanted();
        reply.with(&answer(&init, flags, config));
        return Ok(Agreed { minor: init.minor.min(MINOR), flags });
    }
}

fn answer(init: &InitIn, flags: u64, config: &FuseConfig) -> InitOut {
    let mut out = InitOut::new_zeroed();
    (out.major, out.minor) = (MAJOR, MINOR);
    (out.flags, out.flags2) = (flags as u32, (flags >> 32) as u32);
    out.max_readahead = init.max_readahead.min(MAX_READ_BYTES);
    out.max_background = config.max_background.get();
    out.congestion_threshold = out.max_background / 4 * 3;
    // Nobody writes; the kernel refuses read buffers that a write of this length would not fit into.
    out.max_write = 4096;
    out.max_pages = MAX_PAGES_OF_REQUEST;
    out.time_gran = 1;
    out
}

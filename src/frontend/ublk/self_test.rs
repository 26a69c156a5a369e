//! A trial of automatic buffer registration beside user copy, which no kernel promises: a small device of known contents is
//! made and read back before a layer is entrusted to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use rustix::fs::{MemfdFlags, memfd_create};

use super::{DataMode, UblkError, UblkFrontend};
use crate::frontend::{Backend, Completion, ReadError, Readiness, Segment, Segments, SourceFile};
use crate::units::{DeviceOffset, DeviceRange};

const BYTES: usize = 128 << 10;
/// Marks the device, should we die in between: the next start finds a device of ours that belongs to no layer.
pub(super) const TAG: u64 = 0x7365_6c66;

/// Whether a device in the best mode gives back what is in it. `Ok(false)` also when the driver does not grant the mode.
///
/// # Errors
/// When the driver hangs.
pub(super) fn passes(frontend: &UblkFrontend) -> Result<bool, UblkError> {
    let failed = |source| UblkError::Ring { source };
    let pattern = Pattern::new().map_err(failed)?;
    let want = pattern.contents();
    let device = match frontend.add(Arc::new(pattern), TAG) {
        Ok(device) => device,
        Err(error @ (UblkError::Wedged | UblkError::Stopped)) => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "no device with registered buffers; copying instead");
            return Ok(false);
        }
    };
    let (reply, answer) = sync_channel(1);
    let path = device.block_path.clone();
    // On a thread of its own: if the trial fails by hanging, the removal below frees it.
    let reader = thread::Builder::new().name("ublk-self-test".into()).spawn(move || {
        // Nobody listens after the limit.
        let _ = reply.send(read(path));
    });
    let got = match reader {
        Ok(_) => answer.recv_timeout(frontend.control_limit()).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        Err(error) => Err(error),
    };
    // udev may have it open.
    frontend.remove_in_use(device.id)?;
    let passed = device.mode == DataMode::AutoBufReg && got.as_ref().is_ok_and(|got| *got == want);
    if !passed {
        tracing::warn!(mode = ?device.mode, error = ?got.err(), "registered buffers do not work here; copying instead");
    }
    Ok(passed)
}

fn read(path: PathBuf) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES];
    File::open(path)?.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Contents in memory; each request is cut in two.
struct Pattern {
    file: OwnedFd,
}

impl Pattern {
    fn new() -> io::Result<Self> {
        let pattern = Self { file: memfd_create("ublk-self-test", MemfdFlags::CLOEXEC)? };
        File::from(pattern.file.try_clone()?).write_all_at(&pattern.contents(), 0)?;
        Ok(pattern)
    }

    /// No two sectors are equal.
    fn contents(&self) -> Vec<u8> {
        (0..BYTES).map(|n| (n / 512) as u8 ^ (n as u8).rotate_left(3)).collect()
    }
}

impl Backend for Pattern {
    fn size(&self) -> DeviceOffset {
        DeviceOffset::new(BYTES as u64)
    }

    fn file(&self, _: SourceFile) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn segments(&self, range: DeviceRange, out: &mut Segments) -> Result<(), ReadError> {
        let (offset, len_bytes) = (range.start().get(), range.len_bytes() as u32);
        let half = len_bytes / 2;
        out.push(Segment { file: SourceFile::Metadata, offset, len_bytes: half });
        out.push(Segment { file: SourceFile::Metadata, offset: offset + u64::from(half), len_bytes: len_bytes - half });
        Ok(())
    }

    fn ensure(&self, _: &Segments, _: Completion) -> Readiness {
        Readiness::Ready
    }

    fn release(&self, _: &Segments) {}

    fn failed(&self, range: DeviceRange, error: &dyn std::error::Error) {
        tracing::warn!(%range, %error, "ublk self-test");
    }
}

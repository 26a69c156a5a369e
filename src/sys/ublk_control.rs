//! ublk control commands over an io_uring of their own, each with a time limit.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode as sqe, squeue, types};
use zerocopy::IntoBytes;

use super::ublk::{CONTROL_PATH, CtrlCmd};

/// How long a command that ran into its limit may take to notice that it was cancelled.
const CANCEL_GRACE: Duration = Duration::from_millis(500);
/// Completion of the cancellation itself; no command has this number.
const CANCEL_USER_DATA: u64 = u64::MAX;

/// Why a command gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The driver did not answer in time. The command may still be running.
    #[error("the driver did not answer in time")]
    TimedOut,
    /// The driver refused.
    #[error(transparent)]
    Refused(io::Error),
    /// The ring itself failed.
    #[error("io_uring: {0}")]
    Ring(#[source] io::Error),
}

/// One control command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// One of [`super::ublk::opcode`].
    pub opcode: u32,
    /// Device number; `u32::MAX` where the driver chooses or none is meant.
    pub dev_id: u32,
    /// Inline argument.
    pub data: u64,
    /// Length of the path at the payload's start, 0 for none.
    pub dev_path_len: u16,
    /// How long to wait for the answer.
    pub limit: Duration,
}

/// A ring with 128-byte entries on `/dev/ublk-control`. Commands run one after the other. To be made and used on one
/// thread that lives long: the kernel's worker for these commands belongs to the thread that made the ring.
pub struct ControlRing {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    control: OwnedFd,
    next: u64,
    /// Payloads of commands that timed out: the kernel may still write to them.
    orphans: HashMap<u64, Vec<u8>>,
}

impl ControlRing {
    /// Opens the control device.
    ///
    /// # Errors
    /// `NotFound` without the driver, `EACCES` without the right, `EPERM` or `ENOSYS` where io_uring is switched off.
    pub fn open() -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(CONTROL_PATH)?;
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(4)?;
        Ok(Self { ring, control: control.into(), next: 0, orphans: HashMap::new() })
    }

    /// Runs `command` with `payload` (empty for none) and returns the driver's result and the payload as it left it.
    ///
    /// # Errors
    /// See [`CommandError`]. A payload of more than 65535 bytes is refused with `EINVAL`.
    pub fn run(&mut self, command: &Command, payload: Vec<u8>) -> Result<(u32, Vec<u8>), CommandError> {
        let refused = |errno| CommandError::Refused(io::Error::from_raw_os_error(errno));
        let len = u16::try_from(payload.len()).map_err(|_| refused(libc::EINVAL))?;
        let header = CtrlCmd {
            dev_id: command.dev_id,
            queue_id: u16::MAX,
            len,
            addr: if payload.is_empty() { 0 } else { payload.as_ptr() as u64 },
            data: command.data,
            dev_path_len: command.dev_path_len,
            ..CtrlCmd::default()
        };
        let mut bytes = [0_u8; 80];
        bytes[..size_of::<CtrlCmd>()].copy_from_slice(header.as_bytes());
        let user_data = self.next;
        self.next += 1;
        let entry = sqe::UringCmd80::new(types::Fd(self.control.as_raw_fd()), command.opcode)
            .cmd(bytes)
            .build()
            .user_data(user_data);
        // Before the kernel may see its address the payload moves to where it stays until the answer is here (moving a
        // `Vec` leaves its bytes in place).
        self.orphans.insert(user_data, payload);
        self.push(&entry).map_err(CommandError::Ring)?;

        let result = match self.wait(user_data, Instant::now() + command.limit)? {
            Some(result) => Some(result),
            None => {
                let cancel = sqe::AsyncCancel::new(user_data).build().user_data(CANCEL_USER_DATA);
                self.push(&cancel.into()).map_err(CommandError::Ring)?;
                self.wait(user_data, Instant::now() + CANCEL_GRACE)?;
                None
            }
        };
        let Some(result) = result else { return Err(CommandError::TimedOut) };
        let payload = self.orphans.remove(&user_data).unwrap_or_default();
        match u32::try_from(result) {
            Ok(value) => Ok((value, payload)),
            Err(_) => Err(refused(-result)),
        }
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: the entry's payload lives in `orphans` until its completion arrived (or for ever); the control device
        // stays open as long as the ring.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // At most a command and its cancellation are queued, in a queue of four.
        pushed.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Waits for the completion of `user_data`; `None` when `deadline` passed. Payloads of older commands whose
    /// completions turn up are freed.
    fn wait(&mut self, user_data: u64, deadline: Instant) -> Result<Option<i32>, CommandError> {
        loop {
            let mut found = None;
            for completion in self.ring.completion() {
                if completion.user_data() == user_data {
                    found = Some(completion.result());
                } else {
                    self.orphans.remove(&completion.user_data());
                }
            }
            if found.is_some() {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let limit = types::Timespec::from(left);
            let args = types::SubmitArgs::new().timespec(&limit);
            match self.ring.submitter().submit_with_args(1, &args) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
                Err(error) => return Err(CommandError::Ring(error)),
            }
        }
    }
}

impl Drop for ControlRing {
    fn drop(&mut self) {
        // The kernel may write to these whenever a stuck command comes to life; the ring's end does not wait for that.
        for payload in self.orphans.drain() {
            std::mem::forget(payload);
        }
    }
}

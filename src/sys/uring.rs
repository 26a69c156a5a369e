//! What every io_uring of ours does alike.

use std::io;
use std::time::Duration;

use io_uring::{Submitter, types};

/// Submits everything and waits for a completion, or until `limit` passed (zero: only takes what is there).
///
/// # Errors
/// What `io_uring_enter` says; time-outs and signals are no errors, nor is it one that the kernel wants completions reaped first.
pub(super) fn submit_and_wait(submitter: &Submitter<'_>, limit: Option<Duration>) -> io::Result<()> {
    let entered = match limit {
        None => submitter.submit_and_wait(1),
        Some(limit) => {
            let limit = types::Timespec::from(limit);
            submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&limit))
        }
    };
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

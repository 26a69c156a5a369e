//! What a thread tells the kernel about itself.

use std::sync::Once;

/// Tells the kernel that block I/O depends on this thread (prctl(2), `PR_SET_IO_FLUSHER`): its memory allocations then
/// never wait for I/O that it would have to do itself. Threads started from it inherit the mark.
///
/// Needs CAP_SYS_RESOURCE; a refusal is logged once, and reads may block each other when memory is short.
pub fn become_io_flusher() {
    static REFUSED: Once = Once::new();
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        REFUSED.call_once(|| {
            tracing::warn!(%error, "PR_SET_IO_FLUSHER refused: when memory is short reads may block each other");
        });
    }
}

/// Ends the process when its thread panics: for threads that the kernel waits for.
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

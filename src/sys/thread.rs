//! What a thread tells the kernel about itself.

/// Tells the kernel that block I/O depends on this thread (prctl(2), `PR_SET_IO_FLUSHER`): its memory allocations then
/// never wait for I/O that it would have to do itself. Threads started from it inherit the mark.
///
/// Needs CAP_SYS_RESOURCE; without it the refusal is logged, and reads may block each other under memory pressure.
pub fn become_io_flusher() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::warn!(%error, "PR_SET_IO_FLUSHER refused: under memory pressure reads may block each other");
    }
}

//! The allocator's free memory.

/// Has all threads share one heap. glibc else makes one for each thread, and what was once allocated at the top of
/// any but the first never goes back to the kernel, not even with [`trim`] (glibc 2.36, `mtrim`). Small allocations
/// come from per-thread caches all the same. To be called before the first thread is started; with another C library:
/// nothing.
pub fn share_one_heap() {
    // SAFETY: mallopt(3) with a parameter and a value from its list; no other thread exists yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free pages of the allocator back to the kernel; by itself glibc does so only at the top of the heap. Takes
/// milliseconds, during which other threads' allocations may wait. With another C library: nothing.
pub fn trim() {
    // SAFETY: a C function without preconditions, safe with any number of threads (malloc_trim(3)); it touches only
    // pages that hold no live allocation.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

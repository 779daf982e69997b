//! What has to happen before `main`: the allocator asks for huge pages when it is set up, by the first allocation
//! of Rust's own start, and clearing them takes a helper longer than all of its work.

use std::sync::atomic::{AtomicBool, Ordering};

/// Huge pages were allowed when we were started.
static WERE_ALLOWED: AtomicBool = AtomicBool::new(false);

/// Run by the C library's start code, before the allocator's own initializer, which has no number.
#[used]
#[unsafe(link_section = ".init_array.00001")]
static BEFORE_MAIN: extern "C" fn() = forbid_huge_pages;

extern "C" fn forbid_huge_pages() {
    // SAFETY: plain integers; nothing here allocates or needs what `main` sets up.
    unsafe {
        if libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0 {
            WERE_ALLOWED.store(true, Ordering::Relaxed);
            libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        }
    }
}

/// For a process that is no helper: its children's memory is theirs, a compiler's for example.
pub fn restore_huge_pages() {
    if WERE_ALLOWED.load(Ordering::Relaxed) {
        // SAFETY: plain integers.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) };
    }
}

//! How many files the daemon may have open: all that it is allowed, while its engines keep what the
//! daemon was started with. A program that still uses `select` cannot bear more.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The soft and the hard limit that the daemon was started with.
static FIRST: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Raises the limit as far as it may be: each connection takes one file, and one more to its engine.
/// Called once, before anything is started.
pub fn raise_file_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    FIRST.get_or_init(|| (soft, hard));
    // Where it may not, fewer connections are taken at once.
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok();
}

/// Puts the limit back, for an image that takes this one's place.
pub fn restore_file_limit() {
    if let Some((soft, hard)) = first() {
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).ok();
    }
}

/// Returns what the daemon was started with; `None` if it was never raised.
pub(super) fn first() -> Option<(rlim_t, rlim_t)> {
    FIRST.get().copied()
}

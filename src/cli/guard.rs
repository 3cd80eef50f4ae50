//! `slotd guard`: started by the daemon alone, ends what a killed daemon leaves behind.

use std::process::ExitCode;

use crate::process::guard;

/// Runs the guard.
pub(super) fn run() -> ExitCode {
    guard::run()
}

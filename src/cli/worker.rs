//! `slotd worker`: the candle engine, a program of its own inside the binary.

use std::process::ExitCode;

#[cfg(feature = "worker")]
pub(super) use crate::worker::Options;

/// Options of a worker that was not built in: whatever is given is answered with how to get it.
#[cfg(not(feature = "worker"))]
#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// Ignored
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<std::ffi::OsString>,
}

/// Serves a model until a signal ends it.
#[cfg(feature = "worker")]
pub(super) fn run(options: Options) -> ExitCode {
    crate::worker::run(options)
}

/// Says how to get a slotd with a worker.
#[cfg(not(feature = "worker"))]
pub(super) fn run(options: Options) -> ExitCode {
    drop(options.rest);
    super::out::note(
        "slotd: this build has no candle worker; build with `cargo build --release` (default features)\n",
    );
    super::Exit::Unavailable.into()
}

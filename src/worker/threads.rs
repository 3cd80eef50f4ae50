//! The number of threads that compute.
//!
//! candle sizes its two pools from `CANDLE_NUM_THREADS` and `RAYON_NUM_THREADS` when they are
//! first used and has no other setting. Changing the environment of a running program is unsound,
//! so the program is replaced by itself with the two set: same pid, same start time, and no thread
//! or file is open yet. Whoever starts the worker can set both and spare that step.

use std::{
    env, ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command,
};

use super::exit::Ending;

const VARIABLES: [&str; 2] = ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"];

/// Makes `threads` the number of computing threads; returns only if it is so, or cannot be.
pub(super) fn settle(threads: Option<usize>) -> Result<(), Ending> {
    let Some(threads) = threads.map(|n| n.to_string()) else { return Ok(()) };
    if VARIABLES.iter().all(|name| env::var(name).is_ok_and(|value| value == threads)) {
        return Ok(());
    }
    let program = if cfg!(target_os = "linux") {
        // Also reaches the file when it was replaced by an upgrade since the start.
        Ok(PathBuf::from("/proc/self/exe"))
    } else {
        env::current_exe()
    };
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("slotd"));
    let failure = match program {
        Ok(program) => Command::new(program)
            .arg0(name)
            .args(arguments)
            .envs(VARIABLES.map(|variable| (variable, &threads)))
            .exec(),
        Err(error) => error,
    };
    Err(Ending::internal(format!("cannot restart with {threads} threads: {failure}")))
}

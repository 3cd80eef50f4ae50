//! argv in, exit code out.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    slotd::cli::main(env::args_os())
}

//! `slotd completions`: a shell's completion script.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, exit::Exit, failure::Failure, out};

/// Options of `slotd completions`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The shell
    shell: Shell,
}

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    generate(options.shell, &mut Cli::command(), "slotd", &mut script);
    out::exact(script)?;
    Ok(Exit::Success)
}

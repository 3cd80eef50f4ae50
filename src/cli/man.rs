//! `slotd man`: the manual pages, one a subcommand.

use std::{fs, path::PathBuf};

use clap::{Args, CommandFactory};
use clap_mangen::generate_to;

use super::{Cli, exit::Exit, failure::Failure};

/// Options of `slotd man`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Where the pages are written; made if it is not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(options: Options) -> Result<Exit, Failure> {
    let path = options.directory;
    match fs::create_dir_all(&path).and_then(|()| generate_to(Cli::command(), &path)) {
        Ok(()) => Ok(Exit::Success),
        Err(source) => Err(Failure::WriteFile { path, source }),
    }
}

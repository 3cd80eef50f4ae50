//! `slotd key`: the file of keys, made, listed and thinned out without a daemon.

use std::{env, path::PathBuf};

use clap::{Args, Subcommand};

use super::{exit::Exit, failure::Failure, out};
use crate::config::{
    daemon::{Flags, KeysFile, Settings},
    keys::{self, EditFault, Role},
};

/// Options of `slotd key`.
#[derive(Args, Debug)]
pub(super) struct Options {
    #[command(subcommand)]
    what: What,
    /// The file of keys, in place of the one that the settings name
    #[arg(long, value_name = "FILE", global = true)]
    keys: Option<PathBuf>,
    /// The daemon's own file, in place of the usual one
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key and print it, once: the file keeps its digest only
    New {
        /// Who it is for: the name in the file and in logs
        name: String,
        /// A key for orders to the daemon in place of one for models; it opens no model
        #[arg(long)]
        admin: bool,
    },
    /// List the names of keys
    List,
    /// Take a key away; a running daemon refuses it from then on
    Remove {
        /// Its name
        name: String,
    },
}

/// Does what was asked to the file.
pub(super) fn run(options: Options) -> Result<Exit, Failure> {
    let file = find(options.config, options.keys)?;
    let path = file.path();
    match options.what {
        What::New { name, admin } => {
            let role = if admin { Role::Admin } else { Role::Infer };
            let key = keys::add(path, &name, role)?;
            out::note(&format!(
                "`{name}` is in {}; this is the only time that its key is shown:\n",
                path.display()
            ));
            out::print(format!("{key}\n"))?;
            Ok(Exit::Success)
        }
        What::List => {
            let known = keys::read(path).map_err(EditFault::Faults)?.unwrap_or_default();
            let lines = known.iter().map(|key| format!("{} {}\n", key.role.as_str(), key.name));
            out::print(lines.collect::<String>())?;
            Ok(Exit::Success)
        }
        What::Remove { name } => {
            if keys::remove(path, &name)? {
                return Ok(Exit::Success);
            }
            let message = format!("there is no key `{name}` in {}", path.display());
            Err(Failure::Outcome { message })
        }
    }
}

fn find(config: Option<PathBuf>, keys: Option<PathBuf>) -> Result<KeysFile, Failure> {
    let flags = Flags { config, keys, ..Flags::default() };
    let settings =
        Settings::resolve(&flags, &|name: &str| env::var_os(name)).map_err(Failure::Settings)?;
    Ok(settings.keys)
}

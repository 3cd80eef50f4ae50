//! `slotd validate`: every fault of profiles and settings, without a daemon.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{
    exit::Exit,
    failure::{Failure, listed},
    out,
    text::counted,
};
use crate::config::{
    Context, Fault, Loaded,
    daemon::{Flags, Settings},
    validate,
};

/// Options of `slotd validate`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Profiles, directories of profiles, or a `slotd.toml`; the daemon's own without any
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The daemon's own file, in place of the usual one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A directory of profiles in place of the usual one; may be repeated
    #[arg(long, value_name = "DIR", conflicts_with = "paths")]
    profiles: Vec<PathBuf>,
    /// Print a JSON object with the slots that are valid and the faults
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: Options) -> Result<Exit, Failure> {
    let loaded = look(&options.paths, options.config, options.profiles);
    let printed = if options.json {
        let slots: Vec<_> = loaded.profiles.keys().collect();
        out::json(&json!({ "valid": slots, "faults": loaded.faults }))
    } else {
        out::print(told(&loaded))
    };
    match printed {
        // Who did not read on still learns of the faults.
        Ok(()) | Err(Failure::ReaderGone) => {}
        Err(failure) => return Err(failure),
    }
    Ok(if loaded.faults.is_empty() { Exit::Success } else { Exit::Faults })
}

fn look(paths: &[PathBuf], config: Option<PathBuf>, profiles: Vec<PathBuf>) -> Loaded {
    let is_named = config.is_some();
    let flags = Flags { config, profiles, ..Flags::default() };
    let settings = Settings::resolve(&flags, &|name: &str| env::var_os(name));
    match (settings, paths) {
        (Ok(settings), []) => validate(&settings.profile_dirs, &settings.context()),
        (Ok(settings), paths) => validate(paths, &settings.context()),
        // Paths were named, the settings were not: their faults are not what is asked for.
        (Err(_), [_, ..]) if !is_named => validate(paths, &Context::default()),
        (Err(faults), paths) => {
            let mut loaded = validate(paths, &Context::default());
            loaded.faults.extend(faults);
            loaded.faults.sort();
            loaded
        }
    }
}

fn told(loaded: &Loaded) -> String {
    let Loaded { profiles, faults, contents, .. } = loaded;
    if faults.is_empty() {
        return match (profiles.len(), contents.len()) {
            (0, 0) => "there are no profiles\n".to_owned(),
            (0, files) => format!("{} valid\n", are(files, "file")),
            (count, _) => format!("{} valid\n", are(count, "profile")),
        };
    }
    format!("{}\n{}", listed(faults), summary(faults))
}

fn summary(faults: &[Fault]) -> String {
    let files: BTreeSet<&Path> = faults.iter().filter_map(|fault| fault.file.as_deref()).collect();
    let count = counted(faults.len(), "fault");
    if files.is_empty() {
        return format!("\n{count}\n");
    }
    format!("\n{count} in {}\n", counted(files.len(), "file"))
}

fn are(count: usize, noun: &str) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb}", counted(count, noun))
}

//! `slotd models`: what models are on disk, and whether they are whole.

mod clean;
mod list;
mod stand_in;
mod switch;
mod verify;

use std::{env, fs, io::ErrorKind, path::PathBuf};

use clap::{Args, Subcommand};

use super::{client::Client, exit::Exit, failure::Failure, out, text::one_line};
use crate::{
    config::{
        daemon::{Flags, Settings},
        load,
    },
    models::{
        hub_cache_dir,
        inventory::{self, Headers, Inventory, Stores, User},
        whereabouts,
    },
};

/// Options of `slotd models`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// Print JSON, all sizes in bytes
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tell which models are whole, and what the others lack
    Verify(verify::Options),
    /// Remove unfinished downloads, locks that nobody holds, and what no model needs
    Clean(clean::Options),
    /// Let a slot go over to another revision of its model
    ///
    /// Where memory allows, an engine of that revision is started beside the present one first and serves until the
    /// slot's own does, so that no request waits. If it does not start, nothing is changed.
    Use(switch::Options),
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    match &options.what {
        None => list::run(options.json, client).await,
        Some(What::Clean(options)) => clean::run(options, client).await,
        Some(What::Use(options)) => switch::run(options, client).await,
        Some(What::Verify(options)) => verify::run(options, client).await,
    }
}

/// Asks the daemon, whose user and environment may see other models; looks itself where none answers here.
async fn inventory(client: &Client) -> Result<Inventory, Failure> {
    match client.inventory().await {
        Err(Failure::NoDaemon { .. } | Failure::Denied { .. }) if client.is_beside() => {
            own_inventory()
        }
        answer => answer,
    }
}

/// What this user sees. Blocks on disks.
fn own_inventory() -> Result<Inventory, Failure> {
    let settings = settings()?;
    let stores = Stores::of(&|name| env::var_os(name), &settings.model_dirs);
    let mut headers = Headers::load(&settings.cache_dir);
    let found = inventory::scan(&stores, &mut headers, &users(&settings));
    headers.save();
    Ok(found)
}

/// The slots of the profiles; without a daemon none has anything in memory.
fn users(settings: &Settings) -> Vec<User> {
    let hub: PathBuf = hub_cache_dir(&|name| env::var_os(name)).unwrap_or_default();
    let loaded = load(&settings.profile_dirs, &settings.context());
    let users = loaded.profiles.iter().filter_map(|(slot, profile)| {
        let path = whereabouts(profile.model.as_ref()?, &hub)?;
        Some(User { slot: slot.clone(), path, is_loaded: false })
    });
    users.collect()
}

/// The faults of profiles, whose slots nobody knows all of: as the daemon tells them, else as they are found here.
async fn profile_faults(client: &Client) -> Result<Vec<String>, Failure> {
    match client.daemon().await {
        Err(Failure::NoDaemon { .. } | Failure::Denied { .. }) => {
            let settings = settings()?;
            // A folder that is not there names no model.
            let is_gone = |dir: &&PathBuf| {
                fs::symlink_metadata(dir).is_err_and(|error| error.kind() == ErrorKind::NotFound)
            };
            let dirs: Vec<_> =
                settings.profile_dirs.iter().filter(|dir| !is_gone(dir)).cloned().collect();
            let faults = load(&dirs, &settings.context()).faults;
            Ok(faults.iter().map(ToString::to_string).collect())
        }
        answer => Ok(answer?.faults.into_iter().map(|fault| fault.text).collect()),
    }
}

fn settings() -> Result<Settings, Failure> {
    let settings = Settings::resolve(&Flags::default(), &|name: &str| env::var_os(name));
    settings.map_err(Failure::Settings)
}

/// Says on standard error what could not be read.
fn note_faults(inventory: &Inventory) {
    for fault in &inventory.faults {
        out::note(&format!("{}\n", one_line(fault)));
    }
}

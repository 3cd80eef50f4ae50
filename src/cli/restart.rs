//! `slotd restart`.

use clap::Args;

use super::{
    client::{Client, Order},
    exit::Exit,
    failure::Failure,
    outcome::{self, Manner},
};
use crate::spec::SlotName;

/// Options of `slotd restart`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot
    slot: SlotName,
    /// Ask for the restart and do not wait
    #[arg(long)]
    no_wait: bool,
    /// Print the slot as JSON in the end
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let manner = Manner { wait: !options.no_wait, json: options.json };
    outcome::run(client, &options.slot, Order::Restart, manner).await
}

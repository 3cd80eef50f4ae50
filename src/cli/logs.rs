//! `slotd logs`: what a slot's engines wrote.

use clap::Args;

use super::{client::Client, exit::Exit, failure::Failure, out};
use crate::spec::SlotName;

/// Options of `slotd logs`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot
    slot: SlotName,
    /// Go on with what its engines write, also the next ones
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to begin with
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 100)]
    lines: usize,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let mut response = client.logs(&options.slot, options.lines, options.follow).await?;
    let mut is_empty = true;
    while let Some(chunk) = response.chunk().await.map_err(|error| client.failure(error))? {
        is_empty = false;
        out::print(&chunk)?;
    }
    if is_empty && options.lines > 0 {
        out::note(&format!("slotd: `{}` has not written anything yet\n", options.slot));
    }
    Ok(Exit::Success)
}

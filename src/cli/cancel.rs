//! `slotd cancel`: ends a request in flight.

use clap::Args;

use super::{client::Client, exit::Exit, failure::Failure, out};

/// Options of `slotd cancel`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The request's id, as `slotd requests` shows it
    id: u64,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let accepted = client.cancel(options.id).await?;
    if options.json {
        out::json(&accepted)?;
    } else {
        out::print(format!("request {} is cancelled\n", options.id))?;
    }
    Ok(Exit::Success)
}

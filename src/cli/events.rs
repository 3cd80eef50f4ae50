//! `slotd events`: tells what happens, as it happens.

use clap::Args;

use super::{
    client::Client,
    exit::Exit,
    failure::Failure,
    out,
    text::{one_line, utc},
};
use crate::admin::EventObject;

/// Options of `slotd events`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Print each event as one line of JSON
    #[arg(long)]
    json: bool,
}

/// Prints until the daemon ends or the reader leaves.
pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let mut events = client.events().await?;
    while let Some(line) = events.next().await? {
        if options.json {
            out::exact(format!("{line}\n"))?;
            continue;
        }
        let event: EventObject = serde_json::from_str(&line).map_err(Failure::Answer)?;
        out::print(told(&event))?;
    }
    Ok(Exit::Success)
}

fn told(event: &EventObject) -> String {
    format!("{}  {}\n", utc(event.at_unix_ms), one_line(&event.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let text = "memory pressure is elevated, it was normal".to_owned();
        let event = EventObject::new("pressure-changed", 1_700_000_000_000, text);
        let line = "2023-11-14 22:13:20 UTC  memory pressure is elevated, it was normal\n";
        assert_eq!(told(&event), line);
    }
}

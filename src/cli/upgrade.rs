//! `slotd upgrade`: the running daemon goes on as the program on disk.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::{client::Client, exit::Exit, failure::Failure, out};
use crate::admin::DaemonObject;

/// How often the daemon is asked whether it has changed.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest that requests in flight and engines that stop can take, with room to spare.
const PATIENCE: Duration = Duration::from_hours(3);

/// Options of `slotd upgrade`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Ask for it and do not wait until it is done
    #[arg(long)]
    no_wait: bool,
}

/// Asks for the upgrade and waits until the next image answers.
pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let before = client.daemon().await?;
    let next = client.upgrade().await?;
    if options.no_wait {
        out::print(format!("the upgrade to {next} is asked for\n"))?;
        return Ok(Exit::Success);
    }
    let after = changed(&before, client).await?;
    let slots = client.slots().await?;
    let kept = slots.iter().filter(|slot| slot.pid.is_some()).count();
    let engines = if kept == 1 { "1 engine".to_owned() } else { format!("{kept} engines") };
    out::print(format!(
        "upgraded: slotd {} is now slotd {}, pid {}, with {engines}\n",
        before.version, after.version, after.pid
    ))?;
    Ok(Exit::Success)
}

/// Waits for an image after `before`: the socket is open all the time, so that each question is
/// answered by one of the two.
async fn changed(before: &DaemonObject, client: &Client) -> Result<DaemonObject, Failure> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match client.daemon().await {
            Ok(now) if now.images > before.images || now.pid != before.pid => return Ok(now),
            // The old image has closed the connection, or the new one is not that far yet.
            Ok(_) | Err(Failure::Talk { .. }) => {}
            Err(failure) => return Err(failure),
        }
        sleep(PAUSE).await;
    }
    let message = "the upgrade was asked for and is not done; `slotd status` shows the daemon";
    Err(Failure::Outcome { message: message.to_owned() })
}

//! Orders of a slot's stay in memory: `pin`, `unpin`, `priority`, `offload`, and `ensure`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::sleep;

use super::{client::Client, exit::Exit, failure::Failure, out};
use crate::{
    admin::{RoomObject, RoomWish, SlotObject},
    spec::{Bytes, SlotName},
};

/// How often it is looked whether those that go are gone.
const PAUSE: Duration = Duration::from_millis(100);

/// Options of `slotd pin`, `slotd unpin` and `slotd offload`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot
    slot: SlotName,
    /// Print the slot as JSON
    #[arg(long)]
    json: bool,
}

/// Options of `slotd priority`.
#[derive(Args, Debug)]
pub(super) struct PriorityOptions {
    /// The slot
    slot: SlotName,
    /// 0 to 100, those with less give way first; or `default`, what its profile says
    #[arg(value_parser = priority)]
    priority: Priority,
    /// Print the slot as JSON
    #[arg(long)]
    json: bool,
}

/// Options of `slotd ensure`.
#[derive(Args, Debug)]
pub(super) struct EnsureOptions {
    /// How much: `8GiB`, `500MiB`
    size: Bytes,
    /// Of this GPU's memory, by its index; of the host's without it
    #[arg(long)]
    gpu: Option<u32>,
    /// The slot that it is for, which does not go itself
    #[arg(long = "for", value_name = "SLOT")]
    slot: Option<SlotName>,
    /// Do not wait until those that go are gone
    #[arg(long)]
    no_wait: bool,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

/// What a slot's stay is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Word {
    Pin,
    Unpin,
    Offload,
}

/// A priority, or none of one's own.
#[derive(Clone, Copy, Debug)]
struct Priority(Option<u32>);

fn priority(typed: &str) -> Result<Priority, String> {
    if typed == "default" {
        return Ok(Priority(None));
    }
    let number = typed.parse().ok().filter(|number| *number <= 100);
    let number = number.ok_or("it is a whole number from 0 to 100, or `default`")?;
    Ok(Priority(Some(number)))
}

/// Orders it, and tells what that means.
pub(super) async fn run(word: Word, options: &Options, client: &Client) -> Result<Exit, Failure> {
    let slot = &options.slot;
    let (path, means) = match word {
        Word::Pin => ("pin", "is never unloaded for another slot or for want of memory"),
        Word::Unpin => ("unpin", "may make room for others"),
        Word::Offload => ("offload", "goes down one rung of its ladder"),
    };
    let accepted = client.tell_slot(slot, path, &json!({})).await?;
    tell(&accepted, options.json, &format!("{slot}: {means}"))
}

/// Orders a priority.
pub(super) async fn prioritise(
    options: &PriorityOptions,
    client: &Client,
) -> Result<Exit, Failure> {
    let PriorityOptions { slot, priority: Priority(priority), json } = options;
    let accepted = client.tell_slot(slot, "priority", &json!({ "priority": priority })).await?;
    let means = match priority {
        Some(priority) => format!("{slot}: priority {priority}"),
        None => format!("{slot}: the priority of its profile"),
    };
    tell(&accepted, *json, &means)
}

fn tell(slot: &SlotObject, as_json: bool, sentence: &str) -> Result<Exit, Failure> {
    if as_json {
        out::json(slot)?;
    } else {
        out::print(format!("{sentence}\n"))?;
    }
    Ok(Exit::Success)
}

/// Has room made, and waits until it is there.
pub(super) async fn ensure(options: &EnsureOptions, client: &Client) -> Result<Exit, Failure> {
    let EnsureOptions { size, gpu, slot, .. } = options;
    let wish = RoomWish { bytes: *size, gpu: *gpu, slot: slot.clone() };
    let room = client.ensure(&wish).await?;
    if let Some(reason) = &room.refused {
        if options.json {
            out::json(&room)?;
        }
        return Err(Failure::Outcome { message: reason.clone() });
    }
    if !options.no_wait {
        for name in &room.going {
            while is_leaving(&client.slot(name).await?) {
                sleep(PAUSE).await;
            }
        }
    }
    if options.json {
        out::json(&room)?;
    } else {
        out::print(said(options, &room))?;
    }
    Ok(Exit::Success)
}

fn is_leaving(slot: &SlotObject) -> bool {
    matches!(slot.state.as_str(), "draining" | "stopping" | "reaping")
}

fn said(options: &EnsureOptions, room: &RoomObject) -> String {
    let size = options.size;
    let what = options.gpu.map_or_else(|| "memory".to_owned(), |gpu| format!("GPU {gpu}'s memory"));
    let names: Vec<_> = room.going.iter().map(SlotName::as_str).collect();
    match (names.as_slice(), options.no_wait) {
        ([], _) => format!("{size} of {what} can be had, nobody had to go\n"),
        (names, false) => {
            format!("{size} of {what} can be had; unloaded for it: {}\n", names.join(", "))
        }
        (names, true) => format!("{size} of {what}: {} make room for it\n", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_a_number_or_the_profiles() {
        assert_eq!(priority("0").unwrap().0, Some(0));
        assert_eq!(priority("default").unwrap().0, None);
        assert!(priority("101").is_err() && priority("high").is_err());
    }

    #[test]
    fn what_went_is_said() {
        let options = EnsureOptions {
            size: Bytes(8 << 30),
            gpu: Some(0),
            slot: None,
            no_wait: false,
            json: false,
        };
        let going = ["a", "b"].map(|name| name.parse().unwrap()).into();
        let room = RoomObject { free_bytes: Some(Bytes(0)), going, refused: None };
        assert_eq!(
            said(&options, &room),
            "8.0 GiB of GPU 0's memory can be had; unloaded for it: a, b\n"
        );
        let room = RoomObject { going: Vec::new(), ..room };
        assert_eq!(
            said(&options, &room),
            "8.0 GiB of GPU 0's memory can be had, nobody had to go\n"
        );
    }
}

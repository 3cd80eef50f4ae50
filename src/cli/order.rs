//! Gives an order and waits for what comes of it.

use std::time::Duration;

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    advice::next_step,
    client::{Changes, Client, Order},
    exit::Exit,
    failure::Failure,
    out,
    progress::Progress,
    text::brief,
};
use crate::{admin::SlotObject, spec::SlotName};

/// How often the moving line moves.
const FRAME: Duration = Duration::from_millis(100);

/// What came of an order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// What was asked for.
    Done,
    /// The slot failed.
    Failed,
    /// Somebody unloaded it meanwhile.
    Unloaded,
    /// Somebody loaded it meanwhile.
    Loaded,
    /// Somebody else runs its engine, and it is not there.
    Absent,
    /// It needs more than this machine has.
    TooLarge,
    /// Its profile asks for another machine.
    Skipped,
}

/// Options of `slotd load`, `slotd unload` and `slotd restart`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot
    slot: SlotName,
    /// Ask for it and do not wait until it is done
    #[arg(long)]
    no_wait: bool,
    /// Print the slot as JSON in the end
    #[arg(long)]
    json: bool,
}

/// Gives the order, shows how it comes along, and tells what came of it.
pub(super) async fn run(order: Order, options: &Options, client: &Client) -> Result<Exit, Failure> {
    let slot = &options.slot;
    if options.no_wait {
        let accepted = client.order(slot, order).await?;
        return tell(&accepted, options, || {
            format!("{slot}: the {} is asked for; `slotd status {slot}` follows it\n", order.verb())
        });
    }
    let (before, (outcome, now)) = give(order, slot, client).await?;
    match outcome {
        Outcome::Done => tell(&now, options, || done(order, &before, &now)),
        Outcome::Failed
        | Outcome::Unloaded
        | Outcome::Loaded
        | Outcome::Absent
        | Outcome::TooLarge
        | Outcome::Skipped => {
            if options.json {
                out::json(&now)?;
            }
            Err(Failure::Outcome { message: undone(outcome, &now) })
        }
    }
}

/// Gives the order for something else to follow, and returns the slot when it is done.
pub(super) async fn bring(
    order: Order,
    slot: &SlotName,
    client: &Client,
) -> Result<SlotObject, Failure> {
    let (_, (outcome, now)) = give(order, slot, client).await?;
    match outcome {
        Outcome::Done => Ok(now),
        Outcome::Failed
        | Outcome::Unloaded
        | Outcome::Loaded
        | Outcome::Absent
        | Outcome::TooLarge
        | Outcome::Skipped => Err(Failure::Outcome { message: undone(outcome, &now) }),
    }
}

/// Gives the order and shows how it comes along; returns the slot as it was before, and what came of it.
async fn give(
    order: Order,
    slot: &SlotName,
    client: &Client,
) -> Result<(SlotObject, (Outcome, SlotObject)), Failure> {
    // Before anything is asked for: from here on Ctrl-C is told what it leaves behind.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(Failure::System)?;
    let begun = tokio::select! {
        begun = begin(order, slot, client) => Some(begun),
        _ = interrupts.recv() => None,
    };
    let unheard = || Failure::Interrupted { message: unheard(order, slot) };
    let (mut changes, before) = begun.ok_or_else(unheard)??;
    let mut progress = Progress::new(&before);
    let end = tokio::select! {
        end = follow(&mut changes, order, &before, &mut progress) => Some(end),
        _ = interrupts.recv() => None,
    };
    progress.clear();
    let end = end.ok_or_else(|| Failure::Interrupted { message: left(order, &before) })??;
    Ok((before, end))
}

/// Gives the order. Watched before it is ordered: no step between the two can be missed.
async fn begin(
    order: Order,
    slot: &SlotName,
    client: &Client,
) -> Result<(Changes, SlotObject), Failure> {
    let mut changes = client.watch(slot).await?;
    let before = changes.next().await?;
    client.order(slot, order).await?;
    Ok((changes, before))
}

/// What Ctrl-C leaves behind when the daemon had not answered yet.
fn unheard(order: Order, slot: &SlotName) -> String {
    format!(
        "interrupted; whether the daemon heard of the {} of `{slot}` is not known",
        order.verb()
    )
}

fn tell(
    slot: &SlotObject,
    options: &Options,
    sentence: impl FnOnce() -> String,
) -> Result<Exit, Failure> {
    if options.json {
        out::json(slot)?;
    } else {
        out::print(sentence())?;
    }
    Ok(Exit::Success)
}

async fn follow(
    changes: &mut Changes,
    order: Order,
    before: &SlotObject,
    progress: &mut Progress,
) -> Result<(Outcome, SlotObject), Failure> {
    // What is over within one frame needs no progress.
    let mut frames = interval_at(Instant::now() + FRAME, FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut now = before.clone();
    let mut seen = Instant::now();
    loop {
        if let Some(outcome) = judge(order, before, &now) {
            return Ok((outcome, now));
        }
        tokio::select! {
            change = changes.next() => {
                now = change?;
                seen = Instant::now();
            }
            _ = frames.tick() => progress.show(&now, seen.elapsed()),
        }
    }
}

/// Tells whether the order has come to its end: what stood before the order was taken is no outcome
/// of it.
fn judge(order: Order, before: &SlotObject, now: &SlotObject) -> Option<Outcome> {
    let is_new_engine = now.generation > before.generation;
    let was_coming = matches!(before.state.as_str(), "starting" | "ready" | "unready" | "backoff");
    match (order, now.state.as_str()) {
        (Order::Load, "ready") | (Order::Unload, "offline") => Some(Outcome::Done),
        (Order::Restart, "ready") if is_new_engine => Some(Outcome::Done),
        (Order::Unload, "starting" | "ready") if is_new_engine => Some(Outcome::Loaded),
        (Order::Load | Order::Restart, "failed") if is_new_engine || before.state != "failed" => {
            Some(Outcome::Failed)
        }
        (Order::Load | Order::Restart, "queued") if now.too_large => Some(Outcome::TooLarge),
        (Order::Load | Order::Restart, "queued") if now.skipped.is_some() => Some(Outcome::Skipped),
        // Each look for somebody else's engine is a generation.
        (Order::Load | Order::Restart, "offline") if now.url.is_some() => {
            (is_new_engine && now.absence.is_some()).then_some(Outcome::Absent)
        }
        (Order::Load | Order::Restart, "offline") if is_new_engine || was_coming => {
            Some(Outcome::Unloaded)
        }
        _ => None,
    }
}

fn done(order: Order, before: &SlotObject, now: &SlotObject) -> String {
    let slot = &now.slot;
    if order == Order::Unload && now.url.is_some() {
        return format!(
            "{slot}: set aside, no request goes to its engine until `slotd load {slot}`; whoever runs it can stop it\n"
        );
    }
    if order == Order::Unload {
        return format!("{slot}: unloaded\n");
    }
    let pid = now.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    if before.generation == now.generation && before.state == "ready" {
        return format!("{slot}: ready already, {}{pid}\n", now.engine);
    }
    let took = now.loads_ms.last().map(|ms| format!(" after {}", brief(*ms))).unwrap_or_default();
    format!("{slot}: ready{took}, {}{pid}\n", now.engine)
}

fn undone(outcome: Outcome, now: &SlotObject) -> String {
    let slot = &now.slot;
    match outcome {
        Outcome::Done => String::new(),
        Outcome::Failed => {
            let verdict = now.verdict.map(|verdict| format!(" ({verdict})")).unwrap_or_default();
            let reason = now.reason.as_deref().unwrap_or("no reason is known");
            format!("{slot} failed{verdict}: {reason}\n  next: {}", next_step(now))
        }
        Outcome::Absent => {
            let absence = now.absence.as_deref().unwrap_or("it did not answer");
            format!("{slot} is offline: {absence}\n  next: {}", next_step(now))
        }
        Outcome::TooLarge => {
            let reason = now.waits_for.as_deref().unwrap_or("this machine has too little memory");
            format!("{slot} can never be loaded here: {reason}\n  next: {}", next_step(now))
        }
        Outcome::Skipped => {
            let unmet = now.skipped.as_deref().unwrap_or("its profile needs another one");
            format!("{slot} is skipped on this machine: {unmet}\n  next: {}", next_step(now))
        }
        Outcome::Unloaded => {
            format!("{slot} was unloaded meanwhile, by somebody else or because the daemon stops")
        }
        Outcome::Loaded => {
            format!("{slot} was loaded again meanwhile, by a request or by somebody")
        }
    }
}

fn left(order: Order, before: &SlotObject) -> String {
    let slot = &before.slot;
    let verb = order.verb();
    format!("the {verb} of `{slot}` goes on without you; `slotd status {slot}` follows it")
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::{cli::example, spec::Generation};

    fn at(state: &str, generation: u64) -> SlotObject {
        let generation = Generation(generation);
        SlotObject { state: state.to_owned(), generation, ..example::failed() }
    }

    #[test]
    fn a_load_ends_when_it_is_ready_or_fails_anew() {
        let before = at("failed", 3);
        assert_eq!(judge(Order::Load, &before, &before), None, "that failure is an old one");
        assert_eq!(judge(Order::Load, &before, &at("starting", 4)), None);
        assert_eq!(judge(Order::Load, &before, &at("backoff", 4)), None, "it is tried again");
        assert_eq!(judge(Order::Load, &before, &at("failed", 4)), Some(Outcome::Failed));
        assert_eq!(judge(Order::Load, &before, &at("ready", 4)), Some(Outcome::Done));
        assert_eq!(judge(Order::Load, &before, &at("offline", 4)), Some(Outcome::Unloaded));
        assert_eq!(judge(Order::Load, &at("offline", 3), &at("offline", 3)), None);
        assert_eq!(judge(Order::Load, &at("ready", 3), &at("ready", 3)), Some(Outcome::Done));
    }

    #[test]
    fn a_load_of_somebody_elses_engine_ends_with_the_first_look() {
        let absent = example::absent();
        assert_eq!(judge(Order::Load, &absent, &absent), None, "that look is an old one");
        let asked = SlotObject { generation: Generation(4), absence: None, ..absent.clone() };
        assert_eq!(judge(Order::Load, &absent, &asked), None);
        let looked = SlotObject { generation: Generation(4), ..absent.clone() };
        assert_eq!(judge(Order::Load, &absent, &looked), Some(Outcome::Absent));
    }

    /// It waited for ever.
    #[test]
    fn a_load_of_what_can_never_fit_ends_at_once() {
        let (before, giant) = (at("offline", 3), example::giant());
        let waits = SlotObject { too_large: false, ..giant.clone() };
        assert_eq!(judge(Order::Load, &before, &waits), None, "there may be room yet");
        assert_eq!(judge(Order::Load, &before, &giant), Some(Outcome::TooLarge));
        assert_eq!(judge(Order::Restart, &before, &giant), Some(Outcome::TooLarge));
        assert_eq!(judge(Order::Unload, &giant, &giant), None);
        assert_snapshot!(undone(Outcome::TooLarge, &giant), @r"
        giant can never be loaded here: it needs 200 GiB of memory, and 62 GiB can be had on this machine, whoever goes
          next: give it less in /etc/slotd/profiles/giant.toml (a shorter `context`, a smaller model), or engines more (`memory_limit` of the daemon); `slotd unload giant` takes it out of the line
        ");
    }

    /// It waited for ever.
    #[test]
    fn a_load_of_what_needs_another_machine_ends_at_once() {
        let before = example::skipped();
        assert_eq!(judge(Order::Load, &before, &before), None, "the order is not taken yet");
        let queued = SlotObject { state: "queued".to_owned(), ..before.clone() };
        assert_eq!(judge(Order::Load, &before, &queued), Some(Outcome::Skipped));
        assert_eq!(judge(Order::Restart, &before, &queued), Some(Outcome::Skipped));
        assert_eq!(judge(Order::Unload, &queued, &queued), None);
        assert_snapshot!(undone(Outcome::Skipped, &queued), @r"
        elsewhere is skipped on this machine: its profile needs `gpus` = 1, and 0 are there
          next: ask for less under `[needs]` in /etc/slotd/profiles/elsewhere.toml, or run it on a machine that has it; `slotd unload elsewhere` takes it out of the line
        ");
    }

    #[test]
    fn a_restart_ends_with_another_engine() {
        let before = at("ready", 3);
        assert_eq!(judge(Order::Restart, &before, &before), None);
        assert_eq!(judge(Order::Restart, &before, &at("draining", 3)), None);
        assert_eq!(judge(Order::Restart, &before, &at("ready", 4)), Some(Outcome::Done));
        assert_eq!(judge(Order::Restart, &before, &at("failed", 4)), Some(Outcome::Failed));
    }

    #[test]
    fn an_unload_ends_at_rest() {
        let before = at("ready", 3);
        assert_eq!(judge(Order::Unload, &before, &at("stopping", 3)), None);
        assert_eq!(judge(Order::Unload, &before, &at("offline", 3)), Some(Outcome::Done));
        assert_eq!(judge(Order::Unload, &before, &at("starting", 4)), Some(Outcome::Loaded));
    }

    #[test]
    fn outcomes_are_told_in_one_sentence() {
        let ready = example::ready();
        assert_snapshot!(done(Order::Load, &example::offline(), &ready), @"chat: ready after 1.3s, llama-server, pid 4242");
        assert_snapshot!(done(Order::Load, &ready, &ready), @"chat: ready already, llama-server, pid 4242");
        assert_snapshot!(done(Order::Unload, &ready, &example::offline()), @"small: unloaded");
        assert_snapshot!(undone(Outcome::Failed, &example::failed()), @r"
        vision failed (bad-model): it exited with code 1 while starting; its log says `gguf_init_from_file: tensor data is not within file bounds`
          next: fetch the model again, or name another in /etc/slotd/profiles/vision.toml, then `slotd load vision`
        ");
        assert_snapshot!(undone(Outcome::Unloaded, &example::offline()), @"small was unloaded meanwhile, by somebody else or because the daemon stops");
        assert_snapshot!(undone(Outcome::Absent, &example::absent()), @r"
        remote is offline: nobody listens at http://127.0.0.1:8080
          next: start it at http://127.0.0.1:8080: slotd does not run this engine, and sends requests there as soon as it answers
        ");
        assert_snapshot!(done(Order::Unload, &ready, &example::absent()), @"remote: set aside, no request goes to its engine until `slotd load remote`; whoever runs it can stop it");
        assert_snapshot!(left(Order::Load, &ready), @"the load of `chat` goes on without you; `slotd status chat` follows it");
    }
}

//! What a person can do about a slot's state.

use crate::{
    admin::{DeathObject, SlotObject},
    spec::death::Verdict,
};

use super::text::brief;

/// Says in one sentence what comes next, with the command to run where one helps.
pub(super) fn next_step(slot: &SlotObject) -> String {
    let name = &slot.slot;
    if let Some(url) = &slot.url {
        return next_step_outside(slot, url);
    }
    if slot.skipped.is_some() {
        return on_another_machine(slot);
    }
    match slot.state.as_str() {
        "ready" if slot.rejected_edit.is_some() => after_rejection(slot),
        "ready" if slot.displaced_by.is_some() => {
            let other = slot.displaced_by.as_ref().map_or("another", |name| name.as_str());
            format!(
                "it has made room for {other} by a lower rung, and climbs when there is room again; \
                 `slotd restart {name}` starts it on its first one"
            )
        }
        "ready" => "nothing to do".to_owned(),
        "starting" => format!("it loads; `slotd logs -f {name}` shows what it writes"),
        "queued" if slot.too_large => format!(
            "give it less in {} (a shorter `context`, a smaller model), or engines more (`memory_limit` of the daemon); \
             `slotd unload {name}` takes it out of the line",
            slot.source.display()
        ),
        "queued" if !slot.held_by.is_empty() => blocked(slot),
        "queued" => format!(
            "wait: it is loaded as soon as there is room; `slotd unload {name}` takes it out of the line"
        ),
        "unready" => format!(
            "it runs and says that it is not ready: no requests go to it until it is; \
             `slotd restart {name}` replaces it"
        ),
        "offline" if slot.displaced_by.is_some() => {
            let other = slot.displaced_by.as_ref().map_or("another", |name| name.as_str());
            format!(
                "it has made room for {other}; the next request or `slotd load {name}` loads it"
            )
        }
        "offline" if slot.kept_out.is_some() => format!(
            "wait: it comes back by itself; the next request or `slotd load {name}` loads it at once"
        ),
        "offline" if slot.unloaded_for.is_some() => format!(
            "it went because the machine ran short; the next request or `slotd load {name}` loads it"
        ),
        "offline" => {
            format!("the next request loads it; `slotd load {name}` loads it at once")
        }
        "backoff" => {
            let retry_in = brief(slot.retry_in_ms.unwrap_or(0));
            format!("the next try comes in {retry_in}; `slotd load {name}` tries at once")
        }
        "failed" => after_failure(slot),
        _ => "wait: it is on its way down".to_owned(),
    }
}

/// The same for one that its machine is not made for: neither a request nor an order loads it.
fn on_another_machine(slot: &SlotObject) -> String {
    let (name, source) = (&slot.slot, slot.source.display());
    let leave = match slot.state.as_str() {
        "queued" => format!("; `slotd unload {name}` takes it out of the line"),
        _ => String::new(),
    };
    format!("ask for less under `[needs]` in {source}, or run it on a machine that has it{leave}")
}

/// One that those stand in the way of who make room for nobody.
fn blocked(slot: &SlotObject) -> String {
    let name = &slot.slot;
    let others: Vec<_> = slot.held_by.iter().take(3).map(|other| format!("`{other}`")).collect();
    let way = if let [other] = slot.held_by.as_slice() {
        format!("`slotd unload {other}` makes room")
    } else {
        let some = others.join(", ");
        format!("unload some of {some} (`slotd unload NAME`) until there is room")
    };
    format!(
        "{way}, or `slotd unpin` what is pinned; `slotd unload {name}` takes it out of the line"
    )
}

/// The same for an engine that somebody else runs.
fn next_step_outside(slot: &SlotObject, url: &str) -> String {
    let name = &slot.slot;
    match (slot.state.as_str(), slot.asleep) {
        ("ready", Some(true)) => "nothing to do: the next request wakes it".to_owned(),
        ("ready", _) => "nothing to do".to_owned(),
        ("starting", _) => "wait: requests go to it as soon as it says that it is ready".to_owned(),
        ("offline", _) if slot.absence.is_some() => format!(
            "start it at {url}: slotd does not run this engine, and sends requests there as soon as it answers"
        ),
        ("offline", _) => format!(
            "`slotd load {name}` sends requests to it again; until then slotd does not even look at it"
        ),
        _ => "wait: its last requests end".to_owned(),
    }
}

/// Says what would keep a death from happening again; `None` where nothing but luck would.
pub(super) fn remedy(slot: &SlotObject, death: &DeathObject) -> Option<String> {
    let name = &slot.slot;
    let source = slot.source.display();
    let limit = death.evidence.as_ref().and_then(|evidence| evidence.memory.limit_bytes);
    Some(match death.verdict {
        Verdict::StoppedByUs => return None,
        Verdict::KilledByOther => {
            "ask who sent the signal: another admin, a script, a daemon that watches memory; \
             nothing in the profile is to blame"
                .to_owned()
        }
        Verdict::OomHost => {
            let raise = limit.map(|limit| format!("raise the limit of {limit}, or "));
            format!(
                "{}lower `context` or `parallel` in {source}, or name a smaller quantisation",
                raise.unwrap_or_default()
            )
        }
        Verdict::OomDevice => format!(
            "lower `context`, `parallel` or `gpu_layers` in {source}, or name a smaller \
             quantisation; see what else is on the device"
        ),
        Verdict::Hung => format!(
            "raise `hang_timeout` in {source} if it only was slow; if it comes again, report it to \
             the engine with its version"
        ),
        Verdict::Crash | Verdict::Poisoned | Verdict::UnexpectedExit => format!(
            "`slotd logs {name}` shows all that it wrote; if it comes again, report it to the \
             engine with its version"
        ),
        Verdict::StartTimeout => {
            format!("raise `start_timeout` in {source} if the load only needs longer")
        }
        Verdict::BadConfig => format!("correct {source}"),
        Verdict::ModelNotFetched => {
            format!("fetch its model as the reason says, or name another in {source}")
        }
        Verdict::MissingFile | Verdict::SpawnFailed => {
            format!("mend what is missing, or name another in {source}")
        }
        Verdict::BadModel => format!("fetch the model again, or name another in {source}"),
        Verdict::PortBusy => "end the program that holds the address".to_owned(),
    })
}

/// Says how an edit that failed is tried anew.
pub(super) fn after_rejection(slot: &SlotObject) -> String {
    let name = &slot.slot;
    format!("correct {}, or try it as it is with `slotd restart {name}`", slot.source.display())
}

fn after_failure(slot: &SlotObject) -> String {
    let name = &slot.slot;
    let source = slot.source.display();
    match slot.verdict {
        Some(Verdict::BadConfig) => {
            format!("correct {source}, then `slotd load {name}`")
        }
        Some(Verdict::ModelNotFetched) => format!(
            "fetch its model as the reason says, and it starts by itself; or name another in {source}"
        ),
        Some(Verdict::MissingFile | Verdict::SpawnFailed) => {
            format!("mend what is missing, or name another in {source}, then `slotd load {name}`")
        }
        Some(Verdict::BadModel) => {
            format!("fetch the model again, or name another in {source}, then `slotd load {name}`")
        }
        Some(Verdict::PortBusy) => {
            format!("end the program that holds the address, then `slotd load {name}`")
        }
        Some(Verdict::OomHost | Verdict::OomDevice) => format!(
            "lower `context` or `parallel` in {source}, or name a smaller model, then `slotd load {name}`"
        ),
        Some(Verdict::StartTimeout) => format!(
            "raise `start_timeout` in {source} if the load only needs longer, then `slotd load {name}`"
        ),
        Some(Verdict::Hung) => format!(
            "raise `hang_timeout` in {source} if it only was slow, then `slotd load {name}`"
        ),
        Some(
            Verdict::Crash
            | Verdict::Poisoned
            | Verdict::KilledByOther
            | Verdict::UnexpectedExit
            | Verdict::StoppedByUs,
        )
        | None => {
            format!("`slotd logs {name}` shows what it wrote; `slotd load {name}` tries again")
        }
    }
}

//! The engine that serves a slot while that one goes over to another revision of its model: where it can be had,
//! no request waits.

use std::time::Duration;

use super::switch::refused;
use crate::{
    admin::{SlotObject, StandInObject, StandInWish},
    cli::{
        client::{Client, Lines},
        failure::Failure,
        out,
        progress::Progress,
    },
};

/// Has an engine of `model` started beside that of `slot`; it stays while the answer is held. Nothing where there
/// can be none, which is told, or where nobody is served anyway.
///
/// # Errors
/// [`Failure::Outcome`] where an engine of that model does not start, and any other where the daemon is gone.
pub(super) async fn open<'a>(
    client: &'a Client,
    slot: &SlotObject,
    model: &str,
) -> Result<Option<Lines<'a>>, Failure> {
    if slot.state != "ready" {
        return Ok(None);
    }
    let wish = StandInWish { model: model.to_owned() };
    let mut lines = match client.stand_in(&slot.slot, &wish).await {
        Ok(lines) => lines,
        Err(Failure::Refused { message }) => return Ok(without(slot, &message)),
        Err(failure) => return Err(failure),
    };
    // What an earlier one of its name died of is no news.
    let mut progress = None;
    let last = loop {
        let Some(line) = lines.next().await? else {
            return Err(Failure::Gone { slot: slot.slot.clone() });
        };
        let told: StandInObject = serde_json::from_str(&line).map_err(Failure::Answer)?;
        match (&*told.state, &told.slot) {
            ("starting", Some(stand_in)) => {
                let progress = progress.get_or_insert_with(|| Progress::new(stand_in));
                progress.show(stand_in, Duration::ZERO);
            }
            _ => break told,
        }
    };
    if let Some(progress) = &progress {
        progress.clear();
    }
    let reason = last.reason.unwrap_or_default();
    match &*last.state {
        "ready" => Ok(Some(lines)),
        "failed" => {
            let (name, model) = (&slot.slot, slot.model.as_deref().unwrap_or_default());
            let verdict = last.verdict.map(|verdict| format!("{verdict}: ")).unwrap_or_default();
            Err(refused(format!(
                "{name}: stays at `{model}`: {verdict}{reason}; the profile is as it was{}",
                hint(slot)
            )))
        }
        _ => Ok(without(slot, &reason)),
    }
}

/// What nobody but the admin can know: whether two engines of one command can run at once.
fn hint(slot: &SlotObject) -> &'static str {
    if slot.engine != "command" {
        return "";
    }
    " (if two of its engines cannot run at once, `--no-stand-in` starts none beside the present one)"
}

/// Says that requests will wait, and why.
fn without<'a>(slot: &SlotObject, reason: &str) -> Option<Lines<'a>> {
    let name = &slot.slot;
    out::note(&format!(
        "{name}: no engine stands in for it, requests wait while it loads: {reason}\n"
    ));
    None
}

//! Models loaded and let go of on request: no prompt, `keep_alive` of 0.

use std::{pin::pin, sync::Arc};

use hyper::{Response, StatusCode, Uri, http::request::Parts};
use tokio::time::{Instant, timeout};

use super::{
    super::{
        Shared,
        body::Asked,
        exchange::{eta, in_vain},
        forward::silence,
        reply::{Body, Fault, json_response},
        target::{self, Target},
    },
    Asker,
    answer::Teller,
    listing,
    work::{Answered, Kind, work_of},
};
use crate::{spec::SlotName, supervisor::SlotEvent};

/// Loads a model without asking it anything, or lets it go.
pub(super) async fn answer(
    (client, clock): Asker<'_>,
    head: &Parts,
    (kind, name): (Kind, Option<String>),
    is_last: bool,
) -> Result<Answered, Fault> {
    const CHAT: &str = "/v1/chat/completions";
    let shared = &client.shared;
    let (began, path) = (Instant::now(), Uri::from_static(CHAT));
    let target = {
        let table = shared.routes.load();
        let name = name.map(|name| listing::find(&table, &name).map(str::to_owned).unwrap_or(name));
        let asked = Asked::unread(bytes::Bytes::new(), name);
        target::of_work(&table, &asked, (&path, work_of(CHAT)?))?
    };
    let slot = target.candidates.first.clone();
    let reason = if is_last {
        let mut busy = None;
        // The name stands for all of them.
        for slot in target.candidates.slots() {
            if !leave(shared, slot).await {
                busy = Some(slot);
            }
        }
        if let Some(slot) = busy {
            let message = format!("slot `{slot}` is at work for others and stays loaded");
            return Err(Fault::refused(StatusCode::CONFLICT, "slot_busy", message));
        }
        "unload"
    } else {
        load(shared, &target, head).await?;
        "load"
    };
    let times = (began, began.elapsed());
    let told = Teller::new(kind, slot.to_string(), clock, times).nothing(reason);
    let response: Response<Body> = json_response(StatusCode::OK, &told);
    Ok((Some(slot), response))
}

async fn load(shared: &Shared, target: &Target, head: &Parts) -> Result<(), Fault> {
    let candidates = &target.candidates;
    if candidates.choose(shared).is_some() {
        return Ok(());
    }
    let hold = target.profile.requests.queue_timeout.unwrap_or(shared.limits.hold);
    let patience = hold.min(silence(&shared.limits, &head.headers));
    let mut asked = pin!(candidates.ask(shared));
    match timeout(patience, &mut asked).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((slot, refusal))) => Err(Fault::of_refusal(&slot, refusal, eta(shared, &slot))),
        Err(_) => Err(in_vain(shared, &candidates.first)),
    }
}

/// Unloads a slot that nobody else uses. Returns whether it is let go of.
async fn leave(shared: &Shared, slot: &SlotName) -> bool {
    // An engine that slotd cannot start again is not let go of on a client's word.
    if shared.routes.load().slot(slot).is_some_and(|route| route.profile.is_external()) {
        return true;
    }
    let is_busy = {
        let table = shared.routes.load();
        table.slot(slot).is_some_and(|route| {
            let gate = route.gate.as_ref();
            route.waiting > 0 || gate.is_some_and(|gate| gate.in_flight() > 0 || gate.waiting() > 0)
        })
    };
    if !is_busy {
        shared.mailbox.tell_slot(slot, SlotEvent::UnloadRequested).await;
    }
    !is_busy
}

/// A slot that is to be let go of when this is dropped, if nobody else uses it then.
#[derive(Debug)]
pub(super) struct Leaving {
    shared: Shared,
    slot: SlotName,
}

impl Leaving {
    pub(super) fn new(shared: &Shared, slot: SlotName) -> Self {
        Self { shared: shared.clone(), slot }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let (shared, slot) = (self.shared.clone(), self.slot.clone());
        let flights = Arc::clone(&shared.flights);
        flights.go_on(async move {
            leave(&shared, &slot).await;
        });
    }
}

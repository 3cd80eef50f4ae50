//! What is ordered of a slot's stay in memory, and room that is asked for.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State as Extract, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    refusal::Refusal,
    routes::{App, find, show},
};
use crate::{
    mailbox::RoomAsked,
    spec::{
        Bytes, SlotName,
        memory::{Basis, GpuNeed, Need},
        residence::StayOrder,
    },
    supervisor::{Event, Purpose, RoomAnswer},
};

/// The body of `POST /v1/ensure`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RoomWish {
    /// How much.
    pub bytes: Bytes,
    /// Of which GPU's memory, by its index; of the host's without it.
    #[serde(default)]
    pub gpu: Option<u32>,
    /// The slot that it is for, which does not go itself.
    #[serde(default)]
    pub slot: Option<SlotName>,
}

/// The answer of `POST /v1/ensure`, once it is decided: those that go are on their way.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RoomObject {
    /// What could be had before anybody went; `null` where nothing limits engines.
    pub free_bytes: Option<Bytes>,
    /// Slots that are unloaded for it, in this order.
    pub going: Vec<SlotName>,
    /// Why it cannot be had: one sentence with the numbers. Then nobody goes.
    pub refused: Option<String>,
}

/// The body of `POST /v1/fit`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FitWish {
    /// The slot that it is for: what it has now counts as free.
    #[serde(default)]
    pub slot: Option<SlotName>,
    /// What is asked about, each by itself; at most 64.
    pub needs: Vec<Need>,
}

/// The answer of `POST /v1/fit`. Nobody goes for it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FitObject {
    /// What can be promised of the host's memory; `null` where nothing limits engines.
    pub host_bytes: Option<Bytes>,
    /// What can be promised of each GPU's memory, by its index.
    pub gpu_bytes: BTreeMap<u32, Bytes>,
    /// One answer for each need: who would go, or why it cannot be had.
    pub needs: Vec<RoomObject>,
}

/// Most needs that one question may have.
const MOST_NEEDS: usize = 64;

/// The body of `POST /v1/slots/{slot}/priority`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PriorityWish {
    /// `null` for what the profile says.
    priority: Option<u32>,
}

pub(super) async fn pin(app: Extract<App>, slot: Path<String>) -> Result<Response, Refusal> {
    order(&app, &slot, StayOrder::Pin).await
}

pub(super) async fn unpin(app: Extract<App>, slot: Path<String>) -> Result<Response, Refusal> {
    order(&app, &slot, StayOrder::Unpin).await
}

pub(super) async fn offload(app: Extract<App>, slot: Path<String>) -> Result<Response, Refusal> {
    let shown = show(&app, &find(&app, &slot)?)?;
    if let Some(url) = shown.url {
        return Err(Refusal::NotOurs { slot: shown.slot.to_string(), url });
    }
    let is_last = shown.rung.as_ref().is_some_and(|rung| rung.of > 0 && rung.index + 1 >= rung.of);
    // One rung is no ladder, and shows as none.
    let is_alone = shown.rung.is_none() && shown.generation.0 > 0;
    if is_last || is_alone {
        return Err(Refusal::NoLowerRung(shown.slot.to_string()));
    }
    // What is below is known once it was loaded, in this life of the daemon.
    if shown.rung.as_ref().is_none_or(|rung| rung.of == 0) {
        return Err(Refusal::NoKnownLadder(shown.slot.to_string()));
    }
    order(&app, &slot, StayOrder::Offload).await
}

pub(super) async fn prioritise(
    app: Extract<App>,
    slot: Path<String>,
    wish: Result<Json<PriorityWish>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(wish) = wish.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    if wish.priority.is_some_and(|priority| priority > 100) {
        return Err(Refusal::BadBody("priority is a whole number from 0 to 100".to_owned()));
    }
    order(&app, &slot, StayOrder::Priority(wish.priority)).await
}

async fn order(app: &App, typed: &str, order: StayOrder) -> Result<Response, Refusal> {
    let slot = find(app, typed)?;
    app.state.mailbox.tell(Event::StayOrdered { slot: slot.clone(), order }).await;
    Ok((StatusCode::ACCEPTED, Json(show(app, &slot)?)).into_response())
}

/// Answers once it is decided who goes.
pub(super) async fn ensure(
    Extract(app): Extract<App>,
    wish: Result<Json<RoomWish>, JsonRejection>,
) -> Result<Json<RoomObject>, Refusal> {
    let Json(RoomWish { bytes, gpu, slot }) =
        wish.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    let slot = slot.map(|slot| find(&app, slot.as_str())).transpose()?;
    let basis = Basis::Profile;
    let need = match gpu {
        Some(_) => {
            let gpu = GpuNeed { spread: bytes, each: Bytes(0) };
            Need { host: Bytes(0), gpu: Some(gpu), basis }
        }
        None => Need { host: bytes, gpu: None, basis },
    };
    let purpose = Purpose::Make;
    let asked = app.state.mailbox.ask_for_room(RoomAsked { need, gpu, slot, purpose }).await;
    Ok(Json(RoomObject::of(asked.ok_or(Refusal::Ending)?)))
}

/// Answers whether there is room, by the rules of a slot that is to be loaded.
pub(super) async fn fit(
    Extract(app): Extract<App>,
    wish: Result<Json<FitWish>, JsonRejection>,
) -> Result<Json<FitObject>, Refusal> {
    let Json(FitWish { slot, needs }) =
        wish.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    if needs.len() > MOST_NEEDS {
        return Err(Refusal::BadBody(format!("at most {MOST_NEEDS} needs at once")));
    }
    let slot = slot.map(|slot| find(&app, slot.as_str())).transpose()?;
    let (gpu, purpose) = (None, Purpose::Ask);
    let mut answers = Vec::new();
    // One that needs nothing tells how things stand, too.
    for need in [Need::default()].into_iter().chain(needs) {
        let room = RoomAsked { need, gpu, slot: slot.clone(), purpose };
        answers.push(app.state.mailbox.ask_for_room(room).await.ok_or(Refusal::Ending)?);
    }
    let mut answers = answers.into_iter();
    let left = answers.next().map(|answer| answer.left).unwrap_or_default();
    Ok(Json(FitObject {
        host_bytes: limited(left.host),
        gpu_bytes: left.gpus,
        needs: answers.map(RoomObject::of).collect(),
    }))
}

impl RoomObject {
    fn of(answer: RoomAnswer) -> Self {
        let free_bytes = limited(answer.free);
        Self { free_bytes, going: answer.going, refused: answer.refused }
    }
}

/// Gives a figure that means something: where nothing limits engines the core has all ones.
fn limited(free: Bytes) -> Option<Bytes> {
    Some(free).filter(|free| free.0 < u64::MAX)
}

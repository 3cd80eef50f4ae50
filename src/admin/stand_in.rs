//! A slot that stands in for another while that one goes over to another revision of its model: asked for, told of
//! as it comes along, and there for as long as the answer is read.
//!
//! ```text
//! sizing ──▶ coming ──▶ ready ──▶ over
//!    └──────────┴─────── refused, failed, gone ▲
//! ```

use std::{convert::Infallible, fmt, mem, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Path, State as Extract, rejection::JsonRejection},
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::DropGuard;

use super::{
    SlotObject,
    refusal::Refusal,
    routes::{App, find},
    serve::closed,
};
use crate::{
    mailbox::{RoomAsked, Slip},
    spec::{
        Bytes as Amount, SlotName,
        death::Verdict,
        memory::{Basis, GpuNeed, Need, Share},
    },
    supervisor::{self, Purpose, SlotView, StateView},
};

/// Puts a slot that serves this model beside the one that is named.
pub type StandIns =
    Arc<dyn Fn(SlotName, String) -> BoxFuture<'static, Result<StandIn, NoStandIn>> + Send + Sync>;

/// A slot that stands in for another until this is dropped.
#[derive(Debug)]
pub struct StandIn {
    /// Its own name.
    pub slot: SlotName,
    /// What keeps it.
    pub stay: DropGuard,
}

/// Why there is no slot beside another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NoStandIn {
    /// The daemon is ending.
    Ending,
    /// The text names no model of the hub: one sentence.
    BadModel(String),
    /// None can stand in for that slot: one sentence.
    Unfit(String),
}

/// The body of `POST /v1/slots/{slot}/stand-in`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StandInWish {
    /// `org/repo`, `org/repo:QUANT`, either with `@REVISION`.
    pub model: String,
}

/// How a slot that stands in for another comes along: a line of the answer. The keys are stable.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StandInObject {
    /// `starting`; `ready` (it gets the other one's requests); and the last ones: `refused` (memory does not allow
    /// it), `failed` (its engine did not start) and `gone`.
    pub state: String,
    /// The slot, while there is one.
    pub slot: Option<SlotObject>,
    /// Why it came to nothing: one sentence without the full stop.
    pub reason: Option<String>,
    /// The verdict on its engine, where that died.
    pub verdict: Option<Verdict>,
}

/// A slot that stands in, as it is told of.
struct Told {
    app: App,
    slot: SlotName,
    stand_in: StandIn,
    stage: Stage,
    shown: Option<Arc<SlotView>>,
}

#[derive(Default)]
enum Stage {
    /// What it takes is not known yet.
    Sizing(Slip),
    /// It is being started.
    Coming(Slip),
    /// It gets requests.
    Ready,
    /// The last line is said.
    #[default]
    Over,
}

/// Answers once there is such a slot; it goes when the answer is dropped.
pub(super) async fn stand_in(
    Extract(app): Extract<App>,
    Path(typed): Path<String>,
    wish: Result<Json<StandInWish>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(wish) = wish.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    let slot = find(&app, &typed)?;
    let is_ready = {
        let snapshot = app.state.snapshots.borrow();
        snapshot.slots.get(&slot).is_some_and(|view| view.state.takes_requests())
    };
    if !is_ready {
        let message = format!("`{slot}` has no ready engine to go over from");
        return Err(Refusal::NoStandIn(message));
    }
    let stand_in = (app.state.stand_ins)(slot.clone(), wish.model).await.map_err(Refusal::from)?;
    let closed = closed(app.closing.clone());
    let slip = app.state.mailbox.ask(&stand_in.slot).await;
    let told = Told { app, slot, stand_in, stage: Stage::Sizing(slip), shown: None };
    let lines = stream::unfold(told, |mut told| async move {
        let mut line = serde_json::to_vec(&told.next().await?).ok()?;
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), told))
    });
    let body = Body::from_stream(lines.take_until(closed));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

impl Told {
    /// Waits for the next line; nothing after the last one.
    async fn next(&mut self) -> Option<StandInObject> {
        loop {
            let line = match mem::take(&mut self.stage) {
                Stage::Sizing(slip) => self.size(slip).await,
                Stage::Coming(slip) => self.come(slip).await,
                Stage::Ready => Some(self.serve().await),
                Stage::Over => return None,
            };
            if line.is_some() {
                return line;
            }
        }
    }

    /// Waits until it is known what it takes. It is asked whether that can be had once more before it gets
    /// requests: they would have to go back to the earlier engine.
    async fn size(&mut self, mut slip: Slip) -> Option<StandInObject> {
        let answer = tokio::select! {
            biased;
            answer = &mut slip => Some(answer),
            () = self.promised() => None,
        };
        if let Some(Err(refusal)) = answer {
            return Some(StandInObject::of(refusal));
        }
        if let Some(reason) = self.lack_of_room().await {
            return Some(StandInObject::last("refused", reason));
        }
        if answer.is_some() {
            return Some(self.ready());
        }
        self.stage = Stage::Coming(slip);
        None
    }

    /// Waits until it is ready, or looks otherwise than it was last shown.
    async fn come(&mut self, mut slip: Slip) -> Option<StandInObject> {
        let answer = tokio::select! {
            biased;
            answer = &mut slip => Some(answer),
            () = self.changed() => None,
        };
        match answer {
            Some(Ok(())) => Some(self.ready()),
            Some(Err(refusal)) => Some(StandInObject::of(refusal)),
            None => {
                self.stage = Stage::Coming(slip);
                self.shown().map(|slot| StandInObject::coming("starting", Some(slot)))
            }
        }
    }

    /// Waits until its engine is gone. One that is unready may come round.
    async fn serve(&mut self) -> StandInObject {
        let serves = |view: &SlotView| {
            view.state.takes_requests() || matches!(view.state, StateView::Unready { .. })
        };
        while self.view().is_some_and(|view| serves(&view)) {
            self.changed().await;
        }
        let reason = format!("`{}` no longer has an engine", self.stand_in.slot);
        StandInObject::last("gone", reason)
    }

    fn ready(&mut self) -> StandInObject {
        self.stage = Stage::Ready;
        StandInObject::coming("ready", self.shown())
    }

    fn view(&self) -> Option<Arc<SlotView>> {
        self.app.state.snapshots.borrow().slots.get(&self.stand_in.slot).cloned()
    }

    fn shown(&self) -> Option<SlotObject> {
        let snapshot = self.app.state.snapshots.borrow().clone();
        self.app.show(&snapshot, &self.stand_in.slot)
    }

    /// Waits until the slot looks otherwise than it was last seen. Cancel-safe.
    async fn changed(&mut self) {
        loop {
            let snapshot = self.app.state.snapshots.borrow_and_update().clone();
            let view = snapshot.slots.get(&self.stand_in.slot);
            if self.shown.as_ref() != view {
                self.shown = view.cloned();
                return;
            }
            if self.app.state.snapshots.changed().await.is_err() {
                // The driver has ended, and the API is about to.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until memory is promised to it. Cancel-safe.
    async fn promised(&mut self) {
        while self.view().is_none_or(|view| view.promised.is_none()) {
            self.changed().await;
        }
    }

    /// Says why what it takes could not be had once more, for the slot itself, with the earlier engine gone;
    /// nothing where it can be, or where what it takes is not known.
    async fn lack_of_room(&self) -> Option<String> {
        let share = self.view()?.promised.clone()?;
        let room = RoomAsked {
            need: need_of(&share),
            gpu: None,
            slot: Some(self.slot.clone()),
            purpose: Purpose::Ask,
        };
        let answer = self.app.state.mailbox.ask_for_room(room).await?;
        let twice = "it is loaded twice for a moment, beside and in the place of the earlier one";
        if let Some(reason) = answer.refused {
            return Some(format!("{twice}, and {reason}"));
        }
        let going: Vec<_> = answer.going.iter().map(SlotName::as_str).collect();
        let others = || format!("{twice}, and `{}` would have to go for that", going.join("`, `"));
        (!going.is_empty()).then(others)
    }
}

/// Makes of what one slot was promised what another would need.
fn need_of(share: &Share) -> Need {
    let on_gpus = share.gpus.values().fold(0, |sum: u64, bytes| sum.saturating_add(bytes.0));
    let gpu = GpuNeed { spread: Amount(on_gpus), each: Amount(0) };
    Need { host: share.host, gpu: (on_gpus > 0).then_some(gpu), basis: Basis::Profile }
}

impl StandInObject {
    fn coming(state: &str, slot: Option<SlotObject>) -> Self {
        Self { state: state.to_owned(), slot, reason: None, verdict: None }
    }

    fn last(state: &str, reason: String) -> Self {
        Self { state: state.to_owned(), slot: None, reason: Some(reason), verdict: None }
    }

    /// Says what the core's refusal of its first request means.
    fn of(refusal: supervisor::Refusal) -> Self {
        use supervisor::Refusal;
        match refusal {
            Refusal::NoRoom { reason } => Self::last("refused", reason),
            Refusal::LoadFailed { verdict, reason, .. } | Refusal::Failed { verdict, reason } => {
                // Two of them are too much: that says nothing of one alone.
                let state = if verdict.is_oom() { "refused" } else { "failed" };
                Self { verdict: Some(verdict), ..Self::last(state, reason) }
            }
            Refusal::DownloadRequired { reason } => Self::last("failed", reason),
            Refusal::QueueFull { .. } | Refusal::Absent { .. } | Refusal::SetAside => {
                Self::last("refused", "it takes no requests".to_owned())
            }
            Refusal::Unloaded => Self::last("gone", "it was unloaded".to_owned()),
            Refusal::SlotGone => Self::last("gone", "its profile is gone".to_owned()),
            Refusal::ShuttingDown => Self::last("gone", "the daemon is ending".to_owned()),
        }
    }
}

impl From<NoStandIn> for Refusal {
    fn from(why: NoStandIn) -> Self {
        match why {
            NoStandIn::Ending => Self::Ending,
            NoStandIn::BadModel(fault) => Self::BadBody(fault),
            NoStandIn::Unfit(reason) => Self::NoStandIn(reason),
        }
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").field("stand_in", &self.stand_in).finish_non_exhaustive()
    }
}

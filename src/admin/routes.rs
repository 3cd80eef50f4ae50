//! Paths and what each answers.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{
        DefaultBodyLimit, Path, Query, State as Extract,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::{
    DaemonObject, Follow, LogRequest, PlanObject, PlanRequest, RequestObject, SlotObject, State,
    pull,
    refusal::Refusal,
    rules,
    slot::skipped,
    stand_in, stay,
    streams::{changes, events, log},
};
use crate::{
    spec::SlotName,
    supervisor::{SlotEvent, SlotView, Snapshot},
};

/// Profiles to be compared may be many.
const MOST_PLAN: usize = 16 << 20;
/// No other path takes a body; this much of one is read before it is refused.
const MOST_BODY: usize = 64 << 10;
const DEFAULT_LINES: usize = 100;
const MOST_LINES: usize = 100_000;

/// What the handlers work with.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) state: State,
    /// Becomes true when streams have to end.
    pub(super) closing: watch::Receiver<bool>,
}

/// Puts the paths together.
pub(super) fn router(app: App) -> Router {
    let router = Router::new().route("/healthz", get(|| async { "ok\n" }));
    let with = |router: Router<App>, (path, answers)| router.route(path, answers);
    let router = routes().into_iter().fold(router, with);
    router
        .fallback(|uri: Uri| async move { Refusal::NoSuchPath(uri.path().to_owned()) })
        .method_not_allowed_fallback(|| async { Refusal::WrongMethod })
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .with_state(app)
}

/// Every path with its answers; all are below [`ROOTS`], so that the endpoint knows them for orders.
///
/// [`ROOTS`]: crate::spec::control::ROOTS
fn routes() -> [(&'static str, MethodRouter<App>); 26] {
    [
        ("/v1/slots", get(slots)),
        ("/v1/slots/{slot}", get(slot)),
        ("/v1/slots/{slot}/load", post(load)),
        ("/v1/slots/{slot}/unload", post(unload)),
        ("/v1/slots/{slot}/restart", post(restart)),
        ("/v1/slots/{slot}/pin", post(stay::pin)),
        ("/v1/slots/{slot}/unpin", post(stay::unpin)),
        ("/v1/slots/{slot}/offload", post(stay::offload)),
        ("/v1/slots/{slot}/priority", post(stay::prioritise)),
        ("/v1/slots/{slot}/stand-in", post(stand_in::stand_in)),
        ("/v1/ensure", post(stay::ensure)),
        ("/v1/fit", post(stay::fit)),
        ("/v1/slots/{slot}/watch", get(watch_slot)),
        ("/v1/slots/{slot}/logs", get(logs)),
        ("/v1/rules", get(rules::rules)),
        ("/v1/signals", post(rules::signal)),
        ("/v1/events", get(follow_events)),
        ("/v1/requests", get(requests)),
        ("/v1/requests/{id}", delete(cancel)),
        ("/v1/pulls", get(pull::list).post(pull::start)),
        ("/v1/pulls/{id}", delete(pull::cancel)),
        ("/v1/pulls/{id}/watch", get(pull::watch)),
        ("/v1/plan", post(plan).layer(DefaultBodyLimit::max(MOST_PLAN))),
        ("/v1/inventory", get(inventory)),
        ("/v1/daemon", get(daemon)),
        ("/v1/daemon/upgrade", post(upgrade)),
    ]
}

async fn slots(Extract(app): Extract<App>) -> Json<Vec<SlotObject>> {
    let snapshot = app.state.snapshots.borrow().clone();
    let now = (app.state.now)();
    let shown = snapshot.slots.iter().map(|(name, view)| {
        app.with_company(view, SlotObject::of(name, view, now, (app.state.in_flight)(name)))
    });
    Json(shown.collect())
}

async fn slot(
    Extract(app): Extract<App>,
    Path(typed): Path<String>,
) -> Result<Json<SlotObject>, Refusal> {
    let name = find(&app, &typed)?;
    show(&app, &name).map(Json)
}

async fn load(app: Extract<App>, slot: Path<String>) -> Result<Response, Refusal> {
    let name = find(&app, &slot)?;
    if let Some(lacking) = lacking(&app, &name).await {
        return Ok((StatusCode::ACCEPTED, Json(lacking)).into_response());
    }
    order(&app, &slot, SlotEvent::LoadRequested).await
}

/// Says what has to be fetched before a slot can be loaded. One that has an engine has its model.
async fn lacking(app: &App, name: &SlotName) -> Option<Value> {
    let profile = {
        let snapshot = app.state.snapshots.borrow();
        let view = snapshot.slots.get(name)?;
        view.state.pid().is_none().then(|| Arc::clone(&view.profile))?
    };
    let mut lacking = (app.state.lack)(profile).await?;
    let fields = lacking.as_object_mut()?;
    fields.shift_insert(0, "status".to_owned(), "download_required".into());
    fields.shift_insert(1, "slot".to_owned(), json!(name));
    Some(lacking)
}

async fn unload(app: Extract<App>, slot: Path<String>) -> Result<Response, Refusal> {
    order(&app, &slot, SlotEvent::UnloadRequested).await
}

async fn restart(app: Extract<App>, slot: Path<String>) -> Result<Response, Refusal> {
    let name = find(&app, &slot)?;
    if let Some(url) = show(&app, &name)?.url {
        return Err(Refusal::NotOurs { slot: name.to_string(), url });
    }
    order(&app, &slot, SlotEvent::RestartRequested).await
}

async fn order(app: &App, typed: &str, event: SlotEvent) -> Result<Response, Refusal> {
    let name = find(app, typed)?;
    app.state.mailbox.tell_slot(&name, event).await;
    Ok((StatusCode::ACCEPTED, Json(show(app, &name)?)).into_response())
}

async fn watch_slot(
    Extract(app): Extract<App>,
    Path(typed): Path<String>,
) -> Result<Response, Refusal> {
    let name = find(&app, &typed)?;
    let body = Body::from_stream(changes(app, name));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn follow_events(Extract(app): Extract<App>) -> Response {
    let body = Body::from_stream(events(&app));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// The query of `logs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    lines: Option<usize>,
    #[serde(default)]
    follow: bool,
}

async fn logs(
    Extract(app): Extract<App>,
    Path(typed): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|fault| Refusal::BadQuery(fault.body_text()))?;
    let name = find(&app, &typed)?;
    let request = LogRequest {
        lines: query.lines.unwrap_or(DEFAULT_LINES).min(MOST_LINES),
        follow: if query.follow { Follow::Yes } else { Follow::No },
    };
    let body = Body::from_stream(log(&app, &name, request));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

async fn requests(Extract(app): Extract<App>) -> Json<Vec<RequestObject>> {
    Json((app.state.requests)())
}

/// Answers once the request has been told; its client and its engine hear of it at once.
async fn cancel(
    Extract(app): Extract<App>,
    Path(typed): Path<String>,
) -> Result<Response, Refusal> {
    let id = typed.parse().ok().filter(|id| (app.state.cancel)(*id));
    let id: u64 = id.ok_or(Refusal::NoSuchRequest(typed))?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": id }))).into_response())
}

async fn inventory(Extract(app): Extract<App>) -> Json<Value> {
    Json((app.state.inventory)().await)
}

async fn daemon(Extract(app): Extract<App>) -> Json<DaemonObject> {
    Json(DaemonObject::of(&app.state))
}

async fn plan(
    Extract(app): Extract<App>,
    request: Result<Json<PlanRequest>, JsonRejection>,
) -> Result<Json<PlanObject>, Refusal> {
    let Json(request) = request.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    let snapshot = app.state.snapshots.borrow().clone();
    Ok(Json(PlanObject::of(&request, &snapshot, &app.state.in_flight)))
}

/// The answer of `POST /v1/daemon/upgrade`: what the next program calls itself.
async fn upgrade(Extract(app): Extract<App>) -> Result<Response, Refusal> {
    let (answer, answered) = oneshot::channel();
    // One wish at a time; a daemon that is on its way out takes none.
    app.state.upgrades.try_send(answer).map_err(|_| Refusal::Ending)?;
    let version = answered.await.map_err(|_| Refusal::Ending)?.map_err(Refusal::NoUpgrade)?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "version": version }))).into_response())
}

pub(super) fn find(app: &App, typed: &str) -> Result<SlotName, Refusal> {
    let snapshot = app.state.snapshots.borrow();
    match snapshot.slots.get_key_value(typed) {
        Some((name, _)) => Ok(name.clone()),
        None => Err(Refusal::no_such_slot(typed, &snapshot)),
    }
}

/// Shows a slot; its profile may be gone since it was found.
pub(super) fn show(app: &App, name: &SlotName) -> Result<SlotObject, Refusal> {
    let snapshot = app.state.snapshots.borrow().clone();
    app.show(&snapshot, name).ok_or_else(|| Refusal::no_such_slot(name.as_str(), &snapshot))
}

impl App {
    /// Shows a slot of `snapshot`; nothing if it is not there.
    pub(super) fn show(&self, snapshot: &Snapshot, name: &SlotName) -> Option<SlotObject> {
        let view = snapshot.slots.get(name)?;
        let in_flight = (self.state.in_flight)(name);
        Some(self.with_company(view, SlotObject::of(name, view, (self.state.now)(), in_flight)))
    }

    /// Adds the download that a slot waits for, what it is skipped for, and what a rule did to it.
    fn with_company(&self, view: &SlotView, slot: SlotObject) -> SlotObject {
        let waits = slot.state == "starting" && slot.pid.is_none();
        let model = slot.model.as_deref().filter(|_| waits);
        let rule = (self.state.rules.act_on)(&slot.slot);
        let unmet = || (self.state.unmet)(&view.profile.residence.asks);
        let skipped = skipped(&view.state, unmet).map(|unmet| unmet.clause());
        SlotObject { pull: self.state.pulls.of(model), skipped, rule, ..slot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::control::{ROOTS, is_below, is_control};

    #[test]
    fn the_endpoint_takes_every_path_of_the_control_api_for_one_of_orders() {
        let paths = routes().map(|(path, _)| path);
        for path in paths {
            assert!(is_control(path), "an admin key does not open {path} at the endpoint");
        }
        for root in ROOTS {
            assert!(paths.iter().any(|path| is_below(root, path)), "{root} answers nothing");
        }
    }
}

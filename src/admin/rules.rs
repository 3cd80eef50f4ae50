//! Rules as scripts see them, and names that are said to them.

use axum::{
    Json,
    extract::{State as Extract, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{EventObject, refusal::Refusal, routes::App};

/// The longest name that may be signalled.
const LONGEST: usize = 200;

/// One rule: an element of `GET /v1/rules` and of `slotd rules --json`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RuleObject {
    /// Its name.
    pub rule: String,
    /// When it fires, for people.
    pub when: String,
    /// What it does then, as it was written.
    #[serde(rename = "do")]
    pub orders: Vec<String>,
    /// When a schedule is due next, by the clock of the daemon.
    pub next: Option<String>,
    /// The same in milliseconds since 1970.
    pub next_unix_ms: Option<u64>,
    /// When it fired last, in milliseconds since 1970; `null` if it has not since it was read.
    pub fired_unix_ms: Option<u64>,
}

/// The body of `POST /v1/signals`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignalWish {
    signal: String,
}

pub(super) async fn rules(Extract(app): Extract<App>) -> Json<Vec<RuleObject>> {
    Json((app.state.rules)())
}

/// Tells the rules a name; 202 whoever listens.
pub(super) async fn signal(
    Extract(app): Extract<App>,
    wish: Result<Json<SignalWish>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(SignalWish { signal: name }) =
        wish.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    if name.len() > LONGEST || name.chars().any(char::is_control) {
        let message = "a name has at most 200 bytes and no control characters".to_owned();
        return Err(Refusal::BadBody(message));
    }
    let text = format!("{name} was signalled");
    let event = EventObject::new("signalled", (app.state.wall_clock)(), text);
    EventObject { name: Some(name.clone()), ..event }.tell(&app.state.news);
    Ok((StatusCode::ACCEPTED, Json(json!({ "signal": name }))).into_response())
}

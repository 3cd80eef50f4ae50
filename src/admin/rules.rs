//! Rules as scripts see them, and names that are said to them.

use std::{fmt, sync::Arc};

use axum::{
    Json,
    extract::{State as Extract, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{refusal::Refusal, routes::App};
use crate::spec::SlotName;

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

/// What a rule asked for last of a slot; the slot's state tells whether that was done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RuleActObject {
    /// The rule's name.
    pub rule: String,
    /// When it fires, for people.
    pub when: String,
    /// What it asked for, as it was written.
    #[serde(rename = "do")]
    pub order: String,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// Why a name is not said to the rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unheard {
    /// No rule listens for it.
    Nobody {
        /// What rules listen for.
        known: Vec<String>,
    },
    /// Too many names wait to be heard.
    TooMany,
}

/// Says a name to the rules.
pub type Say = Arc<dyn Fn(&str) -> Result<(), Unheard> + Send + Sync>;

/// Tells what a rule did last to a slot.
pub type ActOn = Arc<dyn Fn(&SlotName) -> Option<RuleActObject> + Send + Sync>;

/// The ways to the rules; made by `runtime`.
#[derive(Clone)]
pub struct Rules {
    /// Shows every rule in force.
    pub list: Arc<dyn Fn() -> Vec<RuleObject> + Send + Sync>,
    /// Says a name to them.
    pub say: Say,
    /// Tells what a rule did last to a slot.
    pub act_on: ActOn,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").finish_non_exhaustive()
    }
}

impl Rules {
    /// Where there are none.
    pub fn none() -> Self {
        Self {
            list: Arc::new(Vec::new),
            say: Arc::new(|_| Err(Unheard::Nobody { known: Vec::new() })),
            act_on: Arc::new(|_| None),
        }
    }
}

/// The body of `POST /v1/signals`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignalWish {
    signal: String,
}

pub(super) async fn rules(Extract(app): Extract<App>) -> Json<Vec<RuleObject>> {
    Json((app.state.rules.list)())
}

/// Tells the rules a name that one of them listens for.
pub(super) async fn signal(
    Extract(app): Extract<App>,
    wish: Result<Json<SignalWish>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(SignalWish { signal: name }) =
        wish.map_err(|fault| Refusal::BadBody(fault.body_text()))?;
    if name.trim().is_empty() {
        return Err(Refusal::BadBody("a name is missing, such as `language:de`".to_owned()));
    }
    if name.len() > LONGEST || name.chars().any(char::is_control) {
        let message = "a name has at most 200 bytes and no control characters".to_owned();
        return Err(Refusal::BadBody(message));
    }
    (app.state.rules.say)(&name).map_err(|unheard| match unheard {
        Unheard::Nobody { known } => Refusal::no_such_signal(&name, known),
        Unheard::TooMany => Refusal::TooManySignals,
    })?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "signal": name }))).into_response())
}

//! What is refused, as OpenAI's error object.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{spec::SlotName, supervisor::Snapshot};

/// Why a request to the control API is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// There is no such slot.
    NoSuchSlot {
        /// What was asked for.
        typed: String,
        /// The slot that may have been meant.
        nearest: Option<String>,
        /// Every slot.
        slots: Vec<String>,
    },
    /// No rule listens for that name.
    NoSuchSignal {
        /// What was said.
        typed: String,
        /// The name that may have been meant.
        nearest: Option<String>,
        /// What rules listen for.
        known: Vec<String>,
    },
    /// Too many names wait for the rules.
    TooManySignals,
    /// There is no such request, or it has ended.
    NoSuchRequest(String),
    /// There is no such download, or it is forgotten.
    NoSuchPull(String),
    /// There is no such path.
    NoSuchPath(String),
    /// The path is there, the method is not.
    WrongMethod,
    /// The query cannot be read.
    BadQuery(String),
    /// The body cannot be read.
    BadBody(String),
    /// Somebody else runs the slot's engine, and only they can restart it.
    NotOurs {
        /// The slot.
        slot: String,
        /// Where the engine is.
        url: String,
    },
    /// No slot can stand in for this one.
    NoStandIn(String),
    /// The slot is on the last rung of its ladder.
    NoLowerRung(String),
    /// Nothing is known of a ladder of the slot.
    NoKnownLadder(String),
    /// The daemon is ending, or is being upgraded already.
    Ending,
    /// The program on disk cannot take the daemon's place.
    NoUpgrade(String),
}

impl Refusal {
    /// Refuses a slot that is not in `snapshot`.
    pub(super) fn no_such_slot(typed: &str, snapshot: &Snapshot) -> Self {
        Self::NoSuchSlot {
            typed: typed.to_owned(),
            nearest: nearest(typed, snapshot),
            slots: snapshot.slots.keys().map(ToString::to_string).collect(),
        }
    }

    /// Refuses a name that no rule listens for.
    pub(super) fn no_such_signal(typed: &str, known: Vec<String>) -> Self {
        let nearest = closest(typed, known.iter().map(String::as_str)).map(str::to_owned);
        Self::NoSuchSignal { typed: typed.to_owned(), nearest, known }
    }

    fn parts(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        match self {
            Self::NoSuchSlot { .. } => (StatusCode::NOT_FOUND, "slot_not_found", Some("slot")),
            Self::NoSuchSignal { .. } => {
                (StatusCode::NOT_FOUND, "signal_not_found", Some("signal"))
            }
            Self::TooManySignals => (StatusCode::SERVICE_UNAVAILABLE, "too_many_signals", None),
            Self::NoSuchRequest(_) => (StatusCode::NOT_FOUND, "request_not_found", Some("id")),
            Self::NoSuchPull(_) => (StatusCode::NOT_FOUND, "pull_not_found", Some("id")),
            Self::NoSuchPath(_) => (StatusCode::NOT_FOUND, "path_not_found", None),
            Self::WrongMethod => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None),
            Self::BadQuery(_) => (StatusCode::BAD_REQUEST, "bad_query", None),
            Self::BadBody(_) => (StatusCode::BAD_REQUEST, "bad_body", None),
            Self::NotOurs { .. } => (StatusCode::CONFLICT, "external_engine", Some("slot")),
            Self::NoLowerRung(_) | Self::NoKnownLadder(_) => {
                (StatusCode::CONFLICT, "no_lower_rung", Some("slot"))
            }
            Self::NoStandIn(_) => (StatusCode::CONFLICT, "no_stand_in", Some("slot")),
            Self::Ending => (StatusCode::CONFLICT, "ending", None),
            Self::NoUpgrade(_) => (StatusCode::CONFLICT, "no_upgrade", None),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::NoSuchSlot { typed, nearest, slots } => {
                let there = match slots.as_slice() {
                    [] => "there are no slots yet: a profile makes one".to_owned(),
                    [one] => format!("the only slot is `{one}`"),
                    more => format!("the slots are `{}`", more.join("`, `")),
                };
                format!("there is no slot `{typed}`{} {there}", meant(nearest.as_deref()))
            }
            Self::NoSuchSignal { typed, nearest, known } => {
                let there = match known.as_slice() {
                    [] => "there is no rule with a `signal`".to_owned(),
                    [one] => format!("the only signal is `{one}`"),
                    more => format!("the signals are `{}`", more.join("`, `")),
                };
                format!("no rule listens for `{typed}`{} {there}", meant(nearest.as_deref()))
            }
            Self::TooManySignals => {
                "too many signals wait for the rules: this one is not told, try again".to_owned()
            }
            Self::NoSuchRequest(typed) => {
                let typed: String = typed.chars().take(100).collect();
                format!("there is no request `{typed}` in flight, `slotd requests` lists them")
            }
            Self::NoSuchPull(typed) => {
                let typed: String = typed.chars().take(100).collect();
                format!("there is no download `{typed}`, `GET /v1/pulls` lists them")
            }
            Self::NoSuchPath(path) => format!("there is no path `{path}` in the control API"),
            Self::WrongMethod => "this path takes another method".to_owned(),
            Self::NotOurs { slot, url } => format!(
                "somebody else runs the engine of `{slot}`: restart it at {url}, slotd follows"
            ),
            Self::NoLowerRung(slot) => format!("`{slot}` is on the last rung of its ladder"),
            Self::NoKnownLadder(slot) => format!(
                "whether `{slot}` has a lower rung is not known before its first load; `slotd load {slot}` finds out"
            ),
            Self::Ending => "the daemon is ending or being upgraded already".to_owned(),
            Self::BadQuery(fault)
            | Self::BadBody(fault)
            | Self::NoStandIn(fault)
            | Self::NoUpgrade(fault) => fault.clone(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, param) = self.parts();
        let error = json!({
            "message": self.message(),
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        });
        (status, Json(json!({ "error": error }))).into_response()
    }
}

/// Finds the slot that was meant: the one whose alias was typed, else the one whose name is close
/// enough, at most one edit for each three characters.
fn nearest(typed: &str, snapshot: &Snapshot) -> Option<String> {
    let by_alias = snapshot
        .slots
        .iter()
        .find(|(_, view)| view.profile.aliases.iter().any(|alias| alias == typed))
        .map(|(name, _)| name);
    let names = snapshot.slots.keys().map(SlotName::as_str);
    let by_name = || closest(typed, names).map(str::to_owned);
    by_alias.map(ToString::to_string).or_else(by_name)
}

/// Finds the name that is close enough to what was typed.
fn closest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    names
        .map(|name| (strsim::damerau_levenshtein(&typed, &name.to_lowercase()), name))
        .filter(|(edits, name)| *edits <= name.len().div_ceil(3))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// Asks for what was meant; what there is follows.
fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(|| ";".to_owned(), |name| format!(", did you mean `{name}`?"))
}

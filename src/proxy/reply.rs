//! Answers of slotd's own: errors in the form that OpenAI's clients read.

use std::{borrow::Cow, convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{
        CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
        WWW_AUTHENTICATE,
    },
};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use super::{
    dialect::Dialect,
    gate::{Gate, GateRefusal},
};
use crate::{spec::SlotName, supervisor::Refusal};

/// Any body.
pub(super) type Body = UnsyncBoxBody<Bytes, Aborted>;

/// A body that must not end as if it were whole: the connection is aborted.
#[derive(Debug, Error)]
#[error("the answer broke off")]
pub(super) struct Aborted;

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    error: Box<ErrorObject>,
    retry: Retry,
    /// What goes along with the refusal: an engine's own headers, or how to be let in.
    headers: Option<Box<HeaderMap>>,
}

/// The error object of OpenAI's API: always these four keys, and what an engine said where that
/// differs.
#[derive(Debug, Serialize)]
pub(super) struct ErrorObject {
    pub(super) message: String,
    #[serde(rename = "type")]
    pub(super) kind: Cow<'static, str>,
    pub(super) param: Option<Cow<'static, str>>,
    pub(super) code: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream: Option<Value>,
}

/// What a client is told about trying again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Retry {
    /// Nothing.
    Unsaid,
    /// After this time.
    After(Duration),
    /// Not before a person has done something.
    Never,
}

/// When to come back to a slot that loads, where nothing is known of how long that takes.
const LOADING: Duration = Duration::from_secs(5);
/// When to come back to a slot that is busy, where nothing is known of how long an answer takes.
const BUSY: Duration = Duration::from_secs(1);

pub(super) const INVALID: &str = "invalid_request_error";
pub(super) const SERVER: &str = "server_error";

impl Fault {
    /// The engine refused. `headers` go along, but for those that describe its body.
    pub(super) fn of_engine(
        status: StatusCode,
        mut headers: HeaderMap,
        error: ErrorObject,
    ) -> Self {
        for about_the_body in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING] {
            headers.remove(about_the_body);
        }
        let headers = Some(Box::new(headers));
        Self { status, error: Box::new(error), retry: Retry::Unsaid, headers }
    }

    /// The request itself is wrong.
    pub(super) fn bad_request(
        param: Option<&'static str>,
        code: &'static str,
        message: String,
    ) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message).about(param)
    }

    /// A request that is refused with another status of the 400s.
    pub(super) fn refused(status: StatusCode, code: &'static str, message: String) -> Self {
        Self::new(status, INVALID, code, message)
    }

    /// There is nothing at that place.
    pub(super) fn not_found(code: &'static str, message: String) -> Self {
        Self::refused(StatusCode::NOT_FOUND, code, message)
    }

    /// The request has no key, or a wrong one.
    pub(super) fn unauthorized(code: &'static str, message: String) -> Self {
        let mut headers = HeaderMap::new();
        insert(&mut headers, WWW_AUTHENTICATE, "Bearer");
        let fault = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message);
        Self { headers: Some(Box::new(headers)), ..fault }
    }

    /// The request's key is for something else.
    pub(super) fn forbidden(code: &'static str, message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", code, message)
    }

    /// The profiles have not been read yet: which slots there are is not known.
    pub(super) fn starting() -> Self {
        let message = "slotd is starting, try again".to_owned();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "starting", message)
            .retry_after(Duration::from_secs(1))
    }

    /// slotd itself cannot, for now.
    pub(super) fn unavailable(status: StatusCode, code: &'static str, message: String) -> Self {
        Self::new(status, SERVER, code, message).retry_after(Duration::from_secs(5))
    }

    /// Another server failed the request.
    pub(super) fn of_server(status: StatusCode, code: &'static str, message: String) -> Self {
        Self::new(status, SERVER, code, message)
    }

    /// Trying again is of no use before a person has done something.
    pub(super) fn never_again(self) -> Self {
        Self { retry: Retry::Never, ..self }
    }

    /// No slot answers to the name.
    pub(super) fn unknown_model(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message).about(Some("model"))
    }

    /// The engine died and there is nothing to try any more.
    pub(super) fn engine_died(slot: &SlotName, what: &str) -> Self {
        let message = format!("the engine of slot `{slot}` {what}; `slotd status {slot}` says why");
        Self::new(StatusCode::BAD_GATEWAY, SERVER, "engine_died", message)
            .retry_after(Duration::from_secs(1))
    }

    /// The engine lives and said something that cannot be passed on.
    pub(super) fn engine_misbehaved(slot: &SlotName, what: &str) -> Self {
        let message =
            format!("the engine of slot `{slot}` {what}; `slotd logs {slot}` may say why");
        Self::new(StatusCode::BAD_GATEWAY, SERVER, "bad_engine_answer", message)
    }

    /// The request has taken engines down, and would the next one.
    pub(super) fn poison(slot: &SlotName) -> Self {
        let message = format!(
            "two engines of slot `{slot}` died with this very request in flight, so it is not given to a third; change it, or try again in ten minutes; `slotd logs {slot}` may say why"
        );
        let fault = Self::refused(StatusCode::UNPROCESSABLE_ENTITY, "poison_request", message);
        Self { retry: Retry::Never, ..fault }
    }

    /// A person ended it. The status is nginx's for a request that nobody waits for any more: clients
    /// do not try again on it.
    pub(super) fn cancelled() -> Self {
        let status = StatusCode::from_u16(499).unwrap_or(StatusCode::CONFLICT);
        let message = "the request was cancelled by the operator of this machine".to_owned();
        let fault = Self::refused(status, "request_cancelled", message);
        Self { retry: Retry::Never, ..fault }
    }

    /// The request took as long as it may.
    pub(super) fn too_late() -> Self {
        let message =
            "the request took longer than `request_timeout` in slotd.toml allows".to_owned();
        Self::of_server(StatusCode::GATEWAY_TIMEOUT, "request_timeout", message).never_again()
    }

    /// The request only looks at the engine, and there is none.
    pub(super) fn not_loaded(slot: &SlotName) -> Self {
        let message = format!(
            "slot `{slot}` is not loaded, and a look at its engine loads none; `slotd load {slot}` does"
        );
        Self::of_server(StatusCode::SERVICE_UNAVAILABLE, "slot_not_loaded", message).never_again()
    }

    /// The wait was as long as it may be.
    /// `eta` is how long it should still take to load.
    pub(super) fn still_loading(slot: &SlotName, eta: Option<Duration>) -> Self {
        let message = match eta {
            Some(eta) => format!(
                "slot `{slot}` is still loading, by its earlier loads for another {} s; try again",
                eta.as_secs_f64().ceil()
            ),
            None => format!("slot `{slot}` is still loading, try again"),
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "slot_loading", message)
            .retry_after(eta.map_or(LOADING, half))
    }

    /// The slot stood in line for memory for as long as the request may wait; `wait` says for what.
    pub(super) fn no_memory_in_time(slot: &SlotName, wait: &str) -> Self {
        let message = format!(
            "slot `{slot}` waits for memory, and the request has waited for it as long as it may: {wait}"
        );
        Self::of_server(StatusCode::SERVICE_UNAVAILABLE, "no_memory", message).retry_after(LOADING)
    }

    /// The gate gave no turn.
    pub(super) fn of_gate(gate: &Gate, refusal: GateRefusal) -> Self {
        let slot = gate.slot();
        let message = match refusal {
            GateRefusal::Full { waiting } => {
                format!("slot `{slot}` is overloaded: its queue is full ({waiting} waiting)")
            }
            GateRefusal::TimedOut | GateRefusal::Closed => {
                format!("slot `{slot}` is overloaded: the request's turn did not come in time")
            }
        };
        Self::queue_full(message, gate.expected_wait())
    }

    /// The core refused. `eta` is how long the slot should still take to load.
    pub(super) fn of_refusal(slot: &SlotName, refusal: Refusal, eta: Option<Duration>) -> Self {
        let unavailable =
            |code, message| Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message);
        match refusal {
            Refusal::SlotGone => {
                Self::unknown_model(format!("slot `{slot}` was removed while the request waited"))
            }
            Refusal::ShuttingDown => unavailable("shutting_down", "slotd is stopping".to_owned())
                .retry_after(Duration::from_secs(2)),
            Refusal::Unloaded => {
                unavailable("slot_unloaded", format!("slot `{slot}` was unloaded on request"))
                    .retry_after(Duration::from_secs(2))
            }
            Refusal::QueueFull { waiting } => {
                let message = format!(
                    "slot `{slot}` is overloaded: its queue is full ({waiting} waiting for it to load)"
                );
                Self::queue_full(message, eta)
            }
            Refusal::LoadFailed { verdict, reason, retry_in } => {
                let message = format!("slot `{slot}` did not load ({verdict}): {reason}");
                unavailable("slot_load_failed", message).retry_after(half(retry_in))
            }
            Refusal::NoRoom { reason } => {
                let message = format!("slot `{slot}` does not fit: {reason}");
                unavailable("no_memory", message).retry_after(Duration::from_secs(30))
            }
            Refusal::Absent { reason, retry_in } => {
                let message = format!(
                    "slot `{slot}` is offline: {reason}; slotd does not run this engine, whoever does has to start it"
                );
                unavailable("slot_offline", message).retry_after(retry_in)
            }
            Refusal::SetAside => {
                let message = format!(
                    "slot `{slot}` was unloaded by a person, and its engine is not slotd's to start; `slotd load {slot}` sends requests to it again"
                );
                Self { retry: Retry::Never, ..unavailable("slot_unloaded", message) }
            }
            Refusal::DownloadRequired { reason } => {
                let message = format!(
                    "slot `{slot}` cannot be loaded yet: {reason}; it starts by itself once that is there"
                );
                Self { retry: Retry::Never, ..unavailable("download_required", message) }
            }
            Refusal::Failed { verdict, reason } => {
                let message = format!(
                    "slot `{slot}` has failed ({verdict}) and needs a person: {reason}; \
                     `slotd status {slot}` says more, `slotd load {slot}` tries again"
                );
                Self { retry: Retry::Never, ..unavailable("slot_failed", message) }
            }
        }
    }

    /// The key has as many requests in flight as it may.
    pub(super) fn key_is_busy(key: &str, most: u32) -> Self {
        let message = format!(
            "the key `{key}` has {most} requests in flight, which is as many as it may (`max_in_flight`); \
             try again when one of them has ended"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "key_limit", message)
            .retry_after(BUSY)
    }

    fn queue_full(message: String, eta: Option<Duration>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", message)
            .retry_after(eta.map_or(BUSY, half))
    }

    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: String) -> Self {
        let (kind, code) = (kind.into(), Some(code.into()));
        let error = ErrorObject { message, kind, param: None, code, upstream: None };
        Self { status, error: Box::new(error), retry: Retry::Unsaid, headers: None }
    }

    fn about(mut self, param: Option<&'static str>) -> Self {
        self.error.param = param.map(Cow::Borrowed);
        self
    }

    fn retry_after(self, time: Duration) -> Self {
        Self { retry: Retry::After(time), ..self }
    }

    /// Returns what there is to tell.
    pub(super) fn error(&self) -> &ErrorObject {
        &self.error
    }

    /// Returns the error as a whole answer to OpenAI's clients.
    pub(super) fn response(&self) -> Response<Body> {
        self.response_in(Dialect::OpenAi)
    }

    /// Returns the error as a whole answer.
    pub(super) fn response_in(&self, dialect: Dialect) -> Response<Body> {
        let mut response = json_response(self.status, &dialect.body(self));
        let headers = response.headers_mut();
        if let Some(engines) = &self.headers {
            headers.extend(engines.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        match self.retry {
            Retry::Unsaid => {}
            Retry::After(time) => {
                // Clients cap what they honour at 60 s, and some try at once for more.
                let seconds = time.as_secs_f64().ceil().clamp(1.0, 59.0);
                let milliseconds = time.as_millis().clamp(100, 59_000);
                insert(headers, RETRY_AFTER, &format!("{seconds:.0}"));
                insert(
                    headers,
                    HeaderName::from_static("retry-after-ms"),
                    &milliseconds.to_string(),
                );
            }
            Retry::Never => insert(headers, HeaderName::from_static("x-should-retry"), "false"),
        }
        response
    }
}

/// Two tries of a client cover the whole time.
fn half(eta: Duration) -> Duration {
    eta / 2
}

/// Sets a header whose value is known to be plain.
pub(super) fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Makes a JSON answer.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(full(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Makes a plain text answer.
pub(super) fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(full(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Makes a body that is here already.
pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::death::Verdict;

    fn slot() -> SlotName {
        "chat".parse().unwrap()
    }

    #[test]
    fn a_failed_load_says_why_and_when_to_come_back() {
        let fault = Fault::of_refusal(
            &slot(),
            Refusal::LoadFailed {
                verdict: Verdict::OomHost,
                reason: "SIGKILL ended it while starting".to_owned(),
                retry_in: Duration::from_secs(20),
            },
            None,
        );
        let response = fault.response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "10");
        assert_eq!(response.headers()["retry-after-ms"], "10000");
        insta::assert_snapshot!(Dialect::OpenAi.body(&fault), @r#"{"error":{"message":"slot `chat` did not load (oom-host): SIGKILL ended it while starting","type":"server_error","param":null,"code":"slot_load_failed"}}"#);
    }

    #[test]
    fn a_failed_slot_tells_clients_not_to_try_again() {
        let refusal =
            Refusal::Failed { verdict: Verdict::BadModel, reason: "it is cut short".to_owned() };
        let response = Fault::of_refusal(&slot(), refusal, None).response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(!response.headers().contains_key("retry-after"));
    }

    #[test]
    fn a_full_queue_is_429_with_the_word_that_clients_look_for() {
        let refusal = Refusal::QueueFull { waiting: 256 };
        let fault = Fault::of_refusal(&slot(), refusal, None);
        assert_eq!(fault.status, 429);
        assert!(fault.error().message.clone().contains("overloaded"));
    }

    #[test]
    fn clients_are_told_half_of_the_time_that_a_load_takes_and_never_more_than_they_honour() {
        let told = |seconds: Option<f64>| {
            let eta = seconds.map(Duration::from_secs_f64);
            let response = Fault::still_loading(&slot(), eta).response();
            let header = |name| response.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
            (header("retry-after"), header("retry-after-ms"))
        };
        assert_eq!(told(None), (5, 5000));
        assert_eq!(told(Some(0.01)), (1, 100));
        assert_eq!(told(Some(21.0)), (11, 10_500));
        assert_eq!(told(Some(400.0)), (59, 59_000));
        let full = Fault::of_refusal(
            &slot(),
            Refusal::QueueFull { waiting: 3 },
            Some(Duration::from_secs(30)),
        );
        assert_eq!(full.response().headers()["retry-after"], "15");
    }
}

//! The forms in which clients read errors: each API has its own.

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::reply::{ErrorObject, Fault};

/// How the clients of a path read an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Dialect {
    /// `{"error": {message, type, param, code}}`.
    OpenAi,
    /// The same, and in a stream an event named `error`: OpenAI's responses.
    Responses,
    /// `{"type": "error", "error": {type, message}}`, and in a stream an event named `error`.
    Anthropic,
    /// `{"message": …}`.
    Cohere,
    /// `{"error": "…"}`; its streams are told as events and turned into lines later.
    Ollama,
}

impl Dialect {
    /// Returns the body of an error answer.
    pub(super) fn body(self, fault: &Fault) -> Value {
        let error = fault.error();
        match self {
            Self::OpenAi | Self::Responses => json!({"error": error}),
            Self::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_kind(fault.status, error), "message": error.message},
            }),
            Self::Cohere => json!({"message": error.message}),
            Self::Ollama => json!({"error": error.message}),
        }
    }

    /// Tells whether a stream that waits can be told so by what its readers pass by.
    pub(super) fn has_signs_of_life(self) -> bool {
        self != Self::Ollama
    }

    /// Returns the error as an event of a stream that was begun.
    pub(super) fn event(self, fault: &Fault) -> Bytes {
        let body = self.body(fault);
        Bytes::from(match self {
            Self::OpenAi | Self::Cohere | Self::Ollama => format!("data: {body}\n\n"),
            Self::Responses => {
                // The fields of the API's own event, and those that OpenAI's clients look for.
                let error = fault.error();
                let event = json!({
                    "type": "error", "code": error.code, "message": error.message,
                    "param": error.param, "sequence_number": 0, "error": error,
                });
                format!("event: error\ndata: {event}\n\n")
            }
            Self::Anthropic => format!("event: error\ndata: {body}\n\n"),
        })
    }
}

/// Source: Anthropic's API reference, errors.
fn anthropic_kind(status: StatusCode, error: &ErrorObject) -> String {
    let kind = match status {
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => "invalid_request_error",
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => return error.kind.clone().into_owned(),
    };
    kind.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_own_form() {
        let fault = Fault::unknown_model("no such model".to_owned());
        let told = |dialect: Dialect| dialect.body(&fault).to_string();
        insta::assert_snapshot!(told(Dialect::OpenAi), @r#"{"error":{"message":"no such model","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#);
        insta::assert_snapshot!(told(Dialect::Anthropic), @r#"{"type":"error","error":{"type":"not_found_error","message":"no such model"}}"#);
        insta::assert_snapshot!(told(Dialect::Cohere), @r#"{"message":"no such model"}"#);
        insta::assert_snapshot!(told(Dialect::Ollama), @r#"{"error":"no such model"}"#);
    }

    #[test]
    fn an_error_in_a_stream_is_one_event() {
        let fault = Fault::unknown_model("gone".to_owned());
        let event = |dialect: Dialect| String::from_utf8(dialect.event(&fault).to_vec()).unwrap();
        assert!(event(Dialect::OpenAi).starts_with("data: {\"error\":"));
        assert!(event(Dialect::Anthropic).starts_with("event: error\ndata: {\"type\":\"error\""));
        assert!(event(Dialect::Responses).starts_with("event: error\ndata: {\"type\":\"error\""));
    }
}

//! Errors as clients of the OpenAI API expect them: one object, always the same four keys.

use axum::{
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::{Value as Json, json};

use crate::worker::{engine::QueueFull, job::ComputeFault};

/// A request that gets no answer, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Json,
    /// Further keys beside `error`.
    extra: Option<(&'static str, Json)>,
}

impl Refusal {
    /// A field of the request cannot be used.
    pub(super) fn field(param: impl Into<String>, problem: impl AsRef<str>) -> Self {
        let param = param.into();
        Self {
            message: format!("`{param}` {}", problem.as_ref()),
            param: Some(param),
            ..Self::request("")
        }
    }

    /// The request as a whole cannot be used.
    pub(super) fn request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            message: message.into(),
            param: None,
            code: json!("invalid_value"),
            extra: None,
        }
    }

    /// The request asks for what this engine does not do.
    pub(super) fn unsupported(param: impl Into<String>, problem: impl AsRef<str>) -> Self {
        Self { code: json!("unsupported"), ..Self::field(param, problem) }
    }

    /// Prompt and context do not fit.
    pub(super) fn too_long(param: &str, tokens: usize, context: usize) -> Self {
        let problem = format!(
            "has {tokens} tokens, the context holds {context} with at least one of the answer"
        );
        Self { code: json!("context_length_exceeded"), ..Self::field(param, problem) }
    }

    pub(super) fn not_found(message: impl Into<String>, code: &'static str) -> Self {
        Self { status: StatusCode::NOT_FOUND, code: json!(code), ..Self::request(message) }
    }

    pub(super) fn bad_method() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: json!("method_not_allowed"),
            ..Self::request("this path does not serve this method")
        }
    }

    /// The model is still being loaded; the words are those of llama.cpp's server.
    pub(super) fn loading(progress: f64) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "unavailable_error",
            code: json!(503),
            extra: Some(("progress", json!(progress))),
            ..Self::request("Loading model")
        }
    }

    /// The worker is about to end.
    pub(super) fn stopping() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "unavailable_error",
            code: json!("stopping"),
            ..Self::request("the engine is stopping")
        }
    }

    /// A bug in the worker itself.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "server_error",
            code: json!("internal_error"),
            ..Self::request(message)
        }
    }

    /// Gives the body.
    pub(super) fn body(&self) -> Json {
        let mut body = json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }});
        if let (Some((key, value)), Some(body)) = (&self.extra, body.as_object_mut()) {
            body.insert((*key).to_owned(), value.clone());
        }
        body
    }
}

impl From<ComputeFault> for Refusal {
    /// The first words are those of llama.cpp's server, by which a poisoned engine is known.
    fn from(fault: ComputeFault) -> Self {
        let code = if fault.is_out_of_memory() { "out_of_memory" } else { "compute_error" };
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "server_error",
            code: json!(code),
            ..Self::request(format!("Compute error. {fault}"))
        }
    }
}

impl From<QueueFull> for Refusal {
    fn from(QueueFull: QueueFull) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: "rate_limit_error",
            code: json!("queue_full"),
            ..Self::request("the engine is overloaded: too many requests wait")
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let waits = matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if waits {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

//! Errors as clients of the OpenAI API expect them: one object, always the same four keys.

use axum::{
    extract::rejection::BytesRejection,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::worker::{engine::NoPlace, job::ComputeFault};

/// A request that gets no answer, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Code,
    /// The loaded share of the model, 0 to 1, told beside `error`.
    progress: Option<f64>,
}

/// The `code` of an error: a word, but llama.cpp's server has a number for a model being loaded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(untagged)]
enum Code {
    Word(&'static str),
    Number(u16),
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
            code: Code::Word("invalid_value"),
            progress: None,
        }
    }

    /// The request asks for what this engine does not do.
    pub(super) fn unsupported(param: impl Into<String>, problem: impl AsRef<str>) -> Self {
        Self { code: Code::Word("unsupported"), ..Self::field(param, problem) }
    }

    /// The path is one for other models; status and type are those of llama.cpp's server.
    pub(super) fn not_supported(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_IMPLEMENTED,
            kind: "not_supported_error",
            code: Code::Word("unsupported"),
            ..Self::request(message)
        }
    }

    /// A text does not fit into the context.
    pub(super) fn too_long(param: &str, tokens: usize, context: usize) -> Self {
        let problem = format!("has {tokens} tokens, the context holds {context}");
        Self { code: Code::Word("context_length_exceeded"), ..Self::field(param, problem) }
    }

    /// A prompt leaves no room for an answer.
    pub(super) fn no_room(param: &str, tokens: usize, context: usize) -> Self {
        let refusal = Self::too_long(param, tokens, context);
        let message = format!("{} with at least one of the answer", refusal.message);
        Self { message, ..refusal }
    }

    /// An answer cannot go on as its schema asks.
    pub(super) fn unkept(fault: &str) -> Self {
        Self::request(format!("the answer cannot be kept to its schema: {fault}"))
    }

    pub(super) fn not_found(message: impl Into<String>, code: &'static str) -> Self {
        Self { status: StatusCode::NOT_FOUND, code: Code::Word(code), ..Self::request(message) }
    }

    pub(super) fn bad_method() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: Code::Word("method_not_allowed"),
            ..Self::request("this path does not serve this method")
        }
    }

    /// The model is still being loaded; the words are those of llama.cpp's server.
    pub(super) fn loading(progress: f64) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "unavailable_error",
            code: Code::Number(503),
            progress: Some(progress),
            ..Self::request("Loading model")
        }
    }

    /// All sequences are busy, and the asker wanted to know; the words are llama.cpp's.
    pub(super) fn no_slot() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "unavailable_error",
            code: Code::Number(503),
            ..Self::request("no slot available")
        }
    }

    /// The worker is about to end.
    pub(super) fn stopping() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "unavailable_error",
            code: Code::Word("stopping"),
            ..Self::request("the engine is stopping")
        }
    }

    /// A bug in the worker itself.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "server_error",
            code: Code::Word("internal_error"),
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
        if let (Some(progress), Some(body)) = (self.progress, body.as_object_mut()) {
            body.insert("progress".to_owned(), json!(progress));
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
            code: Code::Word(code),
            ..Self::request(format!("Compute error. {fault}"))
        }
    }
}

impl From<NoPlace> for Refusal {
    fn from(refused: NoPlace) -> Self {
        if refused == NoPlace::Stopping {
            return Self::stopping();
        }
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: "rate_limit_error",
            code: Code::Word("queue_full"),
            ..Self::request("the engine is overloaded: too many requests wait")
        }
    }
}

impl From<BytesRejection> for Refusal {
    fn from(fault: BytesRejection) -> Self {
        let status = fault.status();
        let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "bad_body" };
        let message = format!("the body cannot be read: {}", fault.body_text());
        Self { status, code: Code::Word(code), ..Self::request(message) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let waits =
            matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if waits {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

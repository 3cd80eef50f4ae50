//! An engine's refusal in the one form that clients read.
//!
//! Engines differ: a number as `code`, keys left out, a bare text, a page of HTML. What a client gets
//! has all four keys, `code` a text or null; what the engine said goes along where it differs.

use hyper::StatusCode;
use serde_json::{Map, Value};

use super::reply::{ErrorObject, INVALID, SERVER};

/// The most of a text without form that becomes the message.
const MESSAGE_CHARACTERS: usize = 300;

/// Reads the body of an engine's refusal.
pub(super) fn error_object(status: StatusCode, body: &[u8]) -> ErrorObject {
    let original: Value = serde_json::from_slice(body)
        .unwrap_or_else(|_| String::from_utf8_lossy(body).trim().into());
    let nothing = Map::new();
    let error = original.get("error").unwrap_or(&original);
    let fields = error.as_object().unwrap_or(&nothing);
    let text = |key: &str| fields.get(key).and_then(Value::as_str);

    // LangChain knows an overflow by OpenAI's code alone.
    let is_overflow = text("type") == Some("exceed_context_size_error");
    let (kind, code) = if is_overflow {
        (INVALID.into(), Some("context_length_exceeded".into()))
    } else {
        let kind =
            text("type").map_or_else(|| kind_of(status).into(), |kind| kind.to_owned().into());
        (kind, text("code").map(|code| code.to_owned().into()))
    };
    let param = text("param").map(|param| param.to_owned().into());
    let message = message(&original, error).unwrap_or_else(|| {
        let reason = status.canonical_reason().unwrap_or("without a reason");
        format!("the engine refused with status {}: {reason}", status.as_u16())
    });

    let object = ErrorObject { message, kind, param, code, upstream: None };
    let is_the_same = serde_json::to_value(&object).is_ok_and(|ours| ours == *error);
    ErrorObject { upstream: (!is_the_same).then_some(original), ..object }
}

/// Source: OpenAI's API reference, error codes.
fn kind_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_client_error() => INVALID,
        _ => SERVER,
    }
}

fn message(original: &Value, error: &Value) -> Option<String> {
    // FastAPI says `detail`, a text or a list of what was wrong.
    let said = error.get("message").or_else(|| original.get("detail")).unwrap_or(error);
    let text = match said {
        Value::String(text) => text.clone(),
        Value::Null => return None,
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => said.to_string(),
    };
    (!text.is_empty()).then(|| text.chars().take(MESSAGE_CHARACTERS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, body: &str) -> String {
        let object = error_object(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        serde_json::to_string(&object).unwrap()
    }

    #[test]
    fn an_engines_overflow_becomes_the_code_that_clients_know() {
        let llama = r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":64}}"#;
        insta::assert_snapshot!(said(400, llama), @r#"{"message":"too long","type":"invalid_request_error","param":null,"code":"context_length_exceeded","upstream":{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":64}}}"#);
    }

    #[test]
    fn a_number_as_code_is_no_code() {
        let llama =
            r#"{"error":{"code":401,"message":"Invalid API Key","type":"authentication_error"}}"#;
        insta::assert_snapshot!(said(401, llama), @r#"{"message":"Invalid API Key","type":"authentication_error","param":null,"code":null,"upstream":{"error":{"code":401,"message":"Invalid API Key","type":"authentication_error"}}}"#);
    }

    #[test]
    fn an_error_in_the_right_form_is_passed_as_it_is() {
        let whole = r#"{"message":"no","type":"invalid_request_error","param":"n","code":null}"#;
        assert_eq!(said(400, &format!(r#"{{"error":{whole}}}"#)), whole);
    }

    #[test]
    fn what_has_no_form_is_wrapped() {
        insta::assert_snapshot!(said(502, "oops"), @r#"{"message":"oops","type":"server_error","param":null,"code":null,"upstream":"oops"}"#);
        insta::assert_snapshot!(said(500, r#"{"error":"no memory"}"#), @r#"{"message":"no memory","type":"server_error","param":null,"code":null,"upstream":{"error":"no memory"}}"#);
        insta::assert_snapshot!(said(422, r#"{"detail":[{"loc":["n"]}]}"#), @r#"{"message":"[{\"loc\":[\"n\"]}]","type":"invalid_request_error","param":null,"code":null,"upstream":{"detail":[{"loc":["n"]}]}}"#);
        insta::assert_snapshot!(said(503, ""), @r#"{"message":"the engine refused with status 503: Service Unavailable","type":"server_error","param":null,"code":null,"upstream":""}"#);
    }
}

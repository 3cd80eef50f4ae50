//! The request body: collected within its limit, looked into for `model` and `stream`, and otherwise
//! left as it came.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{HeaderMap, StatusCode, body::Incoming, header::CONTENT_ENCODING};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::reply::Fault;

/// A body and what slotd needs of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) bytes: Bytes,
    pub(super) model: String,
    pub(super) is_stream: bool,
}

#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    stream: Option<bool>,
}

/// Collects a body and reads what is needed of it.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limit: usize,
) -> Result<Asked, Fault> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let message = "compressed request bodies are not taken, send the JSON as it is".to_owned();
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Fault::refused(status, "unsupported_encoding", message));
    }
    let bytes = Limited::new(body, limit).collect().await.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            let message = format!(
                "the request body is larger than {limit} bytes; `max_body` in slotd.toml is the limit"
            );
            Fault::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
        } else {
            let message = "the request body broke off".to_owned();
            Fault::bad_request(None, "incomplete_body", message)
        }
    })?;
    peek(bytes.to_bytes())
}

fn peek(bytes: Bytes) -> Result<Asked, Fault> {
    // A list would be read as the fields in their order.
    if bytes.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        let message = "the request body is a list, an object is needed".to_owned();
        return Err(Fault::bad_request(None, "invalid_json", message));
    }
    let peek: Peek<'_> = serde_json::from_slice(&bytes).map_err(|error| {
        let param = serde_json::from_slice::<IgnoredAny>(&bytes).is_ok().then_some("model");
        Fault::bad_request(
            param,
            "invalid_json",
            format!("the request body cannot be read: {error}"),
        )
    })?;
    let Some(model) = peek.model.map(Cow::into_owned) else {
        let message =
            "the request names no `model`; `GET /v1/models` lists what there is".to_owned();
        return Err(Fault::bad_request(Some("model"), "missing_model", message));
    };
    let is_stream = peek.stream.unwrap_or(false);
    Ok(Asked { bytes, model, is_stream })
}

/// Puts `name` in the place of the top-level `model`, and leaves every other byte as it came.
pub(super) fn rename_model(bytes: &Bytes, name: &str) -> Bytes {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        model: &'a RawValue,
    }
    let Ok(raw) = serde_json::from_slice::<Raw<'_>>(bytes) else { return bytes.clone() };
    let old = raw.model.get().as_bytes();
    // The value was borrowed from the body: where it stands is the distance between the two.
    let at = old.as_ptr().addr().saturating_sub(bytes.as_ptr().addr());
    let (Some(before), Some(after)) = (bytes.get(..at), bytes.get(at.saturating_add(old.len())..))
    else {
        return bytes.clone();
    };
    let name = serde_json::Value::from(name).to_string();
    Bytes::from([before, name.as_bytes(), after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Asked, Fault> {
        peek(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn the_top_level_model_counts_and_no_other() {
        let text = r#"{"messages":[{"model":"inner","content":"\"model\":\"x\""}],"model":"a\u0062","stream":true}"#;
        let asked = asked(text).unwrap();
        assert_eq!((asked.model.as_str(), asked.is_stream), ("ab", true));
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said_with_its_place() {
        let broken = asked("{\"model\": \"a\",\n oops}").unwrap_err().body().to_string();
        assert!(broken.contains("line 2 column 2"), "{broken}");
        for text in
            ["[]", "[\"a\",true]", "{\"model\": 3}", "{}", "", "{\"model\":\"a\",\"model\":\"b\"}"]
        {
            assert_eq!(asked(text).unwrap_err().status, 400, "{text}");
        }
    }

    #[test]
    fn renaming_the_model_leaves_every_other_byte() {
        let text = r#"{ "x": {"model":"inner"}, "model" : "mine" ,"n":1e3}"#;
        let renamed = rename_model(&Bytes::copy_from_slice(text.as_bytes()), "org/\"theirs\"");
        assert_eq!(renamed, r#"{ "x": {"model":"inner"}, "model" : "org/\"theirs\"" ,"n":1e3}"#);
    }
}

//! The request body: collected within its limit, looked into for `model` and `stream`, and otherwise
//! left as it came.

use std::{borrow::Cow, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, StatusCode,
    body::{Body as _, Incoming},
    header::{CONTENT_ENCODING, EXPECT},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::reply::Fault;

/// How long a client may pause within a body.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a body of somebody who is turned away is read.
const LONGEST_DISCARD: Duration = Duration::from_secs(5);
/// How much of a body over the limit is read and thrown away, as a multiple of the limit: a client
/// that is still sending reads no answer.
const THROWN_AWAY: u64 = 4;

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
    /// As it stands: what is odd about it is the engine's to say.
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
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
    peek(collect(headers, body, limit).await?)
}

/// Collects a body. One that came in one piece is not copied.
async fn collect(headers: &HeaderMap, mut body: Incoming, limit: usize) -> Result<Bytes, Fault> {
    let announced = body.size_hint().lower();
    if usize::try_from(announced).is_ok_and(|announced| announced <= limit) {
        let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
        if body.is_end_stream() && first.len() <= limit {
            return Ok(first);
        }
        let mut bytes = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0));
        bytes.extend_from_slice(&first);
        while bytes.len() <= limit {
            let Some(data) = next(&mut body).await? else { return Ok(bytes.freeze()) };
            bytes.extend_from_slice(&data);
        }
    }
    // Who asks first whether to send has not begun to.
    if !headers.contains_key(EXPECT) {
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_mul(THROWN_AWAY);
        throw_away(body, most).await;
    }
    let message = format!(
        "the request body is larger than {limit} bytes; `max_body` in slotd.toml is the limit"
    );
    Err(Fault::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
    loop {
        let frame = timeout(LONGEST_PAUSE, body.frame()).await.map_err(|_| {
            let message = format!("the request body paused for {} s", LONGEST_PAUSE.as_secs());
            Fault::refused(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|_| {
            let message = "the request body broke off".to_owned();
            Fault::bad_request(None, "incomplete_body", message)
        })?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// Throws a body away that nobody is to see: at most `limit` bytes, and not for long.
pub(super) async fn discard(headers: &HeaderMap, body: Incoming, limit: usize) {
    if body.is_end_stream() || headers.contains_key(EXPECT) {
        return;
    }
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    // What is left of it ends with the connection.
    drop(timeout(LONGEST_DISCARD, throw_away(body, most)).await);
}

async fn throw_away(mut body: Incoming, most: u64) {
    let mut thrown = 0_u64;
    while thrown < most {
        let Ok(Some(data)) = next(&mut body).await else { return };
        thrown = thrown.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
    }
}

fn peek(bytes: Bytes) -> Result<Asked, Fault> {
    let invalid = |param, message| Fault::bad_request(param, "invalid_json", message);
    let peek: Result<Peek<'_>, _> = serde_json::from_slice(&bytes);
    // Asked first: a list would be read as the fields in their order.
    let is_object = bytes.trim_ascii_start().first() == Some(&b'{');
    let is_json = || serde_json::from_slice::<IgnoredAny>(&bytes).is_ok();
    if !is_object && is_json() {
        return Err(invalid(None, "the request body is no JSON object".to_owned()));
    }
    let peek = peek.map_err(|error| {
        let param = is_json().then_some("model");
        invalid(param, format!("the request body cannot be read: {error}"))
    })?;
    let Some(model) = peek.model.map(Cow::into_owned) else {
        let message =
            "the request names no `model`; `GET /v1/models` lists what there is".to_owned();
        return Err(Fault::bad_request(Some("model"), "missing_model", message));
    };
    let is_stream = peek.stream.is_some_and(|stream| stream.get() == "true");
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

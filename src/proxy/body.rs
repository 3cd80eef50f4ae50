//! The request body: collected within its limit, looked into for `model` and `stream`, and otherwise
//! left as it came.

use std::{borrow::Cow, ops::Range, time::Duration};

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

use super::{depth, params, payload::Payload, reply::Fault};
use crate::spec::params::Params;

/// How long a client may pause within a body.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a body of somebody who is turned away is read.
const LONGEST_DISCARD: Duration = Duration::from_secs(5);
/// How much of a body over the limit is read and thrown away, as a multiple of the limit: a client
/// that is still sending reads no answer.
const THROWN_AWAY: u64 = 4;

/// A body and what slotd needs of it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) payload: Payload,
    /// The model that it names, if it names one.
    pub(super) model: Option<String>,
    pub(super) is_stream: bool,
    /// Where the name stands, if it may be replaced.
    pub(super) model_at: Option<Range<u64>>,
}

impl Asked {
    /// What is passed on without a look into it. `model` is what else named one.
    pub(super) fn unread(bytes: Bytes, model: Option<String>) -> Self {
        Self { payload: Payload::bytes(bytes), model, is_stream: false, model_at: None }
    }

    /// Changes the parameters of a JSON object as the profile says; a form is left as it is.
    pub(super) fn change(&mut self, params: &Params) {
        let changed = self.payload.in_memory().and_then(|bytes| params::applied(bytes, params));
        if let Some(bytes) = changed {
            self.payload = Payload::bytes(bytes);
        }
    }

    /// Returns the body with `name` in the place of the model, and every other byte as it came.
    pub(super) fn renamed(&self, name: &str) -> Payload {
        if let Some(at) = &self.model_at {
            return self.payload.with(at, Bytes::copy_from_slice(name.as_bytes()));
        }
        let Some(bytes) = self.payload.in_memory() else { return self.payload.clone() };
        match rename_model(bytes, name) {
            Some(renamed) => Payload::bytes(renamed),
            None => self.payload.clone(),
        }
    }
}

#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    /// As it stands: what is odd about it is the engine's to say.
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
}

/// Collects a JSON object and reads what is needed of it.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limit: usize,
) -> Result<Asked, Fault> {
    check_encoding(headers)?;
    peek(collect(headers, body, limit).await?)
}

/// Refuses bodies that would have to be unpacked first.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let message = "compressed request bodies are not taken, send the JSON as it is".to_owned();
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Fault::refused(status, "unsupported_encoding", message));
    }
    Ok(())
}

/// Collects a body. One that came in one piece is not copied.
pub(super) async fn collect(
    headers: &HeaderMap,
    mut body: Incoming,
    limit: usize,
) -> Result<Bytes, Fault> {
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
    Err(too_large(headers, body, limit).await)
}

/// Refuses the rest of a body.
pub(super) async fn too_large(headers: &HeaderMap, body: Incoming, limit: usize) -> Fault {
    // Who asks first whether to send has not begun to.
    if !headers.contains_key(EXPECT) {
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_mul(THROWN_AWAY);
        throw_away(body, most).await;
    }
    let message = format!(
        "the request body is larger than {limit} bytes; `max_body` in slotd.toml is the limit"
    );
    Fault::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

/// Waits for the next bytes of a body.
pub(super) async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
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
    depth::check(&bytes)?;
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
    let model = peek.model.map(Cow::into_owned);
    let is_stream = peek.stream.is_some_and(|stream| stream.get() == "true");
    Ok(Asked { payload: Payload::bytes(bytes), model, is_stream, model_at: None })
}

/// Reads the model that a body names, if it is one that can name one.
pub(super) fn named_model(bytes: &[u8]) -> Option<String> {
    let peek: Peek<'_> = serde_json::from_slice(bytes).ok()?;
    peek.model.map(Cow::into_owned)
}

/// Puts `name` in the place of the top-level `model`, and leaves every other byte as it came. `None`
/// if there is no `model`.
pub(super) fn rename_model(bytes: &Bytes, name: &str) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        model: &'a RawValue,
    }
    let raw = serde_json::from_slice::<Raw<'_>>(bytes).ok()?;
    let old = raw.model.get().as_bytes();
    // The value was borrowed from the body: where it stands is the distance between the two.
    let at = old.as_ptr().addr().saturating_sub(bytes.as_ptr().addr());
    let (before, after) = (bytes.get(..at)?, bytes.get(at.saturating_add(old.len())..)?);
    let name = serde_json::Value::from(name).to_string();
    Some(Bytes::from([before, name.as_bytes(), after].concat()))
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
        assert_eq!((asked.model.as_deref(), asked.is_stream), (Some("ab"), true));
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said_with_its_place() {
        let broken = asked("{\"model\": \"a\",\n oops}").unwrap_err().error().message.clone();
        assert!(broken.contains("line 2 column 2"), "{broken}");
        for text in
            ["[]", "[\"a\",true]", "{\"model\": 3}", "", "{\"model\":\"a\",\"model\":\"b\"}"]
        {
            assert_eq!(asked(text).unwrap_err().status, 400, "{text}");
        }
    }

    #[test]
    fn renaming_the_model_leaves_every_other_byte() {
        let text = r#"{ "x": {"model":"inner"}, "model" : "mine" ,"n":1e3}"#;
        let renamed = rename_model(&Bytes::copy_from_slice(text.as_bytes()), "org/\"theirs\"");
        assert_eq!(
            renamed.unwrap(),
            r#"{ "x": {"model":"inner"}, "model" : "org/\"theirs\"" ,"n":1e3}"#
        );
    }
}

//! Embeddings, told both ways. Vectors are passed on as the engine writes them.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
    http::request::Parts,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use tokio::time::Instant;

use super::{
    super::{
        Client,
        reply::{Fault, full},
    },
    answer::ns,
    listing,
    load::Leaving,
    request::is_zero,
    work::{Answered, Kind, cold_start, collect, send, unreadable},
};

#[derive(Deserialize)]
struct Asked {
    model: Option<String>,
    /// Of `/api/embed`: a text or several.
    input: Option<Value>,
    /// Of `/api/embeddings`.
    prompt: Option<String>,
    dimensions: Option<Value>,
    keep_alive: Option<Value>,
}

/// An engine's answer.
#[derive(Deserialize)]
struct Vectors {
    data: Vec<Vector>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Vector {
    #[serde(default)]
    index: usize,
    embedding: Box<RawValue>,
}

#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
}

#[derive(Serialize)]
struct Several<'a> {
    model: &'a str,
    embeddings: Vec<&'a RawValue>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
}

#[derive(Serialize)]
struct One<'a> {
    embedding: &'a RawValue,
}

/// Serves one request.
pub(super) async fn answer(
    client: &Arc<Client>,
    head: Parts,
    (kind, bytes): (Kind, &[u8]),
    began: Instant,
) -> Result<Answered, Fault> {
    let asked: Asked = listing::read(bytes)?;
    let name = asked.model.filter(|name| !name.is_empty());
    let input = if kind == Kind::Embed { asked.input } else { asked.prompt.map(Value::from) };
    let mut told = Map::new();
    told.insert("input".to_owned(), input.unwrap_or_else(|| "".into()));
    told.insert("encoding_format".to_owned(), "float".into());
    if let Some(dimensions) = asked.dimensions.filter(|dimensions| !dimensions.is_null()) {
        told.insert("dimensions".to_owned(), dimensions);
    }
    let order = ("/v1/embeddings", told, name.clone());
    let (slot, response) = send(client, head, order, false).await?;
    if !response.status().is_success() {
        return Ok((slot, response));
    }
    let leaving = slot.clone().filter(|_| is_zero(asked.keep_alive.as_ref()));
    let leaving = leaving.map(|slot| Leaving::new(&client.shared, slot));
    let name = name.or_else(|| slot.as_ref().map(ToString::to_string)).unwrap_or_default();
    let (mut head, body) = response.into_parts();
    let load = ns(cold_start(&head.headers));
    let bytes = collect(body, slot.as_ref()).await?;
    drop(leaving);
    let unreadable = || unreadable(slot.as_ref());
    let mut vectors: Vectors = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
    vectors.data.sort_by_key(|vector| vector.index);
    let mut embeddings = vectors.data.iter().map(|vector| &*vector.embedding);
    let told = if kind == Kind::Embed {
        serde_json::to_vec(&Several {
            model: &name,
            embeddings: embeddings.collect(),
            total_duration: ns(began.elapsed()),
            load_duration: load,
            prompt_eval_count: vectors.usage.prompt_tokens,
        })
    } else {
        serde_json::to_vec(&One { embedding: embeddings.next().ok_or_else(unreadable)? })
    };
    let told = told.map_err(|_| unreadable())?;
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok((slot, Response::from_parts(head, full(Bytes::from(told)))))
}

//! `POST /v1/embeddings`: the mean of the hidden states, scaled to length 1.

use std::{pin::pin, sync::Arc};

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value as Json, json};

use super::{
    Served, blocking,
    fields::{Fields, wrong},
    prompt::{Input, inputs},
    refusal::Refusal,
};
use crate::worker::{
    engine::Engine,
    job::{Event, Job},
    model::Purpose,
};

/// How a vector is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Encoding {
    Floats,
    /// Little-endian 32-bit floats.
    Base64,
}

/// Gives one vector for each input.
pub(super) async fn embedding(
    State(served): State<Arc<Served>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<axum::Json<Json>, Refusal> {
    let engine = served.engine()?;
    if engine.purpose == Purpose::Scores {
        return Err(Refusal::unsupported("model", "ranks documents only, it makes no embeddings"));
    }
    let fields = Fields::parse(&body?)?;
    let encoding = encoding(&fields)?;
    if let Some(wanted) = fields.count("dimensions", i64::MAX)?.filter(|n| *n != engine.width) {
        let problem = format!("is {wanted}, this model gives vectors of {}", engine.width);
        return Err(Refusal::unsupported("dimensions", problem));
    }
    let inputs = {
        let vocabulary = Arc::clone(&engine.vocabulary);
        let inputs = inputs("input", fields.needed("input")?, &vocabulary)?;
        blocking(move || {
            inputs
                .into_iter()
                .map(|input: Input| input.tokens(&vocabulary))
                .collect::<Result<Vec<_>, _>>()
        })
        .await??
    };
    for tokens in &inputs {
        check(tokens, engine.context)?;
    }
    let count: usize = inputs.iter().map(Vec::len).sum();
    let mut data = Vec::with_capacity(inputs.len());
    let vectors = inputs.into_iter().map(|tokens| one(&engine, tokens));
    let mut vectors = pin!(stream::iter(vectors).buffered(engine.parallel));
    while let Some(vector) = vectors.next().await {
        data.push(json!({
            "object": "embedding",
            "index": data.len(),
            "embedding": encoding.write(&vector?),
        }));
    }
    Ok(axum::Json(json!({
        "object": "list",
        "data": data,
        "model": served.model_name,
        "usage": { "prompt_tokens": count, "total_tokens": count },
    })))
}

fn check(tokens: &[u32], context: usize) -> Result<(), Refusal> {
    if tokens.is_empty() {
        return Err(Refusal::field("input", "is empty"));
    }
    if tokens.len() > context {
        return Err(Refusal::too_long("input", tokens.len(), context));
    }
    Ok(())
}

async fn one(engine: &Engine, tokens: Vec<u32>) -> Result<Vec<f32>, Refusal> {
    let mut events = engine.submit(Job::Embed(tokens)).await?;
    match events.recv().await {
        Some(Event::Embedding(vector)) => Ok(vector),
        Some(Event::Failed(fault)) => Err(fault.into()),
        Some(
            Event::Begun
            | Event::PromptScores(_)
            | Event::Text(_)
            | Event::Score(_)
            | Event::Done(_)
            | Event::Unkept(_),
        )
        | None => Err(Refusal::stopping()),
    }
}

fn encoding(fields: &Fields) -> Result<Encoding, Refusal> {
    match fields.any("encoding_format") {
        None => Ok(Encoding::Floats),
        Some(Json::String(word)) if word == "float" => Ok(Encoding::Floats),
        Some(Json::String(word)) if word == "base64" => Ok(Encoding::Base64),
        Some(Json::String(word)) => Err(Refusal::field(
            "encoding_format",
            format!("is `{word}`, expected `float` or `base64`"),
        )),
        Some(other) => Err(wrong("encoding_format", "`float` or `base64`", other)),
    }
}

impl Encoding {
    fn write(self, vector: &[f32]) -> Json {
        match self {
            Self::Floats => json!(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

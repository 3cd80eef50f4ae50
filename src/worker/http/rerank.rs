//! `POST /v1/rerank`: how well documents answer a query, the best first.
//!
//! Source: `post_rerank` and `format_response_rerank` in llama.cpp's server. With `documents` the answer is that of
//! Jina's API, with `texts` that of Hugging Face's text-embeddings-inference. Scores are the model's own numbers
//! in both, from no smallest to no largest.

use std::{pin::pin, sync::Arc};

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;

use super::{
    Served, blocking,
    fields::{Fields, wrong},
    refusal::Refusal,
};
use crate::worker::{
    engine::Engine,
    job::{Event, Job},
    model::Purpose,
    text::{Pair, Query, Vocabulary},
};

/// The most documents of one request: each becomes a pair of up to a whole context before the first is judged.
const MOST_DOCUMENTS: usize = 10_000;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    query: String,
    documents: Vec<String>,
    /// Results that are told.
    top: usize,
    form: Form,
}

/// The form of the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// An object with `results` and `usage`.
    Jina,
    /// A list.
    Bare,
    /// A list that has the documents as well.
    BareWithText,
}

/// Gives a score for each document, the highest first.
pub(super) async fn rerank(
    State(served): State<Arc<Served>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<axum::Json<Json>, Refusal> {
    let engine = served.engine()?;
    if engine.purpose != Purpose::Scores {
        let message = "this model does not rerank: that takes the folder of a cross-encoder";
        return Err(Refusal::not_supported(message));
    }
    let fields = Fields::parse(&body?)?;
    let asked = Asked::read(&fields)?;
    let (asked, pairs) = pairs(&engine, asked).await?;
    let tokens: usize = pairs.iter().map(|pair| pair.tokens.len()).sum();
    let mut scores = Vec::with_capacity(pairs.len());
    let ranked = pairs.into_iter().map(|pair| one(&engine, pair));
    let mut ranked = pin!(stream::iter(ranked).buffered(engine.parallel));
    while let Some(score) = ranked.next().await {
        scores.push(score?);
    }
    let results = asked.results(&scores);
    if asked.form != Form::Jina {
        return Ok(axum::Json(results));
    }
    let model = fields.any("model").and_then(Json::as_str).unwrap_or(&served.model_name);
    Ok(axum::Json(json!({
        "model": model,
        "object": "list",
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
        "results": results,
    })))
}

async fn pairs(engine: &Arc<Engine>, asked: Asked) -> Result<(Asked, Vec<Pair>), Refusal> {
    let (vocabulary, context) = (Arc::clone(&engine.vocabulary), engine.context);
    // Dropped with this future when the client leaves: nobody waits for the pairs then.
    let (client, _waiting) = oneshot::channel();
    let made = blocking(move || made(&vocabulary, &asked, context, &client).map(|it| (asked, it)));
    let (asked, pairs) = made.await?.map_err(|error| Refusal::internal(error.to_string()))?;
    // What the tokenizer puts around two empty texts may be more than the context.
    match pairs.iter().find(|pair| pair.tokens.len() > context) {
        Some(pair) => Err(Refusal::too_long("query", pair.tokens.len(), context)),
        None => Ok((asked, pairs)),
    }
}

/// Makes the pairs; stops early when nobody waits for them any more.
fn made(
    vocabulary: &Vocabulary,
    asked: &Asked,
    context: usize,
    client: &oneshot::Sender<()>,
) -> Result<Vec<Pair>, tokenizers::Error> {
    let query = Query::new(vocabulary, &asked.query, context)?;
    let documents = asked.documents.iter().take_while(|_| !client.is_closed());
    documents.map(|document| query.with(document)).collect()
}

async fn one(engine: &Engine, pair: Pair) -> Result<f32, Refusal> {
    let mut events = engine.submit(Job::Rank(pair)).await?;
    match events.recv().await {
        Some(Event::Score(score)) => Ok(score),
        Some(Event::Failed(fault)) => Err(fault.into()),
        Some(
            Event::Begun
            | Event::PromptScores(_)
            | Event::Text(_)
            | Event::Embedding(_)
            | Event::Done(_)
            | Event::Unkept(_),
        )
        | None => Err(Refusal::stopping()),
    }
}

impl Asked {
    fn read(fields: &Fields) -> Result<Self, Refusal> {
        const TEXT: &str = "a string";
        const TEXTS: &str = "a list of strings";
        let query = fields.needed("query")?;
        let query = query.as_str().ok_or_else(|| wrong("query", TEXT, query))?.to_owned();
        let is_bare = fields.any("texts").is_some();
        let name = if is_bare && fields.any("documents").is_none() { "texts" } else { "documents" };
        let documents = fields.needed(name)?;
        let documents = documents.as_array().ok_or_else(|| wrong(name, TEXTS, documents))?;
        if documents.is_empty() {
            return Err(Refusal::field(name, "is empty"));
        }
        if documents.len() > MOST_DOCUMENTS {
            let count = documents.len();
            let fault =
                format!("has {count} documents, {MOST_DOCUMENTS} are judged at once; send parts");
            return Err(Refusal::field(name, &fault));
        }
        let text = |value: &Json| value.as_str().map(str::to_owned);
        let documents =
            documents.iter().map(|one| text(one).ok_or_else(|| wrong(name, TEXTS, one)));
        let documents = documents.collect::<Result<Vec<_>, _>>()?;
        let top = fields.count("top_n", i64::MAX)?.unwrap_or(documents.len());
        let form = match (is_bare, fields.flag("return_text")?) {
            (false, _) => Form::Jina,
            (true, false) => Form::Bare,
            (true, true) => Form::BareWithText,
        };
        Ok(Self { query, documents, top, form })
    }

    /// Writes what is told of the best documents.
    fn results(&self, scores: &[f32]) -> Json {
        let mut ranked: Vec<_> = scores.iter().zip(&self.documents).enumerate().collect();
        ranked.sort_by(|(_, (a, _)), (_, (b, _))| b.total_cmp(a));
        let told =
            ranked.into_iter().take(self.top).map(|(index, (score, text))| match self.form {
                Form::Jina => json!({ "index": index, "relevance_score": score }),
                Form::Bare => json!({ "index": index, "score": score }),
                Form::BareWithText => json!({ "index": index, "score": score, "text": text }),
            });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::worker::model::{Header, tiny};

    fn read(body: &Json) -> Result<Asked, String> {
        let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        Asked::read(&fields).map_err(|refusal| refusal.body()["error"]["message"].to_string())
    }

    #[test]
    fn no_pairs_are_made_for_a_client_that_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny::write(folder.path(), GgmlDType::F32);
        let vocabulary = Vocabulary::read(&Header::open(&path).unwrap()).unwrap();
        let asked = read(&json!({ "query": "q", "documents": ["a", "b"] })).unwrap();
        let (client, waiting) = oneshot::channel();
        assert_eq!(made(&vocabulary, &asked, 9, &client).unwrap().len(), 2);
        drop(waiting);
        assert_eq!(made(&vocabulary, &asked, 9, &client).unwrap(), []);
    }

    #[test]
    fn the_best_come_first_equal_ones_as_they_were_given() {
        let body = json!({ "query": "q", "documents": ["a", "b", "c", "d"], "top_n": 3 });
        let results = read(&body).unwrap().results(&[-1.0, 2.5, -1.0, 3.0]);
        let wanted = json!([
            { "index": 3, "relevance_score": 3.0 },
            { "index": 1, "relevance_score": 2.5 },
            { "index": 0, "relevance_score": -1.0 },
        ]);
        assert_eq!(results, wanted);
    }

    #[test]
    fn texts_are_answered_with_a_bare_list() {
        let body = json!({ "query": "q", "texts": ["a", "b"], "top_n": 99 });
        let results = read(&body).unwrap().results(&[0.5, 1.0]);
        assert_eq!(results, json!([{ "index": 1, "score": 1.0 }, { "index": 0, "score": 0.5 }]));
        let body = json!({ "query": "q", "texts": ["a"], "return_text": true });
        let results = read(&body).unwrap().results(&[0.5]);
        assert_eq!(results, json!([{ "index": 0, "score": 0.5, "text": "a" }]));
    }

    #[test]
    fn what_cannot_be_ranked_is_refused_by_its_field() {
        let said = |body: Json| read(&body).unwrap_err();
        insta::assert_snapshot!(said(json!({ "documents": ["a"] })), @r#""`query` is missing""#);
        insta::assert_snapshot!(said(json!({ "query": 3, "documents": ["a"] })), @r#""`query` is a number, expected a string""#);
        insta::assert_snapshot!(said(json!({ "query": "q" })), @r#""`documents` is missing""#);
        insta::assert_snapshot!(said(json!({ "query": "q", "documents": [] })), @r#""`documents` is empty""#);
        insta::assert_snapshot!(said(json!({ "query": "q", "texts": [] })), @r#""`texts` is empty""#);
        insta::assert_snapshot!(said(json!({ "query": "q", "documents": "a" })), @r#""`documents` is a string, expected a list of strings""#);
        insta::assert_snapshot!(said(json!({ "query": "q", "documents": vec![""; 10_001] })), @r#""`documents` has 10001 documents, 10000 are judged at once; send parts""#);
        insta::assert_snapshot!(said(json!({ "query": "q", "documents": ["a", 1] })), @r#""`documents` is a number, expected a list of strings""#);
        insta::assert_snapshot!(said(json!({ "query": "q", "documents": ["a"], "top_n": -1 })), @r#""`top_n` is -1, expected 0 to 9223372036854775807""#);
    }
}

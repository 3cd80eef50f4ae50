//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    response::Response,
};

use super::{
    Served,
    answer::{Calls, Echo, Request},
    blocking,
    fields::Fields,
    grammar,
    options::Choices,
    prompt::{Input, inputs},
    refusal::Refusal,
    shape::{Api, Envelope},
    writer,
};

/// Continues texts.
pub(super) async fn completion(
    State(served): State<Arc<Served>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let engine = writer(&served)?;
    let fields = Fields::parse(&body?)?;
    let mut choices = Choices::read(&fields)?;
    choices.sampling.logprobs = Choices::alternatives(&fields, "logprobs")?;
    if fields.any("suffix").is_some_and(|suffix| suffix.as_str() != Some("")) {
        return Err(Refusal::unsupported("suffix", "is not supported by this engine"));
    }
    let echo = if fields.flag("echo")? { Echo::Prompt } else { Echo::No };
    let prompts = {
        let vocabulary = Arc::clone(&engine.vocabulary);
        let prompts = inputs("prompt", fields.needed("prompt")?, &vocabulary)?;
        blocking(move || {
            prompts
                .into_iter()
                .map(|input: Input| input.tokens(&vocabulary))
                .collect::<Result<Vec<_>, _>>()
        })
        .await??
    };
    let mut jobs = Vec::new();
    for prompt in &prompts {
        jobs.extend(choices.jobs("prompt", prompt, engine.context)?);
    }
    let grammar = grammar(&engine, choices.schema.take()).await?;
    for job in &mut jobs {
        job.grammar.clone_from(&grammar);
        job.score_prompt = echo == Echo::Prompt && job.sampling.logprobs.is_some();
    }
    let request = Request {
        envelope: Envelope::new(Api::Completion, &served.model_name),
        answers_each: jobs.len() / prompts.len().max(1),
        jobs,
        echo,
        calls: Calls::None,
        delivery: choices.delivery,
        engine,
    };
    request.answer().await
}

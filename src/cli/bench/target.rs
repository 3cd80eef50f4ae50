//! What is measured: the slot, what it can do, and what is known of its engine.

use serde_json::Value;

use super::Options;
use crate::{
    admin::SlotObject,
    cli::{client::Client, failure::Failure},
    models::inventory::Kind,
    spec::profile::Capability,
};

/// The work that is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Work {
    /// Text from text.
    Generate,
    /// Vectors from text.
    Embed,
}

/// A slot that can be measured.
#[derive(Debug)]
pub(super) struct Target {
    /// As it was when it had been loaded.
    pub(super) slot: SlotObject,
    pub(super) work: Work,
    /// Where requests go: all that stands before the engine's own path.
    pub(super) base: String,
    /// How many tokens the engine knows, where it tells.
    pub(super) vocabulary: Option<u32>,
    /// Requests of others that it was busy with.
    pub(super) others: u32,
}

impl Work {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Embed => "embed",
        }
    }
}

/// Decides what a slot is measured by: what it is offered for, unless its model is for less.
///
/// # Errors
/// [`Failure::Refused`] where it neither writes text nor makes vectors.
pub(super) async fn work(slot: &SlotObject, client: &Client) -> Result<Work, Failure> {
    // Over the endpoint, and of models that are not on this disk, nothing more is known.
    let found = client.inventory().await.ok();
    let models = found.into_iter().flat_map(|found| found.models);
    let kind = models.into_iter().find(|model| model.slots.contains(&slot.slot));
    decide(slot, kind.map(|model| model.kind))
}

fn decide(slot: &SlotObject, kind: Option<Kind>) -> Result<Work, Failure> {
    let offers = |wanted| slot.capabilities.contains(&wanted);
    let refused = |why: String| {
        let message = format!("`{}` cannot be measured: {why}", slot.slot);
        Err(Failure::Refused { message })
    };
    let generates = offers(Capability::Chat) || offers(Capability::Completion);
    match kind {
        Some(Kind::Embed) if offers(Capability::Embed) => return Ok(Work::Embed),
        Some(kind @ (Kind::Embed | Kind::Rerank | Kind::Whisper | Kind::Speech | Kind::Image)) => {
            let model = slot.model.as_deref().unwrap_or("its model");
            return refused(format!(
                "`{model}` is a model for {}, which writes no text",
                kind.as_str()
            ));
        }
        Some(Kind::Chat | Kind::Projector | Kind::Adapter | Kind::Draft | Kind::Other) | None => {}
    }
    if generates {
        return Ok(Work::Generate);
    }
    if offers(Capability::Embed) {
        return Ok(Work::Embed);
    }
    let offered: Vec<_> = slot.capabilities.iter().map(|one| one.as_str()).collect();
    refused(format!(
        "it is offered for {} alone, and only text and vectors are measured",
        offered.join(", ")
    ))
}

impl Target {
    /// Asks the engine for what has to be known of it.
    ///
    /// # Errors
    /// [`Failure::Refused`] where prompt and answer do not fit its context.
    pub(super) async fn find(
        slot: SlotObject,
        work: Work,
        options: &Options,
        client: &Client,
    ) -> Result<Self, Failure> {
        let base = format!("{}/upstream/{}", client.endpoint().await?, slot.slot);
        let key = super::request::api_key(options)?;
        let look = async |path: &str| {
            let request = super::request::http()?.get(format!("{base}{path}"));
            let answer = super::request::with_key(request, key.as_ref()).send().await.ok();
            let body = match answer.filter(|answer| answer.status().is_success()) {
                Some(answer) => answer.json::<Value>().await.ok(),
                None => None,
            };
            Ok::<_, Failure>(body.unwrap_or_default())
        };
        let models = look("/v1/models").await?;
        let meta = models.pointer("/data/0/meta");
        let number = |value: Option<&Value>| u32::try_from(value?.as_u64()?).ok();
        let vocabulary = number(meta.and_then(|meta| meta.get("n_vocab")));
        let props = look("/props").await?;
        let context = number(props.pointer("/default_generation_settings/n_ctx"));
        let tokens = match work {
            Work::Generate => options.prompt.saturating_add(options.generate),
            Work::Embed => options.prompt,
        };
        if let Some(context) = context.filter(|context| *context < tokens) {
            let message = format!(
                "{tokens} tokens a request do not fit the context of `{}`, which has {context}; say less with --prompt or --generate",
                slot.slot
            );
            return Err(Failure::Refused { message });
        }
        let others = slot.in_flight.unwrap_or(0);
        Ok(Self { slot, work, base, vocabulary, others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::example;

    fn decided(capabilities: &[Capability], kind: Option<Kind>) -> Result<Work, String> {
        let slot = SlotObject { capabilities: capabilities.to_vec(), ..example::ready() };
        decide(&slot, kind).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_model_that_cannot_chat_is_refused_or_measured_by_its_vectors() {
        use Capability::{Chat, Embed, Rerank};
        assert_eq!(decided(&[Chat, Embed], None), Ok(Work::Generate));
        assert_eq!(decided(&[Embed], None), Ok(Work::Embed));
        assert_eq!(decided(&[Chat, Embed], Some(Kind::Embed)), Ok(Work::Embed));
        assert_eq!(
            decided(&[Chat, Embed], Some(Kind::Rerank)).unwrap_err(),
            "`chat` cannot be measured: `models/SmolLM2-135M-Instruct.Q4_1.gguf` is a model for rerank, which writes no text"
        );
        assert_eq!(
            decided(&[Rerank], None).unwrap_err(),
            "`chat` cannot be measured: it is offered for rerank alone, and only text and vectors are measured"
        );
    }
}

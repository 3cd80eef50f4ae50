//! The paths that engines serve: what each of them needs, and how its answers end.

use hyper::Method;

use super::dialect::Dialect;
use crate::spec::profile::Capability;

/// The prefix of the paths that go to one slot's engine as they are.
pub(super) const UPSTREAM: &str = "/upstream/";

/// What there is, for those who asked for something else.
pub(super) const ENDPOINTS: &str = "POST /v1/chat/completions, /v1/completions, /v1/responses, \
     /v1/messages, /v1/messages/count_tokens, /v1/embeddings, /v1/rerank, /v2/rerank, \
     /v1/audio/transcriptions, /v1/audio/translations, /v1/audio/speech, /v1/images/generations, \
     /v1/images/edits, /v1/images/variations, /completion, /infill, /tokenize, /detokenize, \
     /apply-template; GET /v1/models, /v1/models/{id}, /v1/audio/voices, /v1/realtime, /props, /slots, \
     /metrics, /healthz, /livez, /readyz; any /upstream/{slot}/…";

/// What slotd knows of one path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// What a slot has to be offered for.
    pub(super) capability: Capability,
    /// Which engines may have the path at all.
    pub(super) engines: Engines,
    pub(super) intake: Intake,
    pub(super) form: Form,
}

/// The form of a path's answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// How its errors are told.
    pub(super) dialect: Dialect,
    /// When a stream of events is whole.
    pub(super) whole: Whole,
    /// Whether a refusal is given the form of `dialect`, or passed on as it is.
    pub(super) refusals: Refusals,
    /// Whether the request only looks at the engine: it loads none, and is no use of one.
    pub(super) is_look: bool,
}

/// Which engines may have a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Engines {
    /// Every one.
    Every,
    /// Not the candle worker.
    NotCandle,
    /// Neither the candle worker nor llama-server.
    NotOurs,
}

/// How a path's requests come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Intake {
    /// `POST` with a JSON object.
    Json,
    /// `POST` with a form, files among its fields; or with a JSON object.
    Form,
    /// `GET` without a body.
    Query,
    /// `GET`, or `POST` with a JSON value.
    QueryOrJson,
    /// `GET` or `DELETE` without a body: what an engine keeps.
    Kept,
    /// `POST` with a body that says nothing to slotd, or none.
    Bare,
}

/// When a stream of events is whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whole {
    /// When `[DONE]` has come.
    Done,
    /// When an event has come whose beginning holds one of these.
    Named(&'static [&'static str]),
    /// When its framing says so.
    Framed,
}

/// What becomes of an engine's refusals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusals {
    Normalised,
    AsTheyAre,
}

impl Form {
    /// What is passed on without a look into it.
    pub(super) const RAW: Self = Self {
        dialect: Dialect::OpenAi,
        whole: Whole::Framed,
        refusals: Refusals::AsTheyAre,
        is_look: false,
    };
}

impl Work {
    const fn new(capability: Capability, engines: Engines, intake: Intake) -> Self {
        let (dialect, whole) = (Dialect::OpenAi, Whole::Framed);
        let form = Form { dialect, whole, refusals: Refusals::Normalised, is_look: false };
        Self { capability, engines, intake, form }
    }

    const fn speaks(mut self, dialect: Dialect) -> Self {
        self.form.dialect = dialect;
        self
    }

    const fn ends(mut self, whole: Whole) -> Self {
        self.form.whole = whole;
        self
    }

    const fn looks(mut self) -> Self {
        self.form.is_look = true;
        self
    }

    /// Returns the form of the answers to a method: a `POST` to what is looked at changes it.
    pub(super) fn form_of(self, method: &Method) -> Form {
        let is_look = self.form.is_look && (*method != Method::POST || self.is_kept());
        Form { is_look, ..self.form }
    }

    /// Tells whether the path is about something that an engine keeps from an earlier request.
    pub(super) fn is_kept(self) -> bool {
        matches!(self.intake, Intake::Kept | Intake::Bare)
    }

    /// Returns the methods that the path takes.
    pub(super) fn methods(self) -> &'static str {
        match self.intake {
            Intake::Json | Intake::Form | Intake::Bare => "POST",
            Intake::Query => "GET, HEAD",
            Intake::QueryOrJson => "GET, HEAD, POST",
            Intake::Kept => "GET, HEAD, DELETE",
        }
    }

    /// Tells whether the path takes `method`.
    pub(super) fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|one| one == method.as_str())
    }

    /// Tells whether an engine by this name (a profile's word) surely does not have the path.
    pub(super) fn is_unknown_to(self, engine: &str) -> bool {
        match self.engines {
            Engines::Every => false,
            Engines::NotCandle => engine == "candle",
            Engines::NotOurs => matches!(engine, "candle" | "llama-server" | "auto"),
        }
    }
}

/// Finds what a path is, if engines serve it.
pub(super) fn work(path: &str) -> Option<Work> {
    use Capability as Can;
    use Engines::{Every, NotCandle, NotOurs};
    const MESSAGE: Whole = Whole::Named(&["message_stop", "event: error"]);
    const RESPONSE: Whole = Whole::Named(&[
        "response.completed",
        "response.incomplete",
        "response.failed",
        "event: error",
    ]);
    let json = |can, engines| Work::new(can, engines, Intake::Json);
    Some(match path {
        "/v1/chat/completions" | "/chat/completions" => json(Can::Chat, Every).ends(Whole::Done),
        "/v1/completions" => json(Can::Completion, Every).ends(Whole::Done),
        "/v1/responses" => json(Can::Chat, NotCandle).speaks(Dialect::Responses).ends(RESPONSE),
        "/v1/chat/completions/input_tokens" | "/v1/responses/input_tokens" | "/apply-template" => {
            json(Can::Chat, NotCandle)
        }
        "/v1/responses/compact" => json(Can::Chat, NotOurs),
        "/v1/messages" => json(Can::Chat, NotCandle).speaks(Dialect::Anthropic).ends(MESSAGE),
        "/v1/messages/count_tokens" => json(Can::Chat, NotCandle).speaks(Dialect::Anthropic),
        "/v1/embeddings" | "/embeddings" => json(Can::Embed, Every),
        "/embedding" => json(Can::Embed, NotCandle),
        "/rerank" | "/v1/rerank" | "/reranking" | "/v1/reranking" => json(Can::Rerank, Every),
        "/v2/rerank" => json(Can::Rerank, Every).speaks(Dialect::Cohere),
        "/v1/audio/transcriptions" | "/v1/audio/translations" => {
            Work::new(Can::Transcribe, NotCandle, Intake::Form)
        }
        "/v1/audio/speech" => json(Can::Speech, NotOurs),
        "/v1/audio/voices" => Work::new(Can::Speech, NotOurs, Intake::Query),
        "/v1/images/generations" => json(Can::Image, NotOurs),
        "/v1/images/edits" | "/v1/images/variations" => {
            Work::new(Can::Image, NotOurs, Intake::Form)
        }
        "/v1/realtime" => Work::new(Can::Chat, NotOurs, Intake::Query),
        "/completion" | "/completions" | "/infill" | "/tokenize" | "/detokenize" => {
            json(Can::Completion, NotCandle)
        }
        "/props" => Work::new(Can::Completion, Every, Intake::QueryOrJson).looks(),
        "/lora-adapters" => Work::new(Can::Completion, NotCandle, Intake::QueryOrJson).looks(),
        "/slots" => Work::new(Can::Completion, NotCandle, Intake::Query).looks(),
        _ if path.strip_prefix("/slots/").is_some_and(|id| !id.is_empty()) => {
            Work::new(Can::Completion, NotCandle, Intake::QueryOrJson).looks()
        }
        _ => {
            let intake = kept_response(path)?;
            Work::new(Can::Chat, NotOurs, intake).speaks(Dialect::Responses).ends(RESPONSE).looks()
        }
    })
}

/// Tells how a path about a response is asked that its engine may keep: the response, its input, or
/// the end of one that goes on by itself.
fn kept_response(path: &str) -> Option<Intake> {
    let rest = path.strip_prefix("/v1/responses/")?;
    let (id, part) = rest.split_once('/').unwrap_or((rest, ""));
    match part {
        _ if id.is_empty() => None,
        "" | "input_items" => Some(Intake::Kept),
        "cancel" => Some(Intake::Bare),
        _ => None,
    }
}

/// Returns how errors are told to whoever asked for `path`.
pub(super) fn dialect(path: &str) -> Dialect {
    work(path).map_or(Dialect::OpenAi, |work| work.form.dialect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_that_is_told_of_is_there() {
        let paths = ENDPOINTS.split([' ', ',', ';']).filter(|word| word.starts_with('/'));
        let ours = ["/v1/models", "/v1/models/{id}", "/metrics", "/healthz", "/livez", "/readyz"];
        for path in paths.filter(|path| !ours.contains(path) && !path.starts_with(UPSTREAM)) {
            assert!(work(path).is_some(), "{path}");
        }
    }

    #[test]
    fn a_look_is_no_use_and_a_change_is() {
        let is_look = |path: &str, method| work(path).unwrap().form_of(&method).is_look;
        assert!(is_look("/props", Method::GET) && !is_look("/props", Method::POST));
        assert!(is_look("/slots", Method::GET) && !is_look("/slots/0", Method::POST));
        assert!(is_look("/v1/responses/resp_1", Method::DELETE));
        assert!(is_look("/v1/responses/resp_1/cancel", Method::POST));
        assert!(!is_look("/v1/responses", Method::POST));
        assert!(work("/v1/responses/").is_none() && work("/v1/responses/a/b").is_none());
    }

    #[test]
    fn methods_are_taken_as_they_are_told() {
        let chat = work("/v1/chat/completions").unwrap();
        assert!(chat.takes(&Method::POST) && !chat.takes(&Method::GET));
        let props = work("/props").unwrap();
        assert!([Method::GET, Method::HEAD, Method::POST].iter().all(|one| props.takes(one)));
    }
}

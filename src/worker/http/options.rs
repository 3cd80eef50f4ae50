//! What the two kinds of completion requests share: sampling, length, stops, streaming.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use serde_json::{Value as Json, json};

use super::{
    fields::{Fields, not_whole, whole, wrong},
    foreign,
    refusal::Refusal,
};
use crate::worker::{job::Generate, sampler::Sampling};

/// How completions are to be made and delivered.
#[derive(Clone, Debug)]
pub(super) struct Choices {
    pub(super) sampling: Sampling,
    /// `None` goes on to the end of the context.
    pub(super) most_tokens: Option<usize>,
    pub(super) stops: Vec<String>,
    /// What the answer must keep to, and the field that says so.
    pub(super) schema: Option<(&'static str, Json)>,
    pub(super) ignore_end: bool,
    /// A seed was given, or nothing is drawn.
    is_repeatable: bool,
    /// Answers for each prompt.
    pub(super) count: u64,
    pub(super) delivery: Delivery,
}

/// How an answer reaches the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Delivery {
    Whole,
    Stream,
    /// With a chunk that tells the usage.
    StreamWithUsage,
}

/// The names of the length, the one that wins first; the last is llama.cpp's.
const LENGTHS: [&str; 3] = ["max_completion_tokens", "max_tokens", "n_predict"];
/// What OpenAI's API calls certain. Beyond it a sum with a logit could become no number.
const MOST_BIAS: f64 = 100.0;
const MOST_COUNT: i64 = 8;
const MOST_STOPS: usize = 16;
const FORMAT: &str = "response_format";
const SCHEMA: &str = "json_schema";
const MOST_ALTERNATIVES: i64 = 20;

impl Choices {
    /// Reads what both kinds share; `logprobs` differ and are left out.
    pub(super) fn read(fields: &Fields) -> Result<Self, Refusal> {
        foreign::check(fields)?;
        let mut most_tokens = None;
        for name in LENGTHS {
            let most = fields.whole(name, -1..=i64::MAX)?;
            most_tokens = most_tokens.or(most);
        }
        let count = fields.whole("n", 1..=MOST_COUNT)?.unwrap_or(1);
        let sampling = sampling(fields)?;
        Ok(Self {
            is_repeatable: fields.any("seed").is_some() || sampling.temperature <= 0.0,
            sampling,
            // -1 is llama.cpp's word for no limit.
            most_tokens: most_tokens.and_then(|most| usize::try_from(most).ok()),
            stops: stops(fields)?,
            schema: schema(fields)?,
            ignore_end: fields.flag("ignore_eos")?,
            count: u64::try_from(count).unwrap_or(1),
            delivery: delivery(fields)?,
        })
    }

    /// Asks for probabilities with `alternatives` for each token.
    pub(super) fn alternatives(fields: &Fields, name: &str) -> Result<Option<usize>, Refusal> {
        fields.count(name, MOST_ALTERNATIVES)
    }

    /// Gives one job an answer for `prompt`.
    pub(super) fn jobs(
        &self,
        param: &str,
        prompt: &[u32],
        context: usize,
    ) -> Result<Vec<Generate>, Refusal> {
        if prompt.is_empty() {
            return Err(Refusal::field(param, "is empty"));
        }
        let room = context.saturating_sub(prompt.len());
        if room == 0 {
            return Err(Refusal::no_room(param, prompt.len(), context));
        }
        let job = |number: u64| Generate {
            prompt: prompt.to_vec(),
            sampling: Sampling {
                seed: self.sampling.seed.wrapping_add(number),
                ..self.sampling.clone()
            },
            most_tokens: self.most_tokens.unwrap_or(room).min(room),
            stops: self.stops.clone(),
            grammar: None,
            ignore_end: self.ignore_end,
            is_repeatable: self.is_repeatable,
            score_prompt: false,
        };
        Ok((0..self.count).map(job).collect())
    }
}

fn sampling(fields: &Fields) -> Result<Sampling, Refusal> {
    let usual = Sampling::default();
    let repeat_penalty = match fields.number("repeat_penalty", 0.01..=100.0)? {
        Some(penalty) => Some(penalty),
        None => fields.number("repetition_penalty", 0.01..=100.0)?,
    };
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=100.0)?.unwrap_or(usual.temperature),
        top_k: fields
            .whole("top_k", -1..=i64::from(u32::MAX))?
            .map_or(usual.top_k, |k| usize::try_from(k).unwrap_or(0)),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(usual.top_p),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(usual.min_p),
        repeat_penalty: repeat_penalty.unwrap_or(usual.repeat_penalty),
        // -1 is llama.cpp's word for all.
        recent: fields
            .whole("repeat_last_n", -1..=i64::MAX)?
            .map_or(usual.recent, |count| usize::try_from(count).unwrap_or(usize::MAX)),
        presence_penalty: fields.number("presence_penalty", -100.0..=100.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -100.0..=100.0)?.unwrap_or(0.0),
        bias: bias(fields)?,
        seed: seed(fields)?,
        logprobs: None,
    })
}

/// No seed, or -1, draws one.
fn seed(fields: &Fields) -> Result<u64, Refusal> {
    match fields.any("seed") {
        None => Ok(random()),
        Some(value) => match (value.as_u64(), whole(value)) {
            (Some(seed), _) => Ok(seed),
            (None, Some(-1)) => Ok(random()),
            (None, Some(seed)) => Ok(seed.cast_unsigned()),
            (None, None) => Err(not_whole("seed", value)),
        },
    }
}

/// Gives a number that nobody can foresee: the keys of the standard library's hash tables.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn bias(fields: &Fields) -> Result<Vec<(u32, f32)>, Refusal> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let read = |(token, value): (&String, &Json)| {
        let token = token.parse().map_err(|_| {
            Refusal::field("logit_bias", format!("has the key `{token}`, expected a token id"))
        })?;
        let bias = match value {
            // llama.cpp's word for "never".
            Json::Bool(false) => f64::NEG_INFINITY,
            value @ (Json::Null
            | Json::Bool(true)
            | Json::Number(_)
            | Json::String(_)
            | Json::Array(_)
            | Json::Object(_)) => value
                .as_f64()
                .ok_or_else(|| wrong("logit_bias", "a number for each token", value))?
                .clamp(-MOST_BIAS, MOST_BIAS),
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::as_conversions,
            reason = "logits are f32"
        )]
        let bias = bias as f32;
        Ok((token, bias))
    };
    biases.iter().map(read).collect()
}

fn stops(fields: &Fields) -> Result<Vec<String>, Refusal> {
    let stops = match fields.any("stop") {
        None => Vec::new(),
        Some(Json::String(stop)) => vec![stop.clone()],
        Some(Json::Array(stops)) => {
            let text = |stop: &Json| {
                stop.as_str().map(str::to_owned).ok_or_else(|| wrong("stop", "strings", stop))
            };
            stops.iter().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("stop", "a string or a list of strings", other)),
    };
    if stops.len() > MOST_STOPS {
        let problem = format!("has {} strings, at most {MOST_STOPS} are looked for", stops.len());
        return Err(Refusal::field("stop", problem));
    }
    Ok(stops)
}

fn delivery(fields: &Fields) -> Result<Delivery, Refusal> {
    let with_usage = match fields.object("stream_options")? {
        None => false,
        Some(options) => match options.get("include_usage") {
            None | Some(Json::Null) => false,
            Some(Json::Bool(wanted)) => *wanted,
            Some(other) => {
                return Err(wrong("stream_options.include_usage", "true or false", other));
            }
        },
    };
    Ok(match (fields.flag("stream")?, with_usage) {
        (false, _) => Delivery::Whole,
        (true, false) => Delivery::Stream,
        (true, true) => Delivery::StreamWithUsage,
    })
}

/// A JSON schema and the field that asks for it; `json_schema` is llama.cpp's own.
fn schema(fields: &Fields) -> Result<Option<(&'static str, Json)>, Refusal> {
    let format = format(fields)?.map(|schema| (FORMAT, schema));
    let own = || fields.any(SCHEMA).map(|schema| (SCHEMA, schema.clone()));
    Ok(format.or_else(own))
}

/// What `response_format` asks for: a JSON schema, or nothing.
fn format(fields: &Fields) -> Result<Option<Json>, Refusal> {
    let Some(format) = fields.object(FORMAT)? else { return Ok(None) };
    match format.get("type").and_then(Json::as_str) {
        None | Some("text") => Ok(None),
        Some("json_object") => {
            // llama.cpp's server reads a schema here too.
            let any = || json!({ "type": "object" });
            Ok(Some(
                format
                    .get("schema")
                    .filter(|schema| !schema.is_null())
                    .map_or_else(any, Json::clone),
            ))
        }
        Some("json_schema") => {
            let schema = format.get("json_schema").and_then(|wrapped| wrapped.get("schema"));
            match schema.or_else(|| format.get("schema")) {
                Some(schema) if !schema.is_null() => Ok(Some(schema.clone())),
                _ => Err(Refusal::field("response_format.json_schema.schema", "is missing")),
            }
        }
        Some(other) => Err(Refusal::unsupported(
            FORMAT,
            format!("is `{other}`, this engine knows `text`, `json_object` and `json_schema`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Json) -> Result<Choices, Refusal> {
        Choices::read(&Fields::parse(body.to_string().as_bytes())?)
    }

    fn message(body: &Json) -> String {
        read(body).unwrap_err().body()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        assert_eq!(
            message(&json!({"temperature": "hot"})),
            "`temperature` is a string, expected a number"
        );
        assert_eq!(message(&json!({"n": 9})), "`n` is 9, expected 1 to 8");
        assert_eq!(
            message(&json!({"stop": 3})),
            "`stop` is a number, expected a string or a list of strings"
        );
        assert_eq!(
            message(&json!({"logit_bias": {"x": 1}})),
            "`logit_bias` has the key `x`, expected a token id"
        );
    }

    #[test]
    fn null_and_unknown_fields_are_as_good_as_absent() {
        let choices = read(&json!({"temperature": null, "user": "x", "store": true})).unwrap();
        assert!((choices.sampling.temperature - 0.8).abs() < 1e-6);
        assert_eq!(choices.delivery, Delivery::Whole);
    }

    #[test]
    fn a_format_becomes_a_schema_or_is_refused() {
        let schema =
            |format: Json| read(&json!({ "response_format": format })).map(|read| read.schema);
        assert_eq!(schema(json!({"type": "text"})), Ok(None));
        let object = json!({"type": "object"});
        let asked = Some(("response_format", object.clone()));
        assert_eq!(schema(json!({"type": "json_object"})), Ok(asked.clone()));
        let wrapped =
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": object}});
        assert_eq!(schema(wrapped), Ok(asked));
        let refusal = schema(json!({"type": "json_schema"})).unwrap_err();
        assert_eq!(refusal.body()["error"]["param"], "response_format.json_schema.schema");
        let refusal = schema(json!({"type": "xml"})).unwrap_err();
        assert_eq!(refusal.body()["error"]["code"], "unsupported");
    }

    #[test]
    fn a_prompt_that_fills_the_context_is_refused_by_the_known_code() {
        let choices = read(&json!({})).unwrap();
        let refusal = choices.jobs("prompt", &[1; 8], 8).unwrap_err();
        assert_eq!(refusal.body()["error"]["code"], "context_length_exceeded");
        assert_eq!(choices.jobs("prompt", &[1; 7], 8).unwrap()[0].most_tokens, 1);
    }

    #[test]
    fn the_newer_name_of_the_length_wins() {
        let choices = read(&json!({"max_tokens": 5, "max_completion_tokens": 3})).unwrap();
        assert_eq!(choices.most_tokens, Some(3));
        assert_eq!(read(&json!({"max_tokens": -1})).unwrap().most_tokens, None);
    }

    #[test]
    fn length_and_schema_under_the_names_of_llama_server_are_not_passed_over() {
        let own = read(&json!({"n_predict": 2, "json_schema": {"type": "boolean"}})).unwrap();
        assert_eq!(own.most_tokens, Some(2));
        assert_eq!(own.schema, Some(("json_schema", json!({"type": "boolean"}))));
        assert_eq!(read(&json!({"n_predict": -1})).unwrap().most_tokens, None);
        assert_eq!(read(&json!({"n_predict": 9, "max_tokens": 3})).unwrap().most_tokens, Some(3));
        let both = json!({"json_schema": true, "response_format": {"type": "json_object"}});
        assert_eq!(read(&both).unwrap().schema.unwrap().0, "response_format");
    }

    #[test]
    fn a_float_without_a_fraction_is_a_whole_number() {
        let choices = read(&json!({"max_tokens": 3.0, "seed": 7.0})).unwrap();
        assert_eq!((choices.most_tokens, choices.sampling.seed), (Some(3), 7));
        assert_eq!(
            message(&json!({"max_tokens": 3.7})),
            "`max_tokens` is 3.7, expected a whole number"
        );
        assert_eq!(message(&json!({"seed": 0.5})), "`seed` is 0.5, expected a whole number");
        assert_eq!(
            message(&json!({"max_tokens": "3"})),
            "`max_tokens` is a string, expected a whole number"
        );
    }

    #[test]
    fn no_bias_is_so_large_that_a_logit_becomes_no_number() {
        let bias =
            |value: Json| read(&json!({"logit_bias": {"100": value}})).unwrap().sampling.bias;
        assert_eq!(bias(json!(1e300)), [(100, 100.0)]);
        assert_eq!(bias(json!(-1e300)), [(100, -100.0)]);
        assert_eq!(bias(json!(false)), [(100, f32::NEG_INFINITY)]);
    }
}

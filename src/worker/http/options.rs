//! What the two kinds of completion requests share: sampling, length, stops, streaming.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use serde_json::{Value as Json, json};

use super::{
    fields::{Fields, wrong},
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
    /// What the answer must keep to.
    pub(super) schema: Option<Json>,
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

const MOST_COUNT: i64 = 8;
const MOST_STOPS: usize = 16;
const MOST_ALTERNATIVES: i64 = 20;

impl Choices {
    /// Reads what both kinds share; `logprobs` differ and are left out.
    pub(super) fn read(fields: &Fields) -> Result<Self, Refusal> {
        let most_tokens = match fields.whole("max_completion_tokens", -1..=i64::MAX)? {
            Some(most) => Some(most),
            None => fields.whole("max_tokens", -1..=i64::MAX)?,
        };
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
            return Err(Refusal::too_long(param, prompt.len(), context));
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
        Some(value) => match (value.as_u64(), value.as_i64()) {
            (Some(seed), _) => Ok(seed),
            (None, Some(-1)) => Ok(random()),
            (None, Some(seed)) => Ok(seed.cast_unsigned()),
            (None, None) => Err(wrong("seed", "a whole number", value)),
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
                .ok_or_else(|| wrong("logit_bias", "a number for each token", value))?,
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

/// What `response_format` asks for: a JSON schema, or nothing.
fn schema(fields: &Fields) -> Result<Option<Json>, Refusal> {
    const FIELD: &str = "response_format";
    let Some(format) = fields.object(FIELD)? else { return Ok(None) };
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
            FIELD,
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
        let object = Some(json!({"type": "object"}));
        assert_eq!(schema(json!({"type": "json_object"})), Ok(object.clone()));
        let wrapped =
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": object}});
        assert_eq!(schema(wrapped), Ok(object));
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
}

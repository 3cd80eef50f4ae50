//! Inputs in the four forms that the API allows: a text, texts, tokens, lists of tokens.

use serde_json::Value as Json;

use super::{fields::wrong, refusal::Refusal};
use crate::worker::text::Vocabulary;

/// One input.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

const FORMS: &str = "a string, a list of strings, a list of token ids or a list of such lists";
const MOST_INPUTS: usize = 2048;

/// Reads the inputs in field `name`.
pub(super) fn inputs(
    name: &str,
    value: &Json,
    vocabulary: &Vocabulary,
) -> Result<Vec<Input>, Refusal> {
    let list = match value {
        Json::String(text) => return Ok(vec![Input::Text(text.clone())]),
        Json::Array(list) => list,
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_) => {
            return Err(wrong(name, FORMS, value));
        }
    };
    let first = list.first().ok_or_else(|| Refusal::field(name, "is empty"))?;
    if first.is_number() {
        return Ok(vec![Input::Tokens(tokens(name, list, vocabulary)?)]);
    }
    if list.len() > MOST_INPUTS {
        let problem = format!("has {} inputs, at most {MOST_INPUTS} are taken", list.len());
        return Err(Refusal::field(name, problem));
    }
    list.iter()
        .map(|one| match one {
            Json::String(text) => Ok(Input::Text(text.clone())),
            Json::Array(list) => tokens(name, list, vocabulary).map(Input::Tokens),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_) => {
                Err(wrong(name, FORMS, one))
            }
        })
        .collect()
}

fn tokens(name: &str, list: &[Json], vocabulary: &Vocabulary) -> Result<Vec<u32>, Refusal> {
    let read = |value: &Json| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let known = id.filter(|id| usize::try_from(*id).is_ok_and(|id| id < vocabulary.len()));
        known.ok_or_else(|| {
            let problem = format!("has `{value}`, expected token ids below {}", vocabulary.len());
            Refusal::field(name, problem)
        })
    };
    list.iter().map(read).collect()
}

impl Input {
    /// Gives the input's tokens.
    pub(super) fn tokens(self, vocabulary: &Vocabulary) -> Result<Vec<u32>, Refusal> {
        match self {
            Self::Tokens(tokens) => Ok(tokens),
            Self::Text(text) => vocabulary.encode(&text).map_err(Refusal::internal),
        }
    }
}

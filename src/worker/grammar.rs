//! Answers that keep to a JSON schema: which tokens may come next.

mod calendar;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value as Json, json};

use super::text::Vocabulary;

/// Makes grammars for the tokens of one model; the tables for that are made when the first is.
#[derive(Default)]
pub(super) struct Grammars(OnceLock<Result<ParserFactory, String>>);

/// Where an answer stands in its grammar.
pub(super) struct Grammar(Matcher);

/// What a grammar says after a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sentence {
    GoesOn,
    /// Nothing can follow.
    Whole,
}

/// White space that may stand between two parts: enough to indent, too little to fill an answer.
const SPACE: &str = r"[ \n\t]{1,24}";

impl Grammars {
    /// Gives the grammar of texts that `schema` allows, or says what is wrong with the schema.
    pub(super) fn json(&self, schema: &Json, vocabulary: &Vocabulary) -> Result<Grammar, String> {
        let factory = self.0.get_or_init(|| factory(vocabulary)).as_ref().map_err(Clone::clone)?;
        let mut schema = match schema {
            Json::Object(schema) => schema.clone(),
            Json::Bool(true) => serde_json::Map::new(),
            Json::Null | Json::Bool(false) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
                return Err("a schema is an object".to_owned());
            }
        };
        schema.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": SPACE }));
        let mut schema = Json::Object(schema);
        calendar::narrow(&mut schema);
        let grammar = TopLevelGrammar::from_json_schema(schema);
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        match matcher.get_error() {
            Some(fault) => Err(first_line(&fault)),
            // The first mask finds faults that compiling does not.
            None => match matcher.compute_mask() {
                Ok(_) => Ok(Grammar(matcher)),
                Err(fault) => Err(first_line(&fault.to_string())),
            },
        }
    }
}

impl Grammar {
    /// Makes the logits of all tokens that may not follow those of an impossibility.
    pub(super) fn mask(
        &mut self,
        logits: &mut [f32],
        vocabulary: &Vocabulary,
    ) -> Result<(), String> {
        let mask = self.0.compute_mask_or_eos().map_err(|fault| first_line(&fault.to_string()))?;
        let may_end = mask.is_allowed(vocabulary.end());
        for (id, logit) in (0_u32..).zip(logits) {
            let is_known = usize::try_from(id).is_ok_and(|id| id < vocabulary.len());
            let is_allowed =
                if vocabulary.is_end(id) { may_end } else { is_known && mask.is_allowed(id) };
            if !is_allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the token that was chosen.
    pub(super) fn take(&mut self, id: u32) -> Result<Sentence, String> {
        self.0.consume_token(id).map_err(|fault| first_line(&fault.to_string()))?;
        Ok(if self.0.is_stopped() { Sentence::Whole } else { Sentence::GoesOn })
    }
}

impl Clone for Grammar {
    /// Gives one that goes its own way.
    fn clone(&self) -> Self {
        Self(self.0.deep_clone())
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammars")
    }
}

fn factory(vocabulary: &Vocabulary) -> Result<ParserFactory, String> {
    let count = u32::try_from(vocabulary.len()).map_err(|error| error.to_string())?;
    // A token that says nothing is in no grammar; the one that ends a text is known by its number.
    let words: Vec<Vec<u8>> = (0..count)
        .map(|id| {
            let bytes = vocabulary.bytes(id);
            // This byte begins no text: the library keeps it for special tokens.
            if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
                Vec::new()
            } else {
                bytes.to_vec()
            }
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(count, vocabulary.end()), &words);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|fault| fault.to_string())?;
    factory.quiet();
    Ok(factory)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::worker::{
        model::{Header, tiny},
        text::{CallStyle, Tool},
    };

    fn vocabulary() -> Vocabulary {
        let folder = tempfile::tempdir().unwrap();
        let header = Header::open(&tiny::write(folder.path(), GgmlDType::F32)).unwrap();
        Vocabulary::read(&header).unwrap()
    }

    /// Gives the bytes that may come after `text`, which the grammar must allow.
    fn after(schema: &Json, text: &str) -> Result<(String, bool), String> {
        let vocabulary = vocabulary();
        let mut grammar = Grammars::default().json(schema, &vocabulary)?;
        for id in vocabulary.encode(text).unwrap() {
            grammar.take(id)?;
        }
        let mut logits = vec![0.0; vocabulary.len()];
        grammar.mask(&mut logits, &vocabulary)?;
        let allowed = (0..256).filter(|id| logits[usize::try_from(*id).unwrap()] == 0.0);
        let mut bytes: Vec<u8> = allowed.flat_map(|id| vocabulary.bytes(id).to_vec()).collect();
        bytes.sort_unstable();
        let end = logits[usize::try_from(vocabulary.end()).unwrap()] == 0.0;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), end))
    }

    #[test]
    fn only_what_the_schema_allows_can_follow() {
        let schema = json!({
            "type": "object",
            "properties": { "on": { "$ref": "#/$defs/flag" } },
            "required": ["on"],
            "additionalProperties": false,
            "$defs": { "flag": { "type": "boolean" } },
        });
        assert_eq!(after(&schema, "").unwrap(), ("{".to_owned(), false));
        assert_eq!(after(&schema, "{\"o").unwrap(), ("n".to_owned(), false));
        let (next, end) = after(&schema, "{\"on\":").unwrap();
        assert!(next.ends_with("ft") && !end, "{next}");
        assert!(after(&schema, "{\"on\":true}").unwrap().1);
        assert!(after(&schema, "{\"off").is_err());
    }

    #[test]
    fn a_date_is_a_day_of_the_calendar() {
        let date = json!({ "type": "string", "format": "date" });
        for day in
            ["2024-02-29", "2000-02-29", "0004-02-29", "2023-02-28", "0001-01-01", "9999-12-31"]
        {
            assert!(after(&date, &format!("\"{day}\"")).unwrap().1, "{day}");
        }
        for none in ["2022-02-29", "1900-02-29", "0000-02-29", "0000-01-23", "2023-04-31"] {
            assert!(after(&date, &format!("\"{none}\"")).is_err(), "{none}");
        }
        let time = json!({ "type": ["string", "null"], "format": "date-time", "pattern": "Z$" });
        assert!(after(&time, "\"2024-02-29T23:59:59Z\"").unwrap().1);
        assert!(after(&time, "null").unwrap().1);
        assert!(after(&time, "\"2023-02-29T23:59:59Z\"").is_err());
        let quoted = json!({ "const": { "format": "date" } });
        assert!(after(&quoted, "{\"format\":\"date\"}").unwrap().1);
    }

    #[test]
    fn a_tool_with_types_of_its_own_can_be_required() {
        let tool = |name: &str, unit: &Json| {
            let parameters = json!({
                "type": "object",
                "properties": { "unit": { "$ref": "#/$defs/Unit" }, "next": { "$ref": "#" } },
                "required": ["unit"],
                "additionalProperties": false,
                "$defs": { "Unit": { "$ref": "#/$defs/Inner" }, "Inner": unit },
            });
            Tool::read(&json!({ "function": { "name": name, "parameters": parameters } })).unwrap()
        };
        let tools = [tool("a", &json!({ "const": "C" })), tool("b", &json!({ "const": "F" }))];
        for (style, argument, begin, end) in [
            (CallStyle::Bare, "parameters", "", ""),
            (CallStyle::Tagged, "arguments", "", ""),
            (CallStyle::List, "arguments", "[", "]"),
        ] {
            let schema = style.schema(&tools);
            for (name, unit, other) in [("a", "C", "F"), ("b", "F", "C")] {
                let call = |unit: &str, next: &str| {
                    format!(
                        "{begin}{{\"name\":\"{name}\",\"{argument}\":{{\"unit\":\"{unit}\",\"next\":{{\"unit\":\"{next}\"}}}}}}{end}"
                    )
                };
                assert!(after(&schema, &call(unit, unit)).unwrap().1);
                assert!(after(&schema, &call(other, unit)).is_err(), "the type of the other tool");
                assert!(after(&schema, &call(unit, other)).is_err());
            }
        }
    }

    #[test]
    fn a_schema_that_cannot_be_kept_is_refused_with_a_reason() {
        assert!(after(&json!({ "type": "objekt" }), "").is_err());
        assert!(after(&json!([1]), "").is_err());
        assert!(after(&json!({ "$ref": "#/missing" }), "").is_err());
    }
}

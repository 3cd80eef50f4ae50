//! Answers that keep to a JSON schema: which tokens may come next.

mod calendar;
mod schema;

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

/// Characters of a pattern that are told.
const MOST_QUOTED: usize = 60;

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
        // Branches of a `oneOf` that cannot be told apart are kept to as an `anyOf`.
        let options = json!({ "whitespace_pattern": SPACE, "coerce_one_of": true });
        schema.insert("x-guidance".to_owned(), options);
        let mut schema = Json::Object(schema);
        schema::prepare(&mut schema)?;
        let grammar = TopLevelGrammar::from_json_schema(schema);
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        match matcher.get_error() {
            Some(fault) => Err(reason(&fault)),
            // The first mask finds faults that compiling does not.
            None => match matcher.compute_mask() {
                Ok(_) => Ok(Grammar(matcher)),
                Err(fault) => Err(reason(&fault.to_string())),
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
        let mask = self.0.compute_mask_or_eos().map_err(|fault| reason(&fault.to_string()))?;
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
        self.0.consume_token(id).map_err(|fault| reason(&fault.to_string()))?;
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

/// Gives a fault of the library as one sentence.
fn reason(fault: &str) -> String {
    // Its word for "no token is allowed".
    if fault.contains("NoExtensionBias") {
        return "no text can go on as it asks".to_owned();
    }
    if fault.contains("too many expressions") {
        return "a pattern of it is too large".to_owned();
    }
    let lines: Vec<&str> = fault.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let regex = lines.iter().position(|line| line.ends_with("regex parse error:"));
    match (regex.and_then(|at| lines.get(at.saturating_add(1))), lines.as_slice()) {
        (Some(pattern), [.., problem]) => {
            let pattern: String = pattern.chars().take(MOST_QUOTED).collect();
            let problem = problem.trim_start_matches("error: ");
            format!("the pattern `{pattern}` cannot be used: {problem}")
        }
        (_, [first, ..]) => (*first).to_owned(),
        (_, []) => String::new(),
    }
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
    fn a_choice_of_objects_told_apart_by_a_reference_is_one_of_them() {
        let pet = |kind: &str, of: &str| {
            json!({
                "type": "object",
                "properties": { "kind": { "const": kind }, "n": { "type": of } },
                "required": ["kind", "n"],
                "additionalProperties": false,
            })
        };
        let schema = json!({
            "oneOf": [{ "$ref": "#/$defs/Cat" }, { "$ref": "#/$defs/Dog" }],
            "discriminator": { "propertyName": "kind", "mapping": { "cat": "#/$defs/Cat" } },
            "$defs": { "Cat": pet("cat", "integer"), "Dog": pet("dog", "boolean") },
        });
        assert!(after(&schema, "{\"kind\":\"cat\",\"n\":1}").unwrap().1);
        assert!(after(&schema, "{\"kind\":\"dog\",\"n\":true}").unwrap().1);
        assert!(after(&schema, "{\"kind\":\"cat\",\"n\":true").is_err());
    }

    #[test]
    fn a_format_that_nobody_knows_is_a_note() {
        for format in ["password", "binary", "path", "nope"] {
            let schema = json!({ "type": "string", "format": format, "maxLength": 3 });
            assert!(after(&schema, "\"abc\"").unwrap().1, "{format}");
            assert!(after(&schema, "\"abcd").is_err(), "{format}");
        }
        let named = json!({
            "properties": { "default": { "type": "string", "format": "path" }, "format": { "const": "path" } },
            "required": ["default", "format"],
            "additionalProperties": false,
        });
        assert!(after(&named, "{\"default\":\"x\",\"format\":\"path\"}").unwrap().1);
    }

    #[test]
    fn each_format_that_is_kept_is_one_that_the_library_knows() {
        for format in schema::FORMATS {
            let schema = json!({ "type": "string", "format": format });
            assert!(after(&schema, "\"( ").is_err(), "{format}");
        }
    }

    #[test]
    fn an_object_cannot_reach_its_size_with_one_name_twice() {
        let free = |least: u64, required: &Json| {
            json!({
                "type": "object",
                "patternProperties": { "^x_a$": { "type": "boolean" } },
                "additionalProperties": false,
                "minProperties": least,
                "required": required,
            })
        };
        let fault = after(&free(2, &json!([])), "").unwrap_err();
        assert_eq!(
            fault,
            "`minProperties` is 2 with 0 names in `required`: of more than one other nothing makes \
             sure that they differ"
        );
        assert!(after(&free(1, &json!([])), "{\"x_a\":true}").unwrap().1);
        assert!(!after(&free(1, &json!([])), "{").unwrap().0.contains('}'));
    }

    #[test]
    fn the_size_of_an_object_is_refused_only_where_a_free_name_could_come_twice() {
        let listed = json!({ "a": { "type": "boolean" }, "b": { "type": "boolean" } });
        let closed = json!({ "type": "object", "properties": listed, "required": ["a", "b"], "additionalProperties": false, "minProperties": 2 });
        assert!(after(&closed, "{\"a\":true,\"b\":true}").unwrap().1);
        let mut part = closed;
        part.as_object_mut().unwrap().remove("required");
        let parts = json!({ "allOf": [{ "required": ["a", "b"] }, part] });
        assert!(after(&parts, "{\"a\":true,\"b\":true}").unwrap().1);
        let noted = json!({ "type": "boolean", "example": { "minProperties": 9 }, "x-more": { "minProperties": 9 } });
        assert!(after(&noted, "true").unwrap().1);
    }

    #[test]
    fn a_schema_that_is_refused_says_what_is_wrong_in_words_of_its_own() {
        let told = |schema: Json| after(&schema, "").unwrap_err();
        assert_eq!(
            told(json!({ "type": "string", "pattern": "([" })),
            "the pattern `([` cannot be used: unclosed character class"
        );
        assert!(
            told(json!({ "pattern": "^(?=a)b" }))
                .ends_with("look-around, including look-ahead and look-behind, is not supported")
        );
        assert_eq!(told(json!({ "$ref": "#" })), "no text can go on as it asks");
        for (key, value) in [
            ("uniqueItems", json!(true)),
            ("not", json!({ "type": "string" })),
            ("if", json!({ "type": "string" })),
            ("contains", json!({ "const": 1 })),
            ("propertyNames", json!({ "maxLength": 3 })),
            ("dependentRequired", json!({ "a": ["b"] })),
        ] {
            assert_eq!(told(json!({ key: value })), format!("Unimplemented keys: [\"{key}\"]"));
        }
        assert!(after(&json!({ "type": "array", "uniqueItems": false }), "[").is_ok());
    }

    #[test]
    fn a_schema_that_cannot_be_kept_is_refused_with_a_reason() {
        assert!(after(&json!({ "type": "objekt" }), "").is_err());
        assert!(after(&json!([1]), "").is_err());
        assert!(after(&json!({ "$ref": "#/missing" }), "").is_err());
    }
}

//! Schemas made ready for the grammar library: what it would refuse without need, and what it would get wrong.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::calendar;

/// Formats that the library has a pattern for.
/// Source: `json/formats.rs` of llguidance.
pub(super) const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];
/// Each of these is a schema, or a list of them; whatever else is there is quoted, or a note.
const SCHEMAS: [&str; 13] = [
    "additionalItems",
    "additionalProperties",
    "anyOf",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedProperties",
];
/// Each value in these is a schema, whatever its name.
const NAMED: [&str; 5] =
    ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// Whether a schema says all by itself what an object has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Whole,
    /// Others of an `allOf` say the rest.
    OfAll,
}

/// Makes `schema` ready, or says what of it cannot be kept to.
pub(super) fn prepare(schema: &mut Json) -> Result<(), String> {
    walk(schema, Part::Whole)
}

fn walk(schema: &mut Json, part: Part) -> Result<(), String> {
    match schema {
        Json::Object(keys) => {
            for (key, value) in keys.iter_mut() {
                if key == "allOf" {
                    walk(value, Part::OfAll)?;
                } else if SCHEMAS.contains(&key.as_str()) {
                    walk(value, Part::Whole)?;
                } else if NAMED.contains(&key.as_str())
                    && let Json::Object(schemas) = value
                {
                    schemas.values_mut().try_for_each(|one| walk(one, Part::Whole))?;
                }
            }
            drop_notes(keys);
            calendar::narrow(keys);
            if part == Part::Whole { check_least(keys) } else { Ok(()) }
        }
        Json::Array(all) => all.iter_mut().try_for_each(|one| walk(one, part)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => Ok(()),
    }
}

/// JSON Schema has a format that nobody knows be a note, and the library refuses it.
fn drop_notes(keys: &mut Map<String, Json>) {
    let format = keys.get("format").and_then(Json::as_str);
    if format.is_some_and(|format| !FORMATS.contains(&format)) {
        keys.shift_remove("format");
    }
    if keys.get("uniqueItems") == Some(&Json::Bool(false)) {
        keys.shift_remove("uniqueItems");
    }
}

/// The library counts pairs, and a free name may come twice: two of them are one name then.
fn check_least(keys: &Map<String, Json>) -> Result<(), String> {
    let Some(least) = keys.get("minProperties").and_then(Json::as_u64) else { return Ok(()) };
    let is_closed = keys.get("additionalProperties") == Some(&Json::Bool(false))
        && !keys.contains_key("patternProperties");
    // What others of an `allOf` or a `$ref` say of names is not looked up.
    if is_closed || keys.contains_key("allOf") || keys.contains_key("$ref") {
        return Ok(());
    }
    let required = keys.get("required").and_then(Json::as_array);
    let names: BTreeSet<&str> = required.into_iter().flatten().filter_map(Json::as_str).collect();
    let sure = u64::try_from(names.len()).unwrap_or(u64::MAX);
    if least > sure.saturating_add(1) {
        return Err(format!(
            "`minProperties` is {least} with {sure} names in `required`: of more than one other \
             nothing makes sure that they differ"
        ));
    }
    Ok(())
}

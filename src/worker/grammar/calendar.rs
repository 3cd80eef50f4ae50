//! Dates that no calendar has: the grammar library lets every February have 29 days, and counts a year 0.

use serde_json::{Value as Json, json};

/// Years from 1 with no 29th of February, and the leap years with it.
const DAYS: &str = concat!(
    "^(?:",
    "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])",
    "-(?:0[13-9]|1[0-2]|02-(?:[01][0-9]|2[0-8]))",
    "|",
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)",
    "-02-29)",
);

/// Has each date that `schema` asks for be a day. What is quoted (`const`, `enum` and the like) is no schema.
pub(super) fn narrow(schema: &mut Json) {
    match schema {
        Json::Object(keys) => {
            for (key, value) in keys.iter_mut() {
                if !matches!(key.as_str(), "const" | "enum" | "default" | "examples") {
                    narrow(value);
                }
            }
            let format = keys.get("format").and_then(Json::as_str);
            if matches!(format, Some("date" | "date-time")) {
                let day = json!({ "pattern": DAYS });
                // What is no list is no schema: the library says so.
                if let Json::Array(all) = keys.entry("allOf").or_insert_with(|| json!([])) {
                    all.push(day);
                }
            }
        }
        Json::Array(all) => all.iter_mut().for_each(narrow),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

//! Dates that no calendar has: the grammar library lets every February have 29 days, and counts a year 0.

use serde_json::{Map, Value as Json, json};

/// Years from 1 with no 29th of February, and the leap years with it.
const DAYS: &str = concat!(
    "^(?:",
    "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])",
    "-(?:0[13-9]|1[0-2]|02-(?:[01][0-9]|2[0-8]))",
    "|",
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)",
    "-02-29)",
);

/// Has the dates that a schema of these keys asks for be days.
pub(super) fn narrow(keys: &mut Map<String, Json>) {
    let format = keys.get("format").and_then(Json::as_str);
    if matches!(format, Some("date" | "date-time")) {
        let day = json!({ "pattern": DAYS });
        // What is no list is no schema: the library says so.
        if let Json::Array(all) = keys.entry("allOf").or_insert_with(|| json!([])) {
            all.push(day);
        }
    }
}

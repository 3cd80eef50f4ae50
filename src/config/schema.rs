//! The JSON Schema of a profile, for editors and for people who generate profiles.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::file::ProfileFile;

/// Returns the JSON Schema (draft 7, which TOML editors know best) of a profile. The same is shipped
/// as `profiles/slot.schema.json`; `slotd schema` prints it.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let made = settings.into_generator().into_root_schema_for::<ProfileFile>();
    let mut schema = Map::new();
    // For people who open the file: what it is comes first, and what has to be there last.
    for key in ["$schema", "title", "description", "type", "additionalProperties", "properties"] {
        if let Some(value) = made.get(key) {
            schema.insert(key.to_owned(), tidied(value));
        }
    }
    // What has to be there depends on the engine; the loader's defaults fill the rest.
    schema.insert(
        "if".to_owned(),
        json!({ "properties": { "engine": { "const": "command" } }, "required": ["engine"] }),
    );
    schema.insert("then".to_owned(), json!({ "required": ["command"] }));
    let others = json!({
        "if": { "properties": { "engine": { "const": "external" } }, "required": ["engine"] },
        "then": { "required": ["url"], "properties": { "command": false } },
        "else": { "required": ["model"], "properties": { "command": false, "url": false } },
    });
    schema.insert("else".to_owned(), others);
    Value::Object(schema)
}

/// Takes the line breaks of the source out of descriptions, and Rust's integer formats, which
/// editors do not know.
fn tidied(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, value)| *key != "format" || !value.is_string())
            // Below the top no key has to be there.
            .filter(|(key, value)| *key != "required" || !value.is_array())
            .map(|(key, value)| match value.as_str().filter(|_| key == "description") {
                Some(text) => (key.clone(), Value::String(text.replace('\n', " "))),
                None => (key.clone(), tidied(value)),
            })
            .collect(),
        Value::Array(items) => items.iter().map(tidied).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

//! The JSON Schema of a profile, for editors and for people who generate profiles.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::file::ProfileFile;

/// Returns the JSON Schema (draft 7, which TOML editors know best) of a profile. The same is shipped
/// as `profiles/slot.schema.json`.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft07()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator();
    let mut schema = generator.into_root_schema_for::<ProfileFile>();
    // What has to be there depends on the engine; the loader's defaults fill the rest.
    schema.remove("required");
    schema.insert(
        "if".to_owned(),
        json!({ "properties": { "engine": { "const": "command" } }, "required": ["engine"] }),
    );
    schema.insert("then".to_owned(), json!({ "required": ["command"] }));
    schema.insert(
        "else".to_owned(),
        json!({ "required": ["model"], "properties": { "command": false } }),
    );
    schema.to_value()
}

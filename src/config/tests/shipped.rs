//! What is shipped: example profiles, the schema, the document. None of them can drift from the code.

use std::{fs, path::PathBuf};

use serde_json::{Map, Value};

use super::{
    super::{file::KEYS, schema, validate},
    Context, faults, read, shown,
};

fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn properties() -> Map<String, Value> {
    schema()["properties"].as_object().expect("a profile is an object").clone()
}

/// A profile in which only `key` can be wrong.
fn with(key: &str, value: &str) -> String {
    match key {
        "model" => format!("model = {value}\n"),
        "engine" => format!("model = 'a.gguf'\nengine = {value}\n"),
        "command" => format!("engine = 'command'\ncommand = {value}\n"),
        "url" => format!("engine = 'external'\nurl = {value}\n"),
        _ => format!("model = 'a.gguf'\n{key} = {value}\n"),
    }
}

#[test]
fn every_shipped_profile_is_valid() {
    let found = validate(&[shipped("profiles"), shipped("profiles/examples")], &Context::default());
    assert_eq!(shown(&found.faults), "");
    assert_eq!(found.profiles.len(), 5);
}

#[test]
fn every_shipped_profile_names_the_schema_that_lies_there() {
    let found = validate(&[shipped("profiles"), shipped("profiles/examples")], &Context::default());
    for profile in found.profiles.values() {
        let text = fs::read_to_string(&profile.source).unwrap();
        let schema = text.lines().next().and_then(|line| line.strip_prefix("#:schema "));
        let schema = schema.unwrap_or_else(|| panic!("{} names none", profile.source.display()));
        let file = profile.source.parent().unwrap().join(schema);
        assert!(file.is_file(), "{} does not exist", file.display());
    }
}

#[test]
fn the_shipped_schema_is_the_one_that_the_code_makes() {
    let file = fs::read_to_string(shipped("profiles/slot.schema.json")).unwrap();
    let made = format!("{:#}\n", schema());
    assert!(
        file == made,
        "profiles/slot.schema.json is out of date: `slotd schema > profiles/slot.schema.json`"
    );
}

#[test]
fn the_schema_and_the_loader_know_the_same_keys() {
    let mut keys: Vec<_> = properties().keys().cloned().collect();
    assert_eq!(keys, KEYS, "in the same order");
    assert_eq!(schema()["additionalProperties"], false);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), KEYS.len());
}

#[test]
fn the_schema_and_the_loader_have_the_same_ranges() {
    let mut count = 0;
    for (key, property) in properties() {
        let (Some(low), Some(high)) = (property["minimum"].as_i64(), property["maximum"].as_i64())
        else {
            continue;
        };
        for (value, is_good) in [(low, true), (high, true), (low - 1, false), (high + 1, false)] {
            // So many at once only engines of others may say that they can.
            let text = if key == "parallel" {
                format!(
                    "engine = \"command\"\ncommand = [\"x\", \"{{port}}\"]\nparallel = {value}\n"
                )
            } else {
                with(&key, &value.to_string())
            };
            let found = faults(&text);
            assert_eq!(found.is_empty(), is_good, "{key} = {value}: {found}");
        }
        count += 1;
    }
    assert_eq!(count, 6);
}

#[test]
fn engines_of_slotds_own_kinds_take_fewer_requests_at_once() {
    assert_eq!(faults(&with("parallel", "256")), "");
    assert!(faults(&with("parallel", "257")).contains("expected 1..=256"));
}

#[test]
fn the_schema_and_the_loader_have_the_same_words() {
    let words = |value: &Value| -> Vec<String> {
        let words = value.as_array().expect("words are listed");
        let word = |value: &Value| value["const"].as_str().or(value.as_str()).map(str::to_owned);
        words.iter().filter_map(word).collect()
    };
    let properties = properties();
    let engines = words(&properties["engine"]["oneOf"]);
    assert_eq!(engines, ["auto", "llama-server", "candle", "command", "external"]);
    for engine in engines {
        let text =
            format!("{}command = ['x', '{{port}}']\n", with("engine", &format!("'{engine}'")));
        assert_eq!(read(&text).profile.is_some(), engine == "command", "{engine}");
        assert!(!faults(&text).contains("engine:"), "{engine}");
    }
    for capability in words(&properties["capabilities"]["items"]["enum"]) {
        assert_eq!(faults(&with("capabilities", &format!("['{capability}']"))), "");
    }
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_loader() {
    let bare = read("model = 'a.gguf'\n").profile;
    let mut count = 0;
    for (key, property) in properties() {
        if let Some(default) = property.get("default") {
            // JSON writes what TOML writes, for all of them.
            let written = default.to_string();
            assert_eq!(read(&with(&key, &written)).profile, bare, "{key} = {written}");
            count += 1;
        }
    }
    assert_eq!(count, 23);
}

#[test]
fn the_document_explains_every_key() {
    let document = fs::read_to_string(shipped("docs/PROFILES.md")).unwrap();
    for key in KEYS {
        assert!(document.contains(&format!("| `{key}` |")), "`{key}` is not in docs/PROFILES.md");
    }
}

/// The ten bad profiles of the document: what was meant, and what was typed.
const TEN: [(&str, &str); 10] = [
    ("A key is mistyped", "model = \"a.gguf\"\ncontxt = 4096"),
    ("A number is out of range", "model = \"a.gguf\"\ncontext = 0"),
    ("A number in quotes", "model = \"a.gguf\"\nparallel = \"4\""),
    ("Text without quotes", "model = a.gguf"),
    ("No model", "engine = \"candle\""),
    ("The model is neither a file nor a repository", "model = \"llama\""),
    ("An engine that does not exist", "model = \"a.gguf\"\nengine = \"lama-server\""),
    ("A duration without a unit", "model = \"a.gguf\"\nidle_timeout = 300"),
    ("An argument that slotd sets itself", "model = \"a.gguf\"\nargs = [\"--port\", \"8080\"]"),
    (
        "A command that does not say where to listen",
        "engine = \"command\"\ncommand = [\"vllm\", \"serve\"]",
    ),
];

/// A text as a cell of a Markdown table.
fn cell(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| format!("`` {} ``", line.trim_start())).collect();
    lines.join("<br>").replace('|', "\\|")
}

#[test]
fn the_document_says_what_slotd_says() {
    let document = fs::read_to_string(shipped("docs/PROFILES.md")).unwrap();
    let rows: Vec<_> = TEN
        .iter()
        .zip(1..)
        .map(|((mistake, text), number)| {
            format!("| {number} | {mistake} | {} | {} |", cell(text), cell(&faults(text)))
        })
        .collect();
    assert!(
        document.contains(&rows.join("\n")),
        "the table in docs/PROFILES.md should be\n\n{}\n",
        rows.join("\n")
    );
}

//! `slotd models` without a daemon: what this user sees.

use std::fs;

use serde_json::Value;

use super::{run, scratch, text};

/// A GGUF file without tensors, which says that it is one of `parts`.
fn gguf(parts: u32) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0_u64, 1, 11].map(u64::to_le_bytes).concat());
    file.extend(b"split.count");
    file.extend([4, parts].map(u32::to_le_bytes).concat());
    file
}

#[tokio::test]
async fn models_are_listed_verified_and_cleaned_without_a_daemon() {
    let dir = scratch(&[]);
    let dir = dir.path();
    let models = dir.join(".cache/slotd/models");
    let profiles = dir.join(".config/slotd/profiles");
    for folder in [&models, &profiles] {
        fs::create_dir_all(folder).expect("a folder");
    }
    let write = |name: &str, bytes: &[u8]| fs::write(models.join(name), bytes).expect("a file");
    write("whole.gguf", &gguf(1));
    write("split-00001-of-00002.gguf", &gguf(2));
    write("other.gguf.part", &[0; 100]);
    fs::write(profiles.join("chat.toml"), "model = \"whole.gguf\"\n").expect("a profile");

    let listed = run(dir, ["models"]).await;
    assert!(listed.status.success(), "{listed:?}");
    let shown = text(&listed.stdout);
    let line = |start: &str| {
        let found = shown.lines().find(|line| line.contains(start)).unwrap_or_default();
        found.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("whole.gguf"), "chat 51 B whole chat - - - - folder", "{shown}");
    assert_eq!(line("split-00001"), "chat 51 B incomplete - - - - - folder", "{shown}");
    assert!(
        shown.ends_with(
            "2 models, 202 B on disk, 100 B of it in no model (`slotd models clean --dry-run`)\n"
        ),
        "{shown}"
    );

    let json = run(dir, ["models", "--json"]).await;
    let found: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(found["models"][1]["slots"], serde_json::json!(["chat"]), "{found:#}");

    let verified = run(dir, ["models", "verify", "--hash"]).await;
    assert_eq!(verified.status.code(), Some(1));
    let shown = text(&verified.stdout);
    assert!(shown.contains("`split-00002-of-00002.gguf` is not there"), "{shown}");
    assert!(shown.ends_with("1 of 2 whole; 0 files hashed, 0 B\n"), "{shown}");
    let one = run(dir, ["models", "verify", "chat"]).await;
    assert!(one.status.success(), "a slot's model: {one:?}");
    let none = run(dir, ["models", "verify", "nowhere"]).await;
    assert_eq!(none.status.code(), Some(69), "{none:?}");

    let young = run(dir, ["models", "clean"]).await;
    assert!(text(&young.stdout).starts_with("0 to remove"), "{young:?}");
    let dry = run(dir, ["models", "clean", "--dry-run", "--older-than", "0s"]).await;
    assert!(text(&dry.stdout).ends_with("other.gguf.part\n1 to remove, 100 B\n"), "{dry:?}");
    assert!(models.join("other.gguf.part").exists());
    let wet = run(dir, ["models", "clean", "--older-than", "0s"]).await;
    assert!(wet.status.success() && !models.join("other.gguf.part").exists(), "{wet:?}");
    assert!(models.join("split-00001-of-00002.gguf").exists());
}

/// A GGUF file without tensors and of this architecture.
fn gguf_of(architecture: &str) -> Vec<u8> {
    let length = |text: &str| u64::try_from(text.len()).expect("a length").to_le_bytes();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0_u64, 1].map(u64::to_le_bytes).concat());
    let key = "general.architecture";
    file.extend([&length(key)[..], key.as_bytes(), &8_u32.to_le_bytes()].concat());
    file.extend([&length(architecture)[..], architecture.as_bytes()].concat());
    file
}

#[tokio::test]
async fn names_and_headers_of_model_files_do_not_steer_the_terminal() {
    let dir = scratch(&[]);
    let models = dir.path().join(".cache/slotd/models");
    fs::create_dir_all(&models).expect("a folder");
    let name = "evil\n\u{1b}[2Jwhole.gguf";
    fs::write(models.join(name), gguf_of("\u{1b}[2Jm\u{202e}\u{9b}1m")).expect("a file");
    fs::write(models.join("\u{1b}[2J.gguf.part"), [0; 9]).expect("a file");
    for (order, lines) in [
        (&["models"][..], 3),
        (&["models", "verify"], 2),
        (&["models", "clean", "--dry-run", "--older-than", "0s"], 2),
    ] {
        let said = run(dir.path(), order.iter().copied()).await;
        let shown = text(&said.stdout) + &text(&said.stderr);
        let is_odd = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!shown.contains(is_odd), "{order:?}: {shown:?}");
        assert_eq!(shown.lines().count(), lines, "{order:?}: {shown}");
        assert!(shown.contains(r"\u{1b}[2J"), "{order:?}: {shown}");
    }
    let json = run(dir.path(), ["models", "--json"]).await;
    let found: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let model = &found["models"][0];
    assert_eq!(model["architecture"], "\u{1b}[2Jm\u{202e}\u{9b}1m", "JSON is exact: {found:#}");
    assert!(model["model"].as_str().is_some_and(|model| model.ends_with(name)), "{found:#}");
}

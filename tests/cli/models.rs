//! `slotd models` without a daemon: what this user sees.

use std::{
    fs,
    path::{Path, PathBuf},
};

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

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A home with profiles; the hub's cache in it has one whole model, by a commit that no branch names.
fn home(profiles: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = scratch(&[]);
    let folder = dir.path().join(".config/slotd/profiles");
    fs::create_dir_all(&folder).expect("a folder");
    for (slot, text) in profiles {
        fs::write(folder.join(format!("{slot}.toml")), text).expect("a profile");
    }
    let snapshot = repo(dir.path(), "org--real-GGUF").join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("a folder");
    fs::write(snapshot.join("real-Q8_0.gguf"), gguf(1)).expect("a file");
    dir
}

fn repo(home: &Path, name: &str) -> PathBuf {
    home.join(".cache/huggingface/hub").join(format!("models--{name}"))
}

/// The last word of a model's name, where it is, whether all of it is, and for whom.
fn in_short(model: &Value) -> String {
    let word = |key: &str| model[key].as_str().unwrap_or_default();
    let name = word("model").rsplit('/').next().unwrap_or_default();
    format!("{name} {} {} {}", word("source"), word("state"), model["slots"])
}

#[tokio::test]
async fn slots_outside_the_stores_and_slots_that_lack_files_had_no_model_to_verify() {
    let dir = home(&[("big", "model = \"org/big-GGUF:Q8_0\"\n")]);
    let dir = dir.path();
    let elsewhere = dir.join("elsewhere");
    fs::create_dir_all(elsewhere.join("odd")).expect("a folder");
    fs::write(elsewhere.join("a.gguf"), gguf(1)).expect("a file");
    fs::write(elsewhere.join("odd/voice.onnx"), "onnx").expect("a file");
    let profile = |slot: &str, path: &str| {
        let text = format!(
            "model = {:?}\nengine = \"command\"\ncommand = [\"true\", \"{{socket}}\"]\n",
            elsewhere.join(path).display().to_string()
        );
        fs::write(dir.join(format!(".config/slotd/profiles/{slot}.toml")), text)
            .expect("a profile");
    };
    profile("wk", "a.gguf");
    profile("same", "a.gguf");
    profile("odd", "odd");
    // Nothing but the beginning of a download.
    let big = repo(dir, "org--big-GGUF");
    for folder in ["blobs", "refs", "trees"] {
        fs::create_dir_all(big.join(folder)).expect("a folder");
    }
    fs::create_dir_all(big.join("snapshots").join(COMMIT)).expect("a folder");
    fs::write(big.join("refs/main"), COMMIT).expect("a file");
    fs::write(big.join("blobs/7.incomplete"), [0; 10]).expect("a file");
    let files = serde_json::json!({ "big-Q8_0.gguf": { "size": 5000, "blob_id": "7" } });
    let tree = serde_json::json!({ "format_version": 1, "files": files });
    fs::write(big.join(format!("trees/{COMMIT}.json")), tree.to_string()).expect("a file");

    let json = run(dir, ["models", "--json"]).await;
    let found: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let models = found["models"].as_array().expect("models");
    let shown: Vec<_> = models.iter().map(in_short).collect();
    assert_eq!(
        shown,
        [
            "a.gguf profile whole [\"same\",\"wk\"]",
            "odd profile whole [\"odd\"]",
            "big-GGUF:Q8_0 hub incomplete [\"big\"]",
            "real-GGUF:Q8_0 hub whole []",
        ],
        "{found:#}"
    );
    for (slot, code) in [("wk", 0), ("odd", 0), ("big", 1)] {
        let verified = run(dir, ["models", "verify", slot]).await;
        assert_eq!(verified.status.code(), Some(code), "{slot}: {verified:?}");
        assert!(text(&verified.stdout).contains(" of 1 whole"), "{verified:?}");
    }
    fs::create_dir(elsewhere.join("empty")).expect("a folder");
    profile("none", "empty");
    let verified = run(dir, ["models", "verify", "none"]).await;
    assert_eq!(verified.status.code(), Some(1), "a folder without files is no model: {verified:?}");
}

#[tokio::test]
async fn a_revision_that_a_profile_with_a_fault_names_was_cleaned_away() {
    let profile = format!("model = \"org/real-GGUF@{COMMIT}\"\ncontxt = 4096\n");
    let dir = home(&[("chat", &profile)]);
    let dir = dir.path();
    let clean = ["models", "clean", "--older-than", "0s", "--dry-run", "--revisions"];
    let refused = run(dir, clean).await;
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    let said = text(&refused.stderr);
    assert!(said.contains("`slotd validate`") && said.contains("chat.toml:2"), "{said}");
    let plain = run(dir, &clean[..5]).await;
    assert!(text(&plain.stdout).starts_with("0 to remove"), "{plain:?}");
    fs::write(dir.join(".config/slotd/profiles/chat.toml"), profile.replace("contxt", "context"))
        .expect("a profile");
    let kept = run(dir, clean).await;
    assert!(text(&kept.stdout).contains("stays: a slot serves it"), "{kept:?}");
    fs::remove_file(dir.join(".config/slotd/profiles/chat.toml")).expect("a profile");
    let gone = run(dir, clean).await;
    assert!(text(&gone.stdout).contains("revision"), "{gone:?}");
    // Whoever has only ever pulled has no profiles.
    fs::remove_dir(dir.join(".config/slotd/profiles")).expect("an empty folder");
    assert!(run(dir, clean).await.status.success(), "a folder that is not there names no model");
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

//! How long a look at the models takes: 2,000 models in 20,000 files.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use tokio::time::Instant;

const REPOS: usize = 1500;
/// Shards, their index, `config.json`, and small files.
const FILES_A_REPO: usize = 13;
const SHARDS: usize = 4;
const FOLDER: usize = 500;
/// As many as real ones have; they are passed over one by one.
const TOKENS: u64 = 32_000;
const AGAIN: usize = 9;

/// Prints the times of the first look and of later ones, and the memory of the largest.
pub(crate) fn run(slotd: &Path) {
    let home = tempfile::tempdir().unwrap();
    let files = make(home.path());
    let (first, models) = look(slotd, home.path());
    let mut again: Vec<Duration> = (0..AGAIN).map(|_| look(slotd, home.path()).0).collect();
    again.sort_unstable();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() >> 10;
    let kept = fs::metadata(home.path().join(".cache/slotd/inventory.json")).unwrap().len() >> 10;
    println!(
        "| models | files | first look | later ones, median of {AGAIN} | worst | resident | kept |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    println!(
        "| {models} | {files} | {} ms | {} ms | {} ms | {peak} MiB | {kept} KiB |",
        first.as_millis(),
        again[AGAIN / 2].as_millis(),
        again[AGAIN - 1].as_millis()
    );
}

fn look(slotd: &Path, home: &Path) -> (Duration, usize) {
    let began = Instant::now();
    let mut command = Command::new(slotd);
    command.args(["models", "--json"]).env_clear().env("HOME", home).stderr(Stdio::inherit());
    command.env("XDG_RUNTIME_DIR", home);
    let output = command.output().unwrap();
    let time = began.elapsed();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let models = found["models"].as_array().unwrap();
    assert!(models.iter().all(|model| model["state"] == "whole"), "a model is not whole");
    (time, models.len())
}

/// Makes the stores; returns how many files they have.
fn make(home: &Path) -> usize {
    let config = br#"{"architectures":["LlamaForCausalLM"],"model_type":"llama"}"#;
    for number in 0..REPOS {
        let repo = home.join(format!(".cache/huggingface/hub/models--org--model-{number}"));
        let commit = format!("{number:040x}");
        let snapshot = repo.join("snapshots").join(&commit);
        for folder in
            [snapshot.as_path(), &repo.join("blobs"), &repo.join("refs"), &repo.join("trees")]
        {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(repo.join("refs/main"), &commit).unwrap();
        let mut tree = serde_json::Map::new();
        let mut put = |name: String, bytes: &[u8]| {
            let blob = format!("{:064x}", tree.len());
            fs::write(repo.join("blobs").join(&blob), bytes).unwrap();
            symlink(format!("../../blobs/{blob}"), snapshot.join(&name)).unwrap();
            tree.insert(name, json!({ "size": bytes.len(), "blob_id": blob }));
        };
        let shard = |part: usize| format!("model-{:05}-of-{SHARDS:05}.safetensors", part + 1);
        for part in 0..SHARDS {
            put(shard(part), &safetensors(part));
        }
        let weights: serde_json::Map<_, _> =
            (0..SHARDS).map(|part| (format!("layer.{part}"), json!(shard(part)))).collect();
        let index = json!({ "weight_map": weights }).to_string();
        put("model.safetensors.index.json".to_owned(), index.as_bytes());
        put("config.json".to_owned(), config);
        for small in 0..FILES_A_REPO - SHARDS - 2 {
            put(format!("small-{small}.json"), b"{}");
        }
        let tree = json!({ "format_version": 1, "files": tree });
        fs::write(repo.join(format!("trees/{commit}.json")), tree.to_string()).unwrap();
    }
    let folder = home.join(".cache/slotd/models");
    fs::create_dir_all(&folder).unwrap();
    let gguf = gguf();
    for number in 0..FOLDER {
        fs::write(folder.join(format!("model-{number}-Q4_K_M.gguf")), &gguf).unwrap();
    }
    REPOS * FILES_A_REPO + FOLDER
}

fn text(text: &str) -> Vec<u8> {
    let length = u64::try_from(text.len()).unwrap();
    length.to_le_bytes().into_iter().chain(text.bytes()).collect()
}

fn safetensors(part: usize) -> Vec<u8> {
    let entry = json!({ "dtype": "F32", "shape": [16], "data_offsets": [0, 64] });
    let mut header = serde_json::Map::new();
    header.insert(format!("layer.{part}"), entry);
    let mut file = text(&Value::Object(header).to_string());
    file.extend([0; 64]);
    file
}

fn gguf() -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(2_u64.to_le_bytes());
    file.extend(text("general.architecture").into_iter().chain(8_u32.to_le_bytes()));
    file.extend(text("llama"));
    file.extend(text("tokenizer.ggml.tokens").into_iter().chain(9_u32.to_le_bytes()));
    file.extend(8_u32.to_le_bytes().into_iter().chain(TOKENS.to_le_bytes()));
    for token in 0..TOKENS {
        file.extend(text(&format!("token{token}")));
    }
    file.extend(text("output.weight").into_iter().chain(1_u32.to_le_bytes()));
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes().into_iter().chain(0_u64.to_le_bytes()));
    file.resize(file.len().next_multiple_of(32) + 256, 0);
    file
}

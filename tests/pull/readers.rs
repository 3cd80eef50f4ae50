//! Other programs that find what slotd pulled, with the network taken away.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use crate::{
    Bench,
    world::{run, slotd},
};

/// What looks a model up as `transformers` and vLLM do.
const LOOK_UP: &str = r#"
import sys
from huggingface_hub import hf_hub_download, snapshot_download
print(hf_hub_download("org/tiny", "tiny-Q4_1.gguf", local_files_only=True))
print(snapshot_download("org/tiny", allow_patterns=["*.gguf"], local_files_only=True))
print(snapshot_download("org/folder", local_files_only=True))
"#;

pub(crate) async fn all(bench: &Bench) {
    println!();
    let cache = bench.cache();
    bench.hub.faults(json!([])).await;
    let model = env::var_os("SLOTD_TEST_MODEL").map(PathBuf::from);
    let Some(model) = model else {
        println!("other readers are left out: SLOTD_TEST_MODEL names no model");
        return;
    };
    bench.hub.put("org/tiny/tiny-Q4_1.gguf", &fs::read(model).unwrap());
    let folder: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("model.safetensors", b"x"), ("README.md", b"# x")];
    for (file, content) in folder {
        bench.hub.put(&format!("org/folder/{file}"), content);
    }
    let mut command = slotd(&bench.slotd, &bench.hub, &cache);
    command.args(["pull", "org/tiny", "org/folder"]);
    let end = run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    bench.hub.forget().await;
    llama_server(&cache).await;
    assert!(bench.hub.seen().await.is_empty(), "llama-server asked the hub");
    hugging_face(&cache, &bench.hub.url).await;
}

async fn hugging_face(cache: &Path, hub: &str) {
    let Some(hf) = env::var_os("SLOTD_TEST_HF").map(PathBuf::from) else {
        println!("huggingface_hub is left out: SLOTD_TEST_HF names no `hf`");
        return;
    };
    let python = hf.with_file_name("python");
    let mut command = Command::new(python);
    command.args(["-c", LOOK_UP]).env_clear().env("HF_HUB_CACHE", cache).env("HOME", cache);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let end = run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let found: Vec<_> = end.out.lines().map(Path::new).collect();
    assert!(found.len() == 3 && found.iter().all(|path| path.starts_with(cache) && path.exists()));
    let mut command = Command::new(&hf);
    command.args(["cache", "ls"]).env_clear().env("HF_HUB_CACHE", cache).env("HOME", cache);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let end = run(command).await;
    assert!(end.out.contains("model/org/tiny"), "{}{}", end.out, end.said);
    let mut command = Command::new(&hf);
    command.args(["cache", "verify", "org/tiny"]).env_clear();
    command.env("HF_HUB_CACHE", cache).env("HOME", cache).env("HF_ENDPOINT", hub);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let end = run(command).await;
    assert!(end.out.contains("All checksums match"), "{}{}", end.out, end.said);
    println!(
        "huggingface_hub found the file, the snapshot and the folder without asking; `hf cache verify` agrees"
    );
}

async fn llama_server(cache: &Path) {
    let Some(program) = env::var_os("SLOTD_TEST_LLAMA_SERVER") else {
        println!("llama-server is left out: SLOTD_TEST_LLAMA_SERVER names none");
        return;
    };
    let mut command = Command::new(program);
    command.args(["-hf", "org/tiny", "--offline", "--port", "0", "-c", "256", "-t", "1"]);
    command.env_clear().env("HF_HUB_CACHE", cache).env("HOME", cache);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    let ready = async {
        while let Ok(Some(line)) = lines.next_line().await {
            said.push(line);
            if said.last().is_some_and(|line| line.contains("listening")) {
                return true;
            }
        }
        false
    };
    let is_ready = timeout(Duration::from_mins(2), ready).await.unwrap_or(false);
    child.kill().await.unwrap();
    assert!(is_ready, "{}", said.join("\n"));
    println!("llama-server -hf org/tiny --offline served it");
}

//! The models on disk as a daemon sees them, and a load of one that is not whole.

use std::{fs, os::unix::fs::symlink};

use serde_json::json;

use super::common::{Daemon, fake, scratch};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A GGUF file without tensors, which says that it is one of `parts`.
fn gguf(parts: u32) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0_u64, 1, 11].map(u64::to_le_bytes).concat());
    file.extend(b"split.count");
    file.extend([4, parts].map(u32::to_le_bytes).concat());
    file
}

#[tokio::test]
async fn a_model_that_is_not_whole_is_not_loaded_and_what_it_lacks_is_told() {
    let dir = scratch(&[
        ("big", "model = \"org/big-GGUF:Q8_0\"\nengine = \"llama-server\"\n"),
        ("small", &fake("", "model = \"small.gguf\"")),
    ]);
    let hub = dir.path().join("hf/hub");
    let repo = hub.join("models--org--big-GGUF");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [&snapshot, &repo.join("blobs"), &repo.join("refs"), &repo.join("trees")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    fs::write(repo.join("blobs/1"), gguf(2)).unwrap();
    symlink("../../blobs/1", snapshot.join("big-Q8_0-00001-of-00002.gguf")).unwrap();
    let files = json!({ "big-Q8_0-00001-of-00002.gguf": { "size": gguf(2).len(), "blob_id": "1" },
        "big-Q8_0-00002-of-00002.gguf": { "size": 5000, "blob_id": "2" } });
    let tree = json!({ "format_version": 1, "files": files });
    fs::write(repo.join(format!("trees/{COMMIT}.json")), tree.to_string()).unwrap();
    fs::write(dir.path().join("profiles/small.gguf"), gguf(1)).unwrap();

    let home = dir.path().to_owned();
    let env = [
        ("HF_HOME", home.join("hf")),
        ("HOME", home.clone()),
        ("XDG_CACHE_HOME", home.join("cache")),
    ];
    let env: Vec<_> = env.iter().map(|(name, path)| (*name, path.as_path())).collect();
    let daemon = Daemon::start_with(dir, &env).await;
    let answer = daemon.ordered("big", "load").await;
    assert_eq!(answer["status"], "download_required", "{answer:#}");
    assert_eq!(answer["slot"], "big");
    assert_eq!(answer["missing_bytes"], 5000);
    assert_eq!(answer["missing"][0]["file"], "big-Q8_0-00002-of-00002.gguf");
    let slot = daemon.slot("big").await;
    assert_eq!((&slot["state"], &slot["generation"]), (&json!("offline"), &json!(0)), "{slot:#}");

    daemon.order("small", "load").await;
    daemon.until_state("small", "ready").await;
    let found = daemon.inventory().await;
    let of = |name: &str| {
        let mut models = found["models"].as_array().unwrap().iter();
        models.find(|model| model["model"].as_str().unwrap().ends_with(name)).unwrap()
    };
    let big = of("org/big-GGUF:Q8_0");
    assert_eq!(
        (&big["model"], &big["state"]),
        (&json!("org/big-GGUF:Q8_0"), &json!("incomplete")),
        "{found:#}"
    );
    assert_eq!((&big["slots"], &big["is_loaded"]), (&json!(["big"]), &json!(false)), "{found:#}");
    let small = of("profiles/small.gguf");
    assert_eq!(
        (&small["source"], &small["slots"], &small["is_loaded"]),
        (&json!("profile"), &json!(["small"]), &json!(true)),
        "{found:#}"
    );
}

//! What was whole once and is damaged: found, and fetched anew.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
};

use serde_json::json;

use crate::{
    World,
    daemon::{Daemon, profile_with, safetensors},
    run, scratch,
    world::{content, folder, snapshot},
};

const MODEL: &str = "m-Q4_K_M.gguf";
const LENGTH: usize = 200_000;

/// A GGUF file with a header as short as can be.
fn gguf(seed: u64) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0_u64, 1, 11].map(u64::to_le_bytes).concat());
    file.extend(b"split.count");
    file.extend([4_u32, 1].map(u32::to_le_bytes).concat());
    file.extend(content(seed, LENGTH));
    file
}

/// A repository of GGUF files that has been pulled.
async fn pulled() -> World {
    let world = World::new(&[("o/r/m-Q4_K_M.gguf", &gguf(1)), ("o/r/mmproj-F16.gguf", &gguf(2))]);
    assert_eq!(world.pull(&["o/r"]).await.code, Some(0));
    world.hub.forget().await;
    world
}

/// The file that has a model's content.
fn blob(world: &World, repo: &str, file: &str) -> PathBuf {
    let folder = folder(&world.cache(), repo);
    let commit = fs::read_to_string(folder.join("refs/main")).unwrap();
    folder.join("snapshots").join(commit).join(file).canonicalize().unwrap()
}

/// Puts other bytes into a file, in its place.
fn damage(path: &PathBuf, at: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&[0xff; 8], at).unwrap();
}

#[tokio::test]
async fn a_damaged_header_was_there_for_every_pull_and_for_ever() {
    let world = pulled().await;
    let path = blob(&world, "o/r", MODEL);
    damage(&path, 8);
    let mut open = File::open(&path).unwrap();
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert!(end.said.contains("`m-Q4_K_M.gguf` is damaged on this disk"), "{}", end.said);
    assert!(end.out.contains("came now, the rest was there"), "{}", end.out);
    assert!(snapshot(&world.cache(), "o/r")[MODEL] == gguf(1));
    assert_eq!(world.hub.fetches().await.len(), 1);
    // Whoever has it mapped is not cut off.
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes.len(), &bytes[8..16]), (gguf(1).len(), &[0xff; 8][..]));
}

#[tokio::test]
async fn a_damaged_tensor_is_mended_by_a_pull_that_verifies() {
    let world = pulled().await;
    let whole = world.pull(&["o/r", "--verify", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(&whole.out).unwrap();
    assert_eq!(status["fetched_bytes"], 0, "{status:#}");
    assert_eq!(status["resumed_bytes"], status["size_bytes"], "{status:#}");
    damage(&blob(&world, "o/r", MODEL), 100_000);
    assert!(world.pull(&["o/r"]).await.out.starts_with("o/r is there"));
    assert!(world.hub.fetches().await.is_empty());
    let end = world.pull(&["o/r", "--verify"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert!(snapshot(&world.cache(), "o/r")[MODEL] == gguf(1));
    assert_eq!(world.hub.fetches().await.len(), 1);
}

#[tokio::test]
async fn a_damaged_file_stays_until_another_has_come() {
    let world = pulled().await;
    let path = blob(&world, "o/r", MODEL);
    damage(&path, 8);
    world.hub.faults(json!([{ "path": "resolve", "does": { "status": { "code": 404 } } }])).await;
    assert_eq!(world.pull(&["o/r"]).await.code, Some(69));
    assert_eq!(fs::read(&path).unwrap().len(), gguf(1).len());
    let mut offline = world.command(&["pull", "o/r"]);
    offline.env("HF_HUB_OFFLINE", "1");
    let end = run(offline).await;
    insta::assert_snapshot!(end.said, @"slotd: model `o/r` is not whole on this disk, and the hub is not asked while `HF_HUB_OFFLINE` is set: `m-Q4_K_M.gguf` is damaged");
}

#[tokio::test]
async fn what_verify_says_to_run_mends_what_it_has_found() {
    let world = pulled().await;
    damage(&blob(&world, "o/r", MODEL), 8);
    damage(&blob(&world, "o/r", "mmproj-F16.gguf"), 100_000);
    let verify = async || run(world.command(&["models", "verify", "--hash"])).await;
    let found = verify().await;
    assert_eq!(found.code, Some(1), "{}{}", found.out, found.said);
    let command = |line: &str| {
        let (_, rest) = line.split_once("download it again: `slotd pull ")?;
        Some(rest.split_once('`')?.0.to_owned())
    };
    let commands: Vec<_> = found.out.lines().filter_map(command).collect();
    assert_eq!(commands.len(), 2, "{}", found.out);
    let command = &commands[0];
    assert_eq!(command, "--verify o/r:Q4_K_M");
    let end = world.pull(&command.split(' ').collect::<Vec<_>>()).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let mended = verify().await;
    assert_eq!(mended.code, Some(0), "{}", mended.out);
}

#[tokio::test]
async fn a_slot_that_fetches_its_model_fetches_a_damaged_one_anew() {
    for (key, state) in [("pull = \"auto\"", "ready"), ("", "failed")] {
        let world = pulled().await;
        damage(&blob(&world, "o/r", MODEL), 8);
        let profile = profile_with("socket={socket}", key).replace("o/s", "o/r:Q4_K_M");
        let daemon = Daemon::start(&world, &profile).await;
        assert_eq!(daemon.post("/v1/slots/chat/load", &json!({})).await.0, 202);
        let is_end = |slot: &serde_json::Value| {
            ["ready", "failed"].contains(&slot["state"].as_str().unwrap_or_default())
        };
        let seen = daemon.watch("/v1/slots/chat/watch", is_end).await;
        let slot = seen.last().unwrap();
        assert_eq!(slot["state"], state, "{slot:#}");
        if state == "failed" {
            let reason = slot["reason"].as_str().unwrap();
            assert_eq!(slot["verdict"], "bad-model");
            assert!(
                reason.ends_with("download it again: `slotd pull --verify o/r:Q4_K_M`"),
                "{reason}"
            );
        }
    }
}

#[tokio::test]
async fn weights_that_llama_server_cannot_load_are_not_fetched_for_it() {
    let world = World::new(&[
        ("o/s/config.json", br#"{"model_type":"llama"}"#),
        ("o/s/model.safetensors", &safetensors(1_500_000)),
    ]);
    // A llama-server that says what it is and takes no part in anything.
    let programs = scratch();
    let program = programs.path().join("llama-server");
    fs::write(
        &program,
        "#!/bin/sh\necho 'version: 11434 (515e85511)'\necho '--model --host --port'\n",
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let profile = "engine = \"llama-server\"\nmodel = \"o/s\"\npull = \"auto\"\nautostart = true\n";
    let path = format!("{}:/usr/bin:/bin", programs.path().display());
    let daemon = Daemon::start_with(&world, profile, &[("PATH", &path)]).await;
    let seen = daemon.watch("/v1/slots/chat/watch", |slot| slot["state"] == "failed").await;
    insta::assert_snapshot!(seen.last().unwrap()["reason"].as_str().unwrap(), @"model `o/s` was not fetched: `o/s` names no model in its repository, which has no GGUF file, and llama-server loads no other; correct its name");
    assert!(world.hub.fetches().await.is_empty());
}

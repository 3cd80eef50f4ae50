//! Who gets to see the token.

use std::fs;

use serde_json::json;

use crate::{World, world::content};

const TOKEN: &str = "hf_canary0123456789";

fn world() -> World {
    World::new(&[
        ("o/r/m-Q4_K_M.gguf", &content(1, 200_000)),
        ("o/s/config.json", b"{}"),
        ("o/s/model.safetensors", &content(2, 100_000)),
    ])
}

#[tokio::test]
async fn a_token_is_shown_to_the_hub_and_to_nobody_else() {
    let world = world();
    world.hub.rules(json!({ "token": TOKEN, "send_large_to_other_host": true })).await;
    let mut command = world.command(&["pull", "o/r", "o/s", "--json"]);
    command.env("HF_TOKEN", TOKEN);
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let seen = world.hub.seen().await;
    let (elsewhere, own): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.host == "127.0.0.2");
    assert!(elsewhere.len() >= 2 && elsewhere.iter().all(|seen| seen.authorization.is_none()));
    let shown = format!("Bearer {TOKEN}");
    assert!(own.iter().all(|seen| seen.authorization.as_deref() == Some(&*shown)));
    assert!(!format!("{}{}", end.out, end.said).contains("canary"));
}

#[tokio::test]
async fn a_redirect_to_another_port_of_the_same_host_goes_without_the_token() {
    let (world, other) = (world(), world());
    let to = other.hub.url.clone();
    world.hub.faults(json!([{ "path": "resolve", "does": { "redirect": { "to": to } } }])).await;
    let mut command = world.command(&["pull", "o/r"]);
    command.env("HF_TOKEN", TOKEN);
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert!(other.hub.fetches().await.iter().all(|seen| seen.authorization.is_none()));
}

#[tokio::test]
async fn without_a_token_that_counts_the_way_to_one_is_said() {
    let world = world();
    world.hub.rules(json!({ "token": TOKEN })).await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(69));
    insta::assert_snapshot!(end.said.lines().last().unwrap(), @"slotd: the hub does not show `o/r` to somebody without a token; check its name, ask for access on its page, and set `HF_TOKEN` or run `hf auth login`");
    let file = world.cache().parent().unwrap().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let mut command = world.command(&["pull", "o/r"]);
    command.env("HF_TOKEN_PATH", &file);
    assert_eq!(crate::run(command).await.code, Some(0));
}

#[tokio::test]
async fn redirects_without_an_end_are_left() {
    let world = world();
    let to = world.hub.url.clone();
    world.hub.faults(json!([{ "path": "resolve", "does": { "redirect": { "to": to } } }])).await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(69));
    assert!(end.said.contains("one redirect after the other"), "{}", end.said);
}

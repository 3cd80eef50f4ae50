//! `GET /v1/models`, and which name leads where.

use serde_json::{Value, json};
use slotd::spec::profile::{Capability, EngineChoice, ModelSource};

use crate::{
    client::chat,
    world::{World, limits},
};

#[tokio::test]
async fn the_list_names_slots_and_aliases_with_their_state_and_wakes_nothing() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |profile| profile.aliases = vec!["gpt-4o".to_owned()]);
    world.make_slot("embed", |profile| profile.capabilities = vec![Capability::Embed]);
    let _ready = world.make_ready("embed", 1, (1, 1));
    let list = world.client().await.get("/v1/models").await.json();
    let entries = list["data"].as_array().unwrap();
    let of = |key: &str| -> Vec<Value> { entries.iter().map(|entry| entry[key].clone()).collect() };
    assert_eq!(list["object"], "list");
    assert_eq!(of("id"), [json!("chat"), json!("embed"), json!("gpt-4o")]);
    assert_eq!(of("slot"), [json!("chat"), json!("embed"), json!("chat")]);
    assert_eq!(of("state"), [json!("offline"), json!("ready"), json!("offline")]);
    assert_eq!(entries[1]["capabilities"], json!(["embed"]));
    assert!(of("created").iter().all(Value::is_u64) && of("object").iter().all(|o| o == "model"));
}

#[tokio::test]
async fn a_model_is_shown_by_any_name_also_one_with_slashes() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |profile| profile.aliases = vec!["org/big:Q4".to_owned()]);
    let mut client = world.client().await;
    for path in ["chat", "org/big:Q4", "org%2Fbig%3AQ4", "org/small", "embed"] {
        let shown = client.get(&format!("/v1/models/{path}")).await;
        assert_eq!(shown.head.status, 200, "{path}");
        assert_eq!(shown.json()["slot"], "chat");
    }
    assert_eq!(client.get("/v1/models/none").await.error()["code"], "model_not_found");
    client.send("HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.get("/healthz").await.text(), "ok\n", "a HEAD has no body");
}

#[tokio::test]
async fn aliases_and_capabilities_lead_to_their_slot_and_the_body_is_left_alone() {
    let mut world = World::start(limits()).await;
    world.make_slot("other", |profile| profile.capabilities = vec![Capability::Embed]);
    world.make_slot("words", |profile| profile.aliases = vec!["gpt-4o".to_owned()]);
    let (engine, _gate) = world.make_ready("words", 1, (4, 4));
    let mut line = None;
    for name in ["words", "gpt-4o", "org/small", "chat"] {
        let mut client = world.client().await;
        let body = chat(name, false);
        client.post(&body).await;
        let (mut used, request) = match line.take() {
            None => engine.request().await,
            Some(mut line) => {
                let request = crate::engine::Line::request(&mut line).await;
                (line, request)
            }
        };
        assert_eq!(request.body, body.as_bytes());
        used.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.head.header("x-slotd-slot"), Some("words"));
        line = Some(used);
    }
}

#[tokio::test]
async fn a_slot_is_not_used_for_what_it_is_not_offered_for() {
    let mut world = World::start(limits()).await;
    world.make_slot("vectors", |profile| profile.capabilities = vec![Capability::Embed]);
    let answer = world.client().await.ask(chat("vectors", false)).await;
    assert_eq!(answer.head.status, 400);
    assert_eq!(answer.error()["code"], "capability_not_offered");
}

#[tokio::test]
async fn a_command_gets_the_model_that_its_profile_names() {
    let mut world = World::start(limits()).await;
    world.make_slot("tool", |profile| {
        profile.engine = EngineChoice::Command(vec!["serve".to_owned()]);
    });
    let (engine, _gate) = world.make_ready("tool", 1, (1, 1));
    let mut client = world.client().await;
    client.post(r#"{ "messages":[{"model":"tool"}], "model" : "tool", "n":1e3 }"#).await;
    let (_line, request) = engine.request().await;
    let sent = String::from_utf8(request.body).unwrap();
    assert_eq!(sent, r#"{ "messages":[{"model":"tool"}], "model" : "org/small", "n":1e3 }"#);
}

#[tokio::test]
async fn an_embedder_and_a_cross_encoder_are_offered_for_what_they_do_once_that_is_known() {
    let mut world = World::start(limits()).await;
    for slot in ["words", "vectors", "scores"] {
        world.make_slot(slot, |profile| {
            profile.engine = EngineChoice::Candle;
            profile.model = Some(ModelSource::File { typed: slot.to_owned(), candidates: vec![] });
        });
    }
    world.set_sole("vectors", Capability::Embed);
    world.set_sole("scores", Capability::Rerank);
    let mut client = world.client().await;
    let list = client.get("/v1/models").await.json();
    let capabilities = |slot: &str| {
        let entries = list["data"].as_array().unwrap();
        entries.iter().find(|entry| entry["id"] == slot).unwrap()["capabilities"].clone()
    };
    assert_eq!(capabilities("words"), json!(["chat", "completion", "embed"]), "as before");
    assert_eq!(capabilities("vectors"), json!(["embed"]));
    assert_eq!(capabilities("scores"), json!(["rerank"]));

    // Whoever names no model means the only one that can.
    let mut waiting = Vec::new();
    for (path, body, slot) in [
        ("/v1/chat/completions", r#"{"messages":[]}"#, "words"),
        ("/v1/rerank", r#"{"query":"q","documents":["d"]}"#, "scores"),
        // Its engine knows better than what was found before: its file may be another one since.
        ("/v1/chat/completions", r#"{"model":"vectors","messages":[]}"#, "vectors"),
    ] {
        let mut asking = world.client().await;
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}", body.len());
        asking.send(format!("{head}\r\ncontent-type: application/json\r\n\r\n{body}")).await;
        assert_eq!(world.demand().await.0, slot, "{path}");
        waiting.push(asking);
    }
    drop(waiting);
    // Of another model nothing is known.
    world.change_profile("vectors", |profile| {
        profile.model = Some(ModelSource::File { typed: "other".to_owned(), candidates: vec![] });
    });
    let one = world.client().await.get("/v1/models/vectors").await.json();
    assert_eq!(one["capabilities"], json!(["chat", "completion", "embed"]));
}

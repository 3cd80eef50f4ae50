//! Parameters that profiles change in requests, and aliases with some of their own.

use serde_json::{Value, json};
use slotd::spec::params::Params;

use crate::world::{World, limits};

fn params(default: &Value, set: &Value, strip: &[&str]) -> Params {
    serde_json::from_value(json!({"default": default, "set": set, "strip": strip})).unwrap()
}

/// A ready slot with parameters and a variant.
async fn world() -> (World, crate::engine::Engine) {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |profile| {
        profile.aliases = vec!["plain".to_owned(), "careful".to_owned()];
        profile.requests.params = params(&json!({"top_k": 5}), &json!({}), &["logprobs"]);
        let careful = params(&json!({"top_k": 1}), &json!({"temperature": 0}), &[]);
        profile.requests.variants = [("careful".to_owned(), careful)].into();
    });
    let (engine, _gate) = world.make_ready("chat", 1, (4, 4));
    (world, engine)
}

/// Sends a body to a path; returns the one that the engine got.
async fn through(world: &World, engine: &crate::engine::Engine, path: &str, body: &str) -> String {
    let mut client = world.client().await;
    client.post_with(path, "connection: close\r\n", body.as_bytes()).await;
    let (mut line, request) = engine.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
    String::from_utf8(request.body.clone()).unwrap()
}

#[tokio::test]
async fn each_name_has_its_parameters_and_the_rest_of_the_body_stays() {
    let (world, engine) = world().await;
    let path = "/v1/chat/completions";
    for (body, got) in [
        (
            r#"{ "model":"plain", "x":1e3,"logprobs":true }"#,
            r#"{ "model":"plain", "x":1e3,"top_k":5 }"#,
        ),
        (r#"{"model":"chat","top_k": 7}"#, r#"{"model":"chat","top_k": 7}"#),
        (
            r#"{"temperature":1.0,"model":"careful"}"#,
            r#"{"temperature":0,"model":"careful","top_k":1}"#,
        ),
        (r#"{"messages":[]}"#, r#"{"messages":[],"top_k":5}"#),
    ] {
        assert_eq!(through(&world, &engine, path, body).await, got);
    }
}

#[tokio::test]
async fn what_goes_below_upstream_is_left_alone() {
    let (world, engine) = world().await;
    let body = r#"{"logprobs":true}"#;
    let path = "/upstream/careful/v1/chat/completions";
    assert_eq!(through(&world, &engine, path, body).await, body);
}

#[tokio::test]
async fn a_variant_is_listed_as_an_alias_is() {
    let (world, _engine) = world().await;
    let list = world.client().await.get("/v1/models").await.json();
    let ids = list["data"].as_array().unwrap().iter().map(|entry| entry["id"].clone());
    assert_eq!(ids.collect::<Vec<_>>(), ["chat", "plain", "careful"]);
    let shown = world.client().await.get("/v1/models/careful").await;
    assert_eq!(shown.json()["slot"], "chat");
}

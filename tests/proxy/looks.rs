//! Requests that only look at an engine: they load none, and are no use of one.

use serde_json::json;
use slotd::spec::profile::EngineChoice;

use crate::{
    client::Client,
    world::{World, limits},
};

async fn ask(client: &mut Client, line: &str) -> (u16, serde_json::Value) {
    client.send(format!("{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")).await;
    let answer = client.answer().await;
    (answer.head.status, answer.error())
}

#[tokio::test]
async fn a_look_at_a_slot_that_is_not_loaded_loads_nothing() {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    for path in ["/props", "/slots", "/slots/0", "/lora-adapters", "/props?model=chat"] {
        let (status, error) = ask(&mut client, &format!("GET {path}")).await;
        assert_eq!((status, &error["code"]), (503, &json!("slot_not_loaded")), "{path}");
    }
    // The next that is asked of the core is what works.
    client.post(crate::client::chat("chat", false)).await;
    let waiter = world.demanded().await;
    let (engine, gate) = world.make_ready("chat", 1, (4, 16));
    world.answer(waiter, Ok(()));
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);

    let idle = gate.idle_for();
    client.send("GET /props HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    line.request().await;
    line.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.head.status, 200);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert!(gate.idle_for() > idle, "the idle time goes on");
}

#[tokio::test]
async fn a_kept_response_is_asked_of_the_only_engine_that_may_have_it() {
    let mut world = World::start(limits()).await;
    let (_engine, _gate) = world.make_ready("llama", 1, (4, 16));
    let mut client = world.client().await;
    for line in [
        "GET /v1/responses/resp_1",
        "DELETE /v1/responses/resp_1",
        "GET /v1/responses/resp_1/input_items?limit=2",
        "POST /v1/responses/resp_1/cancel",
    ] {
        let (status, error) = ask(&mut client, line).await;
        assert_eq!((status, &error["code"]), (404, &json!("response_not_found")), "{line}");
    }
    assert_eq!(ask(&mut client, "POST /v1/responses/resp_1").await.0, 405);
    assert_eq!(ask(&mut client, "GET /v1/responses/resp_1/other").await.0, 404);

    world.make_slot("vllm", |profile| {
        profile.model = None;
        profile.engine = EngineChoice::Command(vec!["vllm".to_owned()]);
    });
    assert_eq!(ask(&mut client, "GET /v1/responses/resp_1").await.0, 503, "it is not loaded");
    let (engine, _gate) = world.make_ready("vllm", 1, (4, 16));
    for line in ["GET /v1/responses/resp_1?stream=true", "POST /v1/responses/resp_1/cancel"] {
        let mut client = world.client().await;
        client
            .send(format!("{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"))
            .await;
        let (mut to, seen) = engine.request().await;
        assert!(seen.head.starts_with(line), "{}", seen.head);
        to.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(client.answer().await.head.status, 200);
    }
}

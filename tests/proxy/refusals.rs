//! What a client is told when it gets no answer: status, headers, words.

use std::time::Duration;

use slotd::{proxy::Phase, spec::death::Verdict, supervisor::Refusal};

use crate::{
    client::{Answer, chat},
    world::{World, limits},
};

/// What the client gets when the core refuses.
async fn refused(refusal: Refusal) -> Answer {
    let mut world = World::start(limits()).await;
    world.make_slot("chat", |_| {});
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let waiter = world.demanded().await;
    world.answer(waiter, Err(refusal));
    client.answer().await
}

/// Status, `retry-after`, `retry-after-ms`, `x-should-retry`, and the error.
fn told(answer: &Answer) -> String {
    let header = |name| answer.head.header(name).unwrap_or("-");
    format!(
        "{} retry-after={} ms={} should-retry={}\n{}",
        answer.head.status,
        header("retry-after"),
        header("retry-after-ms"),
        header("x-should-retry"),
        answer.error()
    )
}

#[tokio::test]
async fn a_failed_load_says_why_and_when_to_come_back() {
    let refusal = Refusal::LoadFailed {
        verdict: Verdict::OomHost,
        reason: "the kernel killed it for memory".to_owned(),
        retry_in: Duration::from_millis(20_500),
    };
    insta::assert_snapshot!(told(&refused(refusal).await), @r#"
    503 retry-after=11 ms=10250 should-retry=-
    {"message":"slot `chat` did not load (oom-host): the kernel killed it for memory","type":"server_error","param":null,"code":"slot_load_failed"}
    "#);
}

#[tokio::test]
async fn a_failed_load_far_from_its_next_try_stays_below_what_clients_honour() {
    let refusal = Refusal::LoadFailed {
        verdict: Verdict::UnexpectedExit,
        reason: "exit code 1".to_owned(),
        retry_in: Duration::from_mins(5),
    };
    let answer = refused(refusal).await;
    assert_eq!(answer.head.header("retry-after"), Some("59"));
    assert_eq!(answer.head.header("retry-after-ms"), Some("59000"));
}

#[tokio::test]
async fn a_failed_slot_is_not_to_be_tried_again() {
    let (verdict, reason) = (Verdict::BadModel, "`small.gguf` is cut short".to_owned());
    insta::assert_snapshot!(told(&refused(Refusal::Failed { verdict, reason }).await), @r#"
    503 retry-after=- ms=- should-retry=false
    {"message":"slot `chat` has failed (bad-model) and needs a person: `small.gguf` is cut short; `slotd status chat` says more, `slotd load chat` tries again","type":"server_error","param":null,"code":"slot_failed"}
    "#);
}

#[tokio::test]
async fn a_full_queue_is_429() {
    insta::assert_snapshot!(told(&refused(Refusal::QueueFull { waiting: 256 }).await), @r#"
    429 retry-after=1 ms=1000 should-retry=-
    {"message":"slot `chat` is overloaded: its queue is full (256 waiting for it to load)","type":"rate_limit_error","param":null,"code":"queue_full"}
    "#);
}

#[tokio::test]
async fn an_unload_is_told_to_those_who_wait() {
    insta::assert_snapshot!(told(&refused(Refusal::Unloaded).await), @r#"
    503 retry-after=2 ms=2000 should-retry=-
    {"message":"slot `chat` was unloaded on request","type":"server_error","param":null,"code":"slot_unloaded"}
    "#);
}

#[tokio::test]
async fn a_stop_is_told_to_those_who_wait() {
    insta::assert_snapshot!(told(&refused(Refusal::ShuttingDown).await), @r#"
    503 retry-after=2 ms=2000 should-retry=-
    {"message":"slotd is stopping","type":"server_error","param":null,"code":"shutting_down"}
    "#);
}

#[tokio::test]
async fn a_slot_that_was_removed_is_not_found() {
    insta::assert_snapshot!(told(&refused(Refusal::SlotGone).await), @r#"
    404 retry-after=- ms=- should-retry=-
    {"message":"slot `chat` was removed while the request waited","type":"invalid_request_error","param":"model","code":"model_not_found"}
    "#);
}

#[tokio::test]
async fn an_unknown_model_is_told_what_there_is() {
    let mut world = World::start(limits()).await;
    world.make_slot("qwen3-8b", |profile| profile.aliases = vec!["gpt-4o".to_owned()]);
    world.make_slot("small", |_| {});
    let answer = world.client().await.ask(chat("qwen3-8", false)).await;
    insta::assert_snapshot!(told(&answer), @r#"
    404 retry-after=- ms=- should-retry=-
    {"message":"model `qwen3-8` is not served here; did you mean `qwen3-8b`? there is `qwen3-8b`, `small`, `gpt-4o`","type":"invalid_request_error","param":"model","code":"model_not_found"}
    "#);
    let answer = world.client().await.ask(chat("zzz", false)).await;
    insta::assert_snapshot!(told(&answer), @r#"
    404 retry-after=- ms=- should-retry=-
    {"message":"model `zzz` is not served here; there is `qwen3-8b`, `small`, `gpt-4o`","type":"invalid_request_error","param":"model","code":"model_not_found"}
    "#);
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_said() {
    let world = World::start(limits()).await;
    let mut client = world.client().await;
    let mut said = Vec::new();
    for body in [
        "",
        "{\"model\": \"a\",\n oops}",
        "[\"a\", true]",
        "3",
        "{}",
        "{\"model\":null}",
        "{\"model\":7}",
        "{\"model\":\"a\",\"model\":\"b\"}",
    ] {
        let answer = client.ask(body).await;
        assert_eq!(answer.head.status, 400, "{body}");
        said.push(answer.error().to_string());
    }
    insta::assert_snapshot!(said.join("\n"), @r#"
    {"message":"the request body cannot be read: EOF while parsing a value at line 1 column 0","type":"invalid_request_error","param":null,"code":"invalid_json"}
    {"message":"the request body cannot be read: key must be a string at line 2 column 2","type":"invalid_request_error","param":null,"code":"invalid_json"}
    {"message":"the request body is no JSON object","type":"invalid_request_error","param":null,"code":"invalid_json"}
    {"message":"the request body is no JSON object","type":"invalid_request_error","param":null,"code":"invalid_json"}
    {"message":"the request names no `model`, and `/v1/chat/completions` has not exactly one slot; no slot can: it takes a profile with `capabilities = [\"chat\"]` and an engine that has it","type":"invalid_request_error","param":"model","code":"missing_model"}
    {"message":"the request names no `model`, and `/v1/chat/completions` has not exactly one slot; no slot can: it takes a profile with `capabilities = [\"chat\"]` and an engine that has it","type":"invalid_request_error","param":"model","code":"missing_model"}
    {"message":"the request body cannot be read: invalid type: integer `7`, expected a string at line 1 column 10","type":"invalid_request_error","param":"model","code":"invalid_json"}
    {"message":"the request body cannot be read: duplicate field `model` at line 1 column 20","type":"invalid_request_error","param":"model","code":"invalid_json"}
    "#);
}

#[tokio::test]
async fn an_engines_refusal_keeps_its_status_and_gets_the_form_that_clients_know() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post(chat("chat", false)).await;
    let (mut line, _) = engine.request().await;
    let overflow = r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_prompt_tokens":99,"n_ctx":64}}"#;
    line.answer("400 Bad Request", overflow).await;
    let answer = client.answer().await;
    insta::assert_snapshot!(told(&answer), @r#"
    400 retry-after=- ms=- should-retry=-
    {"message":"too long","type":"invalid_request_error","param":null,"code":"context_length_exceeded","upstream":{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_prompt_tokens":99,"n_ctx":64}}}
    "#);

    client.post(chat("chat", true)).await;
    line.request().await;
    line.send(
        "HTTP/1.1 401 Unauthorized\r\nserver: x\r\nwww-authenticate: Bearer\r\n\
        content-type: text/html\r\ncontent-length: 11\r\n\r\n<p>no</p>\r\n",
    )
    .await;
    let answer = client.answer().await;
    assert_eq!(answer.head.header("content-type"), Some("application/json"));
    assert_eq!(answer.head.header("www-authenticate"), Some("Bearer"));
    assert_eq!(answer.head.header("server"), None);
    insta::assert_snapshot!(told(&answer), @r#"
    401 retry-after=- ms=- should-retry=-
    {"message":"<p>no</p>","type":"authentication_error","param":null,"code":null,"upstream":"<p>no</p>"}
    "#);
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_say_what_there_is() {
    let world = World::start(limits()).await;
    let mut client = world.client().await;
    let answer = client.get("/v1/chat/completion").await;
    insta::assert_snapshot!(told(&answer), @r#"
    404 retry-after=- ms=- should-retry=-
    {"message":"there is no `/v1/chat/completion`; there is POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/messages/count_tokens, /v1/embeddings, /v1/rerank, /v2/rerank, /v1/audio/transcriptions, /v1/audio/translations, /v1/audio/speech, /v1/images/generations, /v1/images/edits, /v1/images/variations, /completion, /infill, /tokenize, /detokenize, /apply-template; GET /v1/models, /v1/models/{id}, /v1/audio/voices, /v1/realtime, /props, /slots, /metrics, /healthz, /livez, /readyz; any /upstream/{slot}/…","type":"invalid_request_error","param":null,"code":"not_found"}
    "#);
    let answer = client.get("/v1/chat/completions").await;
    assert_eq!(answer.head.header("allow"), Some("POST"));
    insta::assert_snapshot!(told(&answer), @r#"
    405 retry-after=- ms=- should-retry=-
    {"message":"`/v1/chat/completions` takes POST","type":"invalid_request_error","param":null,"code":"method_not_allowed"}
    "#);
    client.send("DELETE /v1/models/chat HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.head.header("allow")), (405, Some("GET, HEAD")));
}

#[tokio::test]
async fn other_names_of_this_machine_and_pages_of_other_sites_are_refused() {
    let world = World::start(limits()).await;
    let mut client = world.client().await;
    client.send("GET /v1/models HTTP/1.1\r\nhost: evil.example:7568\r\n\r\n").await;
    insta::assert_snapshot!(told(&client.answer().await), @r#"
    403 retry-after=- ms=- should-retry=-
    {"message":"the `Host` header does not name this machine (localhost, 127.0.0.1, [::1], the address that it listens on, or one of `allowed_hosts` in slotd.toml)","type":"invalid_request_error","param":null,"code":"host_refused"}
    "#);
    client.post_with("/v1/chat/completions", "origin: https://evil.example\r\n", b"{}").await;
    insta::assert_snapshot!(told(&client.answer().await), @r#"
    403 retry-after=- ms=- should-retry=-
    {"message":"web pages from elsewhere may not ask; `cors_origins` in slotd.toml lists those that may (`Origin` header)","type":"invalid_request_error","param":null,"code":"origin_refused"}
    "#);
}

#[tokio::test]
async fn readiness_follows_the_phase_and_health_does_not() {
    let world = World::start(limits()).await;
    for (phase, ready) in [(Phase::Starting, 503), (Phase::Serving, 200), (Phase::Stopping, 503)] {
        world.phase.send_replace(phase);
        let mut client = world.client().await;
        assert_eq!(client.get("/readyz").await.head.status, ready, "{phase:?}");
        assert_eq!(client.get("/healthz").await.text(), "ok\n");
        assert_eq!(client.get("/livez").await.head.status, 200);
        assert_eq!(client.get("/").await.head.status, 200);
        let models = client.get("/v1/models").await;
        assert_eq!(models.head.status, if phase == Phase::Starting { 503 } else { 200 });
    }
    world.phase.send_replace(Phase::Ended);
    world.ended().await;
}

//! Requests as clients send them: odd framing, odd sizes, odd headers.

use crate::{
    client::{Client, chat},
    engine::{Engine, Request},
    world::{World, limits},
};

/// Lets one request through and returns what the engine got.
async fn through(client: &mut Client, engine: &Engine) -> Request {
    let (mut line, request) = engine.request().await;
    line.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status, answer.text()), (200, "{}"));
    request
}

#[tokio::test]
async fn odd_bodies_pass_untouched() {
    let (world, engine, _gate) = World::ready().await;
    let escapes = "\\\"\\n\\u00e9\\\\".repeat(4000);
    let bodies = [
        r#"{"messages":[{"model":"inner","content":"\"model\":\"x\""}],"x":[{"model":2}],"model":"chat"}"#.to_owned(),
        format!(r#"{{"messages":[{{"role":"user","content":"{escapes}"}}],"model":"chat"}}"#),
        " \n\t{ \"model\" :\"ch\\u0061t\" , \"unknown\": 1.50e+02 , \"stream\" : null }\r\n".to_owned(),
        format!(r#"{{"deep":{}{},"model":"chat"}}"#, "[".repeat(999), "]".repeat(999)),
    ];
    for body in bodies {
        let mut client = world.client().await;
        client.post(&body).await;
        assert!(through(&mut client, &engine).await.body == body.as_bytes(), "{body:.80}");
    }
}

#[tokio::test]
async fn a_body_may_come_byte_by_byte() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    let body = chat("chat", false);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";
    for byte in format!("{head}content-length: {}\r\n\r\n{body}", body.len()).bytes() {
        client.send([byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(through(&mut client, &engine).await.body, body.as_bytes());

    let chunks: Vec<String> = body.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let chunks = chunks.concat();
    client.send(format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")).await;
    let request = through(&mut client, &engine).await;
    assert_eq!(request.body, body.as_bytes());
    assert_eq!(request.header("transfer-encoding"), None);
}

#[tokio::test]
async fn a_client_may_ask_first_whether_to_send() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    let body = chat("chat", false);
    client
        .send(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    assert_eq!(client.head().await.status, 100);
    client.send(&body).await;
    let request = through(&mut client, &engine).await;
    assert_eq!(request.header("expect"), None);
}

#[tokio::test]
async fn a_large_body_passes_below_the_limit_and_is_refused_above_it() {
    let mut limits = limits();
    limits.max_body = 34 << 20;
    let mut world = World::start(limits).await;
    let (engine, _gate) = world.make_ready("chat", 1, (1, 1));
    let body = |size: usize| {
        let text = "x".repeat(size);
        format!(r#"{{"messages":"{text}","model":"chat"}}"#)
    };
    let mut client = world.client().await;
    let large = body(33 << 20);
    let ((), request) = tokio::join!(client.post(&large), async {
        let (mut line, request) = engine.request().await;
        line.answer("200 OK", "{}").await;
        request
    });
    assert!(request.body == large.as_bytes(), "the body was changed");
    assert_eq!(client.answer().await.head.status, 200);

    let answer = world.client().await.ask(body(40 << 20)).await;
    assert_eq!(answer.head.status, 413);
    insta::assert_snapshot!(answer.error(), @r#"{"message":"the request body is larger than 35651584 bytes; `max_body` in slotd.toml is the limit","type":"invalid_request_error","param":null,"code":"body_too_large"}"#);

    let mut client = world.client().await;
    client
        .send(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
             content-length: 99999999999\r\n\r\n",
        )
        .await;
    assert_eq!(client.head().await.status, 413, "refused before a byte of it was sent");
}

#[tokio::test]
async fn compressed_bodies_are_refused_in_words() {
    let (world, _engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    client.post_with("/v1/chat/completions", "content-encoding: gzip\r\n", b"\x1f\x8b").await;
    let answer = client.answer().await;
    assert_eq!(answer.head.status, 415);
    insta::assert_snapshot!(answer.error(), @r#"{"message":"compressed request bodies are not taken, send the JSON as it is","type":"invalid_request_error","param":null,"code":"unsupported_encoding"}"#);
}

#[tokio::test]
async fn ambiguous_framing_never_reaches_an_engine() {
    let (world, engine, _gate) = World::ready().await;
    let body = chat("chat", false);
    let length = body.len();
    let smuggled = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    for framing in [
        format!("content-length: {length}\r\ncontent-length: {}\r\n", length + 1),
        format!("content-length: +{length}\r\n"),
        "transfer-encoding: xchunked\r\n".to_owned(),
        format!("content-length : {length}\r\n"),
        format!("x: a\r\n b\r\ncontent-length: {length}\r\n"),
    ] {
        let mut client = world.client().await;
        client
            .send(format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n{body}{smuggled}"
            ))
            .await;
        assert_eq!(client.head().await.status, 400, "{framing:?}");
    }
    // The first request that the engine sees is this one.
    let mut client = world.client().await;
    client.post_with("/v1/completions", "", body.as_bytes()).await;
    assert!(through(&mut client, &engine).await.head.starts_with("POST /v1/completions "));
}

#[tokio::test]
async fn a_chunked_length_wins_and_only_one_framing_is_forwarded() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    let body = chat("chat", false);
    client
        .send(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ))
        .await;
    let (_line, request) = engine.request().await;
    assert_eq!(request.body, body.as_bytes());
    assert_eq!(request.header("transfer-encoding"), None);
}

#[tokio::test]
async fn headers_of_one_connection_and_keys_stay_here_others_pass() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    let headers = "connection: keep-alive, x-hop\r\nx-hop: 1\r\nte: trailers\r\n\
        authorization: Bearer secret\r\nx-api-key: secret\r\ncookie: a=b\r\nx-forwarded-for: 1.2.3.4\r\n\
        accept-encoding: gzip\r\nx-session-id: s1\r\ncontent-type: application/json\r\n\
        x-request-id: mine-1\r\n";
    client
        .post_with(
            "http://localhost/v1/chat/completions?x=1",
            headers,
            chat("chat", false).as_bytes(),
        )
        .await;
    let request = through(&mut client, &engine).await;
    assert!(request.head.starts_with("POST /v1/chat/completions?x=1 HTTP/1.1\r\n"));
    for name in [
        "connection",
        "x-hop",
        "te",
        "authorization",
        "x-api-key",
        "cookie",
        "x-forwarded-for",
        "accept-encoding",
    ] {
        assert_eq!(request.header(name), None, "{name}");
    }
    assert_eq!(request.header("x-session-id"), Some("s1"));
    assert_eq!(request.header("x-request-id"), Some("mine-1"));
    assert_eq!(request.header("host"), Some("localhost"));
}

#[tokio::test]
async fn every_answer_has_a_request_id_a_sane_one_is_kept() {
    let world = World::start(limits()).await;
    let mut client = world.client().await;
    let mut made = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let answer = client.get("/healthz").await;
        made.insert(answer.head.header("x-request-id").unwrap().to_owned());
    }
    assert_eq!(made.len(), 3, "{made:?}");
    let mut ask = async |id: &str| {
        client.post_with("/nowhere", &format!("x-request-id: {id}\r\n"), b"").await;
        client.answer().await.head.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask("abc-DEF_1/2").await, "abc-DEF_1/2");
    assert_ne!(ask("has space").await, "has space");
    assert_ne!(ask(&"x".repeat(129)).await, "x".repeat(129));
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_pipelined_ones_in_order() {
    let (world, engine, _gate) = World::ready().await;
    let mut client = world.client().await;
    let get = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.post(chat("chat", false)).await;
    client.send(get).await;
    let (mut line, _) = engine.request().await;
    line.answer("200 OK", "{\"first\":1}").await;
    assert_eq!(client.answer().await.text(), "{\"first\":1}");
    assert_eq!(client.answer().await.text(), "ok\n");
}

//! Who may speak to the endpoint: keys and their roles, names of this machine, pages of browsers.

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;
use slotd::{
    config::keys::{self, Keys, Role},
    proxy::Access,
};

use crate::{
    client::{Answer, Client, chat},
    engine::Engine,
    world::{World, limits},
};

/// Keys that are asked for, as the daemon reads them.
struct Ring {
    infer: String,
    admin: String,
    keys: Arc<ArcSwap<Keys>>,
}

fn read(file: &Path) -> Keys {
    Keys::Asked(keys::read(file).unwrap().unwrap())
}

impl Ring {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let infer = keys::add(&file, "laptop", Role::Infer).unwrap();
        let admin = keys::add(&file, "ops", Role::Admin).unwrap();
        Self { infer, admin, keys: Arc::new(ArcSwap::from_pointee(read(&file))) }
    }

    fn access(&self) -> Access {
        Access { keys: Arc::clone(&self.keys), ..Access::default() }
    }
}

async fn locked() -> (Ring, World, Engine) {
    let ring = Ring::new();
    let mut world = World::start_with(limits(), ring.access()).await;
    let (engine, _) = world.make_ready("chat", 1, (4, 16));
    (ring, world, engine)
}

async fn ask(client: &mut Client, line: &str, headers: &str) -> Answer {
    client.send(format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")).await;
    client.answer().await
}

#[tokio::test]
async fn a_key_opens_what_it_is_for_and_nothing_else() {
    let (ring, world, _engine) = locked().await;
    let keys = [
        ("none", String::new()),
        ("wrong", "authorization: Bearer sk-slotd-0\r\n".to_owned()),
        ("infer", format!("authorization: Bearer {}\r\n", ring.infer)),
        ("infer", format!("x-api-key: {}\r\n", ring.infer)),
        ("admin", format!("authorization: Bearer {}\r\n", ring.admin)),
    ];
    // Each line: the answer without a key, to a wrong one, to one for models, to one for orders.
    for (line, statuses) in [
        ("GET /", [200, 200, 200, 200, 200]),
        ("GET /healthz", [200, 200, 200, 200, 200]),
        ("GET /livez", [200, 200, 200, 200, 200]),
        ("GET /readyz", [200, 200, 200, 200, 200]),
        ("GET /v1/models", [401, 401, 200, 200, 403]),
        ("GET /v1/models/chat", [401, 401, 200, 200, 403]),
        ("POST /v1/chat/completions", [401, 401, 400, 400, 403]),
        ("POST /v1/completions", [401, 401, 400, 400, 403]),
        ("POST /v1/embeddings", [401, 401, 400, 400, 403]),
        ("GET /nowhere", [401, 401, 404, 404, 403]),
        ("OPTIONS /v1/models", [401, 401, 204, 204, 403]),
        ("DELETE /", [401, 401, 405, 405, 403]),
    ] {
        for ((who, header), status) in keys.iter().zip(statuses) {
            let headers = format!("content-length: 0\r\n{header}");
            let answer = ask(&mut world.client().await, line, &headers).await;
            assert_eq!(answer.head.status, status, "{line} with {who} key");
        }
    }
}

#[tokio::test]
async fn a_refused_key_is_told_what_to_do() {
    let (ring, world, _engine) = locked().await;
    let mut client = world.client().await;
    let answer = ask(&mut client, "GET /v1/models", "").await;
    assert_eq!(answer.head.header("www-authenticate"), Some("Bearer"));
    insta::assert_snapshot!(answer.error(), @r#"{"message":"a key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`; `slotd key new NAME` makes one, in the file that `keys` in slotd.toml names","type":"authentication_error","param":null,"code":"missing_api_key"}"#);
    let answer = ask(&mut client, "GET /v1/models", "x-api-key: sk-canary\r\n").await;
    assert!(!answer.text().contains("sk-canary"));
    insta::assert_snapshot!(answer.error(), @r#"{"message":"the key is not known here: send `Authorization: Bearer KEY` or `x-api-key: KEY`; `slotd key new NAME` makes one, in the file that `keys` in slotd.toml names","type":"authentication_error","param":null,"code":"invalid_api_key"}"#);
    let header = format!("x-api-key: {}\r\n", ring.admin);
    insta::assert_snapshot!(ask(&mut client, "GET /v1/models", &header).await.error(), @r#"{"message":"the key `ops` gives orders to the daemon; asking models takes one of `slotd key new NAME`","type":"permission_error","param":null,"code":"wrong_role"}"#);
    let header = format!("x-api-key: {}\r\n", ring.infer);
    insta::assert_snapshot!(ask(&mut client, "GET /v1/slots", &header).await.error(), @r#"{"message":"the key `laptop` asks models; orders take one of `slotd key new --admin NAME`","type":"permission_error","param":null,"code":"wrong_role"}"#);
}

#[tokio::test]
async fn a_refused_body_is_read_so_that_the_refusal_is() {
    let (_ring, world, _engine) = locked().await;
    let mut client = world.client().await;
    let body = vec![b' '; 512 << 10];
    client.post_with("/v1/chat/completions", "", &body).await;
    assert_eq!(client.answer().await.head.status, 401);
    // The connection goes on.
    assert_eq!(client.get("/healthz").await.head.status, 200);
}

#[tokio::test]
async fn a_key_goes_no_further_than_the_endpoint() {
    let (ring, world, engine) = locked().await;
    for header in ["authorization: Bearer", "Authorization: bearer", "x-api-key:", "X-Api-Key:"] {
        let mut client = world.client().await;
        let header = format!("{header} {}\r\n", ring.infer);
        client.post_with("/v1/chat/completions", &header, chat("chat", false).as_bytes()).await;
        let (mut line, request) = engine.request().await;
        let head = request.head.to_ascii_lowercase();
        assert!(!head.contains(&ring.infer) && !head.contains("sk-slotd"), "{head}");
        line.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(client.answer().await.head.status, 200);
    }
}

#[tokio::test]
async fn a_wrong_key_in_one_header_hides_no_right_one_in_the_other() {
    let (ring, world, _engine) = locked().await;
    let mut client = world.client().await;
    for (bearer, plain, status) in [
        ("sk-none", ring.infer.as_str(), 200),
        (ring.infer.as_str(), "sk-none", 200),
        (ring.admin.as_str(), ring.infer.as_str(), 200),
        ("sk-none", ring.admin.as_str(), 403),
        ("sk-none", "sk-other", 401),
    ] {
        let headers = format!("authorization: Bearer {bearer}\r\nx-api-key: {plain}\r\n");
        let answer = ask(&mut client, "GET /v1/models", &headers).await;
        assert_eq!(answer.head.status, status);
    }
}

#[tokio::test]
async fn a_key_that_was_taken_away_opens_nothing_on_an_open_connection() {
    let (ring, world, _engine) = locked().await;
    let mut client = world.client().await;
    let header = format!("x-api-key: {}\r\n", ring.infer);
    assert_eq!(ask(&mut client, "GET /v1/models", &header).await.head.status, 200);
    ring.keys.store(Arc::new(Keys::Asked(Vec::new())));
    assert_eq!(ask(&mut client, "GET /v1/models", &header).await.head.status, 401);
}

#[tokio::test]
async fn without_keys_nobody_is_asked_but_for_orders() {
    let world = World::start(limits()).await;
    let mut client = world.client().await;
    assert_eq!(client.get("/v1/models").await.head.status, 200);
    assert_eq!(client.get("/v1/slots").await.head.status, 401);
}

const PAGE: &str = "https://chat.example";

async fn with_pages() -> World {
    let access = Access {
        origins: vec![PAGE.to_owned()],
        hosts: vec!["gpu-box.lan".to_owned()],
        ..Ring::new().access()
    };
    World::start_with(limits(), access).await
}

#[tokio::test]
async fn a_listed_page_may_ask_and_read_and_no_other() {
    let world = with_pages().await;
    let mut client = world.client().await;
    let preflight = |origin: &str| {
        format!(
            "origin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization, X-Stainless-Lang,bad name,*\r\n"
        )
    };
    // No key: browsers send none with this question.
    let answer = {
        let path = "OPTIONS /v1/chat/completions";
        client
            .send(format!("{path} HTTP/1.1\r\nhost: gpu-box.lan:80\r\n{}\r\n", preflight(PAGE)))
            .await;
        client.head().await
    };
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(answer.header("access-control-max-age"), Some("86400"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    let names = answer.header("access-control-allow-headers").unwrap();
    assert_eq!(names, "authorization, content-type, x-api-key, x-stainless-lang");
    assert!(answer.header("access-control-allow-methods").unwrap().contains("POST"));
    assert!(answer.header("vary").is_some());

    let refused = ask(&mut client, "GET /v1/models", &format!("origin: {PAGE}\r\n")).await;
    assert_eq!(refused.head.status, 401, "a page needs a key as others do");
    assert_eq!(refused.head.header("access-control-allow-origin"), Some(PAGE));
    let own = ask(&mut client, "GET /healthz", "").await;
    assert_eq!(own.head.header("vary"), Some("origin"));
    assert_eq!(own.head.header("access-control-allow-origin"), None);

    for origin in [
        "https://chat.example.evil",
        "http://chat.example",
        "https://chat.example:8443",
        "https://CHAT.example",
        "null",
        "file://",
        "*",
        "",
    ] {
        for line in ["GET /healthz", "OPTIONS /v1/chat/completions"] {
            let answer = ask(&mut client, line, &preflight(origin)).await;
            assert_eq!(answer.head.status, 403, "{origin:?} {line}");
            assert_eq!(answer.head.header("access-control-allow-origin"), None, "{origin:?}");
        }
    }
    let twice = format!("origin: {PAGE}\r\norigin: {PAGE}\r\n");
    assert_eq!(ask(&mut client, "GET /healthz", &twice).await.head.status, 403);
    let image = ask(&mut client, "GET /healthz", "sec-fetch-site: cross-site\r\n").await;
    assert_eq!(image.head.status, 403, "a page's request that has no `Origin`");
}

#[tokio::test]
async fn a_host_is_one_of_ours_by_name_or_by_the_address_that_was_reached() {
    let world = with_pages().await;
    let port = world.address.port();
    for (host, status) in [
        ("localhost".to_owned(), 200),
        (format!("127.0.0.1:{port}"), 200),
        (format!("GPU-box.lan:{port}"), 200),
        ("192.168.1.4".to_owned(), 403),
        ("gpu-box".to_owned(), 403),
        ("gpu-box.lan.evil.com".to_owned(), 403),
        ("user@localhost".to_owned(), 403),
        (String::new(), 403),
    ] {
        let mut client = world.client().await;
        client.send(format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(client.answer().await.head.status, status, "{host}");
    }
}

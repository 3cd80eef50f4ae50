//! Pulls where the environment names a proxy.

use serde_json::json;

use crate::{
    World,
    between::{Between, CREDENTIALS, NAME},
    daemon::Daemon,
    world::content,
};

const TOKEN: &str = "hf_canary0123456789";

fn world() -> World {
    World::new(&[("o/r/m-Q4_K_M.gguf", &content(1, 200_000))])
}

fn with_credentials(between: &Between) -> String {
    format!("http://ada:canary@{}", between.address)
}

#[tokio::test]
async fn a_hub_without_tls_is_asked_through_the_proxy_with_its_credentials() {
    let world = world();
    let between = Between::start(&world.hub.url, Some(CREDENTIALS)).await;
    let mut command = world.command(&["pull", "o/r", "--json"]);
    command.env("HTTP_PROXY", with_credentials(&between));
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let asked = between.asked();
    assert!(asked.len() >= 2, "{asked:?}");
    let is_whole = |url: &str| url.starts_with(&world.hub.url);
    assert!(asked.iter().all(|it| it.method == "GET" && is_whole(&it.target)), "{asked:?}");
    assert_eq!(world.hub.seen().await.len(), asked.len(), "nothing went past the proxy");
    assert!(!format!("{}{}", end.out, end.said).contains("canary"));
}

#[tokio::test]
async fn over_tls_the_proxy_sees_the_hubs_name_alone() {
    let world = world();
    world.hub.rules(json!({ "token": TOKEN })).await;
    let between = Between::start(&world.hub.url, Some(CREDENTIALS)).await;
    let mut command = world.command(&["pull", "o/r", "--json"]);
    command.env("HF_ENDPOINT", format!("https://{NAME}")).env("HF_TOKEN", TOKEN);
    command.env("SSL_CERT_FILE", between.root()).env("all_proxy", with_credentials(&between));
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let asked = between.asked();
    assert!(!asked.is_empty());
    for one in &asked {
        assert_eq!((one.method.as_str(), one.target.as_str()), ("CONNECT", "hub.invalid:443"));
        assert_eq!((one.shown.as_deref(), &one.token), (Some(CREDENTIALS), &None));
    }
    let shown = format!("Bearer {TOKEN}");
    assert!(world.hub.seen().await.iter().all(|it| it.authorization.as_deref() == Some(&*shown)));
    assert!(!format!("{}{}", end.out, end.said).contains("canary"));
}

#[tokio::test]
async fn a_redirect_through_the_proxy_goes_without_the_token_too() {
    let world = world();
    world.hub.rules(json!({ "token": TOKEN, "send_large_to_other_host": true })).await;
    let between = Between::start(&world.hub.url, None).await;
    let mut command = world.command(&["pull", "o/r"]);
    command.env("HF_TOKEN", TOKEN).env("HTTP_PROXY", format!("http://{}", between.address));
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let asked = between.asked();
    let (own, elsewhere): (Vec<_>, Vec<_>) =
        asked.iter().partition(|it| it.target.starts_with(&world.hub.url));
    assert!(own.iter().all(|it| it.token.is_some()), "{own:?}");
    assert!(
        !elsewhere.is_empty() && elsewhere.iter().all(|it| it.token.is_none()),
        "{elsewhere:?}"
    );
}

#[tokio::test]
async fn a_host_that_is_excepted_is_reached_past_the_proxy() {
    let world = world();
    let between = Between::start(&world.hub.url, None).await;
    let mut command = world.command(&["pull", "o/r"]);
    command.env("HTTP_PROXY", format!("http://{}", between.address));
    command.env("NO_PROXY", "example.com,127.0.0.0/8");
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert_eq!(between.asked(), []);
}

#[tokio::test]
async fn what_a_proxy_refuses_is_said_without_what_it_was_shown() {
    let world = world();
    let between = Between::start(&world.hub.url, Some("Basic other")).await;
    let address = between.address.to_string();
    let said = async |endpoint: &str, proxy: &str| {
        let mut command = world.command(&["pull", "o/r"]);
        command.env("HF_ENDPOINT", endpoint).env("SSL_CERT_FILE", between.root());
        let end = crate::run({
            command.env("ALL_PROXY", proxy);
            command
        });
        let end = end.await;
        assert_eq!(end.code, Some(78), "{}", end.said);
        assert!(!end.said.contains("canary") && !end.said.contains("YWRh"), "{}", end.said);
        end.said.lines().last().unwrap().replace(&address, "PROXY")
    };
    let wrong = with_credentials(&between);
    let wants = "slotd: the proxy `PROXY` wants another user or password; say them in the variable that \
                 names it, as `http://USER:PASSWORD@HOST:PORT`";
    assert_eq!(said(&world.hub.url, &wrong).await, wants);
    assert_eq!(said(&format!("https://{NAME}"), &wrong).await, wants);
    let none = said(&world.hub.url, "ftp://ada:canary@h").await;
    assert!(none.starts_with("slotd: `ALL_PROXY` is no address of a proxy"), "{none}");
    assert!(world.hub.seen().await.is_empty());
}

#[tokio::test]
async fn what_is_no_proxy_does_not_stop_a_pull_that_would_not_use_it() {
    let world = world();
    let mut command = world.command(&["pull", "o/r"]);
    command.env("ALL_PROXY", "ftp://ada:canary@h").env("NO_PROXY", "127.0.0.1");
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let mut command = world.command(&["pull", "o/r"]);
    command.env("ALL_PROXY", "ftp://ada:canary@h").env("HF_HUB_OFFLINE", "1");
    let end = crate::run(command).await;
    assert_eq!(end.code, Some(0), "it is whole on this disk: {}", end.said);
}

/// An engine that listens on TCP, its health, its requests and the control API are never asked
/// through a proxy; the daemon's pull is.
#[tokio::test]
async fn a_daemon_pulls_through_the_proxy_and_reaches_its_engines_without() {
    let world = World::new(&[
        ("o/s/config.json", br#"{"model_type":"llama"}"#),
        ("o/s/tokenizer.json", &content(3, 1000)),
        ("o/s/model.safetensors", &crate::daemon::safetensors(100_000)),
    ]);
    let between = Between::start(&world.hub.url, Some(CREDENTIALS)).await;
    let proxy = with_credentials(&between);
    let variables = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"];
    let variables = variables.map(|name| (name, proxy.as_str()));
    let profile = crate::daemon::profile_with("port={port}", "pull = \"auto\"");
    let daemon = Daemon::start_with(&world, &profile, &variables).await;
    let (status, answer) = daemon.chat().await;
    assert_eq!(status, 200, "{answer:#}");
    let asked = between.asked();
    assert!(!asked.is_empty(), "the pull went past the proxy");
    assert!(asked.iter().all(|it| it.target.starts_with(&world.hub.url)), "{asked:?}");
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
}

//! The daemon's doors: beyond loopback, over TLS, for Ollama's clients, and what is noted of who came.

use std::{fs, net::TcpListener, path::Path, sync::Arc, time::Duration};

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    access::{new_key, until_logged},
    common::{DEADLINE, Daemon, fake, scratch},
};

fn write_settings(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join("slotd")).unwrap();
    fs::write(dir.join("slotd/slotd.toml"), text).unwrap();
}

#[tokio::test]
async fn a_daemon_beyond_loopback_serves_those_with_a_key_and_nobody_else() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let dir = scratch(&[("chat", &fake("", ""))]);
    let key = new_key(dir.path(), &["laptop"]).await;
    let mut daemon = Daemon::start_activated(dir, &listener).await;
    daemon.url = format!("http://127.0.0.1:{port}");
    assert_eq!(daemon.chat("chat").await.status(), 401);
    let body = serde_json::json!({"model": "chat", "messages": []});
    let request = daemon.client.post(format!("{}/v1/chat/completions", daemon.url));
    let answer = request.bearer_auth(&key).json(&body).send();
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn the_access_log_has_a_line_a_request_and_nothing_of_its_content() {
    let dir = scratch(&[("chat", &fake("tokens=3", ""))]);
    let key = new_key(dir.path(), &["laptop"]).await;
    write_settings(dir.path(), "access_log = true\nlog_format = \"json\"\n");
    let daemon = Daemon::start(dir).await;
    let message = serde_json::json!([{"role": "user", "content": "canary-prompt"}]);
    let body = serde_json::json!({"model": "chat", "messages": message});
    let request = daemon.client.post(format!("{}/v1/chat/completions", daemon.url));
    let request = request.bearer_auth(&key).header("x-request-id", "mine-7").json(&body);
    let answer = timeout(DEADLINE, request.send()).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap();
    until_logged(&daemon, "request ended").await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("request ended")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &"slotd::access".into()));
    let fields = &line;
    for (name, value) in [
        ("request_id", "mine-7"),
        ("slot", "chat"),
        ("key", "laptop"),
        ("lane", "interactive"),
        ("outcome", "answered"),
    ] {
        assert_eq!(fields[name], value, "{line:#}");
    }
    assert_eq!(fields["status"], 200);
    assert!(fields["elapsed_ms"].is_u64() && fields["generation_tokens"].is_u64(), "{line:#}");
    assert!(!log.contains("canary-prompt") && !log.contains(&key));
}

fn made() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
}

fn write_pair(dir: &Path, made: &CertifiedKey<KeyPair>) {
    fs::write(dir.join("slotd/key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(dir.join("slotd/cert.pem"), made.cert.pem()).unwrap();
}

/// Asks for the health as a client that trusts one certificate alone.
async fn ask_over_tls(address: &str, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_new_certificate_is_shown_while_the_daemon_runs_and_a_wrong_pair_is_not() {
    let dir = scratch(&[]);
    let (old, new) = (made(), made());
    write_settings(dir.path(), "tls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n");
    write_pair(dir.path(), &old);
    let daemon = Daemon::start(dir).await;
    let address = daemon.url.rsplit('/').next().unwrap().to_owned();
    let answer = timeout(DEADLINE, ask_over_tls(&address, old.cert.der())).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // A certificate without its key changes nothing.
    fs::write(daemon.dir.path().join("slotd/cert.pem"), new.cert.pem()).unwrap();
    until_logged(&daemon, "certificate not applied").await;
    assert!(ask_over_tls(&address, old.cert.der()).await.is_ok());
    write_pair(daemon.dir.path(), &new);
    let begin = Instant::now();
    while ask_over_tls(&address, new.cert.der()).await.is_err() {
        assert!(begin.elapsed() < DEADLINE, "never shown\n{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
    assert!(ask_over_tls(&address, old.cert.der()).await.is_err());
}

#[tokio::test]
async fn the_socket_of_ollamas_clients_outlives_an_upgrade() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    write_settings(dir.path(), "ollama_listen = \"127.0.0.1:0\"\n");
    let daemon = Daemon::start(dir).await;
    let before = daemon.daemon().await;
    let address = before["ollama_listen"].as_str().unwrap().to_owned();
    let url = format!("http://{address}/api/version");
    assert_eq!(daemon.client.get(&url).send().await.unwrap().status(), 200);
    let upgraded = Command::new(env!("CARGO_BIN_EXE_slotd"))
        .arg("--control")
        .arg(daemon.dir.path().join("state/run/control.sock"))
        .arg("upgrade")
        .kill_on_drop(true)
        .output();
    let upgraded = timeout(DEADLINE, upgraded).await.unwrap().unwrap();
    assert!(upgraded.status.success(), "{upgraded:?}");
    let answer = timeout(DEADLINE, daemon.client.get(&url).send()).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let after = daemon.daemon().await;
    assert_eq!(after["ollama_listen"], address.as_str(), "{after:#}");
    assert_ne!(after["images"], before["images"]);
}

//! TLS on the endpoint: a certificate that can be replaced while it serves.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use slotd::proxy::{Access, Certificate};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    client::chat,
    world::{World, limits, soon},
};

fn made() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
}

fn read(made: &CertifiedKey<KeyPair>) -> Certificate {
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap()
}

/// Connects as a client that trusts one certificate alone.
async fn connect(
    world: &World,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(world.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    soon("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A peer that leaves without a farewell is an error here, after all that it said.
    drop(soon("an answer", stream.read_to_end(&mut answer)).await);
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn requests_pass_over_tls_and_a_new_certificate_counts_for_new_connections() {
    let (old, new) = (made(), made());
    let certificate = Arc::new(ArcSwap::from_pointee(read(&old)));
    let access = Access { certificate: Some(Arc::clone(&certificate)), ..Access::default() };
    let mut world = World::start_with(limits(), access).await;
    let (engine, _gate) = world.make_ready("chat", 1, (4, 16));
    let mut before = connect(&world, old.cert.der()).await.unwrap();
    certificate.store(Arc::new(read(&new)));
    assert!(connect(&world, old.cert.der()).await.is_err(), "the old certificate is shown");
    let mut after = connect(&world, new.cert.der()).await.unwrap();

    let body = chat("chat", false);
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    for stream in [&mut before, &mut after] {
        let answering = async {
            let (mut line, _) = engine.request().await;
            line.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
        };
        let (answer, ()) = tokio::join!(ask(stream, &request), answering);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{}"), "{answer}");
    }
}

#[tokio::test]
async fn who_speaks_plain_http_to_tls_is_not_heard() {
    let access = Access {
        certificate: Some(Arc::new(ArcSwap::from_pointee(read(&made())))),
        ..Access::default()
    };
    let world = World::start_with(limits(), access).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    drop(soon("the end", stream.read_to_end(&mut answer)).await);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[test]
fn what_is_no_pair_is_said() {
    let (one, other) = (made(), made());
    let read = |chain: &str, key: &str| {
        Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string()
    };
    let (chain, key) = (one.cert.pem(), one.signing_key.serialize_pem());
    assert_eq!(read("", &key), "there is no PEM certificate in it");
    assert_eq!(read(&chain, &chain), "there is no PEM private key in it");
    let unfit = read(&chain, &other.signing_key.serialize_pem());
    assert!(unfit.starts_with("the certificate and the key do not go together: "), "{unfit}");
}

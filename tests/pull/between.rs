//! A proxy on loopback: it forwards requests that are written out in full, and opens tunnels. What lies at
//! the end of a tunnel is the hub behind a certificate of its own, whatever its name.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    client::conn::http1::handshake,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::scratch;

/// The name that the hub behind the certificate has; nobody else can resolve it.
pub(crate) const NAME: &str = "hub.invalid";
/// `ada:canary`.
pub(crate) const CREDENTIALS: &str = "Basic YWRhOmNhbmFyeQ==";

pub(crate) struct Between {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    certificate: TempDir,
    tasks: Tasks,
}

/// Everything that runs for it; ended with it.
type Tasks = Arc<Mutex<JoinSet<()>>>;

/// What the proxy was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) shown: Option<String>,
    /// The hub's token, where the proxy can read it.
    pub(crate) token: Option<String>,
}

/// What it needs for an answer.
struct Post {
    hub: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    acceptor: TlsAcceptor,
    wanted: Option<&'static str>,
    tasks: Tasks,
}

impl Between {
    /// Starts it before the hub of an address; it wants `wanted` as credentials.
    pub(crate) async fn start(hub: &str, wanted: Option<&'static str>) -> Self {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = scratch();
        std::fs::write(certificate.path().join("root.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let tls = tls.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let (asked, tasks) = (Arc::new(Mutex::new(Vec::new())), Tasks::default());
        let post = Arc::new(Post {
            hub: hub.trim_start_matches("http://").to_owned(),
            asked: Arc::clone(&asked),
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            wanted,
            tasks: Arc::clone(&tasks),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.lock().unwrap().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (post, owner) = (Arc::clone(&post), Arc::clone(&post.tasks));
                let answer = service_fn(move |request| answer(Arc::clone(&post), request));
                let connection = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .with_upgrades();
                owner.lock().unwrap().spawn(async move { drop(connection.await) });
            }
        });
        Self { address, asked, certificate, tasks }
    }

    /// The file with the root of its certificate.
    pub(crate) fn root(&self) -> PathBuf {
        self.certificate.path().join("root.pem")
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.tasks.lock().unwrap().abort_all();
    }
}

async fn answer(
    post: Arc<Post>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let shown = header("proxy-authorization");
    post.asked.lock().unwrap().push(Asked {
        method: request.method().to_string(),
        target: request.uri().to_string(),
        shown: shown.clone(),
        token: header("authorization"),
    });
    if post.wanted.is_some() && post.wanted != shown.as_deref() {
        return Ok(status(StatusCode::PROXY_AUTHENTICATION_REQUIRED));
    }
    if request.method() == Method::CONNECT {
        let owner = Arc::clone(&post.tasks);
        owner.lock().unwrap().spawn(tunnel(post, request));
        return Ok(Response::default());
    }
    if request.uri().scheme_str() != Some("http") {
        return Ok(status(StatusCode::BAD_REQUEST));
    }
    forward(&post.tasks, request).await
}

async fn tunnel(post: Arc<Post>, request: Request<Incoming>) {
    let upgraded = hyper::upgrade::on(request).await.unwrap();
    // A client that does not trust it leaves.
    let Ok(mut inside) = post.acceptor.accept(TokioIo::new(upgraded)).await else { return };
    let mut hub = TcpStream::connect(&post.hub).await.unwrap();
    drop(copy_bidirectional(&mut inside, &mut hub).await);
}

async fn forward(
    tasks: &Tasks,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let authority = request.uri().authority().unwrap().to_string();
    let path = request.uri().path_and_query().unwrap().as_str();
    *request.uri_mut() = Uri::try_from(path).unwrap();
    request.headers_mut().remove("proxy-authorization");
    let Ok(stream) = TcpStream::connect(authority).await else {
        return Ok(status(StatusCode::BAD_GATEWAY));
    };
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tasks.lock().unwrap().spawn(async move { drop(connection.await) });
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Response::from_parts(head, Full::new(body)))
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

//! Requests to the hub and to the hosts that it sends for files to.
//!
//! The token is shown to the hub's own origin alone: a redirect to another scheme, host or port goes
//! without it, and one from TLS to none is not followed. What is said of an address is its host: a
//! signed one holds a secret in its query. A proxy stands between where the environment says so
//! ([`Proxies`](super::proxies::Proxies)); what it is to be shown is shown to it alone.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RANGE,
        RETRY_AFTER, USER_AGENT,
    },
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::time::timeout;

use super::{
    fault::PullFault,
    proxies::{Proxy, Way},
    site::Site,
};

const AGENT: &str = concat!("slotd/", env!("CARGO_PKG_VERSION"));
const MOST_REDIRECTS: usize = 5;
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Lists of files are long; no list is longer.
const MOST_TEXT: usize = 64 << 20;
/// What hyper-util says of a tunnel that was answered with 407; its error is of no public type.
const WANTS_CREDENTIALS: &str = "proxy authorization required";
/// What is read of an answer that refuses.
const MOST_REFUSAL: usize = 64 << 10;

/// The way to the hub.
pub(super) struct Client {
    site: Site,
    /// The origin that the token is for.
    own: Origin,
    pool: Pool<HttpsConnector<Way>, Empty<Bytes>>,
}

/// Scheme, host and port.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Origin(String, String, u16);

/// Why a request has no answer to go on with.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may have one the next time; not before `wait`, where that was said.
    Passing { host: String, reason: String, wait: Option<Duration> },
    /// It will have none.
    Lasting(PullFault),
}

/// An answer with a body to be read.
pub(super) struct Answer {
    pub(super) host: String,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    silence: Duration,
}

impl Client {
    /// Makes the way; nothing is sent. Reads the system's root certificates where TLS is spoken, which blocks.
    pub(super) fn new(site: Site) -> Result<Self, PullFault> {
        let uri: Uri = site.endpoint.parse().map_err(|_| no_url(&site.endpoint))?;
        let own = Origin::of(&uri).ok_or_else(|| no_url(&site.endpoint))?;
        // A hub in the clear may still send for files over TLS.
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| PullFault::Broken(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_DEADLINE));
        let to_proxy = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(http.clone());
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Way { proxies: site.proxies.clone(), direct: http, to_proxy });
        let pool =
            Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { site, own, pool })
    }

    /// Returns the hub's host, as people are told of it.
    pub(super) fn host(&self) -> &str {
        &self.own.1
    }

    /// Tells whether a token is shown.
    pub(super) fn has_token(&self) -> bool {
        self.site.token.is_some()
    }

    /// Asks the hub for `path` of it, from byte `from` on, and goes where it sends.
    ///
    /// Refusals are [`Trouble`], but for 401, 403, 404 and 416, whose meaning depends on what was asked.
    pub(super) async fn get(&self, path: &str, from: u64) -> Result<Answer, Trouble> {
        let mut place = format!("{}{path}", self.site.endpoint);
        for _ in 0..=MOST_REDIRECTS {
            let uri: Uri = place.parse().map_err(|_| self.bad("an address that is none"))?;
            let origin = Origin::of(&uri).ok_or_else(|| self.bad("an address without a host"))?;
            if self.own.0 == "https" && origin.0 != "https" {
                return Err(self.bad("a redirect from TLS to none"));
            }
            let answer = self.send(uri.clone(), &origin, from).await?;
            if !answer.status.is_redirection() {
                return answer.checked();
            }
            let to = answer.headers.get(LOCATION).and_then(|to| to.to_str().ok());
            place = joined(&uri, to.ok_or_else(|| self.bad("a redirect to nowhere"))?);
        }
        Err(self.bad("one redirect after the other"))
    }

    /// Asks the hub for a text.
    pub(super) async fn text(&self, path: &str) -> Result<(Answer, Bytes), Trouble> {
        let mut answer = self.get(path, 0).await?;
        let most = if answer.status.is_success() { MOST_TEXT } else { MOST_REFUSAL };
        let text = answer.whole(most).await?;
        Ok((answer, text))
    }

    async fn send(&self, uri: Uri, origin: &Origin, from: u64) -> Result<Answer, Trouble> {
        let proxy = self.site.proxies.before(&uri).map_err(Trouble::Lasting)?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        // Content is counted and hashed as it lies there.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        if let Some(token) = self.site.token.as_ref().filter(|_| *origin == self.own) {
            headers.insert(AUTHORIZATION, token.0.clone());
        }
        if let Some(credentials) = proxy.as_ref().and_then(Proxy::credentials) {
            headers.insert(PROXY_AUTHORIZATION, credentials);
        }
        let proxy = proxy.map(|proxy| proxy.name());
        let (silence, host) = (self.site.silence, origin.1.clone());
        let passing = |reason: String| {
            let reason = match &proxy {
                Some(proxy) => format!("through the proxy `{proxy}`: {reason}"),
                None => reason,
            };
            Trouble::Passing { host: host.clone(), reason, wait: None }
        };
        match timeout(silence + CONNECT_DEADLINE, self.pool.request(request)).await {
            Ok(Ok(response)) => {
                let (head, body) = Response::into_parts(response);
                let (status, headers) = (head.status, head.headers);
                if let (StatusCode::PROXY_AUTHENTICATION_REQUIRED, Some(proxy)) = (status, &proxy) {
                    return Err(unknown_to(proxy));
                }
                Ok(Answer { host, status, headers, body, silence })
            }
            Ok(Err(error)) => match (chain(&error), &proxy) {
                (said, Some(proxy)) if said.contains(WANTS_CREDENTIALS) => Err(unknown_to(proxy)),
                (said, _) => Err(passing(said)),
            },
            Err(_) => Err(passing(silent_for(silence))),
        }
    }

    fn bad(&self, what: &str) -> Trouble {
        let (host, what) = (self.own.1.clone(), what.to_owned());
        Trouble::Lasting(PullFault::Answer { host, what })
    }
}

impl Answer {
    /// Tells refusals that may pass and those that mean the same whatever was asked.
    fn checked(self) -> Result<Self, Trouble> {
        let status = self.status;
        match status.as_u16() {
            200 | 206 | 401 | 403 | 404 | 416 => Ok(self),
            408 | 425 | 429 | 500 | 502 | 503 | 504 => Err(Trouble::Passing {
                wait: self.retry_after(),
                reason: format!("it answered {}", status.as_u16()),
                host: self.host,
            }),
            code => {
                let file = "what was asked for".to_owned();
                Err(Trouble::Lasting(PullFault::Refused { host: self.host, status: code, file }))
            }
        }
    }

    /// Reads `Retry-After` in seconds; dates are not used by hubs.
    fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        text.trim().parse().ok().map(Duration::from_secs)
    }

    /// Waits for the next part of the body; nothing at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        let passing =
            |reason, host: &String| Trouble::Passing { host: host.clone(), reason, wait: None };
        loop {
            let frame = timeout(self.silence, self.body.frame()).await;
            let frame = frame.map_err(|_| passing(silent_for(self.silence), &self.host))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| passing(chain(&error), &self.host))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    async fn whole(&mut self, most: usize) -> Result<Bytes, Trouble> {
        let read = timeout(self.silence * 4, Limited::new(&mut self.body, most).collect());
        let passing = |reason| Trouble::Passing { host: self.host.clone(), reason, wait: None };
        match read.await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) => Err(passing(chain(&*error))),
            Err(_) => Err(passing(silent_for(self.silence))),
        }
    }

    /// Returns a header's text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?;
        let usual = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self(scheme.to_owned(), host, uri.port_u16().unwrap_or(usual)))
    }
}

fn unknown_to(proxy: &str) -> Trouble {
    Trouble::Lasting(PullFault::Environment(format!(
        "the proxy `{proxy}` wants another user or password; say them in the variable that names it, as \
         `http://USER:PASSWORD@HOST:PORT`"
    )))
}

fn no_url(endpoint: &str) -> PullFault {
    PullFault::Environment(format!("`{endpoint}` is no address of a hub"))
}

/// Resolves where a redirect goes.
fn joined(from: &Uri, to: &str) -> String {
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    if to.contains("://") {
        to.to_owned()
    } else if let Some(rest) = to.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{to}")
    }
}

/// Writes a path as a part of a URL.
pub(super) fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            byte => {
                let digits = [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16));
                text.push('%');
                text.extend(digits.into_iter().flatten().map(|digit| digit.to_ascii_uppercase()));
            }
        }
    }
    text
}

fn silent_for(silence: Duration) -> String {
    format!("silent for {} s", silence.as_secs())
}

/// Tells an error with its causes; none of them knows the address.
fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        said = format!("{said}: {cause}");
        next = cause.source();
    }
    said
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("own", &self.own).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(origin("https://H.co/x"), origin("https://h.co:443/y?z"));
        assert_ne!(origin("https://h.co"), origin("http://h.co"));
        assert_ne!(origin("https://h.co"), origin("https://h.co:444"));
        assert_ne!(origin("https://h.co"), origin("https://cdn.h.co"));
        assert_eq!(origin("/x"), None);
    }

    #[test]
    fn a_redirect_goes_where_it_says() {
        let from: Uri = "https://h.co:8/a/b?c".parse().unwrap();
        assert_eq!(joined(&from, "https://x/y"), "https://x/y");
        assert_eq!(joined(&from, "//x/y"), "https://x/y");
        assert_eq!(joined(&from, "/y"), "https://h.co:8/y");
        assert_eq!(joined(&from, "y"), "https://h.co:8/a/y");
    }

    #[test]
    fn a_path_keeps_its_slashes_alone() {
        assert_eq!(encoded("a b/ü#?.gguf"), "a%20b/%C3%BC%23%3F.gguf");
    }
}

//! The fall-through upstream: another server of these APIs, which gets what names a model of nobody's
//! here. Off unless a setting names it.
//!
//! Its key is slotd's: a client's own never goes there, and what it says of its key never comes back.
//! Its refusals are told in the client's dialect, its streams pass as they come.
//!
//! ```text
//! request ─▶ no route for its model ─▶ passed on (hop counted) ─▶ answer or refusal ─▶ client
//! ```

mod body;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
    http::request::Parts,
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use self::body::Passed;
use super::{
    Client, Shared,
    body::Asked,
    dialect::Dialect,
    exchange::{copy_headers, keep_headers},
    flight::{Flight, Stage},
    forward::sender,
    listing,
    meters::Outcome,
    normalise,
    payload::Sending,
    reply::{Body, Fault},
    surface::Form,
};
use crate::{
    config::daemon::{FallThrough as Setting, Scheme},
    spec::{
        SlotName,
        requests::{Lane, OnClientGone},
    },
};

/// How often a request may have fallen through before: two that point at each other would go on for
/// ever.
const MOST_HOPS: u8 = 3;
/// How long the upstream may take to accept a connection, and a connection is kept for its next use.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const LONGEST_IDLE: Duration = Duration::from_mins(1);
/// How often the system asks whether a silent upstream is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The most of a refusal that is read, and how long that may take.
const REFUSAL_BYTES: usize = 64 << 10;
const REFUSAL_DEADLINE: Duration = Duration::from_secs(10);

const HOPS: HeaderName = HeaderName::from_static("x-slotd-hops");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// What it goes by where others have the name of a slot.
const NAME: &str = "fall-through";

/// Another server of these APIs.
pub struct FallThrough {
    setting: Setting,
    key: ArcSwapOption<HeaderValue>,
    pool: Pool<HttpsConnector<HttpConnector>, Sending>,
    /// Whether the operator has been told that the key is refused.
    is_told: AtomicBool,
}

impl FallThrough {
    /// Makes the way there; nothing is sent yet. `roots` are trusted where TLS is spoken.
    ///
    /// # Errors
    /// When there is no TLS to be had.
    pub fn new(setting: Setting, roots: RootCertStore) -> Result<Self, rustls::Error> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_DEADLINE));
        http.set_keepalive(Some(KEEPALIVE));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(LONGEST_IDLE)
            .build(connector);
        let (key, is_told) = (ArcSwapOption::empty(), AtomicBool::new(false));
        Ok(Self { setting, key, pool, is_told })
    }

    /// Sets the key that is shown there from here on. Returns whether it is one that a header can bear.
    pub fn set_key(&self, key: &str) -> bool {
        let Ok(mut key) = HeaderValue::from_str(key) else { return false };
        key.set_sensitive(true);
        if self.key.load().as_deref() != Some(&key) {
            self.key.store(Some(Arc::new(key)));
            self.is_told.store(false, Ordering::Relaxed);
        }
        true
    }

    /// Returns the names of models that are known to be there.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.setting.models.iter().map(String::as_str).filter(|name| !name.ends_with('*'))
    }

    fn takes(&self, model: &str) -> bool {
        let models = &self.setting.models;
        models.is_empty()
            || models.iter().any(|name| match name.strip_suffix('*') {
                Some(beginning) => model.starts_with(beginning),
                None => model == name,
            })
    }

    /// Returns where a path of the endpoint is there: what follows `/v1` follows its own path.
    fn place(&self, uri: &Uri) -> Option<Uri> {
        let url = &self.setting.url;
        let scheme = match url.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let path = uri.path();
        let rest = ["/v1/", "/v2/"].iter().find_map(|version| path.strip_prefix(version));
        let rest = rest.unwrap_or(path.trim_start_matches('/'));
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{scheme}://{}{}/{rest}{query}", url.authority, url.path).parse().ok()
    }

    /// Shows slotd's own key, as the API of the request takes it.
    fn show_key(&self, headers: &mut HeaderMap, dialect: Dialect) {
        let key = self.key.load();
        let Some(key) = key.as_deref() else { return };
        if dialect == Dialect::Anthropic {
            headers.insert(X_API_KEY, key.clone());
            return;
        }
        let bearer = [b"Bearer ", key.as_bytes()].concat();
        if let Ok(mut bearer) = HeaderValue::from_bytes(&bearer) {
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
    }
}

/// Tells whether a request falls through: it names a model, nobody here has it, and the upstream may.
///
/// # Errors
/// When it has fallen through too often to go on.
pub(super) fn takes(
    shared: &Shared,
    model: Option<&str>,
    headers: &HeaderMap,
) -> Result<bool, Fault> {
    let (Some(upstream), Some(model)) = (&shared.fall_through, model) else { return Ok(false) };
    let table = shared.routes.load();
    if table.find(model).is_some() || !upstream.takes(model) {
        return Ok(false);
    }
    if hops(headers) < MOST_HOPS {
        return Ok(true);
    }
    let unknown = listing::unknown(&table, model);
    let message = format!(
        "{}; the request came through {MOST_HOPS} servers to which nobody has it, and goes no further",
        unknown.error().message
    );
    Err(Fault::unknown_model(message))
}

/// Returns how often a request has fallen through; one that does not say it rightly is let no further.
fn hops(headers: &HeaderMap) -> u8 {
    let Some(hops) = headers.get(HOPS) else { return 0 };
    hops.to_str().ok().and_then(|hops| hops.parse().ok()).unwrap_or(MOST_HOPS)
}

/// Passes a request on to the upstream, and its answer back.
pub(super) async fn pass(
    client: &Arc<Client>,
    head: Parts,
    form: Form,
    asked: Asked,
) -> (Option<SlotName>, Response<Body>) {
    let name = name();
    let sender = match sender(client, &head, Lane::default()) {
        Ok(sender) => sender,
        Err(fault) => return (None, fault.response_in(form.dialect)),
    };
    let flight = client.shared.flights.begin(&name, OnClientGone::Cancel, sender);
    flight.enter(Stage::Waiting);
    let answered = tokio::select! {
        biased;
        () = flight.cancelled() => {
            Err(flight.end_cancelled())
        }
        answered = ask(client, &head, (form, &asked), &flight) => answered,
    };
    let response = answered.unwrap_or_else(|fault| {
        flight.end(Outcome::Refused);
        fault.response_in(form.dialect)
    });
    flight.note_status(response.status());
    (Some(name), response)
}

fn name() -> SlotName {
    #[expect(clippy::expect_used, reason = "it is a constant")]
    NAME.parse().expect("the name is one that a slot can have")
}

async fn ask(
    client: &Arc<Client>,
    head: &Parts,
    (form, asked): (Form, &Asked),
    flight: &Arc<Flight>,
) -> Result<Response<Body>, Fault> {
    let upstream = client.shared.fall_through.as_ref().ok_or_else(unreachable)?;
    let deadline = Instant::now() + upstream.setting.timeout;
    let request = rebuild(upstream, head, (form.dialect, asked)).ok_or_else(unreachable)?;
    let answer = match timeout_at(deadline, upstream.pool.request(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            debug!(reason = chain(&error), "fall-through failed");
            return Err(unreachable());
        }
        Err(_) => return Err(too_slow(upstream.setting.timeout)),
    };
    let answer = accepted(upstream, answer).await?;
    let (mut head, incoming) = answer.into_parts();
    let mut headers = HeaderMap::new();
    copy_headers(&head.headers, &mut headers);
    forget_owner(&mut headers);
    head.headers = headers;
    let timing = (deadline, upstream.setting.timeout);
    let flushes = Arc::clone(&client.flushes);
    let passed = Passed::new((incoming, &mut head.headers), form, timing, (flight, flushes));
    let mut response = Response::new(passed.boxed_unsync());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Ok(response)
}

/// Makes the request anew, with slotd's key in the place of the client's.
fn rebuild(
    upstream: &FallThrough,
    head: &Parts,
    (dialect, asked): (Dialect, &Asked),
) -> Option<Request<Sending>> {
    let mut request = Request::new(asked.payload.send());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = upstream.place(&head.uri)?;
    let headers = request.headers_mut();
    keep_headers(&head.headers, headers);
    forget_owner(headers);
    headers.insert(HOPS, HeaderValue::from(u16::from(hops(&head.headers)) + 1));
    upstream.show_key(headers, dialect);
    Some(request)
}

/// Takes away whose key it is: the client's says nothing there, the upstream's nothing here.
fn forget_owner(headers: &mut HeaderMap) {
    for name in ["openai-organization", "openai-project", "anthropic-organization-id"] {
        headers.remove(name);
    }
}

/// Lets an answer through; gives a refusal the form that clients know.
async fn accepted(
    upstream: &FallThrough,
    answer: Response<Incoming>,
) -> Result<Response<Incoming>, Fault> {
    let status = answer.status();
    if status.is_success() {
        upstream.is_told.store(false, Ordering::Relaxed);
        return Ok(answer);
    }
    // What it says of a key may have a part of the key in it, and the client's own is not meant.
    if matches!(status.as_u16(), 401 | 403 | 407) {
        if !upstream.is_told.swap(true, Ordering::Relaxed) {
            warn!(status = status.as_u16(), "fall-through upstream refused slotd's key");
        }
        let message = format!(
            "the fall-through upstream refused slotd's own key ({}): the operator of this machine has \
             to see to `key_file` of `fall_through`",
            status.as_u16()
        );
        return Err(fault(StatusCode::BAD_GATEWAY, "fall_through_refused", message).never_again());
    }
    if !(status.is_client_error() || status.is_server_error()) {
        let message = format!(
            "the fall-through upstream answered with {}, which is no answer; `url` of `fall_through` \
             may be wrong",
            status.as_u16()
        );
        return Err(fault(StatusCode::BAD_GATEWAY, "bad_fall_through_answer", message));
    }
    let (head, incoming) = answer.into_parts();
    let (mut headers, limited) = (HeaderMap::new(), Limited::new(incoming, REFUSAL_BYTES));
    copy_headers(&head.headers, &mut headers);
    forget_owner(&mut headers);
    let said = match timeout(REFUSAL_DEADLINE, limited.collect()).await {
        Ok(Ok(said)) => said.to_bytes(),
        Ok(Err(_)) | Err(_) => bytes::Bytes::new(),
    };
    Err(Fault::of_engine(status, headers, normalise::error_object(status, &said)))
}

fn fault(status: StatusCode, code: &'static str, message: String) -> Fault {
    Fault::of_server(status, code, message)
}

fn unreachable() -> Fault {
    let message = "the model is not served here, and the fall-through upstream cannot be reached";
    Fault::unavailable(StatusCode::BAD_GATEWAY, "fall_through_unreachable", message.to_owned())
}

/// Says that the upstream broke off in mid-answer.
pub(super) fn broke_off() -> Fault {
    let message = "the fall-through upstream broke off in mid-answer".to_owned();
    fault(StatusCode::BAD_GATEWAY, "fall_through_broke_off", message)
}

/// Says that the upstream took as long as it may.
pub(super) fn too_slow(limit: Duration) -> Fault {
    let message = format!(
        "the fall-through upstream took longer than {} s; `timeout` of `fall_through` is the limit",
        limit.as_secs()
    );
    fault(StatusCode::GATEWAY_TIMEOUT, "fall_through_timeout", message)
}

/// Tells an error with its causes, without the URL.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        said = format!("{said}: {cause}");
        next = cause.source();
    }
    said
}

impl fmt::Debug for FallThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallThrough").field("url", &self.setting.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::daemon::BaseUrl;

    fn upstream(url: &str, models: &[&str]) -> FallThrough {
        let setting = Setting {
            url: BaseUrl::read(url).unwrap(),
            key_file: None,
            ca_file: None,
            timeout: Duration::from_secs(1),
            models: models.iter().map(|name| (*name).to_owned()).collect(),
        };
        FallThrough::new(setting, RootCertStore::empty()).unwrap()
    }

    #[test]
    fn what_follows_the_version_follows_the_path_of_the_upstream() {
        let place = |url: &str, path: &'static str| {
            upstream(url, &[]).place(&Uri::from_static(path)).unwrap().to_string()
        };
        assert_eq!(place("https://a.b", "/v1/messages?beta=x"), "https://a.b/v1/messages?beta=x");
        assert_eq!(
            place("http://a.b:8/api/v1", "/chat/completions"),
            "http://a.b:8/api/v1/chat/completions"
        );
        assert_eq!(place("https://a.b/openai", "/v2/rerank"), "https://a.b/openai/rerank");
    }

    #[test]
    fn names_that_may_go_there_are_those_that_were_written_or_begin_so() {
        let all = upstream("https://a.b", &[]);
        assert!(all.takes("anything") && all.names().next().is_none());
        let some = upstream("https://a.b", &["gpt-*", "o3"]);
        assert!(some.takes("gpt-5") && some.takes("o3") && !some.takes("o3-mini"));
        assert_eq!(some.names().collect::<Vec<_>>(), ["o3"]);
    }

    #[test]
    fn a_key_is_never_shown() {
        let upstream = upstream("https://a.b", &[]);
        assert!(upstream.set_key("canary") && !upstream.set_key("two\nlines"));
        let mut headers = HeaderMap::new();
        upstream.show_key(&mut headers, Dialect::OpenAi);
        assert_eq!(headers[AUTHORIZATION], "Bearer canary");
        assert!(!format!("{upstream:?} {headers:?}").contains("canary"));
    }
}

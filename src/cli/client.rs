//! The client of the control socket.

use std::{
    env, error,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::failure::Failure;
use crate::{
    admin::{
        DaemonObject, FitObject, FitWish, PlanObject, PlanRequest, RequestObject, RoomObject,
        RoomWish, RuleObject, SlotObject, StandInWish,
    },
    config::{
        daemon::{Flags, Settings},
        keys,
    },
    models::inventory::Inventory,
    spec::SlotName,
};

/// Where the daemon of the system listens, for people whose own directories name no daemon.
/// Source: `RuntimeDirectory=slotd` in `units/slotd.service`.
const OF_SYSTEM: &str = "/run/slotd/control.sock";
/// What stands before each path where the socket says whose it is.
const OVER_SOCKET: &str = "http://slotd";
/// How long an answer that is there at once may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a look at the disks may take.
const SCAN_PATIENCE: Duration = Duration::from_mins(2);
/// The longest line that a watch may send.
const LONGEST_LINE: usize = 4 << 20;

/// What was said of where the daemon is.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Its control socket.
    pub(super) control: Option<PathBuf>,
    /// Its endpoint, instead.
    pub(super) url: Option<String>,
    /// The file of the admin key for the endpoint.
    pub(super) key_file: Option<PathBuf>,
}

impl Place {
    /// Returns the URL that was given, unless a socket was.
    fn url(&self) -> Option<String> {
        let given = self.url.clone().or_else(|| env::var("SLOTD_URL").ok());
        given.filter(|url| !url.is_empty() && self.control.is_none())
    }
}

/// A daemon to talk to.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// What stands before each path.
    base: String,
    /// Its socket, or its URL.
    socket: PathBuf,
}

/// What a slot is told to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    Load,
    Unload,
    Restart,
}

impl Order {
    /// Returns the word that people and the API use.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Unload => "unload",
            Self::Restart => "restart",
        }
    }
}

impl Client {
    /// Finds the socket, or takes the URL; nothing is sent yet.
    ///
    /// # Errors
    /// [`Failure::Settings`] when no socket was named and the settings that would name it have
    /// faults, [`Failure::Url`] and [`Failure::Settings`] when the URL or its key cannot be used.
    pub(super) fn new(place: &Place) -> Result<Self, Failure> {
        let builder = reqwest::Client::builder().no_proxy();
        let (builder, base, socket) = if let Some(url) = place.url() {
            let base = base_of(&url)?;
            (builder.default_headers(key_of(place)?), base.clone(), PathBuf::from(base))
        } else {
            let socket = find_socket(place.control.as_deref())?;
            (builder.unix_socket(socket.clone()), OVER_SOCKET.to_owned(), socket)
        };
        let http = builder
            .build()
            .map_err(|error| Failure::Talk { path: socket.clone(), source: error.into() })?;
        Ok(Self { http, base, socket })
    }

    /// Returns every slot, as the daemon wrote it.
    pub(super) async fn raw_slots(&self) -> Result<Value, Failure> {
        self.ask(Method::GET, "/v1/slots").await
    }

    /// Returns every slot.
    pub(super) async fn slots(&self) -> Result<Vec<SlotObject>, Failure> {
        self.ask(Method::GET, "/v1/slots").await
    }

    /// Returns every request in flight, as the daemon wrote it.
    pub(super) async fn raw_requests(&self) -> Result<Value, Failure> {
        self.ask(Method::GET, "/v1/requests").await
    }

    /// Returns every request in flight.
    pub(super) async fn requests(&self) -> Result<Vec<RequestObject>, Failure> {
        self.ask(Method::GET, "/v1/requests").await
    }

    /// Cancels a request in flight.
    pub(super) async fn cancel(&self, id: u64) -> Result<Value, Failure> {
        self.ask(Method::DELETE, &format!("/v1/requests/{id}")).await
    }

    /// Returns one slot.
    pub(super) async fn slot(&self, slot: &SlotName) -> Result<SlotObject, Failure> {
        self.ask(Method::GET, &format!("/v1/slots/{slot}")).await
    }

    /// Returns the models on disk as the daemon sees them.
    pub(super) async fn inventory(&self) -> Result<Inventory, Failure> {
        let response = self.send(Method::GET, "/v1/inventory", Some(SCAN_PATIENCE)).await?;
        let body = response.bytes().await.map_err(|error| self.failure(error))?;
        serde_json::from_slice(&body).map_err(Failure::Answer)
    }

    /// Returns where requests go.
    pub(super) async fn endpoint(&self) -> Result<String, Failure> {
        if self.base != OVER_SOCKET {
            return Ok(self.base.clone());
        }
        let listen = self.daemon().await?.listen;
        let Ok(mut address) = listen.parse::<SocketAddr>() else {
            return Ok(format!("http://{listen}"));
        };
        if address.ip().is_unspecified() {
            let is_v4 = address.is_ipv4();
            let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
            address.set_ip(if is_v4 { v4 } else { v6 });
        }
        Ok(format!("http://{address}"))
    }

    /// Returns where what is to be kept is kept: beside the daemon, or of one that is elsewhere here.
    pub(super) async fn state_dir(&self) -> Result<PathBuf, Failure> {
        if self.base == OVER_SOCKET {
            return Ok(self.daemon().await?.state_dir);
        }
        let settings = Settings::resolve(&Flags::default(), &|name: &str| env::var_os(name));
        Ok(settings.map_err(Failure::Settings)?.state_dir)
    }

    /// Tells whether the daemon's files are those of this machine, as far as can be told.
    pub(super) fn is_beside_daemon(&self) -> bool {
        self.base == OVER_SOCKET
    }

    /// Fails unless the daemon's files are those of this machine, as far as can be told.
    pub(super) fn beside_daemon(&self, order: &str) -> Result<(), Failure> {
        if self.is_beside_daemon() {
            return Ok(());
        }
        let message =
            format!("`{order}` changes a file beside the daemon: say it there, without `--url`");
        Err(Failure::Refused { message })
    }

    /// Returns the daemon.
    pub(super) async fn daemon(&self) -> Result<DaemonObject, Failure> {
        self.ask(Method::GET, "/v1/daemon").await
    }

    /// Asks the daemon to go on as the program on disk; returns what that calls itself.
    pub(super) async fn upgrade(&self) -> Result<String, Failure> {
        let accepted: Value = self.ask(Method::POST, "/v1/daemon/upgrade").await?;
        let version = accepted.get("version").and_then(Value::as_str);
        Ok(version.unwrap_or("slotd").to_owned())
    }

    /// Gives an order and returns the slot as it was when the order was taken.
    pub(super) async fn order(&self, slot: &SlotName, order: Order) -> Result<SlotObject, Failure> {
        let answer: Value =
            self.ask(Method::POST, &format!("/v1/slots/{slot}/{}", order.verb())).await?;
        if answer.get("status").and_then(Value::as_str) == Some("download_required") {
            let message = answer.get("message").and_then(Value::as_str).unwrap_or_default();
            return Err(Failure::Refused { message: message.to_owned() });
        }
        serde_json::from_value(answer).map_err(Failure::Answer)
    }

    /// Returns the slot's changes, the present state first.
    pub(super) async fn watch(&self, slot: &SlotName) -> Result<Changes, Failure> {
        let response = self.send(Method::GET, &format!("/v1/slots/{slot}/watch"), None).await?;
        Ok(Changes { slot: slot.clone(), response, buffer: Vec::new() })
    }

    /// Tells a slot something that has a body; returns the slot as it was when that was taken.
    pub(super) async fn tell_slot(
        &self,
        slot: &SlotName,
        word: &str,
        body: &Value,
    ) -> Result<SlotObject, Failure> {
        self.tell(&format!("/v1/slots/{slot}/{word}"), body).await
    }

    /// Puts a slot beside another, which serves this model in its place for as long as the answer is held.
    pub(super) async fn stand_in(
        &self,
        slot: &SlotName,
        wish: &StandInWish,
    ) -> Result<Lines<'_>, Failure> {
        let sent = self.http.post(format!("{}/v1/slots/{slot}/stand-in", self.base)).json(wish);
        let response = self.receive(sent).await?;
        Ok(Lines { client: self, response, buffer: Vec::new() })
    }

    /// Returns every rule.
    pub(super) async fn rules(&self) -> Result<Vec<RuleObject>, Failure> {
        self.ask(Method::GET, "/v1/rules").await
    }

    /// Tells the rules a name.
    pub(super) async fn signal(&self, name: &str) -> Result<Value, Failure> {
        self.tell("/v1/signals", &json!({ "signal": name })).await
    }

    /// Asks for room.
    pub(super) async fn ensure(&self, wish: &RoomWish) -> Result<RoomObject, Failure> {
        self.tell("/v1/ensure", wish).await
    }

    /// Asks whether there is room.
    ///
    /// Nothing where it does not know the slot, or the question.
    pub(super) async fn fit(&self, wish: &FitWish) -> Result<Option<FitObject>, Failure> {
        let sent = self.http.post(format!("{}/v1/fit", self.base)).json(wish).timeout(PATIENCE);
        let response = sent.send().await.map_err(|error| self.failure(error))?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = self.accepted(response).await?;
        let body = response.bytes().await.map_err(|error| self.failure(error))?;
        serde_json::from_slice(&body).map(Some).map_err(Failure::Answer)
    }

    async fn tell<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let sent = self.http.post(format!("{}{path}", self.base)).json(body).timeout(PATIENCE);
        let response = self.receive(sent).await?;
        let body = response.bytes().await.map_err(|error| self.failure(error))?;
        serde_json::from_slice(&body).map_err(Failure::Answer)
    }

    /// Returns what happens from here on.
    pub(super) async fn events(&self) -> Result<Lines<'_>, Failure> {
        let response = self.send(Method::GET, "/v1/events", None).await?;
        Ok(Lines { client: self, response, buffer: Vec::new() })
    }

    /// Opens a slot's log.
    pub(super) async fn logs(
        &self,
        slot: &SlotName,
        lines: usize,
        follow: bool,
    ) -> Result<Response, Failure> {
        let path = format!("/v1/slots/{slot}/logs?lines={lines}&follow={follow}");
        self.send(Method::GET, &path, None).await
    }

    /// Returns the last lines of a slot's log.
    pub(super) async fn last_lines(
        &self,
        slot: &SlotName,
        lines: usize,
    ) -> Result<Vec<String>, Failure> {
        let response = self.logs(slot, lines, false).await?;
        let text = response.text().await.map_err(|error| self.failure(error))?;
        Ok(text.lines().map(ToOwned::to_owned).collect())
    }

    /// Returns what these profiles would change.
    pub(super) async fn plan(&self, request: &PlanRequest) -> Result<PlanObject, Failure> {
        let sent = self.http.post(format!("{}/v1/plan", self.base)).json(request).timeout(PATIENCE);
        let response = self.receive(sent).await?;
        let body = response.bytes().await.map_err(|error| self.failure(error))?;
        serde_json::from_slice(&body).map_err(Failure::Answer)
    }

    /// Returns the socket that is talked to.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Failure> {
        let response = self.send(method, path, Some(PATIENCE)).await?;
        let body = response.bytes().await.map_err(|error| self.failure(error))?;
        serde_json::from_slice(&body).map_err(Failure::Answer)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        patience: Option<Duration>,
    ) -> Result<Response, Failure> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(patience) = patience {
            request = request.timeout(patience);
        }
        self.receive(request).await
    }

    async fn receive(&self, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.failure(error))?;
        self.accepted(response).await
    }

    async fn accepted(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| self.failure(error))?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = match answer.pointer("/error/message").and_then(Value::as_str) {
            Some(message) => message.to_owned(),
            None => format!("the daemon answered {status}"),
        };
        Err(Failure::Refused { message })
    }

    /// Tells a daemon that is not there from one that may not be talked to, and from the rest.
    pub(super) fn failure(&self, error: reqwest::Error) -> Failure {
        let path = self.socket.clone();
        match kind_of(&error) {
            Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Failure::NoDaemon { path },
            Some(ErrorKind::PermissionDenied) => Failure::Denied { path },
            Some(_) | None => Failure::Talk { path, source: error.without_url().into() },
        }
    }
}

/// A slot's changes.
#[derive(Debug)]
pub(super) struct Changes {
    slot: SlotName,
    response: Response,
    buffer: Vec<u8>,
}

impl Changes {
    /// Waits for the next change. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<SlotObject, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(Failure::Answer);
            }
            // However the stream ends, nothing more will be heard of the slot.
            match self.response.chunk().await {
                Ok(Some(chunk)) if self.buffer.len() < LONGEST_LINE => {
                    self.buffer.extend_from_slice(&chunk);
                }
                Ok(_) | Err(_) => return Err(Failure::Gone { slot: self.slot.clone() }),
            }
        }
    }
}

/// Lines of an answer that goes on.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    client: &'a Client,
    response: Response,
    buffer: Vec<u8>,
}

impl Lines<'_> {
    /// Waits for the next line; `None` once the daemon has ended it.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            let chunk = self.response.chunk().await.map_err(|error| self.client.failure(error))?;
            let Some(chunk) = chunk.filter(|_| self.buffer.len() < LONGEST_LINE) else {
                return Ok(None);
            };
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

/// Returns what stands before each path.
fn base_of(url: &str) -> Result<String, Failure> {
    let base = url.trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    if base.strip_prefix("http://").is_some_and(|host| !host.is_empty() && !host.contains('/')) {
        return Ok(base.to_owned());
    }
    Err(Failure::Url { url: url.to_owned() })
}

/// Returns the headers that show the admin key: the file's, else the environment's, else none.
fn key_of(place: &Place) -> Result<HeaderMap, Failure> {
    let named = || env::var_os("SLOTD_KEY_FILE").filter(|file| !file.is_empty());
    let key = match place.key_file.clone().or_else(|| named().map(PathBuf::from)) {
        Some(file) => {
            let read = keys::read_secret(&file).map_err(|fault| Failure::Settings(vec![*fault]))?;
            Some(read.ok_or_else(|| Failure::NoKey { path: file.clone() })?)
        }
        None => env::var("SLOTD_ADMIN_KEY").ok(),
    };
    let mut headers = HeaderMap::new();
    let key = key.as_deref().map(str::trim).filter(|key| !key.is_empty());
    if let Some(Ok(mut key)) = key.map(HeaderValue::from_str) {
        key.set_sensitive(true);
        headers.insert("x-api-key", key);
    }
    Ok(headers)
}

/// The socket that was named, else that of the settings, else that of the system if only it is there.
fn find_socket(control: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(control) = control {
        return Ok(control.to_owned());
    }
    if let Some(named) = env::var_os("SLOTD_CONTROL").filter(|path| !path.is_empty()) {
        return Ok(named.into());
    }
    let settings = Settings::resolve(&Flags::default(), &|name: &str| env::var_os(name));
    let of_system = PathBuf::from(OF_SYSTEM);
    // Settings with faults, as for want of a `HOME`, name none: a script of the system has no other.
    let is_own = settings.as_ref().is_ok_and(|settings| settings.control.exists());
    if !is_own && of_system.exists() {
        return Ok(of_system);
    }
    settings.map(|settings| settings.control).map_err(Failure::Settings)
}

/// Finds the operating system's error below an error of the client.
fn kind_of(error: &reqwest::Error) -> Option<ErrorKind> {
    let mut next: Option<&(dyn error::Error + 'static)> = error::Error::source(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = cause.source();
    }
    None
}

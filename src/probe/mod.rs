//! Asks one engine how it is.
//!
//! Owns a connection that is kept open between looks. It never retries, never follows a redirect,
//! never reads more than 64 KiB of an answer, and never takes longer than it was given.

mod external;

use std::{
    error::Error,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use reqwest::{Client, Response, StatusCode, redirect::Policy};
use serde::Deserialize;
use tokio::time::timeout;

pub use self::external::{ExternalProbe, Look};
use crate::engine::{Endpoint, EngineKind};

/// The most that is read of an answer. llama-server's list of models has 1 KiB.
const MAX_BODY: usize = 64 << 10;
/// The longest name of a strange model that is reported, in characters.
const MAX_FOUND: usize = 100;

/// What a look found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Health {
    /// It is ready, and serves the model that it should.
    Ready,
    /// It is loading its model.
    Loading {
        /// How far it is, 0 to 100, where it says so.
        percent: Option<u8>,
    },
    /// Nobody listens there.
    Refused,
    /// It answers, and not that it is ready.
    NotReady {
        /// The HTTP status.
        status: u16,
    },
    /// Something else answers there.
    Impostor {
        /// What it serves.
        found: String,
    },
    /// It did not answer in time, or not in HTTP. Not a reason to act on alone.
    Unknown,
}

/// Looks at one engine.
#[derive(Debug)]
pub struct Probe {
    client: Client,
    base: String,
    kind: EngineKind,
    alias: String,
    /// The right model was seen behind the address: asked once for each child.
    is_verified: AtomicBool,
}

/// An answer, as far as it was read.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

/// `GET /v1/models`.
#[derive(Debug, Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    id: String,
}

/// The candle worker's answer while it loads.
#[derive(Debug, Deserialize)]
struct Loading {
    progress: f64,
}

impl Probe {
    /// Makes a probe for an engine that serves its model under the name `alias`. Nothing is asked yet.
    ///
    /// # Panics
    /// Never: see the reason in the body.
    pub fn new(endpoint: &Endpoint, kind: EngineKind, alias: &str) -> Self {
        let builder =
            Client::builder().no_proxy().redirect(Policy::none()).pool_max_idle_per_host(1);
        let (builder, base) = match endpoint {
            Endpoint::Unix(path) => {
                (builder.unix_socket(path.as_path()), "http://engine".to_owned())
            }
            Endpoint::Tcp(address) => (builder, format!("http://{address}")),
        };
        #[expect(
            clippy::expect_used,
            reason = "only TLS and DNS set-up can fail, and neither is built in"
        )]
        let client = builder.build().expect("a plain HTTP client needs nothing of the system");
        let is_verified = AtomicBool::new(false);
        Self { client, base, kind, alias: alias.to_owned(), is_verified }
    }

    /// Looks once, for at most `deadline`. Cancel-safe.
    ///
    /// 1. `/health` is 503: it loads.
    /// 2. `/health` is 200: it is ready; of llama-server and the worker the model's name is compared
    ///    once.
    /// 3. A command without `/health` is ready when `/v1/models` is 200.
    pub async fn look(&self, deadline: Duration) -> Health {
        // Boxed: a request is large, and the caller holds it while it waits.
        timeout(deadline, Box::pin(self.ask())).await.unwrap_or(Health::Unknown)
    }

    async fn ask(&self) -> Health {
        let answer = match self.get("/health").await {
            Ok(answer) => answer,
            Err(health) => return health,
        };
        match (answer.status, self.kind) {
            (StatusCode::SERVICE_UNAVAILABLE, _) => {
                Health::Loading { percent: percent(&answer.body) } // (1)
            }
            (StatusCode::OK, EngineKind::LlamaServer | EngineKind::Candle) => self.verify().await, // (2)
            (StatusCode::OK, EngineKind::Command) => Health::Ready,
            (StatusCode::NOT_FOUND, EngineKind::Command) => match self.get("/v1/models").await {
                Ok(answer) if answer.status == StatusCode::OK => Health::Ready, // (3)
                Ok(answer) => Health::NotReady { status: answer.status.as_u16() },
                Err(health) => health,
            },
            (status, _) => Health::NotReady { status: status.as_u16() },
        }
    }

    /// Compares the name of the model with the slot's.
    async fn verify(&self) -> Health {
        if self.is_verified.load(Ordering::Relaxed) {
            return Health::Ready;
        }
        let answer = match self.get("/v1/models").await {
            Ok(answer) => answer,
            Err(health) => return health,
        };
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            return Health::Loading { percent: None };
        }
        // An engine that a profile gave a key hides its list; its health has to do.
        if answer.status == StatusCode::OK
            && let Some(found) = stranger(&answer.body, &self.alias)
        {
            return Health::Impostor { found };
        }
        self.is_verified.store(true, Ordering::Relaxed);
        Health::Ready
    }

    async fn get(&self, path: &str) -> Result<Answer, Health> {
        let request = self.client.get(format!("{}{path}", self.base));
        let mut response = request.send().await.map_err(|error| of_error(&error))?;
        let status = response.status();
        let body = read(&mut response).await.map_err(|_| Health::Unknown)?;
        Ok(Answer { status, body })
    }
}

/// Reads a body to its end, or as far as [`MAX_BODY`]; the rest, and its connection, is dropped.
async fn read(response: &mut Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < MAX_BODY {
        let Some(chunk) = response.chunk().await? else { break };
        body.extend(chunk.iter().take(MAX_BODY - body.len()));
    }
    Ok(body)
}

fn of_error(error: &reqwest::Error) -> Health {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) = kind {
            return Health::Refused;
        }
        cause = error.source();
    }
    // A full backlog, a reset, no HTTP: somebody is there.
    Health::Unknown
}

/// Returns what is served when it is not `alias`.
fn stranger(body: &[u8], alias: &str) -> Option<String> {
    let Ok(models) = serde_json::from_slice::<Models>(body) else {
        return Some("something that lists no models".to_owned());
    };
    if models.data.iter().any(|model| model.id == alias) {
        return None;
    }
    let found = models.data.first().map_or("no model", |model| model.id.as_str());
    Some(found.chars().take(MAX_FOUND).collect())
}

fn percent(body: &[u8]) -> Option<u8> {
    let Loading { progress } = serde_json::from_slice(body).ok()?;
    let percent = (progress * 100.0).clamp(0.0, 100.0);
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 100; not a number becomes 0"
    )]
    Some(percent as u8)
}

#[cfg(test)]
mod tests;

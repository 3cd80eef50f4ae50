//! Asks an engine that somebody else runs how it is, without waking one that sleeps.
//!
//! llama-server with `--sleep-idle-seconds` answers `/health`, `/v1/models` and `/props` in its sleep;
//! `/slots` would wake it, and so would any work.
//! Source: llama.cpp b11434, tried on each path.

use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use tokio::time::timeout;

use super::{Health, MAX_BODY, Probe, stranger};
use crate::engine::{Endpoint, EngineKind};

/// What a look at an engine found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Look {
    /// How it is.
    pub health: Health,
    /// It says that it has put its model away until the next request.
    pub is_asleep: bool,
}

/// Looks at an engine of any make.
#[derive(Debug)]
pub struct ExternalProbe {
    probe: Probe,
    /// The name that it must list.
    model: Option<String>,
}

/// `GET /props` of llama-server.
#[derive(Debug, Deserialize)]
struct Props {
    is_sleeping: bool,
}

impl ExternalProbe {
    /// Makes a probe for an engine that serves `model`, or anything. Nothing is asked yet.
    pub fn new(endpoint: &Endpoint, model: Option<&str>) -> Self {
        let probe = Probe::new(endpoint, EngineKind::Command, "");
        Self { probe, model: model.map(str::to_owned) }
    }

    /// Looks once, for at most `deadline`. Cancel-safe.
    ///
    /// 1. As at any program: `/health`, or `/v1/models` where there is none.
    /// 2. The model is looked for each time: whoever runs the engine may have put another in its place.
    /// 3. Whether it sleeps, where it says so.
    pub async fn look(&self, deadline: Duration) -> Look {
        let awake = |health| Look { health, is_asleep: false };
        timeout(deadline, Box::pin(self.ask())).await.unwrap_or(awake(Health::Unknown))
    }

    async fn ask(&self) -> Look {
        let mut health = self.probe.ask().await; // (1)
        if health == Health::Ready {
            health = self.verify().await; // (2)
        }
        let is_asleep = health == Health::Ready && self.is_asleep().await; // (3)
        Look { health, is_asleep }
    }

    async fn verify(&self) -> Health {
        let Some(model) = &self.model else { return Health::Ready };
        match self.probe.get("/v1/models").await {
            // An engine that wants a key hides its list; its health has to do.
            Ok(answer) if answer.status != StatusCode::OK => Health::Ready,
            // A proxy may list thousands: what was cut does not say what is missing in it.
            Ok(answer) if answer.body.len() >= MAX_BODY => Health::Ready,
            Ok(answer) => match stranger(&answer.body, model) {
                Some(found) => Health::Impostor { found },
                None => Health::Ready,
            },
            Err(health) => health,
        }
    }

    async fn is_asleep(&self) -> bool {
        let Ok(answer) = self.probe.get("/props").await else { return false };
        serde_json::from_slice::<Props>(&answer.body).is_ok_and(|props| props.is_sleeping)
    }
}

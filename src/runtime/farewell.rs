//! The program that ends an engine, for one that signals do not reach: a container outlives its client.
//!
//! 1. Before `SIGTERM`, which follows its end whatever that is.
//! 2. After the engine's end, unless it has succeeded before: the engine was killed, or died by itself.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use crate::{
    process::{Errand, ErrandSpec},
    spec::{Generation, SlotName},
};

/// The least that it is given after the engine's end: `stop_timeout` may be nothing.
const LEAST: Duration = Duration::from_secs(1);

/// What is left to be said to one engine.
#[derive(Debug)]
pub(super) struct Farewell {
    slot: (SlotName, Generation),
    /// Without words there is nothing to run.
    spec: ErrandSpec,
    patience: Duration,
    asked: Arc<Notify>,
    state: State,
}

#[derive(Debug)]
enum State {
    Unsaid,
    Running { errand: Box<Errand>, until: Instant },
    Failed,
    Succeeded,
}

impl Farewell {
    pub(super) fn new(slot: (SlotName, Generation), spec: ErrandSpec, patience: Duration) -> Self {
        Self { slot, spec, patience, asked: Arc::default(), state: State::Unsaid }
    }

    /// Returns what asks for it; `None` where signals end the engine.
    pub(super) fn bell(&self) -> Option<Arc<Notify>> {
        self.is_wanted().then(|| Arc::clone(&self.asked))
    }

    /// Waits until somebody asks for it, then until it has ended. (1) Cancel-safe: [`Farewell::finish`]
    /// goes on with it.
    pub(super) async fn asked(&mut self) {
        self.asked.notified().await;
        if let Err(fault) = self.say(self.patience).await {
            let (slot, generation) = &self.slot;
            warn!(%slot, %generation, fault, "stop command failed, engine is signalled");
        }
    }

    /// Runs it to its end unless it has succeeded. (2)
    pub(super) async fn finish(&mut self) {
        if matches!(self.state, State::Running { .. }) {
            drop(self.say(self.patience).await);
        }
        if matches!(self.state, State::Failed) {
            self.state = State::Unsaid;
        }
        if let Err(fault) = self.say(self.patience.max(LEAST)).await {
            let (slot, generation) = &self.slot;
            // Of an engine that has ended whole there may be nothing left to stop.
            info!(%slot, %generation, fault, "stop command failed after the engine's end");
        }
    }

    fn is_wanted(&self) -> bool {
        !self.spec.words.is_empty()
    }

    /// Starts it if it has not been, and waits for its end.
    async fn say(&mut self, patience: Duration) -> Result<(), String> {
        if matches!(self.state, State::Unsaid) && self.is_wanted() {
            self.state = State::Failed;
            let errand = Errand::start(&self.spec).map_err(|error| error.to_string())?;
            let errand = Box::new(errand);
            self.state = State::Running { errand, until: Instant::now() + patience };
        }
        let State::Running { errand, until } = &mut self.state else { return Ok(()) };
        let ended = timeout_at(*until, errand.ended()).await;
        let is_success = matches!(&ended, Ok(Ok(status)) if status.success());
        self.state = if is_success { State::Succeeded } else { State::Failed };
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(status.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it took longer than `stop_timeout`".to_owned()),
        }
    }
}

//! Watches an engine that somebody else runs, by its address alone.
//!
//! Looks come slowly: every few seconds while it is there, and while it is not. What cannot wait does
//! not wait for them: a request that breaks has the engine looked at once, and a request for an engine
//! that is not there begins a new watch. No look wakes an engine that sleeps.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    task::AbortHandle,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::engine_task::{Reporter, Tools};
use crate::{
    config::daemon::Settings,
    probe::{ExternalProbe, Health, Look},
    proxy::{Blame, Gate},
    spec::{
        Endpoint, Generation, SlotName,
        profile::{External, Profile},
    },
    supervisor::{ChildEvent, Sight},
};

/// How many requests it works on at once when the profile says nothing: it has a queue of its own.
const PARALLEL: u32 = 8;
/// How long a look may take while a request may wait for it, and while the engine may be busy.
const FIRST_DEADLINE: Duration = Duration::from_secs(2);
const LATER_DEADLINE: Duration = Duration::from_secs(5);
/// How long between looks at an engine that is there, and at one that loads.
const PRESENT_PAUSE: Duration = Duration::from_secs(2);
const LOADING_PAUSE: Duration = Duration::from_millis(250);
/// The same for one that is not there: doubled from the first to the second.
const ABSENT_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How many looks in a row an engine that was there may leave without an answer: a busy one is slow.
const UNANSWERED: u32 = 3;

/// A watch that goes on.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) gate: Arc<Gate>,
    pub(super) task: AbortHandle,
}

impl Outside {
    /// Ends the watch over an engine that is lost, and all that is in flight there.
    pub(super) fn lose(self) {
        self.gate.mark_dead(Blame::Nobody);
        self.task.abort();
    }

    /// Ends the watch; the engine goes on as it likes.
    pub(super) fn leave(self) {
        self.gate.close();
        self.task.abort();
    }
}

/// Makes the way to the engine.
pub(super) fn gate(
    tools: &Tools,
    (slot, generation): (SlotName, Generation),
    profile: &Profile,
    external: &External,
) -> Arc<Gate> {
    let parallel = profile.parallel.unwrap_or(PARALLEL);
    Gate::new(
        slot,
        generation,
        (external.endpoint.clone(), external.model.clone()),
        (parallel, tools.settings.queue_limit),
        &tools.suspects,
    )
}

/// Tells whether an address is one that slotd itself listens on: its requests would come back to it.
pub(super) fn is_own(endpoint: &Endpoint, settings: &Settings) -> bool {
    let Endpoint::Tcp(address) = endpoint else { return false };
    let listens = [Some(settings.listen), settings.ollama_listen];
    listens.into_iter().flatten().any(|own| {
        let is_any = own.ip().is_unspecified() && address.ip().is_loopback();
        own.port() == address.port() && (own.ip() == address.ip() || is_any)
    })
}

/// Says of an engine whose address is slotd's own that it is not there; there is nothing to watch.
pub(super) async fn refuse(external: External, reporter: Reporter) {
    let url = external.endpoint.url();
    let reason = format!("{url} is slotd's own address, and the engine's has to stand in `url`");
    reporter.tell(ChildEvent::Looked { sight: Sight::Absent { reason } }).await;
    pending::<()>().await;
}

/// Watches until it is aborted.
#[expect(clippy::infinite_loop, reason = "it ends by being aborted")]
pub(super) async fn watch(external: External, gate: Arc<Gate>, reporter: Reporter) {
    let probe = ExternalProbe::new(&external.endpoint, external.model.as_deref());
    let mut watch = Watch { external, gate, told: None, unanswered: 0, pause: ABSENT_PAUSE };
    loop {
        let look = probe.look(watch.deadline()).await;
        debug!(slot = %watch.gate.slot(), health = ?look.health, "engine looked at");
        if let Some(sight) = watch.see(look)
            && watch.told.as_ref() != Some(&sight)
        {
            watch.warn(&sight);
            watch.told = Some(sight.clone());
            reporter.tell(ChildEvent::Looked { sight }).await;
        }
        let pause = watch.next_pause();
        // A look in vain when its time is over: the engine may be gone, and may not.
        drop(timeout(pause, watch.gate.troubled()).await);
        // However many requests break at once, one look is enough.
        sleep(Duration::from_millis(5)).await;
    }
}

struct Watch {
    external: External,
    gate: Arc<Gate>,
    told: Option<Sight>,
    unanswered: u32,
    /// The next one while it is not there.
    pause: Duration,
}

impl Watch {
    /// Says where prompts go from here on, once the engine is there.
    fn warn(&self, sight: &Sight) {
        let endpoint = &self.external.endpoint;
        if matches!(sight, Sight::Present { .. }) && !self.was_there() && !endpoint.is_local() {
            let (slot, url) = (self.gate.slot(), endpoint.url());
            warn!(%slot, url, "engine is on another machine: prompts go there");
        }
    }

    fn deadline(&self) -> Duration {
        match self.told {
            None | Some(Sight::Absent { .. }) => FIRST_DEADLINE,
            Some(Sight::Loading { .. } | Sight::Present { .. }) => LATER_DEADLINE,
        }
    }

    fn next_pause(&mut self) -> Duration {
        match self.told {
            Some(Sight::Present { .. }) => PRESENT_PAUSE,
            Some(Sight::Loading { .. }) => LOADING_PAUSE,
            None | Some(Sight::Absent { .. }) => {
                let pause = self.pause;
                self.pause = (pause * 2).min(LONGEST_PAUSE);
                pause
            }
        }
    }

    /// Says what a look comes to; `None` while that is not known.
    fn see(&mut self, look: Look) -> Option<Sight> {
        let Look { health, is_asleep } = look;
        if health != Health::Unknown {
            self.unanswered = 0;
        }
        let url = self.external.endpoint.url();
        let absent = |reason| Some(Sight::Absent { reason });
        match health {
            Health::Ready => Some(Sight::Present { is_asleep }),
            Health::Loading { percent } => Some(Sight::Loading { percent }),
            Health::Refused => absent(format!("nobody listens at {url}")),
            // Whoever answers is there: a proxy or a busy engine may refuse one look.
            Health::NotReady { .. } if self.was_there() && self.gate.in_flight() > 0 => {
                Some(Sight::Loading { percent: None })
            }
            Health::NotReady { status } => {
                absent(format!("{url} answers a look at its health with {status}"))
            }
            Health::Impostor { found } => {
                let wanted = self.external.model.as_deref().unwrap_or_default();
                absent(format!("{url} serves `{found}`, and the profile says `{wanted}`"))
            }
            Health::Unknown => self.unanswered(&url),
        }
    }

    fn was_there(&self) -> bool {
        matches!(self.told, Some(Sight::Loading { .. } | Sight::Present { .. }))
    }

    /// Unknown is not down, but for one that never answered, or no longer does and has nothing to do.
    fn unanswered(&mut self, url: &str) -> Option<Sight> {
        self.unanswered += 1;
        let was_there = self.was_there();
        if was_there && self.unanswered < UNANSWERED {
            return None;
        }
        if was_there && self.gate.in_flight() > 0 {
            return Some(Sight::Loading { percent: None });
        }
        let waited = FIRST_DEADLINE.as_secs();
        Some(Sight::Absent { reason: format!("{url} did not answer within {waited} s") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let endpoint = Endpoint::Tcp("127.0.0.1:8080".parse().unwrap());
        let external = External { endpoint: endpoint.clone(), model: Some("qwen".to_owned()) };
        let slot = "chat".parse().unwrap();
        let gate = Gate::new(slot, Generation(1), (endpoint, None), (1, 1), &Arc::default());
        Watch { external, gate, told: None, unanswered: 0, pause: ABSENT_PAUSE }
    }

    fn look(health: Health) -> Look {
        Look { health, is_asleep: false }
    }

    #[test]
    fn an_engine_that_never_answered_is_absent_and_one_that_was_there_is_given_time() {
        let mut watch = watch();
        let reason = "http://127.0.0.1:8080 did not answer within 2 s".to_owned();
        let absent = Some(Sight::Absent { reason });
        assert_eq!(watch.see(look(Health::Unknown)), absent);
        watch.told = watch.see(look(Health::Ready));
        assert_eq!(watch.told, Some(Sight::Present { is_asleep: false }));
        let seen: Vec<_> = (0..3).map(|_| watch.see(look(Health::Unknown))).collect();
        assert_eq!(seen, [None, None, absent]);
    }

    #[test]
    fn what_is_wrong_at_the_address_is_said() {
        let said = |health| match watch().see(look(health)) {
            Some(Sight::Absent { reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(said(Health::Refused), "nobody listens at http://127.0.0.1:8080");
        assert_eq!(
            said(Health::Impostor { found: "llama".to_owned() }),
            "http://127.0.0.1:8080 serves `llama`, and the profile says `qwen`"
        );
    }

    #[test]
    fn an_absent_engine_is_looked_for_ever_more_slowly() {
        let mut watch = watch();
        let pauses: Vec<_> = (0..6).map(|_| watch.next_pause().as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 5000, 5000]);
    }
}

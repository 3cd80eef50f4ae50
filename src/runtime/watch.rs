//! Watches one child while it lives: how far its load is, whether it is ready, what it uses.
//!
//! While it loads the looks come fast, so that the first request leaves within milliseconds of the
//! engine being ready; a line in its log brings the next look forward. Once it is ready they come
//! slowly: its end is told by the kernel, not by a look.

use std::{convert::Infallible, io, path::Path, sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::debug;

use super::{
    engine_task::Reporter,
    keep::Keeping,
    readings::{Pace, Readings, Signs},
    thrift::{self, Thrift},
};
use crate::{
    engine::{self, Endpoint, EngineKind},
    probe::{Health, Probe},
    process::LogFollower,
    proxy::Gate,
    sensor,
    spec::SlotName,
    supervisor::{ChildEvent, Vitals},
};

/// How long one look may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How many looks in a row must say "not ready" before a ready engine leaves the routing table.
const UNREADY_AFTER: u32 = 2;

/// The child to watch.
#[derive(Debug)]
pub(super) struct Watched<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) kind: EngineKind,
    pub(super) alias: &'a SlotName,
    pub(super) log: &'a Path,
    /// Whether logs are to be kept short.
    pub(super) thrift: &'a Arc<Thrift>,
    /// To be written down before it gets its first request.
    pub(super) keeping: Option<&'a Keeping>,
    pub(super) begins: Begins,
    /// Its process id, which is its process group too.
    pub(super) pid: u32,
    pub(super) gate: &'a Gate,
    /// `hang_timeout` at its start: sets the pace of the looks.
    pub(super) patience: Option<Duration>,
}

/// How far a child is when its watch begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Begins {
    /// It was spawned a moment ago.
    Loading,
    /// An earlier daemon has had it; it has just answered.
    Ready,
}

/// What is known so far.
struct Watch<'a> {
    child: Watched<'a>,
    probe: Probe,
    /// Away while a thread that may block reads with it.
    follower: Option<LogFollower>,
    standing: Standing,
    pace: Pace,
    readings: Readings,
}

/// Where the looks have come to.
#[derive(Clone, Copy, Debug)]
enum Standing {
    Loading { percent: Option<u8> },
    Ready { bad_looks: u32 },
    Unready,
}

/// Watches until it is dropped: the child's end ends it.
#[expect(clippy::infinite_loop, reason = "it ends by being dropped")]
pub(super) async fn watch(child: Watched<'_>, reporter: &Reporter) -> Infallible {
    let probe = Probe::new(child.endpoint, child.kind, child.alias.as_str());
    let follower = Some(LogFollower::new(child.log.to_path_buf()));
    let standing = match child.begins {
        Begins::Loading => Standing::Loading { percent: None },
        Begins::Ready => Standing::Ready { bad_looks: 0 },
    };
    let pace = Pace::of(child.patience);
    let readings = Readings::default();
    let mut watch = Watch { child, probe, follower, standing, pace, readings };
    let began = Instant::now();
    loop {
        let hurry = watch.read_log(reporter).await;
        watch.look(reporter).await;
        if !hurry {
            sleep(watch.pause(began.elapsed())).await;
        }
    }
}

impl Watch<'_> {
    /// How long until the next look.
    fn pause(&self, elapsed: Duration) -> Duration {
        match self.standing {
            Standing::Loading { .. } if elapsed < Duration::from_secs(10) => {
                Duration::from_millis(8)
            }
            Standing::Loading { .. } if elapsed < Duration::from_mins(2) => {
                Duration::from_millis(25)
            }
            Standing::Loading { .. } => Duration::from_millis(100),
            Standing::Unready => Duration::from_millis(250),
            Standing::Ready { .. } => self.pace.period,
        }
    }

    /// Reads what the engine wrote since the last time; says whether it wrote that it is ready.
    async fn read_log(&mut self, reporter: &Reporter) -> bool {
        let follower = match self.standing {
            Standing::Loading { .. } => self.follower.take(),
            Standing::Ready { .. } | Standing::Unready => None,
        };
        let (log, is_followed) = (self.child.log.to_path_buf(), follower.is_some());
        // A disk that hangs must not hold up those who share our thread.
        let thrift = Arc::clone(self.child.thrift);
        let reading = spawn_blocking(move || read_and_cut(follower, &log, &thrift));
        let Ok((follower, lines, cut)) = reading.await else { return false };
        if is_followed {
            self.follower = follower;
        }
        if let Err(error) = cut {
            debug!(slot = %self.child.alias, %error, "engine log not cut");
        }
        let mut is_ready = false;
        for line in lines {
            is_ready |= engine::log::is_ready_line(self.child.kind, &line);
            if let Some(percent) = engine::log::progress(self.child.kind, &line) {
                self.progress(percent, reporter).await;
            }
        }
        is_ready
    }

    async fn look(&mut self, reporter: &Reporter) {
        let health = self.probe.look(self.deadline()).await;
        if !matches!(self.standing, Standing::Loading { .. }) {
            self.read_vitals(&health, reporter).await;
        }
        match (self.standing, health) {
            (standing @ (Standing::Loading { .. } | Standing::Unready), Health::Ready) => {
                if let (Standing::Loading { .. }, Some(keeping)) = (standing, self.child.keeping) {
                    // One that cannot be written down serves all the same, and ends with the daemon.
                    keeping.record().await;
                }
                self.standing = Standing::Ready { bad_looks: 0 };
                reporter.tell(ChildEvent::BecameReady).await;
            }
            (Standing::Loading { .. }, Health::Loading { percent: Some(percent) }) => {
                self.progress(percent, reporter).await;
            }
            (Standing::Ready { .. }, Health::Ready) => {
                self.standing = Standing::Ready { bad_looks: 0 };
            }
            // Unknown is not down: a busy engine may be slow to answer.
            (_, Health::Unknown) => {
                debug!(slot = %self.child.alias, "engine did not answer a look");
            }
            (Standing::Ready { bad_looks }, _) if bad_looks + 1 < UNREADY_AFTER => {
                self.standing = Standing::Ready { bad_looks: bad_looks + 1 };
            }
            (Standing::Ready { .. }, _) => {
                self.standing = Standing::Unready;
                reporter.tell(ChildEvent::BecameUnready).await;
            }
            (Standing::Loading { .. } | Standing::Unready, _) => {}
        }
    }

    /// A load may keep an engine from answering for as long as it likes.
    fn deadline(&self) -> Duration {
        match self.standing {
            Standing::Loading { .. } => LOOK_DEADLINE,
            Standing::Ready { .. } | Standing::Unready => self.pace.deadline,
        }
    }

    /// Reads the engine's vital signs while one is missing, and once more when it is back.
    async fn read_vitals(&mut self, health: &Health, reporter: &Reporter) {
        let now = Instant::now();
        let record = self.child.gate.record();
        let signs = Signs {
            // "Loading" after it was ready: it changes its model, or wakes up.
            has_answered: matches!(health, Health::Ready | Health::Loading { .. }),
            in_flight: self.child.gate.expecting(),
            pieces: record.pieces(),
            failed_in_row: record.failed_in_row(),
        };
        let Some(continues) = self.readings.next(now, signs, self.pace) else { return };
        let group = self.child.pid;
        let activity = spawn_blocking(move || sensor::activity(group)).await.ok().flatten();
        let vitals = Vitals {
            continues,
            has_answered: signs.has_answered,
            in_flight: signs.in_flight,
            pieces: signs.pieces,
            failed_in_row: signs.failed_in_row,
            given_up_in_row: record.given_up_in_row(),
            cpu: activity.map(|activity| activity.cpu),
            is_stopped: activity.is_some_and(|activity| activity.is_stopped),
        };
        reporter.tell(ChildEvent::VitalsRead { vitals }).await;
    }

    async fn progress(&mut self, percent: u8, reporter: &Reporter) {
        if let Standing::Loading { percent: before } = self.standing
            && before.is_none_or(|before| before < percent)
        {
            self.standing = Standing::Loading { percent: Some(percent) };
            reporter.tell(ChildEvent::Progressed { percent }).await;
        }
    }
}

/// Reads what is new, and cuts a log that has grown too large. A log that cannot be read is no reason
/// to stop a load: the health answers count.
fn read_and_cut(
    follower: Option<LogFollower>,
    log: &Path,
    thrift: &Thrift,
) -> (Option<LogFollower>, Vec<String>, io::Result<()>) {
    let mut follower = follower;
    let lines = follower.as_mut().and_then(|follower| follower.read_new().ok());
    (follower, lines.unwrap_or_default(), thrift::cut(log, thrift))
}

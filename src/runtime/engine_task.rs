//! The life of one child, from the checks before its spawn to the last of its group.
//!
//! One task a child. It reports what happens; it decides nothing.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

use super::{
    clock,
    effects::{Handles, Report},
    watch::{self, Watched},
};
use crate::{
    config::daemon::Settings,
    engine::{self, Endpoint, EngineKind, Launch, LaunchInput},
    models::{self, Checked},
    process::{self, Child, SpawnSpec, Spawner},
    proxy::Gate,
    spec::{
        Generation, SlotName,
        death::{Evidence, ExitStatus, Verdict},
        profile::{EngineChoice, Profile},
    },
    supervisor::{ChildEvent, EngineInfo},
};

/// The longest that the checks before a spawn may take: a dead network mount must not hold a slot.
const CHECKS_DEADLINE: Duration = Duration::from_secs(30);
/// How many log lines the cause of a death is looked for in.
const EVIDENCE_LINES: usize = 100;
/// How many log lines history keeps with a death.
const KEPT_LINES: usize = 20;

/// What every child's task works with.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) settings: Settings,
    pub(super) spawner: Spawner,
    /// slotd's own program: the candle worker is a subcommand of it.
    pub(super) program: PathBuf,
    /// The daemon's environment, from which engines get an allow-list.
    pub(super) environment: Vec<(String, String)>,
    pub(super) hub_cache: PathBuf,
}

/// One child's line to the driver.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    slot: SlotName,
    generation: Generation,
    to: mpsc::Sender<Report>,
}

impl Reporter {
    pub(super) fn new(slot: SlotName, generation: Generation, to: mpsc::Sender<Report>) -> Self {
        Self { slot, generation, to }
    }

    /// Tells the driver one thing.
    pub(super) async fn tell(&self, event: ChildEvent) {
        self.send(event, None).await;
    }

    async fn send(&self, event: ChildEvent, handles: Option<Handles>) {
        let report =
            Report { slot: self.slot.clone(), generation: self.generation, event, handles };
        // The driver is gone only once everything is stopped.
        drop(self.to.send(report).await);
    }
}

/// What a failed start tells.
struct Failure {
    verdict: Verdict,
    reason: String,
    engine: Option<EngineInfo>,
}

/// A child that runs.
struct Running {
    child: Child,
    launched: Launched,
    log: PathBuf,
}

/// What was started.
struct Launched {
    kind: EngineKind,
    endpoint: Endpoint,
    info: EngineInfo,
}

/// Runs one child and returns once nothing of it is left.
pub(super) async fn run(tools: Arc<Tools>, profile: Arc<Profile>, reporter: Reporter) {
    let mut running = match start(&tools, &profile, &reporter).await {
        Ok(running) => running,
        Err(Failure { verdict, reason, engine }) => {
            let at_unix_ms = clock::unix_ms();
            reporter.tell(ChildEvent::SpawnFailed { verdict, reason, at_unix_ms, engine }).await;
            return;
        }
    };
    announce(&tools, &running, &reporter).await;
    let watched = Watched {
        endpoint: &running.launched.endpoint,
        kind: running.launched.kind,
        alias: &reporter.slot,
        log: &running.log,
    };
    let status = tokio::select! {
        // The end first: a dead child is not probed once more.
        biased;
        status = running.child.wait() => status,
        never = watch::watch(watched, &reporter) => match never {},
    };
    let evidence = gather(&running, status).await;
    reporter.tell(ChildEvent::Exited { evidence, at_unix_ms: clock::unix_ms() }).await;
    running.child.reap().await;
    reporter.tell(ChildEvent::Reaped).await;
}

async fn announce(tools: &Tools, running: &Running, reporter: &Reporter) {
    let launched = &running.launched;
    let gate = Gate::new(
        reporter.slot.clone(),
        reporter.generation,
        launched.endpoint.clone(),
        launched.info.parallel,
        tools.settings.queue_limit,
    );
    let handles = Handles { gate, stop: running.child.stop_handle() };
    let event =
        ChildEvent::Spawned { pid: running.child.pid(), engine: launched.info.clone() };
    reporter.send(event, Some(handles)).await;
}

//! The life of one child, from the checks before its spawn to the last of its group.
//!
//! One task a child. It reports what happens; it decides nothing.

use std::{
    error::Error,
    ffi::OsString,
    io,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};
use tracing::debug;

use super::{
    clock,
    effects::{Handles, Report},
    watch::{self, Watched},
};
use crate::{
    config::daemon::Settings,
    engine::{self, Endpoint, EngineKind, Launch, wants_port},
    models::{Checked, Checks, Refused},
    process::{self, Child, SpawnFault, SpawnSpec, Spawner},
    proxy::Gate,
    sensor,
    spec::{
        Generation, SlotName,
        death::{Evidence, ExitStatus, Verdict},
        ladder::Rung,
        profile::Profile,
    },
    supervisor::{ChildEvent, EngineInfo},
};

/// The longest that the checks before a spawn may take: a dead network mount must not hold a slot.
const CHECKS_DEADLINE: Duration = Duration::from_secs(30);
/// The longest that a death waits for its log to be read.
const EVIDENCE_DEADLINE: Duration = Duration::from_secs(1);
/// How many log lines the cause of a death is looked for in.
const EVIDENCE_LINES: usize = 100;
/// How many log lines history keeps with a death.
const KEPT_LINES: usize = 20;

/// What every child's task works with.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) settings: Settings,
    pub(super) spawner: Spawner,
    pub(super) checks: Arc<Checks>,
    /// The daemon's environment, from which engines get an allow-list.
    pub(super) environment: Vec<(OsString, OsString)>,
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
    /// The rungs that it could have been started on.
    rungs: Arc<[Rung]>,
    /// The name of its model that it insists on.
    model: Option<String>,
}

/// Runs one child and returns once nothing of it is left.
pub(super) async fn run(
    tools: Arc<Tools>,
    (profile, rung): (Arc<Profile>, usize),
    reporter: Reporter,
) {
    let mut running = match start(&tools, (&profile, rung), &reporter).await {
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
    // Boxed: the watch holds a request while it waits, and this task lives as long as the engine.
    let watch = Box::pin(watch::watch(watched, &reporter));
    let status = tokio::select! {
        // The end first: a dead child is not probed once more.
        biased;
        status = running.child.wait() => status,
        never = watch => match never {},
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
        (launched.endpoint.clone(), launched.model.clone()),
        launched.info.parallel,
        tools.settings.queue_limit,
    );
    let handles = Handles { gate, stop: running.child.stop_handle() };
    let event = ChildEvent::Spawned {
        pid: running.child.pid(),
        engine: launched.info.clone(),
        rungs: Arc::clone(&launched.rungs),
    };
    reporter.send(event, Some(handles)).await;
}

/// Checks, then starts.
async fn start(
    tools: &Arc<Tools>,
    (profile, rung): (&Arc<Profile>, usize),
    reporter: &Reporter,
) -> Result<Running, Failure> {
    let endpoint = endpoint(tools, profile, reporter).map_err(|source| {
        Failure::new(
            Verdict::SpawnFailed,
            format!("no address could be had for the engine: {source}"),
        )
    })?;
    let checked = check(tools, profile, &endpoint).await?;
    let rungs: Arc<[Rung]> = checked.ladder(profile, sensor::has_gpu()).into();
    // The core clamps alike once it knows the rungs.
    let rung = rungs.get(rung).or(rungs.last()).cloned().unwrap_or_default();
    let launch = checked
        .launch((profile, &rung), &endpoint, &tools.environment)
        .map_err(|fault| Failure::of_check(Refused::of_launch(&fault, &checked)))?;
    let info = EngineInfo {
        name: checked.kind.as_str().to_owned(),
        program: checked.program.display().to_string(),
        parallel: launch.parallel,
    };
    let log = log_of(tools, reporter).await;
    let spec = spec(tools, reporter, (launch, &endpoint), log.clone());
    match tools.spawner.spawn(spec).await {
        Ok(child) => {
            let model = checked.insisted_name(profile);
            let launched = Launched { kind: checked.kind, endpoint, info, rungs, model };
            Ok(Running { child, launched, log })
        }
        Err(fault) => Err(Failure::of_spawn(&fault, info)),
    }
}

/// Runs the checks off the threads that others wait for, and not for ever.
async fn check(
    tools: &Arc<Tools>,
    profile: &Arc<Profile>,
    endpoint: &Endpoint,
) -> Result<Checked, Failure> {
    let (checks, profile, endpoint) =
        (Arc::clone(&tools.checks), Arc::clone(profile), endpoint.clone());
    let checking = spawn_blocking(move || checks.run(&profile, &endpoint));
    match timeout(CHECKS_DEADLINE, checking).await {
        Ok(Ok(checked)) => checked.map_err(Failure::of_check),
        Ok(Err(error)) => {
            let reason = format!("the checks before the start broke off: {error}");
            Err(Failure::new(Verdict::UnexpectedExit, reason))
        }
        Err(_) => {
            let reason = format!(
                "the model or the engine's program could not be read within {} s; is the disk or the mount there?",
                CHECKS_DEADLINE.as_secs()
            );
            Err(Failure::new(Verdict::StartTimeout, reason))
        }
    }
}

/// A private socket of this generation, or a free port for a command that wants one.
fn endpoint(tools: &Tools, profile: &Profile, reporter: &Reporter) -> io::Result<Endpoint> {
    if wants_port(&profile.engine) {
        // Freed again at once: the engine binds it. If somebody is faster, the next start takes another.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        return Ok(Endpoint::Tcp(listener.local_addr()?));
    }
    Ok(Endpoint::Unix(tools.settings.engine_socket(&reporter.slot, reporter.generation)))
}

/// The log of this generation; those of old generations go.
async fn log_of(tools: &Tools, reporter: &Reporter) -> PathBuf {
    let logs = tools.settings.state_dir.join("logs");
    let log = process::log_path(&logs, &reporter.slot, reporter.generation);
    let folder = logs.join(reporter.slot.as_str());
    let pruning = spawn_blocking(move || process::prune(&folder)).await;
    if let Ok(Err(error)) = pruning
        && error.kind() != io::ErrorKind::NotFound
    {
        debug!(slot = %reporter.slot, %error, "old engine logs not removed");
    }
    log
}

fn spec(
    tools: &Tools,
    reporter: &Reporter,
    (launch, endpoint): (Launch, &Endpoint),
    log: PathBuf,
) -> SpawnSpec {
    let socket = match endpoint {
        Endpoint::Unix(path) => Some(path.clone()),
        Endpoint::Tcp(_) => None,
    };
    SpawnSpec {
        slot: reporter.slot.clone(),
        generation: reporter.generation,
        program: launch.program,
        args: launch.args,
        env: launch.env,
        log,
        socket,
        working_dir: tools.settings.state_dir.clone(),
    }
}

impl Failure {
    fn new(verdict: Verdict, reason: String) -> Self {
        Self { verdict, reason, engine: None }
    }

    fn of_check(refused: Refused) -> Self {
        let engine = refused.engine.map(|(kind, program)| EngineInfo {
            name: kind.as_str().to_owned(),
            program: program.display().to_string(),
            parallel: 0,
        });
        Self { verdict: refused.verdict, reason: refused.reason, engine }
    }

    fn of_spawn(fault: &SpawnFault, info: EngineInfo) -> Self {
        // What may be there the next time is tried again; the rest needs a person.
        let verdict =
            if fault.is_temporary() { Verdict::UnexpectedExit } else { Verdict::SpawnFailed };
        let reason = match fault.source() {
            Some(source) => format!("{fault}: {source}"),
            None => fault.to_string(),
        };
        Self { verdict, reason, engine: Some(info) }
    }
}

/// Gathers what is known about a death, from the kernel and from the log's end.
async fn gather(running: &Running, status: ExitStatus) -> Evidence {
    let kind = running.launched.kind;
    let log = running.log.clone();
    let reading = spawn_blocking(move || process::tail(&log, EVIDENCE_LINES, process::TAIL_BYTES));
    // A death is told without its last lines rather than late.
    let read = timeout(EVIDENCE_DEADLINE, reading).await;
    let mut last_lines = read.ok().and_then(Result::ok).unwrap_or_default();
    let finding = engine::log::death_cause(kind, &last_lines);
    last_lines.drain(..last_lines.len().saturating_sub(KEPT_LINES));
    let code_cause = match status {
        ExitStatus::Code(code) => engine::code_cause(kind, code),
        ExitStatus::Signal(_) | ExitStatus::Unknown => None,
    };
    Evidence { status, code_cause, log: finding, oom_kills: running.child.oom_kills(), last_lines }
}

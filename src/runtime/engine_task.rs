//! The life of one child, from the checks before its spawn to the last of its group.
//!
//! One task a child. It reports what happens; it decides nothing.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    task::spawn_blocking,
    time::timeout,
};
use tracing::debug;

use super::{
    adopt::Adopted,
    clock,
    effects::{Handles, Report},
    failure::Failure,
    farewell::Farewell,
    keep::Keeping,
    last_seconds::{Before, LastSeconds},
    on_gpus::OnGpus,
    peaks::PeakBook,
    pulls::Pulls,
    sizing::{check, endpoint},
    thrift::Thrift,
    watch::{self, Begins, Watched},
};
use crate::{
    config::daemon::Settings,
    engine::{self, CoreShare, Endpoint, EngineKind, Launch, Machine},
    models::{Checks, Refused},
    process::{self, Child, ErrandSpec, SpawnSpec, Spawner},
    proxy::{Gate, Suspects, Uses},
    sensor::{Gpus, Members},
    spec::{
        Generation, SlotName,
        death::{Evidence, ExitStatus},
        identity::NONCE_VARIABLE,
        ladder::Rung,
        profile::{OnExit, Profile},
    },
    store::StateDir,
    supervisor::{ChildEvent, EngineInfo, StopSignal},
};

/// Which GPUs a program of CUDA sees, by UUID, in the order in which it counts them.
/// Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
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
    pub(super) state: Arc<StateDir>,
    pub(super) checks: Arc<Checks>,
    pub(super) pulls: Arc<Pulls>,
    pub(super) suspects: Arc<Suspects>,
    /// What engines took at most before.
    pub(super) peaks: PeakBook,
    /// Whether only what serving needs is written.
    pub(super) thrift: Arc<Thrift>,
    pub(super) uses: Arc<Uses>,
    /// What engines compute with.
    pub(super) machine: Machine,
    /// NVIDIA's GPUs, on a machine that may have some.
    pub(super) gpus: Option<Arc<Gpus>>,
    /// The daemon's environment, from which engines get an allow-list.
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// What is to be started.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) profile: Arc<Profile>,
    pub(super) rung: usize,
    pub(super) cores: u32,
    /// The GPUs that it is to see; empty for all.
    pub(super) devices: Vec<String>,
}

/// One child's line to the driver.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    pub(super) slot: SlotName,
    pub(super) generation: Generation,
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

/// A child that runs.
struct Running {
    child: Child,
    launched: Launched,
    log: PathBuf,
    last_seconds: LastSeconds,
    gpus: OnGpus,
    /// For one that is to be kept: what stands in its environment.
    nonce: Option<String>,
    leave: Arc<Notify>,
    farewell: Farewell,
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
    /// The program that ends it, with its arguments; empty where signals do.
    stop: Vec<OsString>,
    /// What its peak of memory is remembered under; None where that cannot be told any more.
    key: Option<String>,
}

/// Runs one child and returns once nothing of it is left.
pub(super) async fn run(tools: Arc<Tools>, wanted: Wanted, reporter: Reporter) {
    let running = match start(&tools, &wanted, &reporter).await {
        Ok(running) => running,
        Err(Failure { verdict, reason, engine }) => {
            let at_unix_ms = clock::unix_ms();
            reporter.tell(ChildEvent::SpawnFailed { verdict, reason, at_unix_ms, engine }).await;
            return;
        }
    };
    let event = ChildEvent::Spawned {
        pid: running.child.pid(),
        engine: running.launched.info.clone(),
        rungs: Arc::clone(&running.launched.rungs),
    };
    let handles = handles(&tools, &running, &reporter);
    let gate = Arc::clone(&handles.gate);
    reporter.send(event, Some(handles)).await;
    attend((&tools, &wanted.profile), running, &gate, &reporter, Begins::Loading).await;
}

/// Prepares to go on with an engine of an earlier daemon: the ways to it, and the rest of its life.
pub(super) fn adopted(
    tools: Arc<Tools>,
    adopted: Adopted,
    profile: &Arc<Profile>,
    reporter: Reporter,
) -> (Handles, impl Future<Output = ()> + use<>) {
    let Adopted { record, child } = adopted;
    let logs = tools.settings.state_dir.join("logs");
    let launched = Launched {
        kind: record.kind,
        endpoint: record.endpoint,
        info: record.engine,
        // Those of the next start are told then.
        rungs: Arc::default(),
        model: record.model,
        stop: record.stop,
        key: None,
    };
    let log = process::log_path(&logs, &reporter.slot, reporter.generation);
    let (nonce, leave) = (Some(record.identity.nonce), Arc::default());
    let last_seconds = Before::begin().of(child.pid(), child.counters());
    let env = engine::for_engine(&tools.environment, &profile.env);
    let farewell = farewell(&tools, &reporter, (&launched, env), (&log, profile));
    let gpus = OnGpus::of_running(&tools, members(&child));
    let running = Running { child, launched, log, last_seconds, gpus, nonce, leave, farewell };
    let handles = handles(&tools, &running, &reporter);
    let (profile, gate) = (Arc::clone(profile), Arc::clone(&handles.gate));
    let attending = async move {
        attend((&tools, &profile), running, &gate, &reporter, Begins::Ready).await;
    };
    (handles, attending)
}

/// Watches a child until its end, or until it is to be left.
async fn attend(
    (tools, profile): (&Arc<Tools>, &Profile),
    mut running: Running,
    gate: &Gate,
    reporter: &Reporter,
    begins: Begins,
) {
    let keeping = keeping((tools, profile), &running, reporter);
    let alias = reporter.slot.known_as();
    let watched = Watched {
        endpoint: &running.launched.endpoint,
        kind: running.launched.kind,
        alias: &alias,
        log: &running.log,
        thrift: &tools.thrift,
        keeping: keeping.as_ref(),
        begins,
        pid: running.child.pid(),
        gate,
        patience: profile.hang_timeout,
    };
    // Boxed: the watch holds a request while it waits, and this task lives as long as the engine.
    let watch = Box::pin(watch::watch(watched, reporter));
    let stop = running.child.stop_handle();
    let key = running.launched.key.as_deref();
    let peak = tools.peaks.watch(running.child.pid(), &running.gpus, key);
    let on_gpus = running.gpus.keep();
    let parting = async {
        running.farewell.asked().await;
        stop.signal(StopSignal::Terminate);
        std::future::pending::<Infallible>().await
    };
    let ended = tokio::select! {
        // The end first: a dead child is not probed once more.
        biased;
        status = running.child.wait() => Some(status),
        () = running.leave.notified() => None,
        never = watch => match never {},
        never = running.last_seconds.keep() => match never {},
        never = peak => match never {},
        never = on_gpus => match never {},
        never = parting => match never {},
    };
    match ended {
        Some(status) => end(status, running, keeping.as_ref(), (gate, reporter)).await,
        None => leave(running, keeping.as_ref()).await,
    }
}

/// Tells of an end, and sees to it that nothing is left.
async fn end(
    status: ExitStatus,
    mut running: Running,
    keeping: Option<&Keeping>,
    (gate, reporter): (&Gate, &Reporter),
) {
    // Who is in flight, and who comes, does not wait until it is known why.
    gate.mark_ended();
    let evidence = running.last_seconds.at_the_end(status);
    let evidence = Evidence { xids: running.gpus.xids(), ..evidence };
    let evidence = with_log(evidence, running.launched.kind, running.log).await;
    reporter.tell(ChildEvent::Exited { evidence, at_unix_ms: clock::unix_ms() }).await;
    running.farewell.finish().await;
    running.child.reap().await;
    if let Some(keeping) = keeping {
        keeping.forget().await;
    }
    reporter.tell(ChildEvent::Reaped).await;
}

/// Makes what it takes to write an engine down that is to be kept.
fn keeping(
    (tools, profile): (&Arc<Tools>, &Profile),
    running: &Running,
    reporter: &Reporter,
) -> Option<Keeping> {
    let nonce = running.nonce.clone()?;
    let Launched { kind, endpoint, info, model, stop, .. } = &running.launched;
    Some(Keeping {
        state: Arc::clone(&tools.state),
        handle: running.child.keep_handle(),
        slot: (reporter.slot.clone(), reporter.generation),
        nonce,
        engine: (*kind, endpoint.clone(), info.clone()),
        model: model.clone(),
        stop: stop.clone(),
        profile: profile.clone(),
    })
}

/// Lets a child run on; one of which no later daemon would know is ended instead.
async fn leave(Running { mut child, mut farewell, .. }: Running, keeping: Option<&Keeping>) {
    let is_recorded = match keeping {
        Some(keeping) => keeping.record().await,
        None => false,
    };
    if is_recorded {
        child.leave();
    } else {
        child.stop_handle().signal(StopSignal::Kill);
        farewell.finish().await;
        child.reap().await;
    }
}

fn handles(tools: &Tools, running: &Running, reporter: &Reporter) -> Handles {
    let launched = &running.launched;
    let gate = Gate::new(
        reporter.slot.clone(),
        reporter.generation,
        (launched.endpoint.clone(), launched.model.clone()),
        (launched.info.parallel, tools.settings.queue_limit),
        &tools.suspects,
    );
    gate.count_in(tools.uses.of(&reporter.slot.known_as()));
    Handles {
        gate,
        members: members(&running.child),
        stop: running.child.stop_handle(),
        farewell: running.farewell.bell(),
        leave: Arc::clone(&running.leave),
    }
}

fn members(child: &Child) -> Members {
    Members { group: child.pid(), cell: child.counters().cgroup_name().map(str::to_owned) }
}

fn farewell(
    tools: &Tools,
    reporter: &Reporter,
    (launched, env): (&Launched, BTreeMap<OsString, OsString>),
    (log, profile): (&Path, &Profile),
) -> Farewell {
    let spec = ErrandSpec {
        words: launched.stop.clone(),
        env,
        working_dir: tools.settings.state_dir.clone(),
        log: log.to_path_buf(),
    };
    Farewell::new((reporter.slot.clone(), reporter.generation), spec, profile.stop_timeout)
}

/// Checks, then starts.
async fn start(
    tools: &Arc<Tools>,
    Wanted { profile, rung, cores, devices }: &Wanted,
    reporter: &Reporter,
) -> Result<Running, Failure> {
    let endpoint =
        endpoint(tools, profile, reporter).map_err(|fault| Failure::no_address(&fault))?;
    let checked = check(tools, profile, &endpoint).await?;
    let rungs: Arc<[Rung]> = checked.ladder(profile, tools.machine.has_gpu).into();
    // The core clamps alike once it knows the rungs.
    let rung = rungs.get(*rung).or(rungs.last()).cloned().unwrap_or_default();
    let cores = CoreShare { machine: tools.machine, threads: *cores };
    let launch = checked
        .launch((profile, &rung), cores, &endpoint, &tools.environment)
        .map_err(|fault| Failure::of_check(Refused::of_launch(&fault, &checked)))?;
    let info = EngineInfo {
        name: checked.kind.as_str().to_owned(),
        program: checked.program.display().to_string(),
        parallel: launch.parallel,
        cores: launch.cores,
        sole: checked.sole(profile),
    };
    let key = checked.peak_key((profile, &rung));
    let log = log_of(tools, reporter).await;
    let nonce = (profile.on_exit == OnExit::Keep).then(clock::nonce);
    let stop = launch.stop.clone();
    let mut spec = spec(tools, reporter, (launch, &endpoint), log.clone());
    spec.on_exit = profile.on_exit;
    // A Mac's GPU has no name that an engine would take.
    if devices.iter().any(|uuid| !uuid.is_empty()) {
        spec.env.insert(VISIBLE_DEVICES.into(), devices.join(",").into());
    }
    spec.env.extend(nonce.as_ref().map(|nonce| (NONCE_VARIABLE.into(), nonce.into())));
    let (before, env) = (Before::begin(), spec.env.clone());
    match tools.spawner.spawn(spec).await {
        Ok(child) => {
            let last_seconds = before.of(child.pid(), child.counters());
            let model = checked.insisted_name(profile);
            let kind = checked.kind;
            let launched = Launched { kind, endpoint, info, rungs, model, stop, key };
            let farewell = farewell(tools, reporter, (&launched, env), (&log, profile));
            let leave = Arc::default();
            let gpus = OnGpus::new(tools, devices.clone(), members(&child));
            Ok(Running { child, launched, log, last_seconds, gpus, nonce, leave, farewell })
        }
        Err(fault) => Err(Failure::of_spawn(&fault, info)),
    }
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
        on_exit: OnExit::Stop,
    }
}

/// Adds what the engine itself says: its exit code and its log's end.
async fn with_log(evidence: Evidence, kind: EngineKind, log: PathBuf) -> Evidence {
    let reading = spawn_blocking(move || process::tail(&log, EVIDENCE_LINES, process::TAIL_BYTES));
    // A death is told without its last lines rather than late.
    let read = timeout(EVIDENCE_DEADLINE, reading).await;
    let mut last_lines = read.ok().and_then(Result::ok).unwrap_or_default();
    let finding = engine::log::death_cause(kind, &last_lines);
    last_lines.drain(..last_lines.len().saturating_sub(KEPT_LINES));
    let code_cause = match evidence.status {
        ExitStatus::Code(code) => engine::code_cause(kind, code),
        ExitStatus::Signal(_) | ExitStatus::Unknown => None,
    };
    Evidence { code_cause, log: finding, last_lines, ..evidence }
}

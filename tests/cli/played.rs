//! A control API whose core is a few lines: `slow` loads for ever, `broken` fails, others get ready.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use slotd::{
    admin::{self, RequestObject, State, news},
    config,
    mailbox::{self, Inbox},
    spec::{
        Generation, Monotime, SlotName,
        death::{Confidence, Death, Phase, Verdict},
        edit::Edits,
        pressure::Strain,
        profile::Profile,
        residence::Orders,
    },
    supervisor::{EngineInfo, Event, SlotEvent, SlotView, Snapshot, StateView},
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    process::Command,
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::{DEADLINE, scratch, slotd};

pub(crate) struct Played {
    dir: TempDir,
    socket: PathBuf,
    _tasks: JoinSet<()>,
}

/// The one request in flight.
#[expect(clippy::unwrap_used, reason = "a fixed name that is one")]
fn request() -> RequestObject {
    RequestObject {
        id: 17,
        request_id: Some("req-1".to_owned()),
        slot: "chat".parse().unwrap(),
        state: "streaming".to_owned(),
        lane: "batch".to_owned(),
        age_ms: 61_000,
        cold_start_ms: 0,
        queue_ms: 3,
        tokens: 41,
        client: "127.0.0.1:50000".to_owned(),
        agent: Some("OpenAI/Python 2.54.0".to_owned()),
        key: None,
        is_abandoned: false,
    }
}

fn offline(profile: Arc<Profile>) -> SlotView {
    SlotView {
        profile,
        state: StateView::Offline,
        since: Monotime::default(),
        generation: Generation::default(),
        engine: None,
        rung: None,
        rung_index: 0,
        edits: Edits::default(),
        tally: 0,
        restarts: 0,
        waiting: 0,
        promised: None,
        displaced_by: None,
        relieved: None,
        orders: Orders::default(),
        expected_load: None,
        rss: None,
        deaths: Vec::new(),
        loads: Vec::new(),
    }
}

impl Played {
    /// Starts with these slots, all offline.
    pub(crate) fn start(slots: &[&str]) -> Self {
        let profiles: Vec<_> = slots.iter().map(|slot| (*slot, "model = \"m.gguf\"")).collect();
        let dir = scratch(&profiles);
        let loaded = config::load(&[dir.path().join("profiles")], &config::Context::default());
        let views =
            loaded.profiles.into_iter().map(|(name, profile)| (name, Arc::new(offline(profile))));
        let snapshot = Arc::new(Snapshot { generation: 1, slots: views.collect() });
        let (snapshots, seen) = watch::channel(snapshot);
        let (mailbox, inbox) = mailbox::channel();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = State {
            strain: watch::channel(Strain::default()).1,
            gpus: watch::channel(Arc::default()).1,
            storage: watch::channel(Vec::new()).1,
            news: news(),
            rules: admin::Rules::none(),
            stand_ins: Arc::new(|_, _| Box::pin(std::future::ready(Err(admin::NoStandIn::Ending)))),
            wall_clock: || 0,
            upgrades: mpsc::channel(1).0,
            snapshots: seen,
            mailbox,
            now: Arc::new(|| Monotime::from_start(Duration::from_secs(3))),
            in_flight: Arc::new(|_| None),
            requests: Arc::new(|| vec![request()]),
            cancel: Arc::new(|id| id == 17),
            pulls: admin::Pulls::none(),
            logs: Arc::new(|_, _| stream::iter([Bytes::from("a line of the log\n")]).boxed()),
            inventory: Arc::new(|| Box::pin(std::future::ready(serde_json::json!({})))),
            lack: Arc::new(|_| Box::pin(std::future::ready(None))),
            unmet: Arc::new(|_| None),
            faults: Arc::new(ArcSwap::from_pointee(Vec::new())),
            daemon: Arc::new(admin::Daemon {
                images: 0,
                cores: 4,
                version: "1.2.3",
                pid: 7,
                started: Monotime::default(),
                listen: "127.0.0.1:7568".parse().expect("an address"),
                ollama_listen: None,
                control: socket.clone(),
                state_dir: dir.path().join("state"),
                profile_dirs: vec![dir.path().join("profiles")],
                places: admin::PlacesObject::default(),
                memory_limit: None,
            }),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(admin::serve(listener, state, std::future::pending()));
        tasks.spawn(play(inbox, snapshots));
        Self { dir, socket, _tasks: tasks }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Prepares `slotd` with the socket named.
    pub(crate) fn command<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = slotd(self.dir.path());
        command.env("SLOTD_CONTROL", &self.socket).args(arguments).stdout(Stdio::piped());
        command
    }

    /// Runs `slotd` with the socket named.
    pub(crate) async fn slotd<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Output {
        let output = self.command(arguments).stderr(Stdio::piped()).output();
        timeout(DEADLINE, output).await.expect("slotd did not end").expect("slotd runs")
    }
}

async fn play(mut inbox: Inbox, snapshots: watch::Sender<Arc<Snapshot>>) {
    while let Some(event) = inbox.next().await {
        let Event::Slot { slot, event } = event else { continue };
        let is_ready =
            snapshots.borrow().slots.get(&slot).is_some_and(|view| view.state.as_str() == "ready");
        match event {
            SlotEvent::LoadRequested | SlotEvent::LoadOrderedByRule if is_ready => {}
            SlotEvent::LoadRequested
            | SlotEvent::LoadOrderedByRule
            | SlotEvent::ModelBecameWhole
            | SlotEvent::RestartRequested => {
                change(&snapshots, &slot, begin);
                match slot.as_str() {
                    "slow" => {}
                    "broken" => change(&snapshots, &slot, fail),
                    _ => change(&snapshots, &slot, become_ready),
                }
            }
            SlotEvent::UnloadRequested => {
                change(&snapshots, &slot, |view| view.state = StateView::Offline);
            }
            SlotEvent::Demanded { .. } | SlotEvent::WaiterLeft { .. } | SlotEvent::Child { .. } => {
            }
        }
    }
}

fn change(
    snapshots: &watch::Sender<Arc<Snapshot>>,
    slot: &SlotName,
    how: impl FnOnce(&mut SlotView),
) {
    snapshots.send_modify(|snapshot| {
        let snapshot = Arc::make_mut(snapshot);
        snapshot.generation += 1;
        how(Arc::make_mut(snapshot.slots.get_mut(slot).expect("the slot is there")));
    });
}

fn begin(view: &mut SlotView) {
    view.generation = view.generation.next();
    let give_up_at = Monotime::default();
    view.state = StateView::Starting { pid: Some(1), percent: Some(42), attempt: 1, give_up_at };
}

fn become_ready(view: &mut SlotView) {
    let (name, program) = ("candle".to_owned(), "slotd".to_owned());
    view.engine = Some(EngineInfo { name, program, parallel: 1, cores: 1, sole: None });
    view.loads.push(Duration::from_millis(1300));
    view.state = StateView::Ready { pid: 1 };
}

fn fail(view: &mut SlotView) {
    view.deaths.push(Arc::new(Death {
        confidence: Confidence::Certain,
        generation: view.generation,
        pid: Some(1),
        verdict: Verdict::BadModel,
        reason: "it exited with code 1 while starting".to_owned(),
        phase: Phase::Starting,
        ran_for: Duration::from_millis(210),
        at_unix_ms: 1_795_251_612_345,
        evidence: None,
    }));
    view.state = StateView::Failed;
}

//! The control API over a real socket, with a snapshot made by hand.

use std::{collections::BTreeMap, future::ready, path::PathBuf, sync::Mutex, time::Duration};

use futures_util::{StreamExt, stream};
use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    mailbox::{self, Inbox},
    spec::{
        Bytes as MemoryBytes, Generation,
        death::{
            Confidence, Death, Evidence, ExitStatus, MemorySample, MemoryTimeline, Phase, Verdict,
        },
        edit::Edits,
        ladder::LadderChoice,
        memory::Share,
        pressure::Strain,
        profile::{EngineChoice, ModelSource, OnExit, Profile, Pull},
        requests::Requests,
        residence::{Orders, Residence},
    },
    supervisor::{EngineInfo, Event, Purpose, RoomAnswer, SlotEvent, SlotView, StateView},
};

const DEADLINE: Duration = Duration::from_secs(20);

struct Api {
    client: reqwest::Client,
    snapshots: watch::Sender<Arc<Snapshot>>,
    inbox: Inbox,
    asked: Arc<Mutex<Vec<(SlotName, LogRequest)>>>,
    close: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    _dir: TempDir,
}

fn daemon() -> Daemon {
    Daemon {
        version: "1.2.3",
        pid: 7,
        images: 0,
        cores: 4,
        started: Monotime::from_start(Duration::from_secs(40)),
        listen: "127.0.0.1:7568".parse().unwrap(),
        ollama_listen: None,
        control: PathBuf::from("/run/slotd/control.sock"),
        state_dir: PathBuf::from("/var/lib/slotd"),
        profile_dirs: vec![PathBuf::from("/etc/slotd/profiles")],
        places: PlacesObject {
            config: Some(PathBuf::from("/etc/slotd/slotd.toml")),
            home: None,
            model_dirs: vec![PathBuf::from("/var/cache/slotd/models")],
            cache_dir: PathBuf::from("/var/cache/slotd"),
            hub_cache: None,
            llama_server: None,
        },
        memory_limit: Some(MemoryBytes(8 << 30)),
    }
}

impl Api {
    fn start(slots: &[SlotView]) -> Self {
        Self::start_with(slots, Arc::new(|_, _| Box::pin(ready(Err(NoStandIn::Ending)))))
    }

    fn start_with(slots: &[SlotView], stand_ins: StandIns) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, snapshots) = watch::channel(snapshot(slots));
        let (mailbox, inbox) = mailbox::channel();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let asks = Arc::clone(&asked);
        let state = State {
            snapshots,
            mailbox,
            now: Arc::new(|| Monotime::from_start(Duration::from_secs(100))),
            in_flight: Arc::new(|slot| (slot.as_str() == "chat").then_some(2)),
            requests: Arc::new(|| vec![request()]),
            cancel: Arc::new(|id| id == 17),
            pulls: Pulls::none(),
            logs: Arc::new(move |slot, request| {
                asks.lock().unwrap().push((slot.clone(), request));
                let lines = stream::iter(["one\n", "two\n"].map(Bytes::from));
                match request.follow {
                    Follow::No => lines.boxed(),
                    Follow::Yes => lines.chain(stream::pending()).boxed(),
                }
            }),
            strain: watch::channel(Strain::default()).1,
            gpus: watch::channel(Arc::default()).1,
            storage: watch::channel(Vec::new()).1,
            news: news(),
            rules: Rules::none(),
            stand_ins,
            wall_clock: || 0,
            inventory: Arc::new(|| Box::pin(ready(json!({ "models": [] })))),
            lack: Arc::new(|profile| {
                let missing = json!({ "model": profile.model_name(), "missing_bytes": 5 });
                let lacks = profile.slot.as_str() == "lacking";
                Box::pin(ready(lacks.then_some(missing)))
            }),
            // A machine without GPUs.
            unmet: Arc::new(|asks| {
                let asked = asks.gpus.filter(|asked| *asked > 0)?;
                Some(Unmet::Gpus { asked, found: 0 })
            }),
            faults: Arc::new(ArcSwap::from_pointee(vec![fault()])),
            // Nobody reads it: the daemon is on its way out.
            upgrades: mpsc::channel(1).0,
            daemon: Arc::new(daemon()),
        };
        let (close, closed) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Handle::current();
        let serving = runtime.spawn(serve(listener, state, async { drop(closed.await) }));
        let client = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        Self { client, snapshots: sender, inbox, asked, close, serving, _dir: dir }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("http://slotd{path}")).send().await.unwrap()
    }

    async fn post(&self, path: &str) -> reqwest::Response {
        self.client.post(format!("http://slotd{path}")).send().await.unwrap()
    }

    async fn delete(&self, path: &str) -> reqwest::Response {
        self.client.delete(format!("http://slotd{path}")).send().await.unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    async fn close(self) {
        self.close.send(()).unwrap();
        timeout(DEADLINE, self.serving).await.unwrap().unwrap();
    }
}

fn request() -> RequestObject {
    RequestObject {
        id: 17,
        request_id: Some("req-1".to_owned()),
        slot: "chat".parse().unwrap(),
        state: "streaming".to_owned(),
        lane: "interactive".to_owned(),
        age_ms: 1200,
        cold_start_ms: 0,
        queue_ms: 3,
        tokens: 41,
        client: "127.0.0.1:50000".to_owned(),
        agent: Some("OpenAI/Python 2.54.0".to_owned()),
        key: None,
        is_abandoned: false,
    }
}

#[tokio::test]
async fn requests_in_flight_are_listed_and_cancelled_by_their_id() {
    let api = Api::start(&[]);
    assert_json_snapshot!(api.json("/v1/requests").await, @r#"
    [
      {
        "id": 17,
        "request_id": "req-1",
        "slot": "chat",
        "state": "streaming",
        "lane": "interactive",
        "age_ms": 1200,
        "cold_start_ms": 0,
        "queue_ms": 3,
        "tokens": 41,
        "client": "127.0.0.1:50000",
        "agent": "OpenAI/Python 2.54.0",
        "key": null,
        "is_abandoned": false
      }
    ]
    "#);
    assert_eq!(api.delete("/v1/requests/17").await.status(), 202);
    for unknown in ["18", "req-1", "-1"] {
        let refused = api.delete(&format!("/v1/requests/{unknown}")).await;
        assert_eq!(refused.status(), 404, "{unknown}");
        let body: Value = refused.json().await.unwrap();
        assert_eq!(body["error"]["code"], "request_not_found");
    }
    api.close().await;
}

fn fault() -> Fault {
    Fault {
        file: Some(PathBuf::from("chat.toml")),
        line: Some(2),
        column: Some(1),
        key: Some("contxt".to_owned()),
        message: "unknown key".to_owned(),
        hint: Some("did you mean `context`?".to_owned()),
    }
}

fn snapshot(slots: &[SlotView]) -> Arc<Snapshot> {
    let slots =
        slots.iter().map(|view| (view.profile.slot.clone(), Arc::new(view.clone()))).collect();
    Arc::new(Snapshot { generation: 1, slots })
}

fn view(slot: &str, state: StateView) -> SlotView {
    let profile = Profile {
        slot: slot.parse().unwrap(),
        source: PathBuf::from(format!("/etc/slotd/profiles/{slot}.toml")),
        model: Some(ModelSource::Hub {
            repo: "org/repo".to_owned(),
            quant: Some("Q4".to_owned()),
            revision: None,
        }),
        engine: EngineChoice::Auto,
        stop_command: Vec::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
        aliases: vec!["gpt-4o".to_owned()],
        routes: Vec::new(),
        resume: false,
        capabilities: Vec::new(),
        context: None,
        parallel: Some(4),
        threads: None,
        gpu_layers: None,
        ladder: LadderChoice::default(),
        autostart: false,
        essential: false,
        max_restarts: 5,
        start_timeout: Duration::from_mins(1),
        stop_timeout: Duration::from_secs(10),
        hang_timeout: None,
        idle_timeout: None,
        on_exit: OnExit::Stop,
        pull: Pull::Never,
        residence: Residence::default(),
        requests: Requests::default(),
    };
    SlotView {
        profile: Arc::new(profile),
        state,
        since: Monotime::from_start(Duration::from_secs(97)),
        generation: Generation(3),
        engine: None,
        rung: None,
        rung_index: 0,
        edits: Edits::default(),
        tally: 1,
        restarts: 1,
        waiting: 2,
        promised: None,
        displaced_by: None,
        relieved: None,
        orders: Orders::default(),
        expected_load: Some(Duration::from_millis(1300)),
        rss: Some(MemoryBytes(98_362_432)),
        deaths: Vec::new(),
        loads: vec![Duration::from_millis(1300)],
    }
}

fn death() -> Arc<Death> {
    Arc::new(Death {
        generation: Generation(2),
        pid: Some(411),
        verdict: Verdict::KilledByOther,
        confidence: Confidence::Certain,
        reason: "SIGKILL ended it".to_owned(),
        phase: Phase::Serving,
        ran_for: Duration::from_millis(65_300),
        at_unix_ms: 1_790_000_000_000,
        evidence: Some(Evidence {
            oom_kills: Some(0),
            memory: Box::new(MemoryTimeline {
                total_bytes: Some(MemoryBytes(16 << 30)),
                limit_bytes: None,
                samples: vec![MemorySample {
                    before_ms: 420,
                    rss_bytes: Some(MemoryBytes(98_362_432)),
                    available_bytes: Some(MemoryBytes(8 << 30)),
                }],
            }),
            last_lines: vec!["all slots are idle".to_owned()],
            ..Evidence::of(ExitStatus::Signal(9))
        }),
    })
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "the snapshot is the contract, whole")]
async fn a_slot_is_shown_with_every_key() {
    let starting = StateView::Starting {
        pid: Some(4242),
        percent: Some(42),
        attempt: 2,
        give_up_at: Monotime::from_start(Duration::from_secs(160)),
    };
    let engine = EngineInfo {
        name: "llama-server".to_owned(),
        program: "/usr/libexec/slotd/llama-server".to_owned(),
        parallel: 4,
        cores: 3,
        sole: None,
    };
    let chat = SlotView { engine: Some(engine), deaths: vec![death()], ..view("chat", starting) };
    let api = Api::start(&[chat, view("embed", StateView::Offline)]);
    let slots = api.json("/v1/slots").await;
    assert_json_snapshot!(slots[0], @r#"
    {
      "slot": "chat",
      "stands_in_for": null,
      "state": "starting",
      "engine": "llama-server",
      "model": "org/repo:Q4",
      "url": null,
      "absence": null,
      "asleep": null,
      "pid": 4242,
      "generation": 3,
      "restarts": 1,
      "verdict": "killed-by-other",
      "reason": "SIGKILL ended it",
      "aliases": [
        "gpt-4o"
      ],
      "routes": [],
      "capabilities": [
        "chat",
        "completion",
        "embed"
      ],
      "program": "/usr/libexec/slotd/llama-server",
      "since_ms": 3000,
      "pull": null,
      "attempt": 2,
      "percent": 42,
      "elapsed_ms": 3000,
      "expected_load_ms": 1300,
      "retry_in_ms": null,
      "waits_for": null,
      "too_large": false,
      "held_by": [],
      "skipped": null,
      "need_bytes": null,
      "need_gpu_bytes": null,
      "promised_bytes": null,
      "promised_gpu_bytes": null,
      "displaced_by": null,
      "unloaded_for": null,
      "rule": null,
      "kept_out": null,
      "pinned": false,
      "priority": 50,
      "ordered": [],
      "in_flight": 2,
      "waiting": 2,
      "rung": null,
      "tally": 1,
      "rss_bytes": 98362432,
      "parallel": 4,
      "cores": 3,
      "autostart": false,
      "essential": false,
      "source": "/etc/slotd/profiles/chat.toml",
      "rejected_edit": null,
      "loads_ms": [
        1300
      ],
      "deaths": [
        {
          "generation": 2,
          "pid": 411,
          "verdict": "killed-by-other",
          "confidence": "certain",
          "reason": "SIGKILL ended it",
          "phase": "serving",
          "ran_for_ms": 65300,
          "at_unix_ms": 1790000000000,
          "evidence": {
            "status": {
              "signal": 9
            },
            "code_cause": null,
            "log": null,
            "oom_kills": 0,
            "daemon_oom_kills": null,
            "machine_oom_kills": null,
            "kernel_log": "unreadable",
            "memory": {
              "total_bytes": 17179869184,
              "limit_bytes": null,
              "samples": [
                {
                  "before_ms": 420,
                  "rss_bytes": 98362432,
                  "available_bytes": 8589934592
                }
              ]
            },
            "last_lines": [
              "all slots are idle"
            ]
          }
        }
      ]
    }
    "#);
    assert_eq!(slots[1]["slot"], "embed");
    assert_eq!(slots[1]["engine"], "auto", "no engine was chosen yet");
    assert_eq!(slots[1]["in_flight"], Value::Null);
    assert_eq!(slots[1]["rss_bytes"], Value::Null, "what an engine used is free once it is gone");
    assert_eq!(slots[0], api.json("/v1/slots/chat").await);
    api.close().await;
}

#[tokio::test]
async fn the_daemon_tells_of_itself_and_of_bad_profiles() {
    let api = Api::start(&[]);
    assert_json_snapshot!(api.json("/v1/daemon").await, @r#"
    {
      "version": "1.2.3",
      "pid": 7,
      "images": 0,
      "cores": 4,
      "uptime_ms": 60000,
      "listen": "127.0.0.1:7568",
      "control": "/run/slotd/control.sock",
      "state_dir": "/var/lib/slotd",
      "profile_dirs": [
        "/etc/slotd/profiles"
      ],
      "places": {
        "config": "/etc/slotd/slotd.toml",
        "home": null,
        "model_dirs": [
          "/var/cache/slotd/models"
        ],
        "cache_dir": "/var/cache/slotd",
        "hub_cache": null,
        "llama_server": null
      },
      "memory_limit_bytes": 8589934592,
      "pressure": {
        "level": "normal",
        "throttle": 1.0,
        "sources": {
          "cpu": "normal",
          "disk": "normal",
          "memory": "normal"
        }
      },
      "faults": [
        {
          "file": "chat.toml",
          "line": 2,
          "column": 1,
          "key": "contxt",
          "message": "unknown key",
          "hint": "did you mean `context`?",
          "text": "chat.toml:2:1: contxt: unknown key\n  hint: did you mean `context`?"
        }
      ]
    }
    "#);
    assert_eq!(api.get("/healthz").await.text().await.unwrap(), "ok\n");
    assert_eq!(api.json("/v1/slots").await, json!([]));
    api.close().await;
}

#[tokio::test]
async fn an_order_is_in_the_mailbox_when_it_is_answered() {
    let mut api = Api::start(&[view("chat", StateView::Offline)]);
    for (verb, wanted) in [
        ("load", SlotEvent::LoadRequested),
        ("unload", SlotEvent::UnloadRequested),
        ("restart", SlotEvent::RestartRequested),
    ] {
        let answer = api.post(&format!("/v1/slots/chat/{verb}")).await;
        assert_eq!(answer.status(), 202);
        assert_eq!(answer.json::<Value>().await.unwrap()["slot"], "chat");
        let told = timeout(DEADLINE, api.inbox.next()).await.unwrap();
        assert_eq!(told, Some(Event::Slot { slot: "chat".parse().unwrap(), event: wanted }));
    }
    api.close().await;
}

#[tokio::test]
async fn a_load_of_a_model_that_is_not_whole_says_what_is_missing_and_starts_nothing() {
    let mut api = Api::start(&[view("lacking", StateView::Offline)]);
    let answer = api.post("/v1/slots/lacking/load").await;
    assert_eq!(answer.status(), 202);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(
        body.to_string(),
        r#"{"status":"download_required","slot":"lacking","model":"org/repo:Q4","missing_bytes":5}"#
    );
    assert_eq!(api.json("/v1/inventory").await, json!({ "models": [] }));
    // The wish of the slot itself is the only one in the mailbox.
    assert_eq!(api.post("/v1/slots/lacking/unload").await.status(), 202);
    let told = timeout(DEADLINE, api.inbox.next()).await.unwrap();
    let unload = SlotEvent::UnloadRequested;
    assert_eq!(told, Some(Event::Slot { slot: "lacking".parse().unwrap(), event: unload }));
    api.close().await;
}

#[tokio::test]
async fn an_unknown_slot_is_named_with_what_there_is() {
    let api = Api::start(&[view("chat", StateView::Offline), view("embed", StateView::Offline)]);
    let message = async |path: &str| -> String {
        let answer = api.get(path).await;
        assert_eq!(answer.status(), 404);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"].as_object().unwrap().len(), 4);
        body["error"]["message"].as_str().unwrap().to_owned()
    };
    assert_snapshot!(message("/v1/slots/caht").await, @"there is no slot `caht`, did you mean `chat`? the slots are `chat`, `embed`");
    assert_snapshot!(message("/v1/slots/gpt-4o/logs").await, @"there is no slot `gpt-4o`, did you mean `chat`? the slots are `chat`, `embed`");
    assert_snapshot!(message("/v1/slots/..%2Fup/watch").await, @"there is no slot `../up`; the slots are `chat`, `embed`");
    assert_snapshot!(message("/v1/models").await, @"there is no path `/v1/models` in the control API");
    assert_eq!(api.post("/v1/slots/none/load").await.status(), 404);
    assert_eq!(api.get("/v1/slots/chat/load").await.status(), 405);
    assert_eq!(api.get("/v1/slots/chat/logs?lines=all").await.status(), 400);
    api.close().await;
}

#[tokio::test]
async fn a_watch_shows_each_change_and_ends_with_its_slot() {
    let api = Api::start(&[view("chat", StateView::Offline)]);
    let mut answer = api.get("/v1/slots/chat/watch").await;
    for state in [StateView::Offline, StateView::Ready { pid: 1 }, StateView::Failed] {
        let name = state.as_str();
        api.snapshots.send_replace(snapshot(&[view("chat", state)]));
        let line = timeout(DEADLINE, answer.chunk()).await.unwrap().unwrap().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&line).unwrap()["state"], name);
    }
    api.snapshots.send_replace(snapshot(&[]));
    let end = timeout(DEADLINE, answer.chunk()).await.unwrap().unwrap();
    assert_eq!(end, None, "the profile is gone");
    api.close().await;
}

#[tokio::test]
async fn a_change_of_another_slot_is_not_shown() {
    let chat = || view("chat", StateView::Offline);
    let api = Api::start(&[chat(), view("embed", StateView::Offline)]);
    let mut answer = api.get("/v1/slots/chat/watch").await;
    answer.chunk().await.unwrap().unwrap();
    api.snapshots.send_replace(snapshot(&[chat(), view("embed", StateView::Failed)]));
    api.snapshots.send_replace(snapshot(&[view("chat", StateView::Ready { pid: 9 })]));
    let line = timeout(DEADLINE, answer.chunk()).await.unwrap().unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&line).unwrap()["pid"], 9);
    api.close().await;
}

#[tokio::test]
async fn logs_are_text_and_follow_until_the_api_closes() {
    let api = Api::start(&[view("chat", StateView::Offline)]);
    let text = api.get("/v1/slots/chat/logs?lines=7").await.text().await.unwrap();
    assert_eq!(text, "one\ntwo\n");
    let followed = api.get("/v1/slots/chat/logs?follow=true").await;
    let asked: Vec<_> = api.asked.lock().unwrap().iter().map(|(_, request)| *request).collect();
    let wanted = [
        LogRequest { lines: 7, follow: Follow::No },
        LogRequest { lines: 100, follow: Follow::Yes },
    ];
    assert_eq!(asked, wanted);
    api.close().await;
    assert_eq!(followed.text().await.unwrap(), "one\ntwo\n", "the stream ends whole");
}

#[tokio::test]
async fn a_reader_that_leaves_ends_its_stream() {
    let api = Api::start(&[view("chat", StateView::Offline)]);
    api.get("/healthz").await.text().await.unwrap();
    let before = api.snapshots.receiver_count();
    let mut answer = api.get("/v1/slots/chat/watch").await;
    answer.chunk().await.unwrap().unwrap();
    assert!(api.snapshots.receiver_count() > before);
    drop(answer);
    let left = async {
        while api.snapshots.receiver_count() > before {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, left).await.expect("the watcher is still there");
    api.close().await;
}

/// One that stands in until it is dropped, of whom memory was promised to.
fn stand_in(held: &CancellationToken) -> (StandIns, [SlotView; 2]) {
    let held = held.clone();
    let stand_ins: StandIns = Arc::new(move |slot: SlotName, _| {
        let stay = held.clone().drop_guard();
        Box::pin(ready(Ok(StandIn { slot: slot.stand_in(), stay })))
    });
    let starting = StateView::Starting {
        pid: Some(7),
        percent: None,
        attempt: 1,
        give_up_at: Monotime::default(),
    };
    let promised = Some(Share { host: MemoryBytes(5 << 30), ..Share::default() });
    let beside = SlotView { promised, ..view("chat~new", starting) };
    (stand_ins, [view("chat", StateView::Ready { pid: 4 }), beside])
}

#[tokio::test]
async fn a_stand_in_that_could_not_be_loaded_once_more_in_its_slots_place_is_refused() {
    let held = CancellationToken::new();
    let (stand_ins, slots) = stand_in(&held);
    let mut api = Api::start_with(&slots, stand_ins);
    let url = "http://slotd/v1/slots/chat/stand-in";
    let answer = api.client.post(url).json(&json!({ "model": "o/m@v2" })).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let Some(Event::Slot { slot, event: SlotEvent::Demanded { .. } }) = api.inbox.next().await
    else {
        panic!("nobody asks for it");
    };
    assert_eq!(slot.as_str(), "chat~new");
    let Some(Event::RoomRequested(request)) = api.inbox.next().await else {
        panic!("nobody asks for room");
    };
    assert_eq!((request.purpose, request.need.host), (Purpose::Ask, MemoryBytes(5 << 30)));
    assert_eq!(request.slot, Some("chat".parse().unwrap()));
    assert!(!held.is_cancelled());
    let going = vec!["chat~new".parse().unwrap()];
    api.inbox.answer_room(request.asker, RoomAnswer { going, ..RoomAnswer::default() });
    let said = timeout(DEADLINE, answer.text()).await.unwrap().unwrap();
    assert_snapshot!(said.trim(), @r#"{"state":"refused","slot":null,"reason":"it is loaded twice for a moment, beside and in the place of the earlier one, and `chat~new` would have to go for that","verdict":null}"#);
    timeout(DEADLINE, held.cancelled()).await.expect("it goes with the answer");
}

#[tokio::test]
async fn a_stand_in_goes_with_the_connection_of_whoever_asked() {
    let held = CancellationToken::new();
    let (stand_ins, slots) = stand_in(&held);
    let mut api = Api::start_with(&slots, stand_ins);
    let url = "http://slotd/v1/slots/chat/stand-in";
    let answer = api.client.post(url).json(&json!({ "model": "o/m@v2" })).send().await.unwrap();
    assert!(api.inbox.next().await.is_some());
    assert!(!held.is_cancelled());
    drop(answer);
    timeout(DEADLINE, held.cancelled()).await.expect("it is held by nobody");
    let left = async {
        while !matches!(
            api.inbox.next().await,
            Some(Event::Slot { event: SlotEvent::WaiterLeft { .. }, .. })
        ) {}
    };
    timeout(DEADLINE, left).await.expect("its request waits on");
}

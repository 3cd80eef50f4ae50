//! Edits of profiles while the daemon serves: they harm nobody, and those that cannot work are undone.

use std::{
    fs,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::common::{DEADLINE, Daemon, fake, scratch};

/// Slots that stream, and how many streams each.
const BUSY: [&str; 4] = ["busy-a", "busy-b", "busy-c", "busy-d"];
const STREAMS: usize = 5;
const EDITS: usize = 50;

/// What one edit is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Edit {
    Good,
    Syntax,
    UnknownKey,
    WrongType,
    DiesAtStart,
    NeverReady,
}

impl Edit {
    /// Half of all are bad files; every tenth is one that cannot become ready.
    fn of(index: usize) -> Self {
        const TEN: [Edit; 10] = [
            Edit::Syntax,
            Edit::Good,
            Edit::UnknownKey,
            Edit::Good,
            Edit::WrongType,
            Edit::DiesAtStart,
            Edit::Syntax,
            Edit::Good,
            Edit::UnknownKey,
            Edit::Good,
        ];
        match (index % TEN.len(), index / TEN.len()) {
            (5, ten) if ten % 2 == 1 => Self::NeverReady,
            (at, _) => TEN[at],
        }
    }

    fn is_bad_file(self) -> bool {
        matches!(self, Self::Syntax | Self::UnknownKey | Self::WrongType)
    }

    fn text(self, index: usize) -> String {
        let marked = |script: &str| fake(&format!("tokens={} {script}", 100 + index), "");
        match self {
            Self::Good => marked(""),
            Self::Syntax => format!("{}context = [{index}\n", marked("")),
            Self::UnknownKey => format!("{}contxt{index} = 4096\n", marked("")),
            Self::WrongType => format!("{}parallel = \"no number {index}\"\n", marked("")),
            Self::DiesAtStart => marked("die_at_start=3"),
            Self::NeverReady => {
                fake(&format!("tokens={} health=503", 100 + index), "start_timeout = \"300ms\"")
            }
        }
    }
}

/// Reads a stream for as long as the test goes on; an end before that is a stream that was cut.
async fn read(
    mut stream: reqwest::Response,
    pieces: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
) -> Result<(), String> {
    while !is_over.load(Ordering::Relaxed) {
        match timeout(DEADLINE, stream.chunk()).await {
            Ok(Ok(Some(chunk))) if !chunk.windows(7).any(|seven| seven == b"\"error\"") => {
                pieces.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Ok(Some(chunk))) => return Err(String::from_utf8_lossy(&chunk).into_owned()),
            other => return Err(format!("{other:?}")),
        }
    }
    Ok(())
}

fn generation(view: &Value) -> u64 {
    view["generation"].as_u64().unwrap()
}

/// The arguments of the engine that runs.
fn runs(view: &Value, word: &str) -> bool {
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", view["pid"])).unwrap();
    arguments.split('\0').any(|argument| argument == word)
}

async fn until_fault(daemon: &Daemon, mark: &str) {
    let told = timeout(DEADLINE, async {
        while !daemon.daemon().await["faults"].to_string().contains(mark) {
            sleep(Duration::from_millis(5)).await;
        }
    });
    told.await.unwrap_or_else(|_| panic!("the fault `{mark}` was never told\n{}", daemon.log()));
}

/// Streams of several slots that are read all the time.
struct Streams {
    readers: JoinSet<Result<(), String>>,
    counters: Vec<Arc<AtomicUsize>>,
    is_over: Arc<AtomicBool>,
}

impl Streams {
    async fn open(daemon: &Daemon) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut streams = Self { readers: JoinSet::new(), counters: Vec::new(), is_over };
        for slot in BUSY.iter().flat_map(|slot| [slot; STREAMS]) {
            let body = json!({"model": slot, "stream": true, "messages": []});
            let stream = daemon.post("/v1/chat/completions", &body).await;
            assert_eq!(stream.status(), 200);
            let pieces = Arc::new(AtomicUsize::new(0));
            streams.counters.push(Arc::clone(&pieces));
            streams.readers.spawn(read(stream, pieces, Arc::clone(&streams.is_over)));
        }
        streams
    }

    /// Each goes on from here, and none was cut before.
    async fn end_whole(mut self) {
        for pieces in &self.counters {
            let seen = pieces.load(Ordering::Relaxed);
            let goes_on = timeout(DEADLINE, async {
                while pieces.load(Ordering::Relaxed) <= seen {
                    sleep(Duration::from_millis(5)).await;
                }
            });
            goes_on.await.expect("a stream stands still");
        }
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.readers.join_next().await {
            assert_eq!(ended.unwrap(), Ok(()), "a stream was cut");
        }
    }
}

/// Makes one edit and waits for what comes of it; what the engine runs with then.
async fn edit(daemon: &Daemon, index: usize, working: String) -> String {
    let edit = Edit::of(index);
    let earlier = daemon.slot("edited").await;
    daemon.write_profile("edited", &edit.text(index));
    let is_ready =
        |view: &Value| view["state"] == "ready" && generation(view) > generation(&earlier);
    let mut runs_with = working;
    match edit {
        Edit::Good => {
            runs_with = format!("tokens={}", 100 + index);
            let view = daemon.until("edited", "replaced", is_ready).await;
            assert_eq!(view["rejected_edit"], Value::Null, "{view:#}");
        }
        Edit::Syntax => until_fault(daemon, "bad TOML").await,
        Edit::UnknownKey => until_fault(daemon, &format!("contxt{index}")).await,
        Edit::WrongType => until_fault(daemon, "expected a whole number").await,
        Edit::DiesAtStart | Edit::NeverReady => {
            let undone = |view: &Value| is_ready(view) && !view["rejected_edit"].is_null();
            daemon.until("edited", "rolled back", undone).await;
        }
    }
    let view = daemon.slot("edited").await;
    assert!(runs(&view, &runs_with), "after edit {index}, {edit:?}: {view:#}");
    if edit.is_bad_file() {
        assert_eq!(view["pid"], earlier["pid"], "a bad file moved the engine: {edit:?}");
    }
    runs_with
}

#[tokio::test]
async fn fifty_edits_half_of_them_bad_cut_no_stream_of_other_slots() {
    let endless = fake("tokens=1000000 token_gap=5ms", "parallel = 5");
    let mut profiles: Vec<_> = BUSY.iter().map(|slot| (*slot, endless.as_str())).collect();
    let first = fake("tokens=99", "");
    profiles.push(("edited", &first));
    let daemon = Daemon::start(scratch(&profiles)).await;
    let streams = Streams::open(&daemon).await;
    let mut before = Vec::new();
    for slot in BUSY {
        before.push(daemon.until_state(slot, "ready").await);
    }
    assert_eq!(daemon.chat("edited").await.status(), 200);
    let mut working = "tokens=99".to_owned();
    for index in 0..EDITS {
        working = edit(&daemon, index, working).await;
        // The last good profile serves.
        assert_eq!(daemon.chat("edited").await.status(), 200, "after edit {index}");
    }
    for (slot, was) in BUSY.iter().zip(&before) {
        let view = daemon.slot(slot).await;
        assert_eq!((&view["pid"], &view["state"]), (&was["pid"], &was["state"]), "{slot}");
        assert_eq!(view["in_flight"], STREAMS, "{slot}");
    }
    streams.end_whole().await;
    let count = |wanted: fn(Edit) -> bool| (0..EDITS).filter(|at| wanted(Edit::of(*at))).count();
    let (bad, good) = (count(Edit::is_bad_file), count(|edit| edit == Edit::Good));
    assert_eq!((bad, good), (25, 20));
    let log = daemon.log();
    assert_eq!(log.matches("profile not applied").count(), bad, "each bad file is told once");
    let undone = log.matches("edit failed, previous profile in force").count();
    assert_eq!(undone, EDITS - bad - good, "each edit that was undone is told once");
}

#[tokio::test]
async fn an_undone_edit_is_not_tried_again_by_the_next_daemon_and_a_new_one_is() {
    let dir = scratch(&[("chat", &fake("tokens=3", ""))]);
    let spawns = dir.path().join("spawns");
    let mut daemon = Daemon::start(dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let script = format!("tokens=4 die_at_start=3 spawn_log={}", spawns.display());
    daemon.write_profile("chat", &fake(&script, ""));
    let undone = daemon
        .until("chat", "rolled back", |view| {
            view["state"] == "ready" && !view["rejected_edit"].is_null()
        })
        .await;
    assert_eq!(undone["rejected_edit"]["generation"], 2, "{undone:#}");
    assert_eq!((&undone["generation"], &undone["tally"]), (&json!(3), &json!(0)), "{undone:#}");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());

    let daemon = Daemon::start(daemon.dir).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let view = daemon.slot("chat").await;
    assert_eq!(view["generation"], 4, "the edit was tried again: {view:#}");
    assert_eq!(view["rejected_edit"], undone["rejected_edit"]);
    assert!(runs(&view, "tokens=3"), "{view:#}");

    // A person may have mended what the profile does not say.
    daemon.order("chat", "restart").await;
    let again = daemon.until("chat", "tried again", |view| generation(view) == 6).await;
    assert_eq!(again["rejected_edit"]["generation"], 5, "{again:#}");
    daemon.until_state("chat", "ready").await;
    assert_eq!(fs::read_to_string(&spawns).unwrap().matches("started ").count(), 2);

    daemon.write_profile("chat", &fake("tokens=5", ""));
    let good = |view: &Value| view["state"] == "ready" && view["rejected_edit"].is_null();
    let view = daemon.until("chat", "as edited", good).await;
    assert!(runs(&view, "tokens=5"), "{view:#}");
}

#[tokio::test]
async fn a_plan_says_what_an_edit_would_do_and_changes_nothing() {
    let daemon =
        Daemon::start(scratch(&[("chat", &fake("tokens=3", "")), ("old", &fake("", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let before = daemon.slot("chat").await;
    let next = daemon.dir.path().join("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("chat.toml"), fake("tokens=4", "")).unwrap();
    fs::write(next.join("more.toml"), fake("", "")).unwrap();
    let plan = async |path: &std::path::Path, code: i32| {
        let control = daemon.dir.path().join("state/run/control.sock");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_slotd"));
        command.arg("--control").arg(control).arg("plan").arg(path).arg("--json");
        let said = command.output().await.unwrap();
        assert_eq!(said.status.code(), Some(code), "{said:?}");
        serde_json::from_slice::<Value>(&said.stdout).unwrap()
    };
    let told = plan(&next, 0).await;
    let actions: Vec<_> = told["slots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|slot| (slot["slot"].as_str().unwrap(), slot["action"].as_str().unwrap()))
        .collect();
    assert_eq!(actions, [("chat", "restart"), ("more", "new"), ("old", "removed")]);
    assert_eq!(told["slots"][0]["differences"][0]["key"], "command");
    assert_eq!(told["compared_with"], "daemon");

    // The daemon's own directory says what runs.
    let told = plan(&daemon.dir.path().join("profiles"), 0).await;
    assert_eq!(told["slots"][0]["action"], "nothing", "{told:#}");
    fs::write(next.join("chat.toml"), "engine = \"lama\"\n").unwrap();
    let told = plan(&next.join("chat.toml"), 1).await;
    assert_eq!(told["slots"][0]["action"], "refused", "{told:#}");
    assert_eq!(told["faults"][0]["line"], 1, "{told:#}");
    assert_eq!(daemon.slot("chat").await["pid"], before["pid"]);
}

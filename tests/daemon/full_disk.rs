//! Each folder that slotd writes to is full, then read-only, while requests come at a steady pace.
//!
//! The disks are small file systems of this machine's memory, mounted for the test; where the user may
//! not mount, that test ends at once, and the rest remains: a file in a folder's place, a log that
//! nobody takes.

use std::{
    fs,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::common::{DEADLINE, Daemon, fake, scratch};

/// Requests in a second.
const RATE: u32 = 50;
/// How long after a folder has failed, or works again, it may be before that is told.
const TOLD: Duration = Duration::from_secs(20);

/// A small file system of its own; an engine writes some MiB to its log in the minutes of a long run.
struct Disk(PathBuf);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Full,
    ReadOnly,
}

impl Disk {
    fn mount(path: PathBuf) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let is_mounted = run("mount", &["-t", "tmpfs", "-o", "size=64m", "slotd-test"], &path);
        is_mounted.then_some(Self(path))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn fail(&self, fault: Fault) {
        match fault {
            Fault::Full => {
                fs::write(self.ballast(), vec![0; 65 << 20]).unwrap_err();
            }
            Fault::ReadOnly => {
                assert!(run("mount", &["-t", "tmpfs", "-o", "ro", "slotd-test"], &self.0));
            }
        }
    }

    fn mend(&self, fault: Fault) {
        match fault {
            Fault::Full => fs::remove_file(self.ballast()).unwrap(),
            Fault::ReadOnly => assert!(run("umount", &["--lazy"], &self.0)),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["--lazy"], &self.0);
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> bool {
    let ran = Command::new(program).args(arguments).arg(path).output();
    ran.is_ok_and(|ran| ran.status.success())
}

/// The three folders on disks of their own, and the sockets elsewhere.
pub(crate) struct Disks {
    /// Innermost first: so they are taken down.
    disks: [(&'static str, Disk); 3],
    pub(crate) sockets: TempDir,
}

impl Disks {
    pub(crate) fn mount(dir: &Path) -> Option<Self> {
        let state = Disk::mount(dir.join("state"))?;
        let logs = Disk::mount(dir.join("state/logs"))?;
        let cache = Disk::mount(dir.join("cache/slotd"))?;
        let sockets = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
        Some(Self { disks: [("engine logs", logs), ("cache", cache), ("state", state)], sockets })
    }
}

/// What one fault of one folder came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    place: &'static str,
    fault: Fault,
    requests: usize,
    failed: Vec<String>,
    median: Duration,
    slowest: Duration,
    told_after: Duration,
    mended_after: Duration,
}

impl Outcome {
    /// A row of the table in `docs/RELIABILITY.md`.
    pub(crate) fn row(&self) -> String {
        let ms = |duration: Duration| duration.as_millis();
        let fault = if self.fault == Fault::Full { "full" } else { "read-only" };
        format!(
            "| {} | {fault} | {} | {} | {} ms | {} ms | {} ms | {} ms |",
            self.place,
            self.requests,
            self.failed.len(),
            ms(self.median),
            ms(self.slowest),
            ms(self.told_after),
            ms(self.mended_after)
        )
    }
}

/// Breaks each folder in both ways for `time` while requests come; nobody may notice.
pub(crate) async fn six_faults(daemon: &Daemon, disks: &Disks, time: Duration) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (place, disk) in &disks.disks {
        for fault in [Fault::Full, Fault::ReadOnly] {
            let load = Load::start(daemon);
            disk.fail(fault);
            let began = Instant::now();
            let told = until_storage(daemon, |found| of(found, place).is_some()).await;
            let told_after = began.elapsed();
            let shown = of(&told, place).unwrap();
            assert_eq!(shown["path"], disk.0.display().to_string());
            let reason = if fault == Fault::Full { "No space left" } else { "Read-only" };
            assert!(shown["reason"].as_str().unwrap().starts_with(reason), "{shown}");
            assert!(shown["since_unix_ms"].as_u64().unwrap() > 0, "{shown}");
            // What is written meanwhile: a log that begins, the state of a slot, what is known of models.
            let generation = daemon.slot("other").await["generation"].as_u64().unwrap();
            daemon.order("other", "restart").await;
            let is_new =
                |view: &Value| view["generation"] == generation + 1 && view["state"] == "ready";
            daemon.until("other", "new", is_new).await;
            daemon.inventory().await;
            sleep(time.saturating_sub(began.elapsed())).await;
            disk.mend(fault);
            let began = Instant::now();
            until_storage(daemon, Vec::is_empty).await;
            let mended_after = began.elapsed();
            let (mut took, failed) = load.end().await;
            took.sort_unstable();
            let at = |share: usize| took[(took.len() - 1) * share / 100];
            let (median, slowest) = (at(50), at(100));
            let requests = took.len();
            let place = *place;
            outcomes.push(Outcome {
                place,
                fault,
                requests,
                failed,
                median,
                slowest,
                told_after,
                mended_after,
            });
        }
    }
    outcomes
}

fn of<'a>(found: &'a [Value], place: &str) -> Option<&'a Value> {
    found.iter().find(|storage| storage["place"] == place)
}

/// Waits until what takes no writes is as wanted.
async fn until_storage(daemon: &Daemon, wanted: impl Fn(&Vec<Value>) -> bool) -> Vec<Value> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = daemon.daemon().await["storage"].as_array().cloned().unwrap_or_default();
        if wanted(&found) {
            return found;
        }
        assert!(Instant::now() < end, "it stayed at {found:#?}\n{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Requests at a steady pace, whatever becomes of those before.
struct Load {
    stop: oneshot::Sender<()>,
    tasks: JoinSet<(Vec<Duration>, Vec<String>)>,
}

impl Load {
    fn start(daemon: &Daemon) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let (client, url) = (daemon.client.clone(), format!("{}/v1/chat/completions", daemon.url));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    _ = ticks.tick() => drop(running.spawn(ask(client.clone(), url.clone()))),
                }
            }
            let (mut took, mut failed) = (Vec::new(), Vec::new());
            for answer in running.join_all().await {
                match answer {
                    Ok(time) => took.push(time),
                    Err(why) => failed.push(why),
                }
            }
            (took, failed)
        });
        Self { stop, tasks }
    }

    async fn end(mut self) -> (Vec<Duration>, Vec<String>) {
        drop(self.stop);
        self.tasks.join_next().await.unwrap().unwrap()
    }
}

async fn ask(client: reqwest::Client, url: String) -> Result<Duration, String> {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"model": "chat", "messages": messages, "max_tokens": 1});
    let began = Instant::now();
    let answer = client.post(url).json(&body).send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    if status.is_success() { Ok(began.elapsed()) } else { Err(format!("{status}: {text}")) }
}

/// Holds what must hold of each.
pub(crate) fn check(outcomes: &[Outcome], log: &str) {
    assert_eq!(outcomes.len(), 6);
    for outcome in outcomes {
        assert!(outcome.failed.is_empty() && outcome.requests > 0, "{outcome:?}\n{log}");
        assert!(outcome.told_after < TOLD && outcome.mended_after < TOLD, "{outcome:?}");
    }
    // A change is a line, not a write: a disk over others takes them along.
    let told = log.lines().filter(|line| line.contains("folder takes no files")).count();
    assert!((6..=10).contains(&told), "{told} lines\n{log}");
}

#[tokio::test]
async fn no_request_fails_for_a_disk_and_status_tells_it_until_it_is_mended() {
    let dir = scratch(&[("chat", &fake("", "")), ("other", &fake("", ""))]);
    let Some(disks) = Disks::mount(dir.path()) else { return };
    let cache = dir.path().join("cache");
    let env = [("RUNTIME_DIRECTORY", disks.sockets.path()), ("XDG_CACHE_HOME", &*cache)];
    let daemon = Daemon::start_with(dir, &env).await;
    for slot in ["chat", "other"] {
        assert_eq!(daemon.chat(slot).await.status(), 200);
    }
    let outcomes = six_faults(&daemon, &disks, Duration::ZERO).await;
    check(&outcomes, &daemon.log());
}

#[tokio::test]
async fn a_file_in_the_place_of_the_log_folder_is_told_until_it_is_gone() {
    let daemon = Daemon::start(scratch(&[("chat", &fake("", ""))])).await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    let logs = daemon.dir.path().join("state/logs");
    fs::rename(&logs, logs.with_extension("away")).unwrap();
    fs::write(&logs, "").unwrap();
    let told = until_storage(&daemon, |found| !found.is_empty()).await;
    assert_eq!(told[0]["place"], "engine logs");
    assert_eq!(told[0]["reason"], "Not a directory (os error 20)");
    daemon.order("chat", "restart").await;
    daemon.until("chat", "new", |view| view["generation"] == 2 && view["state"] == "ready").await;
    assert_eq!(daemon.chat("chat").await.status(), 200);
    fs::remove_file(&logs).unwrap();
    until_storage(&daemon, Vec::is_empty).await;
    daemon.order("chat", "restart").await;
    daemon.until("chat", "new", |view| view["generation"] == 3 && view["state"] == "ready").await;
    assert!(logs.join("chat/g3.log").exists(), "logs are kept again");
}

/// Waits until the disk is short, or no longer is.
async fn until_disk(daemon: &Daemon, level: &str) {
    let end = Instant::now() + DEADLINE;
    while daemon.daemon().await["pressure"]["sources"]["disk"] != level {
        assert!(Instant::now() < end, "never {level}\n{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn history_waits_while_the_disk_is_nearly_full_and_is_written_once_there_is_room() {
    const ALLOCATED: u64 = 40 << 20;
    let dir = scratch(&[("chat", &fake("alloc=40MiB", ""))]);
    let Some(disk) = Disk::mount(dir.path().join("state")) else { return };
    fs::create_dir(dir.path().join("slotd")).unwrap();
    let marks =
        "[pressure.elevated]\ndisk_free = \"24MiB\"\n[pressure.critical]\ndisk_free = \"16MiB\"\n";
    fs::write(dir.path().join("slotd/slotd.toml"), marks).unwrap();
    let sockets = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
    let daemon = Daemon::start_with(dir, &[("RUNTIME_DIRECTORY", sockets.path())]).await;
    fs::write(disk.ballast(), vec![0; 56 << 20]).unwrap();
    until_disk(&daemon, "critical").await;

    assert_eq!(daemon.chat("chat").await.status(), 200);
    // What it took is known: its next start is promised as much.
    let promised = async || daemon.slot("chat").await["promised_bytes"].as_u64().unwrap_or(0);
    let end = Instant::now() + DEADLINE;
    while promised().await < ALLOCATED {
        assert!(Instant::now() < end, "{}", daemon.log());
        let generation = daemon.slot("chat").await["generation"].as_u64().unwrap();
        // It is looked at for the first time after a second.
        while daemon.slot("chat").await["since_ms"].as_u64() < Some(1_500) {
            sleep(Duration::from_millis(5)).await;
        }
        daemon.order("chat", "restart").await;
        let is_new =
            |view: &Value| view["generation"] == generation + 1 && view["state"] == "ready";
        daemon.until("chat", "new", is_new).await;
    }
    let file = disk.0.join("peaks.json");
    assert!(!file.exists(), "it was written");
    assert_eq!(daemon.chat("chat").await.status(), 200);

    fs::remove_file(disk.ballast()).unwrap();
    until_disk(&daemon, "normal").await;
    let end = Instant::now() + DEADLINE;
    while !file.exists() {
        assert!(Instant::now() < end, "{}", daemon.log());
        sleep(Duration::from_millis(5)).await;
    }
}

/// A daemon that has logged more than the pipe takes, and the pipe's other end.
async fn burst_into_a_pipe() -> (Daemon, fs::File) {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let path = dir.path().join("stderr");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    // Held open for both, so that its other end can be opened before anybody reads.
    let mut options = fs::File::options();
    let held = options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let held = held.open(&path).unwrap();
    fcntl(&held, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let line = "exec \"$@\" 2>\"$STDERR\"";
    let daemon = Daemon::start_through(dir, line, &[("STDERR", &path)]).await;
    for _ in 0..3 {
        assert_eq!(daemon.chat("chat").await.status(), 200);
        daemon.order("chat", "unload").await;
        daemon.until_state("chat", "offline").await;
    }
    (daemon, held)
}

/// They stayed unwritten until the next event.
#[tokio::test]
async fn the_last_lines_before_a_quiet_time_are_written_once_somebody_reads() {
    let (daemon, mut held) = burst_into_a_pipe().await;
    let (mut read, mut piece) = (Vec::new(), vec![0; 4096]);
    let end = Instant::now() + DEADLINE;
    let is_last = |line: &str| line.contains("engine stopped") && line.contains("generation=3");
    while !String::from_utf8_lossy(&read).lines().any(is_last) {
        assert!(Instant::now() < end, "{}", String::from_utf8_lossy(&read));
        match held.read(&mut piece) {
            Ok(count) => read.extend(piece.iter().take(count)),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
    assert!(read.len() > 4096, "the pipe took all of it");
    drop((daemon, held));
}

#[tokio::test]
async fn a_log_of_the_daemon_that_nobody_reads_keeps_nobody_waiting() {
    let (mut daemon, held) = burst_into_a_pipe().await;
    for _ in 0..100 {
        assert_eq!(daemon.chat("chat").await.status(), 200);
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    drop(held);
}

#[tokio::test]
async fn a_log_of_the_daemon_on_a_full_disk_stops_nothing() {
    let dir = scratch(&[("chat", &fake("", ""))]);
    let mut daemon = Daemon::start_through(dir, "exec \"$@\" 2>/dev/full", &[]).await;
    for generation in 1..=3 {
        assert_eq!(daemon.chat("chat").await.status(), 200);
        assert_eq!(daemon.slot("chat").await["generation"], generation);
        daemon.order("chat", "unload").await;
        daemon.until_state("chat", "offline").await;
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
}

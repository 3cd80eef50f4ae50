//! The daemon under test, through all its lives, and what is checked of it.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{Programs, Shared, processes};

const DEADLINE: Duration = Duration::from_mins(1);
/// What a daemon may hold more than at first: a connection or two that has not been closed yet, the
/// heap's own habits.
const MORE_FILES: usize = 6;
const MORE_THREADS: usize = 4;
const MORE_KIB: usize = 32 << 10;

/// Figures that must come back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    files: usize,
    threads: usize,
    zombies: usize,
    resident_kib: usize,
}

pub(crate) struct Daemon {
    programs: Programs,
    pub(crate) shared: Arc<Shared>,
    pub(crate) dir: TempDir,
    nonce: String,
    child: Child,
    control: reqwest::Client,
    pub(crate) lives: u64,
}

impl Daemon {
    pub(crate) async fn start(programs: Programs, shared: Arc<Shared>) -> Self {
        let dir = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
        for folder in ["profiles", "run"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let nonce = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        let socket = dir.path().join("run/control.sock");
        let control = reqwest::Client::builder().unix_socket(socket).timeout(DEADLINE);
        let child = Command::new("/bin/true").spawn().unwrap();
        let control = control.build().unwrap();
        let mut daemon = Self { programs, shared, dir, nonce, child, control, lives: 0 };
        for slot in daemon.slots() {
            daemon.write_profile(&slot, 1);
        }
        daemon.live().await;
        daemon
    }

    pub(crate) fn nonce(&self) -> &str {
        &self.nonce
    }

    pub(crate) fn slots(&self) -> Vec<String> {
        let fakes =
            ["steady", "slow", "deaf", "midway", "dying", "flood", "family", "idle", "hammered"];
        let real = self.programs.llama.is_some().then_some("real");
        fakes.into_iter().chain(real).map(str::to_owned).collect()
    }

    /// Writes a slot's profile; `edit` makes it differ from earlier ones.
    pub(crate) fn write_profile(&self, slot: &str, edit: u64) {
        let environment = format!("[env]\nSLOTD_CHAOS = \"{}\"\nEDIT = \"{edit}\"\n", self.nonce);
        let text = match &self.programs.llama {
            Some((_, model)) if slot == "real" => format!(
                "model = \"{}\"\nengine = \"llama-server\"\ncontext = 512\nparallel = 2\n{environment}",
                model.display()
            ),
            Some(_) | None => self.fake_profile(slot) + &environment,
        };
        self.write(slot, &text);
    }

    fn fake_profile(&self, slot: &str) -> String {
        let (script, keys) = script(slot);
        let spawns = self.dir.path().join(format!("spawns.{slot}"));
        let mut words =
            vec![self.programs.fake.display().to_string(), "socket={socket}".to_owned()];
        words.push(format!("spawn_log={}", spawns.display()));
        words.extend(script.split_whitespace().map(str::to_owned));
        format!("engine = \"command\"\ncommand = {}\n{keys}", serde_json::json!(words))
    }

    pub(crate) fn write(&self, slot: &str, text: &str) {
        let path = self.profile(slot);
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    pub(crate) fn profile(&self, slot: &str) -> PathBuf {
        self.dir.path().join("profiles").join(format!("{slot}.toml"))
    }

    /// Begins the next life.
    pub(crate) async fn live(&mut self) {
        let log = self.dir.path().join("daemon.log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let config = self.dir.path().join("slotd.toml");
        let llama = self.programs.llama.as_ref();
        let text = llama.map(|(path, _)| format!("llama_server = \"{}\"\n", path.display()));
        fs::write(&config, text.unwrap_or_default()).unwrap();
        let mut child = Command::new(&self.programs.slotd)
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(config)
            .arg("--state-dir")
            .arg(self.dir.path().join("state"))
            .arg("--profiles")
            .arg(self.dir.path().join("profiles"))
            .env("RUNTIME_DIRECTORY", self.dir.path().join("run"))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(DEADLINE, lines.next_line()).await.expect("it starts").unwrap();
        let url = line.as_deref().and_then(|line| line.strip_prefix("listening on "));
        let Some(url) = url else {
            let log = fs::read_to_string(self.dir.path().join("daemon.log")).unwrap();
            let tail: Vec<_> = log.lines().rev().take(20).collect();
            println!("{tail:#?}");
            panic!("the daemon did not start: {:?}", child.wait().await);
        };
        url.clone_into(&mut self.shared.url.lock().unwrap());
        self.child = child;
        self.lives += 1;
        self.shared.life.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends this life by a signal; a new one is begun by [`Self::live`].
    pub(crate) async fn die(&mut self, signal: Signal) {
        self.shared.life.fetch_add(1, Ordering::SeqCst);
        self.signal(signal);
        if timeout(DEADLINE, self.child.wait()).await.is_err() {
            self.shared.broke(format!("I6: the daemon does not end by {signal}"));
            self.child.kill().await.unwrap();
        }
    }

    /// Nothing of a dead daemon's engines may be left; called while there is none.
    pub(crate) async fn check_empty(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let left = processes::of_run(&self.nonce);
            if left.is_empty() {
                return;
            }
            if Instant::now() > end {
                self.shared.broke(format!("I3: left after the daemon: {left:?}"));
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Gives an order; says whether it was taken.
    pub(crate) async fn order(&self, slot: &str, verb: &str) {
        let answer = self.control.post(format!("http://slotd/v1/slots/{slot}/{verb}")).send().await;
        match answer {
            Ok(answer) if answer.status().is_server_error() => {
                self.shared.broke(format!("{verb} {slot}: {}", answer.status()));
            }
            Ok(_) => {}
            Err(error) => self.shared.broke(format!("{verb} {slot}: {error:?}")),
        }
    }

    pub(crate) async fn views(&self) -> Vec<Value> {
        let answer = self.control.get("http://slotd/v1/slots").send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        let list = body.as_array().or_else(|| body["slots"].as_array());
        list.cloned().unwrap_or_default()
    }

    /// I8: the state file is whole whenever it is there.
    pub(crate) fn check_files(&self) {
        let path = self.dir.path().join("state/state.json");
        let Ok(bytes) = fs::read(path) else { return };
        if let Err(error) = serde_json::from_slice::<Value>(&bytes) {
            self.shared.broke(format!("I8: state.json: {error}"));
        }
    }

    /// Loads each slot once and unloads all: what is bought once is not a leak.
    pub(crate) async fn warm_up(&self) {
        for slot in self.slots() {
            self.order(&slot, "load").await;
        }
        let end = Instant::now() + DEADLINE;
        while self.views().await.iter().any(|slot| slot["state"] == "starting") {
            assert!(Instant::now() < end, "the warm-up does not end");
            sleep(Duration::from_millis(20)).await;
        }
        self.rest().await;
    }

    /// I6: what is unloaded comes to rest.
    pub(crate) async fn rest(&self) {
        for slot in self.slots() {
            self.order(&slot, "unload").await;
        }
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let views = self.views().await;
            let busy: Vec<_> = views.iter().filter(|view| view["state"] != "offline").collect();
            if busy.is_empty() && views.len() == self.slots().len() {
                return;
            }
            if Instant::now() > end {
                let states: Vec<_> = views
                    .iter()
                    .map(|view| format!("{} {}", view["slot"], view["state"]))
                    .collect();
                self.shared.broke(format!("I6: not at rest: {states:?}"));
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let pid = self.child.id().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let children = fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(Result::ok);
        let children: String = children
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .collect();
        let is_zombie = |pid: &&str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
        };
        Figures {
            files: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            threads: number("Threads:"),
            zombies: children.split_whitespace().filter(is_zombie).count(),
            resident_kib: number("VmRSS:"),
        }
    }

    /// Everything that must hold once there is peace again.
    pub(crate) async fn check_end(mut self, baseline: Figures) {
        self.rest().await;
        self.check_deaths().await;
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            let now = self.figures();
            let is_back = now.files <= baseline.files + MORE_FILES
                && now.threads <= baseline.threads + MORE_THREADS
                && now.zombies == 0
                && now.resident_kib <= baseline.resident_kib + MORE_KIB;
            if is_back || Instant::now() > end {
                println!("  at the end: {now:?} after {} lives", self.lives);
                if !is_back {
                    self.shared.broke(format!("I10: {now:?}, at first {baseline:?}"));
                }
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.check_spawns();
        self.die(Signal::SIGTERM).await;
        self.check_empty().await;
        let log = fs::read_to_string(self.dir.path().join("daemon.log")).unwrap();
        for line in
            log.lines().filter(|line| line.contains("panicked") || line.contains("broke off"))
        {
            self.shared.broke(format!("the daemon logged: {line}"));
        }
    }

    /// I5: one record a death.
    async fn check_deaths(&self) {
        for view in self.views().await {
            let deaths = view["deaths"].as_array().cloned().unwrap_or_default();
            let generations: Vec<_> =
                deaths.iter().filter_map(|death| death["generation"].as_u64()).collect();
            let unique: BTreeSet<_> = generations.iter().collect();
            if unique.len() != generations.len() {
                self.shared.broke(format!("I5: {}: {generations:?}", view["slot"]));
            }
        }
    }

    /// I7: an engine that dies at each start, that nobody orders or edits, is started seldom.
    fn check_spawns(&self) {
        let notes = fs::read_to_string(self.dir.path().join("spawns.hammered")).unwrap_or_default();
        let starts = notes
            .lines()
            .filter_map(|line| line.strip_prefix("started ")?.trim().parse::<u64>().ok());
        let starts: Vec<_> = starts.map(|nanos| nanos / 1_000_000_000).collect();
        let most = starts
            .iter()
            .map(|from| starts.iter().filter(|at| (*from..from + 60).contains(*at)).count());
        let most = most.max().unwrap_or(0) as u64;
        println!(
            "  an engine that dies at each start: {} starts, {most} in one minute",
            starts.len()
        );
        // Each life begins anew, and the warm-up has one.
        if most > 4 * self.lives + 1 {
            self.shared.broke(format!("I7: {most} starts within a minute"));
        }
    }
}

/// The script and the keys of a fake slot.
fn script(slot: &str) -> (&'static str, &'static str) {
    match slot {
        "slow" => ("ready_after=400ms tokens=30 token_gap=10ms progress", "parallel = 4\n"),
        "deaf" => ("ignore=TERM fork tokens=20 token_gap=5ms", "stop_timeout = \"300ms\"\n"),
        "midway" => ("die_after_tokens=20 tokens=60 token_gap=2ms", "parallel = 4\n"),
        "dying" | "hammered" => ("die_at_start=1", ""),
        "flood" => ("flood=8MiB tokens=20", "parallel = 2\n"),
        "family" => ("fork setsid tokens=30 token_gap=3ms", "parallel = 4\n"),
        "idle" => ("tokens=10", "idle_timeout = \"400ms\"\nparallel = 2\n"),
        _ => ("tokens=60 token_gap=5ms", "parallel = 8\nstop_timeout = \"1s\"\n"),
    }
}

//! A real daemon for tests: the built binary, a scratch state directory, a free port.

use std::{
    fs,
    net::TcpListener,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

/// Longer than anything here takes on a slow machine; only a failure waits this long.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// A running daemon. Killed, with all that it started, when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) dir: TempDir,
    pub(crate) client: reqwest::Client,
    control: reqwest::Client,
    stdout: BufReader<ChildStdout>,
}

/// A scratch directory with profiles in it, for a daemon to be started on.
pub(crate) fn scratch(profiles: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::Builder::new().prefix("slotd-").tempdir_in("/tmp").unwrap();
    fs::create_dir(dir.path().join("profiles")).unwrap();
    for (slot, text) in profiles {
        write_profile(dir.path(), slot, text);
    }
    dir
}

/// Writes one profile as an editor would: whole, by rename.
pub(crate) fn write_profile(dir: &Path, slot: &str, text: &str) {
    let path = dir.join("profiles").join(format!("{slot}.toml"));
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// The program of the fake engine, beside the test binaries.
pub(crate) fn fake_engine() -> PathBuf {
    let slotd = PathBuf::from(env!("CARGO_BIN_EXE_slotd"));
    let path = slotd.parent().unwrap().join("examples/fake_engine");
    assert!(path.is_file(), "{} is not built", path.display());
    path
}

/// A profile of the fake engine with the given script.
pub(crate) fn fake(script: &str, keys: &str) -> String {
    let engine = fake_engine();
    let words = [engine.display().to_string(), "socket={socket}".to_owned()];
    let words: Vec<_> =
        words.into_iter().chain(script.split_whitespace().map(str::to_owned)).collect();
    // A list of texts is written alike in JSON and TOML.
    format!("engine = \"command\"\ncommand = {}\n{keys}\n", serde_json::json!(words))
}

/// The real model; `make test` says where it is.
pub(crate) fn model() -> PathBuf {
    let path =
        std::env::var_os("SLOTD_TEST_MODEL").expect("set SLOTD_TEST_MODEL, `make test` does");
    PathBuf::from(path)
}

/// The real llama-server; `make test` says where it is.
pub(crate) fn llama_server() -> PathBuf {
    let path = std::env::var_os("SLOTD_TEST_LLAMA_SERVER")
        .expect("set SLOTD_TEST_LLAMA_SERVER, `make test` does");
    PathBuf::from(path)
}

impl Daemon {
    /// Starts a daemon on `dir` and waits until it listens.
    pub(crate) async fn start(dir: TempDir) -> Self {
        Self::start_with(dir, &[]).await
    }

    /// Starts a daemon with environment variables of its own.
    pub(crate) async fn start_with(dir: TempDir, env: &[(&str, &Path)]) -> Self {
        Self::start_through(dir, "exec \"$@\"", env).await
    }

    /// Starts a daemon from a line of shell that ends with `exec "$@"`.
    pub(crate) async fn start_through(dir: TempDir, line: &str, env: &[(&str, &Path)]) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line, "sh", env!("CARGO_BIN_EXE_slotd")]);
        command.envs(env.iter().copied()).stdin(Stdio::null());
        let runtime = env.iter().find(|(key, _)| *key == "RUNTIME_DIRECTORY");
        let runtime = runtime.map(|(_, path)| path.to_path_buf());
        Self::run(dir, command, runtime).await
    }

    /// Starts a daemon that inherits a listening socket, as from a socket unit.
    pub(crate) async fn start_activated(dir: TempDir, listener: &TcpListener) -> Self {
        Self::run(dir, Self::activated(listener), None).await
    }

    /// Starts a daemon that inherits a socket which it is to refuse; nobody waits for its line.
    pub(crate) async fn refused_activated(dir: TempDir, listener: &TcpListener) -> Self {
        let mut daemon = Self::spawn(dir, Self::activated(listener), None);
        let mut line = String::new();
        timeout(DEADLINE, daemon.stdout.read_line(&mut line)).await.unwrap().unwrap();
        assert_eq!(line, "", "it listens");
        daemon
    }

    fn activated(listener: &TcpListener) -> Command {
        let script = "LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=slotd.socket; export LISTEN_FDS LISTEN_PID LISTEN_FDNAMES; exec \"$@\" 3<&0 </dev/null";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_slotd")]);
        command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
        command
    }

    async fn run(dir: TempDir, command: Command, runtime: Option<PathBuf>) -> Self {
        let mut daemon = Self::spawn(dir, command, runtime);
        let mut line = String::new();
        timeout(DEADLINE, daemon.stdout.read_line(&mut line)).await.unwrap().unwrap();
        let Some(url) = line.trim().strip_prefix("listening on ") else {
            panic!("the daemon said {line:?} and logged:\n{}", daemon.log());
        };
        url.clone_into(&mut daemon.url);
        daemon
    }

    fn spawn(dir: TempDir, mut command: Command, runtime: Option<PathBuf>) -> Self {
        let log = dir.path().join("daemon.log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
            .arg(dir.path().join("state"))
            .arg("--profiles")
            .arg(dir.path().join("profiles"))
            .env_remove("NOTIFY_SOCKET")
            .env("XDG_CONFIG_HOME", dir.path())
            .env("RUST_LOG", "slotd=debug")
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let runtime = runtime.unwrap_or_else(|| dir.path().join("state/run"));
        let socket = runtime.join("control.sock");
        let control = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { child, url: String::new(), dir, client, control, stdout }
    }

    /// The daemon's process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id().expect("it runs")).unwrap())
    }

    /// What the daemon logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("daemon.log")).unwrap()
    }

    /// Writes one profile.
    pub(crate) fn write_profile(&self, slot: &str, text: &str) {
        write_profile(self.dir.path(), slot, text);
    }

    /// One slot as the control API shows it.
    pub(crate) async fn slot(&self, slot: &str) -> Value {
        let url = format!("http://slotd/v1/slots/{slot}");
        self.control.get(url).send().await.unwrap().json().await.unwrap()
    }

    /// Orders something of a slot: `load`, `unload` or `restart`.
    pub(crate) async fn order(&self, slot: &str, verb: &str) {
        let url = format!("http://slotd/v1/slots/{slot}/{verb}");
        let answer = self.control.post(url).send().await.unwrap();
        assert!(answer.status().is_success(), "{verb} {slot}: {}", answer.status());
    }

    /// Orders something of a slot and returns the answer.
    pub(crate) async fn ordered(&self, slot: &str, verb: &str) -> Value {
        let url = format!("http://slotd/v1/slots/{slot}/{verb}");
        self.control.post(url).send().await.unwrap().json().await.unwrap()
    }

    /// Says a name to the rules; returns the status of the answer.
    pub(crate) async fn say(&self, name: &str) -> u16 {
        let wish = serde_json::json!({ "signal": name });
        let said = self.control.post("http://slotd/v1/signals").json(&wish).send();
        said.await.unwrap().status().as_u16()
    }

    /// What clients may ask for, as the endpoint lists it.
    pub(crate) async fn models(&self) -> String {
        let url = format!("{}/v1/models", self.url);
        self.client.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// The models on disk as the control API shows them.
    pub(crate) async fn inventory(&self) -> Value {
        self.control.get("http://slotd/v1/inventory").send().await.unwrap().json().await.unwrap()
    }

    /// Waits until a slot is as wanted, by the control API's stream of changes.
    pub(crate) async fn until(
        &self,
        slot: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let found = timeout(DEADLINE, self.watch(slot, &wanted, &mut last)).await;
        found.unwrap_or_else(|_| panic!("{slot} never was {what}; last {last:#}\n{}", self.log()))
    }

    async fn watch(&self, slot: &str, wanted: impl Fn(&Value) -> bool, last: &mut Value) -> Value {
        let url = format!("http://slotd/v1/slots/{slot}/watch");
        let mut answer = loop {
            let answer = self.control.get(&url).send().await.unwrap();
            if answer.status().is_success() {
                break answer;
            }
            // The profile may not have been read yet.
            sleep(Duration::from_millis(20)).await;
        };
        let mut buffer = Vec::new();
        loop {
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                *last = serde_json::from_slice(&line).unwrap();
                if wanted(last) {
                    return last.clone();
                }
            }
            let chunk = answer.chunk().await.unwrap().expect("the watch ended");
            buffer.extend_from_slice(&chunk);
        }
    }

    /// Waits until a slot is in a state.
    pub(crate) async fn until_state(&self, slot: &str, state: &str) -> Value {
        self.until(slot, state, |view| view["state"] == state).await
    }

    /// Sends one request to the endpoint.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let url = format!("{}{path}", self.url);
        timeout(DEADLINE, self.client.post(url).json(body).send()).await.unwrap().unwrap()
    }

    /// Asks for one short chat answer.
    pub(crate) async fn chat(&self, model: &str) -> reqwest::Response {
        let messages = serde_json::json!([{"role": "user", "content": "Say hello."}]);
        let body = serde_json::json!({"model": model, "messages": messages, "max_tokens": 8});
        self.post("/v1/chat/completions", &body).await
    }

    /// Kills the daemon as an admin or the kernel would; returns its directory.
    pub(crate) async fn killed(mut self) -> TempDir {
        self.child.kill().await.unwrap();
        self.dir
    }

    /// The daemon as the control API shows it.
    pub(crate) async fn daemon(&self) -> Value {
        self.control.get("http://slotd/v1/daemon").send().await.unwrap().json().await.unwrap()
    }

    /// What happens from here on.
    pub(crate) async fn events(&self) -> Events {
        let answer = self.control.get("http://slotd/v1/events").send().await.unwrap();
        Events { answer, buffer: Vec::new() }
    }

    /// Waits until a fault of what it reads is told.
    pub(crate) async fn until_faults(&self, message: &str) {
        let told = async {
            while !self.daemon().await["faults"].to_string().contains(message) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, told).await.expect("it was never told");
    }

    /// Signals the daemon.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the daemon's end.
    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        let status = timeout(DEADLINE, self.child.wait()).await.expect("the daemon never ended");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).await.unwrap();
        status.unwrap()
    }
}

/// The control API's stream of news.
pub(crate) struct Events {
    answer: reqwest::Response,
    buffer: Vec<u8>,
}

impl Events {
    /// Waits for one that is wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let event = self.next().await;
                if wanted(&event) {
                    return event;
                }
            }
        };
        timeout(DEADLINE, found).await.expect("it never happened")
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let chunk = self.answer.chunk().await.unwrap().expect("the stream ended");
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

/// Tells whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Waits until a process is gone.
pub(crate) async fn gone(pid: u64) {
    let end = Instant::now() + DEADLINE;
    while is_alive(pid) {
        assert!(Instant::now() < end, "process {pid} is still there");
        sleep(Duration::from_millis(5)).await;
    }
}

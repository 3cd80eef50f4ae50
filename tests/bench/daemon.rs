//! A daemon to measure.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::Instant,
};

/// The clock that the fake engine writes into its notes.
pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

pub(crate) struct Daemon {
    child: Child,
    dir: TempDir,
    url: String,
    client: reqwest::Client,
    control: reqwest::Client,
}

impl Daemon {
    pub(crate) async fn start(slotd: &Path, profiles: &[(&str, String)]) -> Self {
        Self::start_with(slotd, profiles, &[]).await
    }

    pub(crate) async fn start_with(
        slotd: &Path,
        profiles: &[(&str, String)],
        env: &[(&str, &Path)],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("profiles")).unwrap();
        for (slot, text) in profiles {
            fs::write(dir.path().join(format!("profiles/{slot}.toml")), text).unwrap();
        }
        // The daemon's own file names the engine, as an admin would.
        let config = dir.path().join("slotd.toml");
        let named = env.iter().find(|(key, _)| *key == "SLOTD_LLAMA_SERVER");
        let text = named
            .map_or(String::new(), |(_, path)| format!("llama_server = \"{}\"\n", path.display()));
        fs::write(&config, text).unwrap();
        let mut child = Command::new(slotd)
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--profiles")
            .arg(dir.path().join("profiles"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("daemon.log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap();
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        let socket = dir.path().join("state/run/control.sock");
        let control = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { child, dir, url, client, control }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("state/run")
    }

    pub(crate) async fn chat(&self) {
        let url = format!("{}/v1/chat/completions", self.url);
        let answer = self.client.post(url).body(super::client::CHAT).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        answer.bytes().await.unwrap();
    }

    /// Sends one request; returns its answer as it begins, unless it is refused.
    pub(crate) async fn try_post(
        &self,
        path: &str,
        body: &Value,
    ) -> reqwest::Result<reqwest::Response> {
        let url = format!("{}{path}", self.url);
        self.client.post(url).json(body).send().await?.error_for_status()
    }

    /// Sends one request; returns its answer as it begins.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let url = format!("{}{path}", self.url);
        let answer = self.client.post(url).json(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        answer
    }

    /// Sends one request; returns its answer whole.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        self.post(path, body).await.json().await.unwrap()
    }

    /// How many tokens had come when the last stream was continued, by the daemon's log.
    pub(crate) fn seam(&self) -> usize {
        let log = fs::read_to_string(self.dir.path().join("daemon.log")).unwrap();
        let line = log.lines().rfind(|line| line.contains("a stream is continued")).unwrap();
        let tokens = line.split("tokens=").nth(1).unwrap();
        tokens.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Loads a slot; returns when its route was open.
    pub(crate) async fn load(&self, slot: &str) -> Instant {
        self.order(slot, "load").await;
        self.until(slot, "ready").await
    }

    pub(crate) async fn unload(&self, slot: &str) {
        self.order(slot, "unload").await;
        self.until(slot, "offline").await;
    }

    /// The slot as scripts see it.
    pub(crate) async fn view(&self, slot: &str) -> Value {
        let url = format!("http://slotd/v1/slots/{slot}");
        self.control.get(url).send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn order(&self, slot: &str, verb: &str) {
        let url = format!("http://slotd/v1/slots/{slot}/{verb}");
        assert!(self.control.post(url).send().await.unwrap().status().is_success());
    }

    pub(crate) async fn until(&self, slot: &str, state: &str) -> Instant {
        let url = format!("http://slotd/v1/slots/{slot}/watch");
        let mut watch = self.control.get(url).send().await.unwrap();
        let wanted = format!("\"state\":\"{state}\"");
        let mut text = String::new();
        loop {
            let chunk = watch.chunk().await.unwrap().unwrap();
            text.push_str(&String::from_utf8_lossy(&chunk));
            if text.contains(&wanted) {
                return Instant::now();
            }
        }
    }

    /// Kills the engine of a ready slot; returns how soon a watch of the control API, which is told
    /// after the routes were changed, knew of it.
    pub(crate) async fn kill(&self, slot: &str) -> Duration {
        let url = format!("http://slotd/v1/slots/{slot}/watch");
        let mut watch = self.control.get(url).send().await.unwrap();
        let mut text = Vec::new();
        let view = next_view(&mut watch, &mut text).await;
        assert_eq!(view["state"], "ready");
        let pid = i32::try_from(view["pid"].as_i64().unwrap()).unwrap();
        let from = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        loop {
            let view = next_view(&mut watch, &mut text).await;
            if view["state"] != "ready" || view["pid"] != pid {
                return from.elapsed();
            }
        }
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        resident_kib(i64::from(self.pid())).unwrap()
    }

    /// What the engine of a slot has resident; none while there is no engine.
    pub(crate) async fn engine_kib(&self, slot: &str) -> Option<u64> {
        resident_kib(self.view(slot).await["pid"].as_i64()?)
    }

    /// CPU time used so far, in hundredths of a second.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id().unwrap()).unwrap()
    }

    pub(crate) async fn end(mut self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        self.child.wait().await.unwrap();
    }
}

fn resident_kib(pid: i64) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").trim().parse().ok()
}

/// The next line of a watch; `text` holds what came of later ones.
async fn next_view(watch: &mut reqwest::Response, text: &mut Vec<u8>) -> Value {
    loop {
        if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            return serde_json::from_slice(&line).unwrap();
        }
        text.extend_from_slice(&watch.chunk().await.unwrap().unwrap());
    }
}

//! A daemon on a scratch directory, whose llama-server is the wrapper.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Longer than any death here takes.
const DEADLINE: Duration = Duration::from_secs(25);

pub(crate) struct Daemon {
    _child: Child,
    dir: TempDir,
    url: String,
    client: reqwest::Client,
    control: reqwest::Client,
}

impl Daemon {
    pub(crate) async fn start(slotd: &Path, llama: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("deaths-").tempdir_in("/tmp").unwrap();
        fs::create_dir(dir.path().join("profiles")).unwrap();
        let wrapper = dir.path().join("llama-server");
        let text = include_str!("wrapper.sh").replace("@ENGINE@", llama.to_str().unwrap());
        fs::write(&wrapper, text).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("slotd.toml");
        fs::write(&config, format!("llama_server = {:?}\n", wrapper.to_str().unwrap())).unwrap();
        let mut child = Command::new(slotd)
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--profiles")
            .arg(dir.path().join("profiles"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("daemon.log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        let socket = dir.path().join("state/run/control.sock");
        let control = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { _child: child, dir, url, client, control }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write_profile(&self, slot: &str, text: &str) {
        let temporary = self.path("profile.new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path(&format!("profiles/{slot}.toml"))).unwrap();
    }

    pub(crate) async fn order(&self, slot: &str, verb: &str) {
        let url = format!("http://slotd/v1/slots/{slot}/{verb}");
        assert!(self.control.post(url).send().await.unwrap().status().is_success());
    }

    /// Asks the slot for a few tokens after `prompt`; what becomes of it is another's business.
    pub(crate) async fn ask(&self, slot: &str, prompt: &str) {
        let messages = json!([{"role": "user", "content": prompt}]);
        let body = json!({"model": slot, "messages": messages, "max_tokens": 4});
        let url = format!("{}/v1/chat/completions", self.url);
        let sent = self.client.post(url).json(&body).timeout(DEADLINE).send().await;
        if let Ok(answer) = sent {
            drop(answer.bytes().await);
        }
    }

    /// Waits until a slot is as wanted, by the stream of its changes.
    pub(crate) async fn until(&self, slot: &str, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        timeout(DEADLINE, self.watch(slot, wanted)).await.ok()
    }

    async fn watch(&self, slot: &str, wanted: impl Fn(&Value) -> bool) -> Value {
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
                let slot = serde_json::from_slice(&line).unwrap();
                if wanted(&slot) {
                    return slot;
                }
            }
            buffer.extend_from_slice(&answer.chunk().await.unwrap().unwrap());
        }
    }
}

//! One engine on a Unix socket, killed when dropped.

use std::{fs, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{Files, Kind};

pub(super) struct Engine {
    pub(super) kind: Kind,
    child: Child,
    client: reqwest::Client,
    _folder: TempDir,
}

/// How an engine is set up; `context` is that of one sequence, in tokens.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) threads: u64,
    pub(super) sequences: u64,
    pub(super) context: u64,
    /// Further arguments of llama-server.
    pub(super) more: &'static [&'static str],
}

/// In KiB. Source: `/proc/PID/smaps_rollup`, `proc_pid_smaps(5)`.
pub(super) struct Memory {
    pub(super) resident: u64,
    /// Nobody else has it.
    pub(super) private: u64,
    /// What is shared counts for each of its holders in part.
    pub(super) share: u64,
}

impl Engine {
    pub(super) async fn start(files: &Files, kind: Kind, setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let mut command = Command::new(files.program(kind));
        let (threads, sequences) = (setup.threads.to_string(), setup.sequences.to_string());
        match kind {
            Kind::Worker => {
                command.arg("worker").arg("--model").arg(&files.model).arg("--socket").arg(&socket);
                command.args(["--threads", &threads, "--parallel", &sequences]);
                command.args(["--context", &setup.context.to_string()]);
            }
            Kind::LlamaServer => {
                let all = setup.context * setup.sequences;
                command.arg("-m").arg(&files.model).arg("--host").arg(&socket);
                command.args(["-t", &threads, "-tb", &threads, "-np", &sequences]);
                command.args(["-c", &all.to_string(), "--cache-ram", "0"]);
                command.args(setup.more);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.kill_on_drop(true).spawn().unwrap();
        let client = reqwest::Client::builder().unix_socket(socket).no_proxy().build().unwrap();
        let engine = Self { kind, child, client, _folder: folder };
        while !engine.is_ready().await {
            // Nobody tells when an engine has bound its socket.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        engine
    }

    async fn is_ready(&self) -> bool {
        let answer = self.client.get("http://engine/health").send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Value {
        let request = self.client.post(format!("http://engine{path}")).json(body);
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let answer: Value = answer.json().await.unwrap();
        assert!(status.is_success(), "{:?} says {status}: {answer}", self.kind);
        answer
    }

    /// Has `tokens` tokens made after `prompt`, whatever they are.
    pub(super) async fn complete(&self, prompt: &[u64], tokens: u64) {
        let body = json!({ "prompt": prompt, "max_tokens": tokens, "ignore_eos": true,
            "temperature": 0, "cache_prompt": false });
        let answer = self.post("/v1/completions", &body).await;
        assert_eq!(answer["usage"]["completion_tokens"], tokens, "{answer}");
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len(), "{answer}");
    }

    /// CPU time used so far, in hundredths of a second.
    pub(super) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    pub(super) fn memory(&self) -> Memory {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let figure = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Memory {
            resident: figure("Rss:"),
            private: figure("Private_Clean:") + figure("Private_Dirty:"),
            share: figure("Pss:"),
        }
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }
}

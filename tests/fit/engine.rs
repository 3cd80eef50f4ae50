//! One real engine, started as slotd starts it, filled with requests, and measured.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use slotd::{
    config::{self, Context},
    engine::{CoreShare, EngineKind, Estimate, Machine},
    models::{Checks, Places},
    spec::{Bytes, Endpoint, ladder::Rung},
};
use tokio::{process::Child, time::timeout};

/// What is tried.
pub(crate) struct Trial<'a> {
    pub(crate) profile: String,
    pub(crate) rung: Rung,
    pub(crate) folder: &'a Path,
    pub(crate) slotd: &'a Path,
    pub(crate) llama: &'a Path,
    /// Tokens of one request, how many requests at once, and how often.
    pub(crate) prompt: u32,
    pub(crate) rounds: u32,
    /// Each round goes on where the one before ended, up to `prompt`; else each has its own.
    pub(crate) grows: bool,
    pub(crate) parallel: u32,
    /// It is asked for embeddings.
    pub(crate) embeds: bool,
}

/// What came of it.
pub(crate) struct Measured {
    pub(crate) estimate: Estimate,
    pub(crate) peak: Bytes,
    /// What the engine says of its own buffers.
    pub(crate) said: String,
}

const READY: Duration = Duration::from_mins(2);
const ANSWER: Duration = Duration::from_mins(15);

/// Starts, fills, measures, ends.
pub(crate) async fn measure(trial: &Trial<'_>) -> Measured {
    let socket = trial.folder.join("fit.sock");
    drop(fs::remove_file(&socket));
    let endpoint = Endpoint::Unix(socket.clone());
    let slot = "fit".parse().unwrap();
    let file = trial.folder.join("fit.toml");
    let profile = config::parse(&trial.profile, (&slot, &file), &Context::default()).unwrap();
    let environment: Vec<_> = env::vars_os().collect();
    let checks = Checks::new(Places {
        llama_server: Some(trial.llama.to_owned()),
        own_program: trial.slotd.to_owned(),
        cache_dir: trial.folder.to_owned(),
        hub_cache: None,
        environment: environment.clone(),
    });
    let checked = checks.run(&profile, &endpoint).unwrap();
    let estimate = checked.estimate((&profile, &trial.rung), false);
    let machine = Machine { cores: 2, has_gpu: false };
    let cores = CoreShare { machine, threads: 2 };
    let launch = checked.launch((&profile, &trial.rung), cores, &endpoint, &environment).unwrap();
    let log = trial.folder.join("fit.log");
    let mut args = launch.args.clone();
    if checked.kind == EngineKind::LlamaServer {
        args.extend(["-lv".into(), "4".into()]);
    }
    let mut child = tokio::process::Command::new(&launch.program)
        .args(&args)
        .env_clear()
        .envs(&launch.env)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log).unwrap())
        .stderr(fs::File::options().append(true).open(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = reqwest::Client::builder().unix_socket(socket).no_proxy().build().unwrap();
    timeout(READY, ready(&client, &mut child, &log)).await.unwrap();
    let way = if trial.embeds { Way::Embed } else { Way::of(checked.kind) };
    for round in 0..trial.rounds {
        let (begin, prompt) = if trial.grows {
            (0, trial.prompt * (round + 1) / trial.rounds)
        } else {
            (round * 64, trial.prompt)
        };
        let requests =
            (0..trial.parallel).map(|sequence| ask(&client, way, begin + sequence, prompt));
        timeout(ANSWER, futures_util::future::join_all(requests)).await.unwrap();
    }
    let peak = peak(child.id().unwrap());
    child.kill().await.unwrap();
    Measured { estimate, peak, said: said(&fs::read_to_string(&log).unwrap_or_default()) }
}

async fn ready(client: &reqwest::Client, child: &mut Child, log: &PathBuf) {
    loop {
        let answer = client.get("http://engine/health").send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{status}: {}", fs::read_to_string(log).unwrap_or_default());
        }
        // Nobody tells when the engine has bound its socket.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What an engine is asked.
#[derive(Clone, Copy)]
enum Way {
    Complete,
    Plain,
    Embed,
}

impl Way {
    fn of(kind: EngineKind) -> Self {
        match kind {
            EngineKind::LlamaServer => Self::Complete,
            EngineKind::Candle | EngineKind::Command => Self::Plain,
        }
    }
}

/// Asks for a few tokens after a prompt that fills a sequence.
async fn ask(client: &reqwest::Client, way: Way, seed: u32, prompt: u32) {
    const ANSWER_TOKENS: u32 = 8;
    let prompt: Vec<u32> =
        (0..prompt - ANSWER_TOKENS - 8).map(|at| 300 + (at * 7 + seed * 7919) % 20_000).collect();
    let (path, body): (&str, Value) = match way {
        Way::Complete => (
            "/completion",
            json!({ "prompt": prompt, "n_predict": ANSWER_TOKENS, "ignore_eos": true }),
        ),
        Way::Plain => (
            "/v1/completions",
            json!({ "prompt": prompt, "max_tokens": ANSWER_TOKENS, "model": "fit" }),
        ),
        Way::Embed => ("/v1/embeddings", json!({ "input": prompt, "model": "fit" })),
    };
    let answer = client.post(format!("http://engine{path}")).json(&body).send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert!(status.is_success(), "{status}: {text}");
}

/// The most that was resident at once. Source: `VmHWM` of `proc_pid_status(5)`; the engines are one
/// process each.
fn peak(pid: u32) -> Bytes {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    Bytes(kibibytes << 10)
}

/// The last figure of each of its buffers, in MiB: the first one is of a trial that it makes itself.
fn said(log: &str) -> String {
    let names = ["model", "KV", "output", "compute"];
    let figures = names.iter().map(|name| {
        let needle = format!("{name} buffer size =");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&needle)).collect();
        let all: Vec<String> = lines
            .iter()
            .filter_map(|line| {
                Some(line.split_once(&needle)?.1.trim().trim_end_matches(" MiB").to_owned())
            })
            .collect();
        format!("{name} {}", all.join("+"))
    });
    figures.collect::<Vec<_>>().join(", ")
}

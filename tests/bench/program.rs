//! `make bench`: what slotd costs, as ratios measured side by side in one run.
//!
//! Arguments: the slotd program, the fake engine, and optionally llama-server and a model. Prints
//! Markdown tables. Nothing here passes or fails: figures of one machine and one minute are compared
//! with each other only.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot be set up ends with the place where it broke"
)]

mod affinity;
mod client;
mod daemon;
mod detection;
mod hammer;
mod hung;
mod inventory;
mod placing;
mod resume;
mod shares;
mod worker;

use std::{env, fs, path::PathBuf, time::Duration};

use client::Connection;
use daemon::Daemon;
use tokio::time::Instant;

const COLD_STARTS_EACH: usize = 25;
const LLAMA_STARTS: usize = 20;
const ROUNDS: usize = 10;
const REQUESTS_A_ROUND: usize = 300;

struct Programs {
    slotd: PathBuf,
    fake: PathBuf,
    llama: Option<(PathBuf, PathBuf)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut given = env::args_os().skip(1).map(|path| fs::canonicalize(path).unwrap());
    let (slotd, fake) = (given.next().unwrap(), given.next().unwrap());
    let is_asked = |name| env::var_os(name).is_some();
    let programs = Programs { slotd, fake, llama: given.next().zip(given.next()) };
    if is_asked("SLOTD_BENCH_DETECTION") {
        detection::detection(&programs).await;
        return;
    }
    if is_asked("SLOTD_BENCH_SHARES") {
        shares::shares(&programs).await;
        return;
    }
    if is_asked("SLOTD_BENCH_RESUME") {
        resume::resume(&programs).await;
        return;
    }
    if is_asked("SLOTD_BENCH_INVENTORY") {
        inventory::run(&programs.slotd);
        return;
    }
    if is_asked("SLOTD_BENCH_PLACING") {
        placing::run();
        return;
    }
    if is_asked("SLOTD_BENCH_HUNG_GPUS") {
        hung::hung(&programs).await;
        return;
    }
    if let Ok(what) = env::var("SLOTD_BENCH_WORKER") {
        worker::run(&programs, &what).await;
        return;
    }
    if is_asked("SLOTD_BENCH_AFFINITY") {
        affinity::affinity(&programs).await;
        return;
    }
    starts(&programs).await;
    idle(&programs).await;
    cold_starts(&programs).await;
    added_latency(&programs).await;
    detection::detection(&programs).await;
    hammer::hammer(&programs).await;
    shares::shares(&programs).await;
    resume::resume(&programs).await;
    placing::run();
    inventory::run(&programs.slotd);
}

/// Start of the process to the line that says it listens.
async fn starts(programs: &Programs) {
    let mut times = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let daemon =
            Daemon::start(&programs.slotd, &[("chat", "model = \"x.gguf\"\n".to_owned())]).await;
        times.push(began.elapsed());
        daemon.end().await;
    }
    println!("\n| start to listening | p50 | max |\n|---|---|---|");
    println!("| {} starts | {} | {} |", times.len(), ms(median(&times)), ms(worst(&times)));
}

/// Memory and CPU of a daemon that has nothing to do.
async fn idle(programs: &Programs) {
    let daemon =
        Daemon::start(&programs.slotd, &[("chat", "model = \"x.gguf\"\n".to_owned())]).await;
    let window = Duration::from_secs(10);
    // The start itself is not idle.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = daemon.cpu_ticks();
    tokio::time::sleep(window).await;
    let ticks = daemon.cpu_ticks() - before;
    println!("\n| idle daemon | resident | CPU in {} s |\n|---|---|---|", window.as_secs());
    println!("| one slot, not loaded | {} KiB | {} ms |", daemon.resident_kib(), ticks * 10);
    daemon.end().await;
}

/// From the engine's first 200 to the slot's route being open and the held request answered.
async fn cold_starts(programs: &Programs) {
    println!("\n| cold start overhead | starts | p50 | p95 | max |\n|---|---|---|---|---|");
    for after in ["0ms", "100ms", "300ms", "1400ms"] {
        let mut times = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        let notes = dir.path().join("spawns");
        let profile = format!(
            "engine = \"command\"\ncommand = [\"{}\", \"socket={{socket}}\", \"tokens=1\", \"ready_after={after}\", \"spawn_log={}\"]\n",
            programs.fake.display(),
            notes.display()
        );
        let daemon = Daemon::start(&programs.slotd, &[("chat", profile)]).await;
        for _ in 0..COLD_STARTS_EACH {
            daemon.chat().await;
            let answered = daemon::monotonic();
            let lines = fs::read_to_string(&notes).unwrap();
            let ready = lines.lines().rev().find_map(|line| line.strip_prefix("ready ")).unwrap();
            let ready = Duration::from_nanos(ready.trim().parse().unwrap());
            times.push(answered.saturating_sub(ready));
            daemon.unload("chat").await;
        }
        daemon.end().await;
        row(&format!("fake engine, ready after {after}, to the answer"), &times);
    }
    let Some((llama, model)) = &programs.llama else { return };
    let profile = format!(
        "model = \"{}\"\nengine = \"llama-server\"\ncontext = 2048\nparallel = 1\n",
        model.display()
    );
    let env = [("SLOTD_LLAMA_SERVER", llama.as_path())];
    let daemon = Daemon::start_with(&programs.slotd, &[("chat", profile)], &env).await;
    let mut times = Vec::new();
    for generation in 1..=LLAMA_STARTS {
        let socket = daemon.runtime_dir().join(format!("engines/chat.g{generation}.sock"));
        let (first_200, open) = tokio::join!(client::first_200(&socket), daemon.load("chat"));
        times.push(open.saturating_duration_since(first_200));
        daemon.unload("chat").await;
    }
    daemon.end().await;
    row("llama-server, to the open route", &times);
}

/// One client, one request after the other: the engine directly and through slotd, in turns.
async fn added_latency(programs: &Programs) {
    let profile = format!(
        "engine = \"command\"\ncommand = [\"{}\", \"socket={{socket}}\", \"tokens=1\"]\n",
        programs.fake.display()
    );
    let daemon = Daemon::start(&programs.slotd, &[("chat", profile)]).await;
    daemon.chat().await;
    let socket = daemon.runtime_dir().join("engines/chat.g1.sock");
    let mut direct = Connection::unix(&socket).await;
    let mut through = Connection::tcp(daemon.address()).await;
    let (mut rounds, mut directs, mut throughs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Turns are swapped so that neither always runs on a warmer machine.
        let (d, t) = if round % 2 == 0 {
            let d = direct.chats(REQUESTS_A_ROUND).await;
            (d, through.chats(REQUESTS_A_ROUND).await)
        } else {
            let t = through.chats(REQUESTS_A_ROUND).await;
            (direct.chats(REQUESTS_A_ROUND).await, t)
        };
        rounds.push(median(&t).as_secs_f64() / median(&d).as_secs_f64());
        directs.extend(d);
        throughs.extend(t);
    }
    rounds.sort_by(f64::total_cmp);
    println!("\n| one client | p50 | p99 |\n|---|---|---|");
    for (name, times) in
        [("engine directly (Unix socket)", &directs), ("through slotd (TCP)", &throughs)]
    {
        println!(
            "| {name} | {} µs | {} µs |",
            median(times).as_micros(),
            percentile(times, 99).as_micros()
        );
    }
    println!(
        "| ratio of p50, median of {ROUNDS} rounds | {:.2} ({:.2}–{:.2}) | |",
        rounds[rounds.len() / 2],
        rounds[0],
        rounds[rounds.len() - 1]
    );
    println!("| resident after {} requests | {} KiB | |", throughs.len(), daemon.resident_kib());
    daemon.end().await;
}

fn row(name: &str, times: &[Duration]) {
    println!(
        "| {name} | {} | {} | {} | {} |",
        times.len(),
        ms(median(times)),
        ms(percentile(times, 95)),
        ms(worst(times))
    );
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

fn worst(times: &[Duration]) -> Duration {
    percentile(times, 100)
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() - 1) * percent / 100]
}

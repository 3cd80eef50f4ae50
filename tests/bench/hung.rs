//! What eight GPUs whose driver hangs cost those who do not need them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    join,
    process::Command as Process,
    time::{Instant, sleep},
};

use super::{
    Programs,
    client::Connection,
    daemon::{self, Daemon},
    ms, percentile, worst,
};

const GPUS: usize = 8;
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sensor/gpus/fake_nvml.c");
/// How long everything is measured before, and while, the driver hangs.
const WINDOW: Duration = Duration::from_secs(30);

/// How long each thing took.
#[derive(Default)]
struct Times {
    requests: Vec<Duration>,
    on_gpu: Vec<Duration>,
    ps: Vec<Duration>,
    deaths: Vec<Duration>,
    probes: Vec<Duration>,
}

pub(crate) async fn hung(programs: &Programs) {
    let driver = tempfile::tempdir().unwrap();
    let library = built(&driver);
    set(&driver, "present 8000 8000\n");
    let notes = driver.path().join("spawns");
    let fake = |keys: &str| {
        let fake = programs.fake.display();
        format!(
            "engine = \"command\"\ncommand = [\"{fake}\", \"socket={{socket}}\", \"tokens=1\", \"spawn_log={}\"]\n{keys}",
            notes.display()
        )
    };
    let on_gpu = fake("gpu_memory = \"4000MiB\"\naliases = [\"gpu-chat\"]\n");
    let profiles = [
        ("chat", fake("")),
        ("on-gpu", on_gpu.clone()),
        ("mortal", fake("")),
        ("later", on_gpu.replace("gpu-chat", "more")),
    ];
    let env = [("SLOTD_NVML_LIBRARY", library.as_path())];
    let daemon = Daemon::start_with(&programs.slotd, &profiles, &env).await;
    for slot in ["chat", "on-gpu", "mortal"] {
        daemon.load(slot).await;
    }
    let before = measure(programs, &daemon, &notes).await;
    set(&driver, "hang\n");
    // The reading of before counts for four seconds.
    sleep(Duration::from_secs(5)).await;
    let during = measure(programs, &daemon, &notes).await;
    daemon.order("later", "load").await;
    daemon.until("later", "queued").await;
    sleep(Duration::from_secs(1)).await;
    let waited = daemon.view("later").await["waits_for"].as_str().map(ToOwned::to_owned);
    set(&driver, "present 8000 8000\n");
    let back = Instant::now();
    daemon.until("later", "ready").await;
    let back = back.elapsed();
    daemon.end().await;
    println!("\n| {GPUS} GPUs | count | before: p50 | p99 | max | driver hangs: p50 | p99 | max |");
    println!("|---|---|---|---|---|---|---|---|");
    row("request to a slot without a GPU", &before.requests, &during.requests);
    row("request to a slot on a GPU that hangs", &before.on_gpu, &during.on_gpu);
    row("`SIGKILL` of an engine to out of routing", &before.deaths, &during.deaths);
    row("engine ready to its route open (probe)", &before.probes, &during.probes);
    row("`slotd ps`, the whole process", &before.ps, &during.ps);
    println!(
        "\nA slot that needed a GPU meanwhile: {waited:?}; ready {} after the driver was back.",
        ms(back)
    );
}

/// Everything at once, for a while.
async fn measure(programs: &Programs, daemon: &Daemon, notes: &Path) -> Times {
    let end = Instant::now() + WINDOW;
    let (requests, on_gpu, ps, (deaths, probes)) = join!(
        requests(daemon, super::client::CHAT, end),
        requests(
            daemon,
            r#"{"messages":[{"role":"user","content":"Say hello."}],"max_tokens":1,"model":"gpu-chat"}"#,
            end
        ),
        ps(&programs.slotd, daemon, end),
        deaths(daemon, notes, end)
    );
    Times { requests, on_gpu, ps, deaths, probes }
}

async fn requests(daemon: &Daemon, body: &'static str, end: Instant) -> Vec<Duration> {
    let mut connection = Connection::tcp(daemon.address()).await;
    let mut times = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        assert_eq!(connection.send("POST", "/v1/chat/completions", body).await, 200);
        times.push(began.elapsed());
        sleep(Duration::from_millis(10)).await;
    }
    times
}

async fn ps(slotd: &Path, daemon: &Daemon, end: Instant) -> Vec<Duration> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        let mut ps = Process::new(slotd);
        ps.arg("ps").env("SLOTD_CONTROL", daemon.runtime_dir().join("control.sock"));
        assert!(ps.stdout(Stdio::null()).status().await.unwrap().success());
        times.push(began.elapsed());
        sleep(Duration::from_millis(200)).await;
    }
    times
}

/// Kills an engine again and again; also returns how soon after the engine was ready its route was open.
async fn deaths(daemon: &Daemon, notes: &Path, end: Instant) -> (Vec<Duration>, Vec<Duration>) {
    let (mut deaths, mut probes) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        deaths.push(daemon.kill("mortal").await);
        daemon.load("mortal").await;
        let opened = daemon::monotonic();
        let lines = fs::read_to_string(notes).unwrap();
        let ready = lines.lines().rev().find_map(|line| line.strip_prefix("ready ")).unwrap();
        probes.push(opened.saturating_sub(Duration::from_nanos(ready.trim().parse().unwrap())));
    }
    (deaths, probes)
}

fn row(name: &str, before: &[Duration], during: &[Duration]) {
    let of = |times: &[Duration]| {
        format!(
            "{} | {} | {}",
            ms(percentile(times, 50)),
            ms(percentile(times, 99)),
            ms(worst(times))
        )
    };
    println!("| {name} | {} + {} | {} | {} |", before.len(), during.len(), of(before), of(during));
}

/// Builds the driver's library.
fn built(driver: &TempDir) -> PathBuf {
    let library = driver.path().join("libnvidia-ml.so.1");
    let control = format!("-DCONTROL=\"{}\"", driver.path().join("gpus").display());
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(control).arg(SOURCE);
    assert!(compiler.status().unwrap().success());
    library
}

/// Says what all GPUs are like, at once for those who read at the same time.
fn set(driver: &TempDir, line: &str) {
    let new = driver.path().join("new");
    fs::write(&new, line.repeat(GPUS)).unwrap();
    fs::rename(new, driver.path().join("gpus")).unwrap();
}

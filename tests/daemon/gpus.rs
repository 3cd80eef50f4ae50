//! GPUs of a driver that the tests make: who goes to which, and what becomes of a lost or a silent one.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use tokio::time::{sleep, timeout};

use super::{
    common::{DEADLINE, Daemon, fake, scratch},
    stay::slotd,
};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sensor/gpus/fake_nvml.c");

/// A driver whose GPUs are the lines of a file.
pub(crate) struct Driver(TempDir);

impl Driver {
    pub(crate) fn new(lines: &str) -> Self {
        let driver = Self(tempfile::tempdir().unwrap());
        driver.set(lines);
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(driver.library())
            .arg(format!("-DCONTROL=\"{}\"", driver.0.path().join("gpus").display()))
            .arg(SOURCE)
            .status();
        assert!(status.unwrap().success());
        driver
    }

    fn library(&self) -> PathBuf {
        self.0.path().join("libnvidia-ml.so.1")
    }

    /// At once for those who read at the same time.
    pub(crate) fn set(&self, lines: &str) {
        let new = self.0.path().join("new");
        fs::write(&new, lines).unwrap();
        fs::rename(new, self.0.path().join("gpus")).unwrap();
    }

    pub(crate) async fn daemon(&self, profiles: &[(&str, &str)]) -> Daemon {
        let library = self.library();
        Daemon::start_with(scratch(profiles), &[("SLOTD_NVML_LIBRARY", &library)]).await
    }
}

pub(crate) fn needs(memory: &str) -> String {
    fake("", &format!("gpu_memory = \"{memory}\""))
}

/// The GPUs that a slot's engine was told to see, once it is ready.
pub(crate) async fn visible_to(daemon: &Daemon, slot: &str) -> String {
    let view = daemon.until_state(slot, "ready").await;
    let environment = fs::read(format!("/proc/{}/environ", view["pid"])).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let mut told = environment.split('\0');
    let found = told.find_map(|pair| pair.strip_prefix("CUDA_VISIBLE_DEVICES="));
    found.unwrap_or("all").to_owned()
}

async fn until_it_waits(daemon: &Daemon, slot: &str, reason: &str) {
    let waits = |view: &serde_json::Value| {
        let told = view["waits_for"].as_str();
        view["state"] == "queued" && told.is_some_and(|told| told.contains(reason))
    };
    daemon.until(slot, reason, waits).await;
}

/// Asks until the daemon's own look has seen that a GPU is gone.
async fn until_it_is_lost(daemon: &Daemon, gpu: u32) {
    let line = format!("ensure 1MiB --gpu {gpu}");
    let asking = async {
        loop {
            let told = slotd(daemon, &line).await.stderr;
            if String::from_utf8_lossy(&told).contains("fallen off the bus") {
                return;
            }
        }
    };
    timeout(DEADLINE, asking).await.unwrap();
}

#[tokio::test]
async fn a_slot_goes_to_the_gpu_where_it_fits_and_waits_for_a_lost_one() {
    let driver = Driver::new("present 8000 2000\nlost\n");
    let (small, big) = (needs("1000MiB"), needs("4000MiB"));
    let daemon = driver.daemon(&[("small", &small), ("big", &big)]).await;
    daemon.order("small", "load").await;
    assert_eq!(visible_to(&daemon, "small").await, "GPU-00000000");

    daemon.order("big", "load").await;
    until_it_waits(&daemon, "big", "it needs 3.9 GiB of GPU memory").await;
    assert_eq!(daemon.slot("small").await["generation"], 1, "it would not have helped");

    driver.set("present 8000 2000\npresent 8000 6000\n");
    assert_eq!(visible_to(&daemon, "big").await, "GPU-00000001");
}

#[tokio::test]
async fn a_driver_that_hangs_keeps_nobody_waiting_but_those_that_need_its_gpus() {
    let driver = Driver::new(&"hang\n".repeat(8));
    let (plain, big) = (fake("", ""), needs("4000MiB"));
    let daemon = driver.daemon(&[("plain", &plain), ("big", &big)]).await;
    daemon.order("big", "load").await;
    assert_eq!(daemon.chat("plain").await.status(), 200);
    until_it_waits(&daemon, "big", "it does not answer").await;
    for _ in 0..20 {
        assert_eq!(daemon.chat("plain").await.status(), 200);
        assert_eq!(daemon.slot("big").await["state"], "queued");
    }
    // An engine dies, and is seen to die, and comes back.
    daemon.order("plain", "restart").await;
    let again = |view: &serde_json::Value| view["generation"] == 2 && view["state"] == "ready";
    daemon.until("plain", "back", again).await;

    driver.set(&"present 8000 6000\n".repeat(8));
    assert_eq!(visible_to(&daemon, "big").await, "GPU-00000000");
}

#[tokio::test]
async fn a_gpu_that_vanishes_under_running_engines_is_waited_for_and_all_of_them_return() {
    let driver = Driver::new("present 8000 6000\npresent 8000 6000\n");
    let (one, two) = (needs("4000MiB"), needs("4000MiB"));
    let daemon = driver.daemon(&[("one", &one), ("two", &two)]).await;
    for slot in ["one", "two"] {
        daemon.order(slot, "load").await;
        daemon.until_state(slot, "ready").await;
    }
    let on = (visible_to(&daemon, "one").await, visible_to(&daemon, "two").await);
    assert_eq!(on, ("GPU-00000000".to_owned(), "GPU-00000001".to_owned()));

    // It falls off the bus, and its engine dies of it.
    driver.set("lost\npresent 8000 200\n");
    until_it_is_lost(&daemon, 0).await;
    daemon.order("one", "restart").await;
    until_it_waits(&daemon, "one", "it needs 3.9 GiB of GPU memory").await;
    // So does the other one.
    driver.set("lost\nlost\n");
    until_it_is_lost(&daemon, 1).await;
    daemon.order("two", "restart").await;
    until_it_waits(&daemon, "two", "fallen off the bus").await;
    until_it_waits(&daemon, "one", "fallen off the bus").await;
    for slot in ["one", "two"] {
        assert_eq!(daemon.slot(slot).await["pid"], serde_json::Value::Null, "not on the CPU");
    }

    driver.set("present 8000 6000\npresent 8000 6000\n");
    let one = visible_to(&daemon, "one").await;
    let two = visible_to(&daemon, "two").await;
    assert!(one != two && [&one, &two].iter().all(|gpu| gpu.starts_with("GPU-")), "{one} {two}");
}

#[tokio::test]
async fn a_driver_that_hangs_before_it_counts_leaves_nobody_on_the_cpu() {
    let driver = Driver::new("hang-init\n");
    let daemon = driver.daemon(&[("big", &needs("4000MiB"))]).await;
    daemon.order("big", "load").await;
    until_it_waits(&daemon, "big", "it does not answer").await;
    driver.set("present 8000 6000\n");
    assert_eq!(visible_to(&daemon, "big").await, "GPU-00000000");
}

#[tokio::test]
async fn a_death_beside_an_xid_is_told_with_it_and_so_are_status_metrics_and_events() {
    let driver = Driver::new("present 8000 6000\npresent 8000 1000\n");
    let daemon = driver.daemon(&[("small", &needs("1500MiB"))]).await;
    let mut events = daemon.events().await;
    daemon.order("small", "load").await;
    assert_eq!(visible_to(&daemon, "small").await, "GPU-00000000");
    let metrics = async || {
        let answer = daemon.client.get(format!("{}/metrics", daemon.url)).send().await.unwrap();
        answer.text().await.unwrap()
    };
    let pid = daemon.slot("small").await["pid"].as_i64().unwrap();

    driver.set("present 8000 6000 xid 31 1\npresent 8000 1000 xid 13 1\n");
    let mut told = Vec::new();
    while told.len() < 2 {
        told.push(events.until(|event| event["event"] == "gpu-fault").await);
    }
    let mut texts: Vec<_> = told.iter().map(|event| event["text"].as_str().unwrap()).collect();
    texts.sort_unstable();
    assert_eq!(
        texts,
        [
            "GPU 0 (Fake 0) reported Xid 31 (GPU memory page fault)",
            "GPU 1 (Fake 1) reported Xid 13 (graphics engine exception)"
        ]
    );
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGABRT).unwrap();
    let died = |view: &serde_json::Value| view["deaths"][0]["verdict"] == "crash";
    let view = daemon.until("small", "dead", died).await;
    let evidence = &view["deaths"][0]["evidence"]["xids"];
    assert_eq!((&evidence[0]["gpu"], &evidence[0]["code"]), (&0.into(), &31.into()));
    assert_eq!(evidence[1], serde_json::Value::Null, "that GPU is not its own");
    let reason = view["deaths"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("GPU 0 reported Xid 31 (GPU memory page fault)"), "{reason}");

    let why = String::from_utf8(slotd(&daemon, "why small").await.stdout).unwrap();
    assert!(why.contains("- GPU 0 reported Xid 31 (GPU memory page fault), "), "{why}");
    let status = String::from_utf8(slotd(&daemon, "status").await.stdout).unwrap();
    assert!(
        status.contains("gpu 0     Fake 0: 5.8 GiB of 7.8 GiB free, 0 % busy; last"),
        "{status}"
    );
    let text = metrics().await;
    for line in [
        "slotd_gpu_xids_total{gpu=\"0\"} 1\n",
        "slotd_gpu_state{gpu=\"0\",state=\"present\"} 1\n",
        "slotd_gpu_memory_used_bytes{gpu=\"0\"} 2097152000\n",
        "slotd_gpu_utilization_ratio{gpu=\"1\"} 0.1\n",
        "slotd_slot_promised_gpu_memory_bytes{slot=\"small\",gpu=\"0\"} 1572864000\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let log = daemon.log();
    assert_eq!(log.matches("gpu reported a fault").count(), 2, "{log}");
}

/// Asks until the daemon has read the GPU.
async fn until_it_is_read(daemon: &Daemon, gpu: usize) {
    let asking = async {
        while daemon.daemon().await["gpus"][gpu]["state"] != "present" {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, asking).await.unwrap();
}

#[tokio::test]
async fn a_gpu_that_reports_that_it_fell_off_the_bus_is_lost_and_told() {
    let driver = Driver::new("present 8000 6000\n");
    let daemon = driver.daemon(&[("small", &needs("1500MiB"))]).await;
    let mut events = daemon.events().await;
    daemon.order("small", "load").await;
    assert_eq!(visible_to(&daemon, "small").await, "GPU-00000000");
    until_it_is_read(&daemon, 0).await;
    driver.set("lost 8000 0 xid 79 1\n");
    let told = events.until(|event| event["event"] == "gpu-changed").await;
    assert_eq!((&told["from"], &told["to"]), (&"present".into(), &"lost".into()));
    daemon.order("small", "restart").await;
    until_it_waits(&daemon, "small", "Xid 79").await;
    let status = String::from_utf8(slotd(&daemon, "status").await.stdout).unwrap();
    assert!(status.contains("- GPU 0 (Fake 0) is lost: "), "{status}");
    driver.set("present 8000 6000\n");
    events.until(|event| event["event"] == "gpu-changed" && event["to"] == "present").await;
    assert_eq!(visible_to(&daemon, "small").await, "GPU-00000000");
}

/// Waits until it is on the disk what an engine took on GPUs.
async fn peaks_on_gpus(daemon: &Daemon) -> serde_json::Value {
    let file = daemon.dir.path().join("state/peaks.json");
    let reading = async {
        loop {
            let read = fs::read(&file).ok();
            let peaks =
                read.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
            let on_gpus = peaks.map(|peaks| peaks["peaks"][0]["gpu_bytes"].clone());
            if let Some(on_gpus) = on_gpus.filter(serde_json::Value::is_object) {
                return on_gpus;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, reading).await.unwrap()
}

#[tokio::test]
async fn what_an_engine_took_on_a_gpu_is_remembered() {
    let driver = Driver::new("present 8000 6000\npresent 8000 1000\n");
    let daemon = driver.daemon(&[("small", &needs("1500MiB"))]).await;
    daemon.order("small", "load").await;
    assert_eq!(visible_to(&daemon, "small").await, "GPU-00000000");
    let pid = &daemon.slot("small").await["pid"];
    driver.set(&format!("present 8000 4000 pid {pid} 2000 pid 1 500\npresent 8000 1000\n"));
    let wanted = serde_json::json!({ "GPU-00000000": 2000_u64 << 20 });
    assert_eq!(peaks_on_gpus(&daemon).await, wanted);
}

#[tokio::test]
async fn an_xid_of_a_gpu_that_an_engine_took_by_itself_is_told_with_its_death() {
    let driver = Driver::new("present 8000 6000\npresent 8000 1000\n");
    let daemon = driver.daemon(&[("own", &fake("", ""))]).await;
    let mut events = daemon.events().await;
    daemon.order("own", "load").await;
    assert_eq!(visible_to(&daemon, "own").await, "all");
    let pid = daemon.slot("own").await["pid"].as_i64().unwrap();
    // Read with its process, then reported: of the other GPU first.
    driver.set(&format!("present 8000 4000 pid {pid} 2000\npresent 8000 1000\n"));
    until_free(&daemon, 0, 4000).await;
    driver.set(&format!("present 8000 4000 pid {pid} 2000 xid 79 1\npresent 8000 1000 xid 31 1\n"));
    for _ in 0..2 {
        events.until(|event| event["event"] == "gpu-fault").await;
    }
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGABRT).unwrap();
    let died = |view: &serde_json::Value| view["deaths"][0]["verdict"] == "crash";
    let view = daemon.until("own", "dead", died).await;
    let xids = &view["deaths"][0]["evidence"]["xids"];
    assert_eq!((&xids[0]["gpu"], &xids[0]["code"]), (&0.into(), &79.into()), "{xids}");
    assert_eq!(xids[1], serde_json::Value::Null, "on that GPU it is not");
    let why = String::from_utf8(slotd(&daemon, "why own").await.stdout).unwrap();
    assert!(why.contains("GPU 0 reported Xid 79"), "{why}");
}

/// Asks until the daemon has read so many MiB of free memory on a GPU.
async fn until_free(daemon: &Daemon, gpu: usize, mib: u64) {
    let asking = async {
        while daemon.daemon().await["gpus"][gpu]["free_bytes"] != mib << 20 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, asking).await.unwrap();
}

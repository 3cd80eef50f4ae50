//! What goes wrong on the way of a large model.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Bench, REPO,
    world::{End, blobs, folder, run, snapshot},
};

const KILLS: u32 = 20;
const MIB: u64 = 1 << 20;

pub(crate) async fn all(bench: &Bench) {
    println!("{:<44} {:>7} {:>9}  what came of it", "trial", "s", "MiB sent");
    killed(bench).await;
    for (name, faults) in faults(bench) {
        borne(bench, name, faults).await;
    }
    for (name, faults, said) in lies() {
        refused(bench, name, faults, said).await;
    }
    redirected(bench).await;
    several(bench).await;
    full(bench).await;
}

fn row(name: &str, began: Instant, sent: u64, what: &str) {
    let seconds = began.elapsed().as_secs_f64();
    println!("{name:<44} {seconds:>7.1} {:>9}  {what}", sent / MIB);
}

async fn sent(bench: &Bench) -> u64 {
    bench.hub.fetches().await.iter().map(|seen| seen.sent).sum()
}

/// Checks that all is there, byte for byte, and nothing else.
fn whole(bench: &Bench, cache: &Path) {
    let files = snapshot(cache, REPO);
    assert_eq!(files.len(), 6);
    for (name, bytes) in &files {
        let served = bench.room.path().join("repos").join(REPO).join("main").join(name);
        assert!(*bytes == fs::read(served).unwrap(), "`{name}` is another one");
    }
    assert_eq!(blobs(cache, REPO), (0, 6));
}

async fn killed(bench: &Bench) {
    let cache = bench.cache();
    bench.hub.faults(json!([])).await;
    bench.hub.forget().await;
    let began = Instant::now();
    let mut random = 7_u64;
    let mut kills = 0;
    for _ in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut command = bench.command(&cache);
        // Slow enough that twenty kills fall into it.
        command.args(["--limit-rate", &format!("{}B", bench.size / 8)]);
        let mut child = command.spawn().unwrap();
        let before = blobs(&cache, REPO).0;
        while blobs(&cache, REPO).0 <= before && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis((random >> 33) % 300)).await;
        if child.try_wait().unwrap().is_none() {
            kills += 1;
        }
        child.kill().await.unwrap();
        // Whatever has the name of a whole file is one.
        blobs(&cache, REPO);
    }
    let mut command = bench.command(&cache);
    command.arg("--json");
    let end = run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    let status: Value = serde_json::from_str(&end.out).unwrap();
    whole(bench, &cache);
    let number = |key: &str| status.get(key).and_then(Value::as_u64).unwrap();
    let resumed = number("resumed_bytes");
    let sent = sent(bench).await;
    assert_eq!(resumed + number("fetched_bytes"), bench.size);
    let what = format!("{kills} kills; whole; the last pull found {} MiB there", resumed / MIB);
    row("killed (-9) at random", began, sent, &what);
}

fn faults(bench: &Bench) -> Vec<(&'static str, Value)> {
    let part = bench.size / 6;
    let one =
        |does: Value, times: u64| json!([{ "path": "resolve", "times": times, "does": does }]);
    vec![
        ("nothing", json!([])),
        ("cut 12 times", one(json!({ "drop": { "after": part / 4 } }), 12)),
        ("silent for 2 s, 2 times", one(json!({ "stall": { "after": part / 3 } }), 2)),
        (
            "429 with Retry-After: 2",
            one(json!({ "status": { "code": 429, "retry_after_s": 2 } }), 3),
        ),
        ("503", one(json!({ "status": { "code": 503 } }), 6)),
        ("one byte flipped once", one(json!({ "flip": { "at": part / 2 } }), 1)),
        (
            "cut, then the whole where a part was asked for",
            json!([
                { "path": "resolve", "times": 2, "does": { "drop": { "after": part / 2 } } },
                { "path": "resolve", "does": "no_range" },
            ]),
        ),
    ]
}

async fn borne(bench: &Bench, name: &str, faults: Value) {
    let cache = bench.cache();
    bench.hub.faults(faults).await;
    bench.hub.forget().await;
    let began = Instant::now();
    let end = run(bench.command(&cache)).await;
    assert_eq!(end.code, Some(0), "{name}: {}", end.said);
    let sent = sent(bench).await;
    let fetches = bench.hub.fetches().await;
    let parts = fetches.iter().filter(|seen| seen.range.is_some()).count();
    row(
        name,
        began,
        sent,
        &format!("whole; {parts} of {} requests were for a rest", fetches.len()),
    );
    whole(bench, &cache);
}

fn lies() -> Vec<(&'static str, Value, &'static str)> {
    let always = |does: Value| json!([{ "path": "00003-of", "does": does }]);
    vec![
        ("one byte flipped each time", always(json!({ "flip": { "at": 99 } })), "other content"),
        ("a file shorter than listed", always(json!({ "short": { "by": 1 } })), "bytes long where"),
        ("404 for one file", always(json!({ "status": { "code": 404 } })), "answered 404"),
        (
            "no answer but 503",
            json!([{ "does": { "status": { "code": 503 } } }]),
            "7 times in a row",
        ),
    ]
}

async fn refused(bench: &Bench, name: &str, faults: Value, said: &str) {
    let cache = bench.cache();
    bench.hub.faults(faults).await;
    bench.hub.forget().await;
    let began = Instant::now();
    let end = run(bench.command(&cache)).await;
    assert_eq!(end.code, Some(69), "{name}: {}", end.said);
    assert!(end.said.contains(said), "{name}: {}", end.said);
    assert!(!folder(&cache, REPO).join("refs/main").exists());
    let (partial, kept) = blobs(&cache, REPO);
    let came = sent(bench).await;
    row(name, began, came, &format!("said; {kept} files and {} MiB of others kept", partial / MIB));
}

async fn redirected(bench: &Bench) {
    let cache = bench.cache();
    let token = "hf_canary0123456789";
    bench.hub.rules(json!({ "token": token, "send_large_to_other_host": true })).await;
    bench.hub.forget().await;
    let began = Instant::now();
    let mut command = bench.command(&cache);
    command.env("HF_TOKEN", token);
    let end = run(command).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    whole(bench, &cache);
    let seen = bench.hub.fetches().await;
    let elsewhere: Vec<_> = seen.iter().filter(|seen| seen.host == "127.0.0.2").collect();
    assert!(elsewhere.len() == 6 && elsewhere.iter().all(|seen| seen.authorization.is_none()));
    row("sent to another host", began, sent(bench).await, "whole; the token stayed with the hub");
    bench.hub.faults(json!([])).await;
}

async fn several(bench: &Bench) {
    let cache = bench.cache();
    bench.hub.faults(json!([])).await;
    bench.hub.forget().await;
    let began = Instant::now();
    let (one, two, three) = tokio::join!(
        run(bench.command(&cache)),
        run(bench.command(&cache)),
        run(bench.command(&cache))
    );
    for end in [one, two, three] {
        assert_eq!(end.code, Some(0), "{}", end.said);
    }
    whole(bench, &cache);
    let sent = sent(bench).await;
    assert_eq!(sent, bench.size);
    row("three at once", began, sent, "fetched once, all three ended well");
}

/// What is taken of a disk at once.
const STEP: u64 = 8 * MIB;

/// A disk that another fills while the pull runs.
async fn full(bench: &Bench) {
    let place = bench.room.path().join("small");
    fs::create_dir_all(&place).unwrap();
    for (round, share) in [(1, 3), (2, 7), (3, 5)] {
        let Some(disk) = Mount::new(&place, bench.size + 64 * MIB) else {
            println!("{:<44} left out: this user may mount no tmpfs", "a disk that fills up");
            return;
        };
        let cache = place.join("hub");
        bench.hub.forget().await;
        let began = Instant::now();
        let mut command = bench.command(&cache);
        command.args(["--reserve", "0B", "--limit-rate", &format!("{}B", bench.size / 4)]);
        let pulling = tokio::spawn(run(command));
        // All but an odd rest that the pull runs into.
        let length = bench.size + 64 * MIB - bench.size / share - 12_345 * round;
        while used(&cache) < bench.size / 20 {
            sleep(Duration::from_millis(5)).await;
        }
        let full = place.join("filler");
        let file = fs::File::create(&full).unwrap();
        // In steps: the pull writes meanwhile, and may be the one that finds the disk full.
        let mut filled = 0;
        while filled + used(&cache) < length && fs2::FileExt::allocate(&file, filled + STEP).is_ok()
        {
            filled += STEP;
        }
        // A file that is open would keep its place after it is removed.
        drop(file);
        let end: End = pulling.await.unwrap();
        assert_eq!(end.code, Some(69), "{}", end.said);
        assert!(end.said.contains("more are needed with 0 B to stay free"), "{}", end.said);
        let (partial, kept) = blobs(&cache, REPO);
        fs::remove_file(&full).unwrap();
        let end = run({
            let mut command = bench.command(&cache);
            command.args(["--reserve", "0B"]);
            command
        })
        .await;
        assert_eq!(end.code, Some(0), "{}", end.said);
        whole(bench, &cache);
        let came = sent(bench).await;
        let what = format!("said, with {kept} whole and {} MiB begun; then whole", partial / MIB);
        row("a disk that fills up", began, came, &what);
        drop(disk);
    }
}

fn used(cache: &Path) -> u64 {
    blobs(cache, REPO).0
}

/// A tmpfs.
struct Mount(PathBuf);

impl Mount {
    fn new(place: &Path, size: u64) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(place);
        let is_mounted = command.output().is_ok_and(|output| output.status.success());
        is_mounted.then(|| Self(place.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

//! What goes wrong on the way.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    DEADLINE, World,
    world::{blobs, content, folder, snapshot},
};

const MODEL: &str = "o/r/m-Q4_K_M.gguf";
const SIZE: usize = 3 << 20;
const BYTES: u64 = 3 << 20;

fn world() -> World {
    World::new(&[(MODEL, &content(1, SIZE))])
}

fn is_whole(world: &World) {
    let files = snapshot(&world.cache(), "o/r");
    assert!(files["m-Q4_K_M.gguf"] == content(1, SIZE));
    assert_eq!(blobs(&world.cache(), "o/r"), (0, 1));
}

/// Bytes of files that the hub sent.
async fn sent(world: &World) -> u64 {
    world.hub.fetches().await.iter().map(|seen| seen.sent).sum()
}

#[tokio::test]
async fn a_pull_that_is_killed_goes_on_where_it_was() {
    let world = world();
    let slow = json!([{ "path": "resolve", "does": { "slow": { "bytes_per_s": 2 << 20 } } }]);
    world.hub.faults(slow).await;
    let mut child = world.command(&["pull", "o/r"]).spawn().unwrap();
    let begun = async {
        while blobs(&world.cache(), "o/r").0 < 1 << 20 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, begun).await.unwrap();
    child.kill().await.unwrap();
    let (begun, whole) = blobs(&world.cache(), "o/r");
    assert_eq!(whole, 0);
    world.hub.faults(json!([])).await;
    world.hub.forget().await;
    let end = world.pull(&["o/r", "--json"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    is_whole(&world);
    let fetches = world.hub.fetches().await;
    assert_eq!(fetches[0].range.as_deref(), Some(&*format!("bytes={begun}-")));
    let status: serde_json::Value = serde_json::from_str(&end.out).unwrap();
    assert_eq!(status["resumed_bytes"], json!(begun));
    assert_eq!(status["fetched_bytes"], json!(BYTES - begun));
    assert_eq!(sent(&world).await, BYTES - begun);
}

#[tokio::test]
async fn a_network_that_breaks_off_or_falls_silent_is_borne() {
    let world = world();
    world
        .hub
        .faults(json!([
            { "path": "resolve", "times": 1, "does": { "drop": { "after": 1_000_000 } } },
            { "path": "resolve", "times": 1, "does": { "drop": { "after": 0 } } },
            { "path": "resolve", "times": 1, "does": { "stall": { "after": 500_000 } } },
        ]))
        .await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    is_whole(&world);
    assert_eq!(sent(&world).await, BYTES);
    assert!(end.said.contains("silent for 2 s"), "{}", end.said);
}

#[tokio::test]
async fn a_hub_that_asks_for_patience_gets_it() {
    let world = world();
    world
        .hub
        .faults(json!([
            { "path": "/tree/", "times": 1, "does": { "status": { "code": 503 } } },
            { "path": "resolve", "times": 1, "does": { "status": { "code": 429, "retry_after_s": 2 } } },
            { "path": "resolve", "times": 1, "does": { "status": { "code": 503 } } },
        ]))
        .await;
    let began = Instant::now();
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert!(began.elapsed() >= Duration::from_secs(2));
    is_whole(&world);
}

#[tokio::test]
async fn a_hub_that_asks_for_more_patience_than_there_is_is_left_alone() {
    let world = world();
    let wait = json!([{ "does": { "status": { "code": 429, "retry_after_s": 3600 } } }]);
    world.hub.faults(wait).await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(69));
    assert!(end.said.contains("wants to be asked again in 3600 s only"), "{}", end.said);
}

#[tokio::test]
async fn other_content_is_fetched_once_more_and_then_refused() {
    let world = world();
    let flip = |times: u64| json!([{ "path": "resolve", "times": times, "does": { "flip": { "at": 70_000 } } }]);
    world.hub.faults(flip(2)).await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(69));
    assert!(end.said.contains("came with other content"), "{}", end.said);
    assert_eq!(blobs(&world.cache(), "o/r"), (0, 0));
    assert!(!folder(&world.cache(), "o/r").join("refs/main").exists());
    world.hub.faults(flip(1)).await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    is_whole(&world);
}

#[tokio::test]
async fn a_damaged_beginning_is_fetched_anew() {
    let world = world();
    let drop = json!([{ "path": "resolve", "does": { "drop": { "after": 1_000_000 } } }]);
    world.hub.faults(drop).await;
    let mut child = world.command(&["pull", "o/r"]).spawn().unwrap();
    let begun = async {
        while blobs(&world.cache(), "o/r").0 < 1_000_000 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, begun).await.unwrap();
    child.kill().await.unwrap();
    world.hub.faults(json!([])).await;
    let blobs = folder(&world.cache(), "o/r").join("blobs");
    let partial = fs::read_dir(blobs).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&partial).unwrap();
    bytes[5] ^= 1;
    fs::write(&partial, bytes).unwrap();
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    is_whole(&world);
}

#[tokio::test]
async fn a_file_of_another_length_is_said_and_not_kept_under_its_name() {
    let world = world();
    world.hub.faults(json!([{ "path": "resolve", "does": { "short": { "by": 9 } } }])).await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(69));
    let said = "`m-Q4_K_M.gguf` is 3145719 bytes long where the hub's list says 3145728";
    assert!(end.said.contains(said), "{}", end.said);
    assert_eq!(blobs(&world.cache(), "o/r").1, 0);
}

#[tokio::test]
async fn the_whole_may_come_where_a_part_was_asked_for() {
    let world = world();
    world
        .hub
        .faults(json!([
            { "path": "resolve", "times": 1, "does": { "drop": { "after": 1_000_000 } } },
            { "path": "resolve", "does": "no_range" },
        ]))
        .await;
    let end = world.pull(&["o/r"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    is_whole(&world);
}

#[tokio::test]
async fn what_has_no_room_is_not_begun() {
    let world = world();
    let end = world.pull(&["o/r", "--reserve", "900000TiB"]).await;
    assert_eq!(end.code, Some(69));
    assert!(end.said.contains("3.0 MiB more are needed with"), "{}", end.said);
    assert!(world.hub.fetches().await.is_empty());
    assert!(!folder(&world.cache(), "o/r").exists());
}

#[tokio::test]
async fn an_interrupted_pull_says_that_it_can_go_on() {
    let world = world();
    let slow = json!([{ "path": "resolve", "does": { "slow": { "bytes_per_s": 1 << 20 } } }]);
    world.hub.faults(slow).await;
    let child = world.command(&["pull", "o/r"]).spawn().unwrap();
    let begun = async {
        while blobs(&world.cache(), "o/r").0 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, begun).await.unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let output = timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the next pull goes on from there"), "{said}");
    assert!(blobs(&world.cache(), "o/r").0 > 0);
}

#[tokio::test]
async fn a_rate_is_kept_to() {
    let world = world();
    let began = Instant::now();
    let end = world.pull(&["o/r", "--limit-rate", "2MiB"]).await;
    assert_eq!(end.code, Some(0), "{}", end.said);
    // 3 MiB at 2 MiB a second; the first bytes come before the first wait.
    assert!(began.elapsed() >= Duration::from_millis(1300), "{:?}", began.elapsed());
}

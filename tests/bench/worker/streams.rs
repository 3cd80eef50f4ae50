//! A hundred streams at once through slotd to one worker, some left, the worker killed now and then:
//! each text must be that of the same request asked alone, as far as it came.

use std::{
    cell::RefCell,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Daemon, Files, Random};
use crate::{ms, percentile};

const CLIENTS: u64 = 100;
const QUESTIONS: u64 = 24;
const TOKENS: u64 = 40;
/// Between two kills, at least and at most, in seconds: a healthy minute wipes the tally of deaths, so that
/// this measures streams and not the wait before a restart.
const KILLS: (u64, u64) = (70, 90);

const BEGINNINGS: [&str; 8] = [
    "Once upon a time, the sea",
    "The reason why the sky is blue",
    "The market opens at six, and",
    "To bake bread, first",
    "def fibonacci(n):\n",
    "My favourite recipe begins with",
    "Dear Sir or Madam,\n",
    "The difference between a virus and a bacterium is",
];

#[derive(Default)]
struct Tally {
    whole: u64,
    left: u64,
    lost: u64,
    refused: u64,
    wrong: u64,
    first: Vec<Duration>,
    kills: u64,
}

pub(super) async fn run(files: &Files, seconds: u64) {
    let profile = format!(
        "engine = \"candle\"\nmodel = \"{}\"\ncontext = 512\nparallel = 16\nthreads = 1\nessential = true\n",
        files.model.display()
    );
    let daemon = Daemon::start(&files.slotd, &[("w", profile)]).await;
    daemon.load("w").await;
    let mut alone = Vec::new();
    for question in 0..QUESTIONS {
        alone.push(text(&daemon.ask("/v1/completions", &request(question, false)).await));
    }
    let seed = RandomState::new().hash_one("seed");
    let tally = RefCell::new(Tally::default());
    let until = Instant::now() + Duration::from_secs(seconds);
    let before = daemon.resident_kib();
    let mut memory = Vec::new();
    let clients = (0..CLIENTS).map(|client| {
        let random = Random(seed.wrapping_add(client));
        let (daemon, alone, tally) = (&daemon, &alone, &tally);
        async move {
            let mut random = random;
            while Instant::now() < until {
                one(daemon, alone, &mut random, tally).await;
            }
        }
    });
    join(join_all(clients), faults(&daemon, until, seed, &tally, &mut memory)).await;
    let tally = tally.into_inner();
    println!(
        "\n{CLIENTS} streams at once for {seconds} s, seed {seed}, {} kills: {} whole, {} left by their clients, {} cut by a kill, {} refused meanwhile, {} with a wrong text",
        tally.kills, tally.whole, tally.left, tally.lost, tally.refused, tally.wrong
    );
    println!(
        "first token p50 {} p95 {} (their turn waited for); the daemon {before} KiB before and {} after",
        ms(percentile(&tally.first, 50)),
        ms(percentile(&tally.first, 95)),
        daemon.resident_kib()
    );
    println!("the worker, KiB every 10 s, by life: {memory:?}");
    daemon.end().await;
    assert_eq!(tally.wrong, 0, "texts that are not those of their requests alone");
}

/// One stream; its client leaves it in a third of cases.
async fn one(daemon: &Daemon, alone: &[String], random: &mut Random, tally: &RefCell<Tally>) {
    let question = random.below(QUESTIONS);
    let leaves = (random.below(3) == 0).then(|| random.below(TOKENS));
    let began = Instant::now();
    let Ok(mut stream) = daemon.try_post("/v1/completions", &request(question, true)).await else {
        tally.borrow_mut().refused += 1;
        // What the refusal's Retry-After says, roughly.
        sleep(Duration::from_secs(1)).await;
        return;
    };
    let (mut rest, mut said, mut events) = (String::new(), String::new(), 0);
    let (mut is_done, mut is_left) = (false, false);
    while let Ok(Some(data)) = stream.chunk().await {
        rest.push_str(std::str::from_utf8(&data).unwrap());
        while let Some(end) = rest.find("\n\n") {
            let event: String = rest.drain(..end + 2).collect();
            let Some(data) = event.trim_end().strip_prefix("data: ") else { continue };
            let event: Value = serde_json::from_str(data).unwrap_or_default();
            is_done |= event["choices"][0]["finish_reason"].is_string();
            let Some(text) = event["choices"][0]["text"].as_str() else { continue };
            if events == 0 {
                tally.borrow_mut().first.push(began.elapsed());
            }
            events += 1;
            said.push_str(text);
        }
        if leaves.is_some_and(|leaves| events > leaves) {
            is_left = true;
            break;
        }
    }
    let whole = &alone[usize::try_from(question).unwrap()];
    let is_right = if is_done { said == *whole } else { whole.starts_with(&said) };
    let mut tally = tally.borrow_mut();
    if !is_right {
        println!("{question}: {said:?} instead of {whole:?}");
        tally.wrong += 1;
    } else if is_done {
        tally.whole += 1;
    } else if is_left {
        tally.left += 1;
    } else {
        tally.lost += 1;
    }
}

/// Kills the worker now and then, and notes its memory.
async fn faults(
    daemon: &Daemon,
    until: Instant,
    seed: u64,
    tally: &RefCell<Tally>,
    memory: &mut Vec<Vec<u64>>,
) {
    let mut random = Random(seed ^ 1);
    while Instant::now() < until {
        let (least, most) = KILLS;
        let kill = Instant::now() + Duration::from_secs(least + random.below(most - least));
        let mut life = Vec::new();
        while Instant::now() < kill.min(until) {
            sleep(Duration::from_secs(10)).await;
            life.extend(daemon.engine_kib("w").await);
        }
        memory.push(life);
        if Instant::now() < until {
            daemon.until("w", "ready").await;
            daemon.kill("w").await;
            tally.borrow_mut().kills += 1;
        }
    }
}

/// Every other question is drawn, with a seed.
fn request(question: u64, is_stream: bool) -> Value {
    let which = usize::try_from(question % 8).unwrap();
    json!({ "model": "w", "prompt": BEGINNINGS[which], "max_tokens": TOKENS, "seed": question,
        "temperature": if question < 8 { 0.0 } else { 0.8 }, "stream": is_stream })
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

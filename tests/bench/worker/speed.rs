//! Tokens a second, of prompts and of answers, in rounds that alternate between the engines.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    Files, Kind, Random,
    engine::{Engine, Setup},
};

const PROMPT: u64 = 128;
const ANSWER: u64 = 128;
/// What an answer is asked after, where the answer is what counts.
const SHORT: u64 = 4;

/// Tokens by second of the clock, and by second of the CPU.
#[derive(Clone, Copy)]
struct Pace {
    wall: f64,
    cpu: f64,
}

pub(super) async fn run(files: &Files, rounds: u64) {
    let mut random = Random(RandomState::new().hash_one("seed"));
    println!(
        "\n| threads | sequences | of | worker, tokens/s | llama-server | ratio | by CPU second |"
    );
    println!("|---|---|---|---|---|---|---|");
    for threads in [1, 2] {
        for sequences in [1, 4, 8] {
            let setup = Setup { threads, sequences, context: 512, more: &[] };
            let worker = Engine::start(files, Kind::Worker, setup).await;
            let llama = Engine::start(files, Kind::LlamaServer, setup).await;
            for (name, length, tokens) in [("prompt", PROMPT, 1), ("answer", SHORT, ANSWER)] {
                // The first requests touch pages for the first time.
                pace(&worker, sequences, (length, tokens), &mut random).await;
                pace(&llama, sequences, (length, tokens), &mut random).await;
                let mut pairs = Vec::new();
                for _ in 0..rounds {
                    let own = pace(&worker, sequences, (length, tokens), &mut random).await;
                    let other = pace(&llama, sequences, (length, tokens), &mut random).await;
                    pairs.push((own, other));
                }
                print(&format!("| {threads} | {sequences} | {name} |"), &pairs);
            }
        }
    }
}

async fn pace(
    engine: &Engine,
    sequences: u64,
    (length, tokens): (u64, u64),
    random: &mut Random,
) -> Pace {
    let prompts: Vec<Vec<u64>> = (0..sequences)
        .map(|_| (0..length).map(|_| 1000 + random.below(20_000)).collect())
        .collect();
    let (began, used) = (Instant::now(), engine.cpu_ticks());
    join_all(prompts.iter().map(|prompt| engine.complete(prompt, tokens))).await;
    let (wall, used) = (began.elapsed(), engine.cpu_ticks() - used);
    let each = if tokens == 1 { length } else { tokens };
    let all = number(each * sequences);
    let cpu = Duration::from_millis(used * 10).as_secs_f64();
    Pace { wall: all / wall.as_secs_f64(), cpu: all / cpu }
}

fn print(start: &str, pairs: &[(Pace, Pace)]) {
    let wall = spread(pairs.iter().map(|(own, other)| own.wall / other.wall));
    let cpu = spread(pairs.iter().map(|(own, other)| own.cpu / other.cpu));
    let own = spread(pairs.iter().map(|(own, _)| own.wall))[1];
    let other = spread(pairs.iter().map(|(_, other)| other.wall))[1];
    println!(
        "{start} {own:.0} | {other:.0} | {:.2} ({:.2}-{:.2}) | {:.2} ({:.2}-{:.2}) |",
        wall[1], wall[0], wall[2], cpu[1], cpu[0], cpu[2]
    );
}

/// The least, the median, the most.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

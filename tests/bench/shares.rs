//! Two llama-servers that generate at once, on shares of the cores and on their own default of threads.

use std::{path::Path, time::Duration};

use tokio::{join, time::Instant};

use super::{Programs, client::Connection, daemon::Daemon};

const ROUNDS: usize = 5;
/// Few: on a busy machine engines that wait for each other make a token a second.
const TOKENS: u32 = 16;
const BODIES: [&str; 2] = [
    r#"{"model":"one","prompt":"Once upon a time","max_tokens":16,"ignore_eos":true}"#,
    r#"{"model":"two","prompt":"Once upon a time","max_tokens":16,"ignore_eos":true}"#,
];

/// A daemon with two slots that are kept loaded.
struct Pair {
    daemon: Daemon,
}

/// What both made together, and what one made alone, in tokens a second.
#[derive(Clone, Copy)]
struct Speed {
    together: f64,
    alone: f64,
}

impl Pair {
    async fn start(programs: &Programs, (llama, model): (&Path, &Path), threads: &str) -> Self {
        let profile = format!(
            "model = \"{}\"\nengine = \"llama-server\"\ncontext = 1024\nparallel = 1\nautostart = true\n{threads}",
            model.display()
        );
        let profiles = [("one", profile.clone()), ("two", profile)];
        let env = [("SLOTD_LLAMA_SERVER", llama)];
        let daemon = Daemon::start_with(&programs.slotd, &profiles, &env).await;
        // Both are loaded and have answered once before anything is timed.
        let pair = Self { daemon };
        pair.generate(BODIES[0]).await;
        pair.generate(BODIES[1]).await;
        pair
    }

    async fn measure(&self) -> Speed {
        let began = Instant::now();
        join!(self.generate(BODIES[0]), self.generate(BODIES[1]));
        let together = rate(2 * TOKENS, began.elapsed());
        let began = Instant::now();
        self.generate(BODIES[0]).await;
        Speed { together, alone: rate(TOKENS, began.elapsed()) }
    }

    async fn generate(&self, body: &'static str) {
        // A kept connection may be closed while the other pair has its turn.
        let mut connection = Connection::tcp(self.daemon.address()).await;
        assert_eq!(connection.send("POST", "/v1/completions", body).await, 200);
    }
}

fn rate(tokens: u32, time: Duration) -> f64 {
    f64::from(tokens) / time.as_secs_f64()
}

pub(crate) async fn shares(programs: &Programs) {
    let Some((llama, model)) = &programs.llama else { return };
    let shared = Pair::start(programs, (llama, model), "").await;
    // What the engine does when it is told nothing.
    let threads = "args = [\"--threads\", \"-1\"]\n";
    let own = Pair::start(programs, (llama, model), threads).await;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        // Turns are swapped so that neither always runs on a warmer machine.
        let pair = if round % 2 == 0 {
            let first = shared.measure().await;
            (first, own.measure().await)
        } else {
            let first = own.measure().await;
            (shared.measure().await, first)
        };
        rounds.push(pair);
    }
    join!(shared.daemon.end(), own.daemon.end());
    println!("\n| two llama-servers, tokens/s | shares | engine's own threads | ratio (range) |");
    println!("|---|---|---|---|");
    tell("both at once, together", &rounds, |speed| speed.together);
    tell("one, while the other rests", &rounds, |speed| speed.alone);
}

fn tell(name: &str, rounds: &[(Speed, Speed)], of: impl Fn(Speed) -> f64) {
    let shared = sorted(rounds.iter().map(|(shared, _)| of(*shared)));
    let own = sorted(rounds.iter().map(|(_, own)| of(*own)));
    let ratios = sorted(rounds.iter().map(|(shared, own)| of(*shared) / of(*own)));
    let middle = ROUNDS / 2;
    println!(
        "| {name} | {:.1} | {:.1} | {:.2} ({:.2}–{:.2}) |",
        shared[middle],
        own[middle],
        ratios[middle],
        ratios[0],
        ratios[ROUNDS - 1]
    );
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

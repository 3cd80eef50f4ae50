//! Who asks what, and when: the same for each seed.

use std::time::Duration;

use serde_json::{Value, json};

use super::random::Random;

/// How often the favourites change in one run.
const PHASES: u32 = 6;
const WORDS: [&str; 24] = [
    "river", "stone", "lamp", "market", "winter", "engine", "letter", "garden", "clock", "bridge",
    "salt", "window", "paper", "forest", "copper", "island", "music", "harbour", "bread",
    "thunder", "mirror", "village", "needle", "orange",
];

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A short question and a short answer.
    Short,
    /// A long prompt and a short answer.
    Long,
    /// An answer that comes word by word.
    Stream,
    /// Vectors of a few texts.
    Embed,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) at: Duration,
    /// Which of the five models.
    pub(crate) model: usize,
    pub(crate) kind: Kind,
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

/// How long nobody asks at the end of each phase: those that were displaced come back then.
pub(crate) fn quiet(length: Duration) -> Duration {
    (length / PHASES).mul_f64(0.15)
}

/// Draws the requests of a run: about one arrival in `every`, one in eight of them several clients at
/// once, models by popularity (half as often for each place down), favourites that change.
pub(crate) fn draw(seed: u64, length: Duration, every: Duration, names: &[&str]) -> Vec<Ask> {
    let mut random = Random(seed);
    let mut asks = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += every.mul_f64(-random.unit().ln());
        if at >= length {
            return asks;
        }
        let phase = (length / PHASES).as_millis();
        if at.as_millis() % phase + quiet(length).as_millis() > phase {
            continue;
        }
        let phase = usize::try_from(at.as_millis() / phase).unwrap();
        let rank = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 4][random.index(16)];
        let model = (rank + 2 * phase) % names.len();
        let clients = if random.below(8) == 0 { 2 + random.below(3) } else { 1 };
        for _ in 0..clients {
            asks.push(ask(at, model, names, &mut random));
        }
    }
}

fn ask(at: Duration, model: usize, names: &[&str], random: &mut Random) -> Ask {
    let name = names[model];
    if name == "embed" {
        let texts: Vec<String> = (0..=random.below(3)).map(|_| words(20, random)).collect();
        let body = json!({"model": name, "input": texts});
        return Ask { at, model, kind: Kind::Embed, path: "/v1/embeddings", body };
    }
    let (kind, length, tokens) = match random.below(10) {
        0..5 => (Kind::Short, 8, 12),
        5..7 => (Kind::Long, 150, 12),
        _ => (Kind::Stream, 16, 32),
    };
    let content = format!("Tell a story of {}.", words(length, random));
    let body = json!({"model": name, "max_tokens": tokens, "ignore_eos": true,
        "stream": kind == Kind::Stream, "messages": [{"role": "user", "content": content}]});
    Ask { at, model, kind, path: "/v1/chat/completions", body }
}

fn words(count: u64, random: &mut Random) -> String {
    let words: Vec<&str> = (0..count).map(|_| WORDS[random.index(WORDS.len())]).collect();
    words.join(" ")
}

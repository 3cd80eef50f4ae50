//! Chats of several turns over two replicas of llama-server: how many tokens of their prompts the
//! engines had in their caches when slotd chose the engine, and when each request went to the other
//! one of the last, as a round robin sends it.
//!
//! The order of the chats is drawn anew for each turn, the same one for both ways. Some chats begin
//! with words of their own, some with an instruction that all share.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Programs, daemon::Daemon, median, ms, resume::Random};

const CHATS: usize = 50;
const TURNS: usize = 5;
/// Chats that ask at once.
const AT_ONCE: usize = 4;
/// Tokens of an answer.
const TOKENS: usize = 16;
const ENGINES: [&str; 2] = ["a", "b"];
const INSTRUCTION: &str = "You are the assistant of a small harbour town. You answer in one short sentence, you never \
make anything up, and you say so when you do not know. The town has a market on Tuesdays, a ferry to the island at \
nine and at five, a library that is open until six, and a museum of ships beside the old lighthouse.";

/// How a request finds its engine.
#[derive(Clone, Copy)]
enum Way {
    Affinity,
    RoundRobin,
}

/// What came of the requests of one way.
#[derive(Default)]
struct Tally {
    prompt_tokens: u64,
    cached_tokens: u64,
    times: Vec<Duration>,
    engines: BTreeMap<String, usize>,
}

/// One answer.
struct Answer {
    chat: usize,
    text: String,
    usage: Value,
    engine: String,
    took: Duration,
}

pub(crate) async fn affinity(programs: &Programs) {
    let Some((llama, model)) = &programs.llama else { return };
    let seed = RandomState::new().hash_one("seed");
    println!("\n{CHATS} chats of {TURNS} turns, {AT_ONCE} at once, two replicas, seed {seed}:");
    println!(
        "\n| chats begin with | chosen by | prompt tokens | of them cached | cached from the second turn on | requests of each engine | answer p50 |"
    );
    println!("|---|---|---|---|---|---|---|");
    let profile = format!(
        "model = \"{}\"\nengine = \"llama-server\"\ncontext = 2048\nparallel = {AT_ONCE}\nthreads = 1\nroutes = [\"pool\"]\nautostart = true\n",
        model.display()
    );
    let profiles = ENGINES.map(|slot| (slot, profile.clone()));
    for (beginning, instruction) in
        [("their own words", None), ("a shared instruction", Some(INSTRUCTION))]
    {
        for (name, way) in [("affinity", Way::Affinity), ("round robin", Way::RoundRobin)] {
            // Engines of its own: nothing is cached.
            let env = [("SLOTD_LLAMA_SERVER", llama.as_path())];
            let daemon = Daemon::start_with(&programs.slotd, &profiles, &env).await;
            for slot in ENGINES {
                daemon.load(slot).await;
            }
            let (first, later) = converse(&daemon, way, instruction, Random(seed)).await;
            daemon.end().await;
            let (prompt, cached) = (
                first.prompt_tokens + later.prompt_tokens,
                first.cached_tokens + later.cached_tokens,
            );
            let counts: Vec<usize> =
                ENGINES.map(|engine| count(&first, engine) + count(&later, engine)).to_vec();
            println!(
                "| {beginning} | {name} | {prompt} | {} | {} | {counts:?} | {} |",
                percent(cached, prompt),
                percent(later.cached_tokens, later.prompt_tokens),
                ms(median(&later.times))
            );
        }
    }
}

/// Holds all the chats; returns what came of their first turns, and of the later ones.
async fn converse(
    daemon: &Daemon,
    way: Way,
    instruction: Option<&str>,
    mut random: Random,
) -> (Tally, Tally) {
    let mut chats: Vec<Vec<Value>> = (0..CHATS)
        .map(|_| instruction.map(|text| said("system", text)).into_iter().collect())
        .collect();
    let (mut first, mut later, mut sent) = (Tally::default(), Tally::default(), 0);
    for turn in 0..TURNS {
        let mut order: Vec<usize> = (0..CHATS).collect();
        for at in (1..CHATS).rev() {
            let other = random.below(u64::try_from(at + 1).unwrap());
            order.swap(at, usize::try_from(other).unwrap());
        }
        for some in order.chunks(AT_ONCE) {
            let asked: Vec<_> = some
                .iter()
                .map(|&chat| {
                    chats[chat].push(said("user", &question(chat, turn)));
                    let path = path(way, sent);
                    sent += 1;
                    ask(daemon, path, chat, chats[chat].clone())
                })
                .collect();
            for answer in join_all(asked).await {
                chats[answer.chat].push(said("assistant", &answer.text));
                let tally = if turn == 0 { &mut first } else { &mut later };
                tally.note(&answer);
            }
        }
    }
    (first, later)
}

async fn ask(daemon: &Daemon, path: String, chat: usize, messages: Vec<Value>) -> Answer {
    let body =
        json!({"model": "pool", "messages": messages, "max_tokens": TOKENS, "temperature": 0});
    let began = Instant::now();
    let answer = daemon.post(&path, &body).await;
    let engine = answer.headers()["x-slotd-slot"].to_str().unwrap().to_owned();
    let answer: Value = answer.json().await.unwrap();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    Answer { chat, text, usage: answer["usage"].clone(), engine, took: began.elapsed() }
}

impl Tally {
    fn note(&mut self, answer: &Answer) {
        self.prompt_tokens += answer.usage["prompt_tokens"].as_u64().unwrap();
        let cached = &answer.usage["prompt_tokens_details"]["cached_tokens"];
        self.cached_tokens += cached.as_u64().unwrap();
        self.times.push(answer.took);
        *self.engines.entry(answer.engine.clone()).or_default() += 1;
    }
}

/// The same engine on the same path; the escape hatch leaves the choice to the one who asks.
fn path(way: Way, sent: usize) -> String {
    match way {
        Way::Affinity => "/v1/chat/completions".to_owned(),
        Way::RoundRobin => format!("/upstream/{}/v1/chat/completions", ENGINES[sent % 2]),
    }
}

fn said(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

/// What a person says: of some length at first, and nothing that another one says.
fn question(chat: usize, turn: usize) -> String {
    if turn > 0 {
        return format!(
            "And what of day {turn}, if guest {chat} comes back with a friend and more luggage?"
        );
    }
    format!(
        "Guest {chat} asks: I arrive on day {chat} with {} bags and I would like to see the ships, buy bread and fish at \
the market, read the papers of the week somewhere quiet, and be on the island before it gets dark. In which order \
should I do all of this, and how much time is left for a walk along the harbour?",
        chat % 7 + 1
    )
}

fn count(tally: &Tally, engine: &str) -> usize {
    tally.engines.get(engine).copied().unwrap_or(0)
}

fn percent(part: u64, whole: u64) -> String {
    let tenths = 1000 * part / whole;
    format!("{}.{} %", tenths / 10, tenths % 10)
}

//! `slotd bench`: how fast a slot is, and whether it was faster before.
//!
//! ```text
//! target   which work, how long a prompt may be      request   one request, its pieces timed
//! figures  pieces become speeds                      text      speeds beside those of the last time
//! ```
//!
//! Requests go through the endpoint, so that the slot counts as used and its engine is not taken away.
//! Their prompts are random tokens, which no cache knows, and their answers do not end early.

mod figures;
mod request;
mod target;
mod text;

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    process,
};

use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    figures::{Round, spreads},
    request::Asker,
    target::{Target, Work},
};
use super::{
    client::{Client, Order},
    exit::Exit,
    failure::Failure,
    order, out,
    text::Paint,
};
use crate::{
    runtime::since_1970,
    spec::SlotName,
    store::{
        BenchHolder, BenchLock, BenchRecord, Load, look_at_benches, read_benches, save_benches,
    },
};

/// Options of `slotd bench`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The slot; it is loaded if it is not
    slot: SlotName,
    /// How often it is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Runs before those that count
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1000))]
    warm_up: u32,
    /// The tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    prompt: u32,
    /// The tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    generate: u32,
    /// Requests at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_once)]
    concurrency: NonZeroU32,
    /// A file with a key that asks models, where the endpoint wants one; `SLOTD_API_KEY` is the key if
    /// absent
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Measure nothing, show what was measured earlier
    #[arg(long)]
    history: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came of it, as scripts see it.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    record: &'a BenchRecord,
    /// The last bench of the same work, model and engine.
    last: Option<&'a BenchRecord>,
    /// What has changed since.
    changes: Vec<text::Change>,
}

fn at_once(typed: &str) -> Result<NonZeroU32, String> {
    typed
        .parse()
        .ok()
        .filter(|at_once: &NonZeroU32| at_once.get() <= 256)
        .ok_or_else(|| "expected 1 to 256".to_owned())
}

pub(super) async fn run(options: &Options, client: &Client) -> Result<Exit, Failure> {
    let state_dir = client.state_dir().await?;
    if options.history {
        return show_history(options, &state_dir);
    }
    // Before anything is asked for: with the lock and its connections, all of it ends.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(Failure::System)?;
    tokio::select! {
        end = Box::pin(bench(options, client, &state_dir)) => end,
        _ = interrupts.recv() => {
            let slot = &options.slot;
            let message = format!("interrupted; nothing is kept of this bench of `{slot}`");
            Err(Failure::Interrupted { message })
        }
    }
}

async fn bench(options: &Options, client: &Client, state_dir: &Path) -> Result<Exit, Failure> {
    let before = client.slot(&options.slot).await?;
    let work = target::work(&before, client).await?;
    let holder = BenchHolder {
        pid: process::id(),
        slot: options.slot.clone(),
        since_unix_ms: now_unix_ms(),
    };
    let _lock = BenchLock::take(state_dir, &holder)
        .map_err(|fault| Failure::Bench { fault, now_unix_ms: now_unix_ms() })?;
    let slot = order::bring(Order::Load, &options.slot, client).await?;
    let target = Target::find(slot, work, options, client).await?;
    let rounds = measure(options, &target).await?;
    // What the engine is after the runs: it may have died in between and be another.
    let after = client.slot(&options.slot).await?;
    if after.generation != target.slot.generation {
        let message = format!(
            "the engine of `{}` was replaced while it was measured; `slotd why {0}` tells of a death",
            options.slot
        );
        return Err(Failure::Outcome { message });
    }
    let record = record(options, &target, &rounds);
    let (mut benches, aside) = read_benches(state_dir);
    if let Some(aside) = aside {
        let aside = aside.display();
        out::note(&format!("slotd: earlier benches cannot be read, they are kept as {aside}\n"));
    }
    let last = benches.last_like(&record).cloned();
    benches.note(record.clone());
    if client.daemon().await.is_ok_and(|daemon| daemon.holds_history_back()) {
        out::note("slotd: this bench is not kept: the disk is nearly full\n");
    } else if let Err(fault) = save_benches(state_dir, &benches) {
        let why = super::failure::chain(&fault);
        out::note(&format!("slotd: this bench is not kept, failed to {why}\n"));
    }
    show(options, &record, last.as_ref())
}

async fn measure(options: &Options, target: &Target) -> Result<Vec<Round>, Failure> {
    let mut asker = Asker::new(options, target)?;
    asker.calibrate().await?;
    let mut rounds = Vec::new();
    let all = options.warm_up + options.runs;
    for number in 0..all {
        if out::notes_are_seen() {
            out::replace_note(&format!("run {} of {all}", number + 1));
        }
        let round = asker.round(options.concurrency.get()).await;
        if out::notes_are_seen() {
            out::replace_note("");
        }
        let round = round?;
        if number >= options.warm_up {
            rounds.push(round);
        }
    }
    Ok(rounds)
}

fn record(options: &Options, target: &Target, rounds: &[Round]) -> BenchRecord {
    let slot = &target.slot;
    let by_engine = rounds.iter().all(Round::is_told_by_engine);
    BenchRecord {
        at_unix_ms: now_unix_ms(),
        slot: slot.slot.clone(),
        model: slot.model.clone(),
        engine: slot.engine.clone(),
        program: slot.program.clone(),
        cores: slot.cores,
        rung: slot.rung.as_ref().map(|rung| rung.name.clone()),
        load: Load {
            work: target.work.as_str().to_owned(),
            prompt_tokens: options.prompt,
            generated_tokens: match target.work {
                Work::Generate => options.generate,
                Work::Embed => 0,
            },
            concurrency: options.concurrency.get(),
        },
        warm_up: options.warm_up,
        by_engine,
        others: target.others,
        figures: spreads(rounds, target.work, by_engine),
    }
}

fn show(
    options: &Options,
    record: &BenchRecord,
    last: Option<&BenchRecord>,
) -> Result<Exit, Failure> {
    if options.json {
        out::json(&Outcome { record, last, changes: text::changes(record, last) })?;
    } else {
        out::print(text::shown(record, last, Paint::for_stdout()))?;
    }
    Ok(Exit::Success)
}

/// Shows what was measured; what cannot be read stays where it is.
fn show_history(options: &Options, state_dir: &Path) -> Result<Exit, Failure> {
    let benches = look_at_benches(state_dir).map_err(|error| Failure::Outcome {
        message: format!(
            "earlier benches in `{}` cannot be read: {error}; the next bench sets the file aside",
            state_dir.display()
        ),
    })?;
    let records: Vec<_> = benches.of(&options.slot).collect();
    if options.json {
        out::json(&records)?;
    } else if records.is_empty() {
        out::note(&format!("`{}` was never measured; `slotd bench {0}` does\n", options.slot));
    } else {
        out::print(text::history(&records))?;
    }
    Ok(Exit::Success)
}

fn now_unix_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

//! The worker beside llama-server on the same file, and what it must hold for hours: the same text
//! whatever runs beside it, answers that keep to their schema.
//!
//! `SLOTD_BENCH_WORKER` says what: `agreement`, `speed`, `memory`, `streams` or `schemas`, each with how
//! much after a colon: tokens, rounds, tokens of context, seconds, answers.

mod agreement;
mod engine;
mod memory;
#[path = "../../agreement/prompts.rs"]
mod prompts;
mod schemas;
mod speed;
mod streams;
mod written;

use std::path::{Path, PathBuf};

use super::{Programs, daemon::Daemon, resume::Random};

/// The engines that are compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Worker,
    LlamaServer,
}

/// The programs and the file.
struct Files {
    slotd: PathBuf,
    llama: PathBuf,
    model: PathBuf,
}

pub(crate) async fn run(programs: &Programs, asked: &str) {
    let Some((llama, model)) = &programs.llama else {
        println!("The worker is measured beside llama-server: name it and a model.");
        return;
    };
    let files = Files { slotd: programs.slotd.clone(), llama: llama.clone(), model: model.clone() };
    let (what, amount) = asked.split_once(':').unwrap_or((asked, ""));
    let amount = |usual: u64| amount.parse().unwrap_or(usual);
    match what {
        "agreement" => agreement::run(&files, amount(64)).await,
        "speed" => speed::run(&files, amount(3)).await,
        "memory" => memory::run(&files, amount(2048)).await,
        "streams" => streams::run(&files, amount(600)).await,
        "schemas" => schemas::run(&files, amount(1000)).await,
        other => println!("`{other}` is none of agreement, speed, memory, streams, schemas"),
    }
}

impl Files {
    fn program(&self, kind: Kind) -> &Path {
        match kind {
            Kind::Worker => &self.slotd,
            Kind::LlamaServer => &self.llama,
        }
    }
}

//! Two engines of a kind on one file: what each has alone, and what both have.

use super::{
    Files, Kind,
    engine::{Engine, Setup},
};

pub(super) async fn run(files: &Files, context: u64) {
    println!("\n| two of | resident each | private each | together |");
    println!("|---|---|---|---|");
    let setup = Setup { threads: 1, sequences: 1, context, more: &[] };
    for kind in [Kind::Worker, Kind::LlamaServer] {
        let pair =
            [Engine::start(files, kind, setup).await, Engine::start(files, kind, setup).await];
        let prompt: Vec<u64> = (0..context - 16).map(|at| 1000 + at * 7).collect();
        for engine in &pair {
            engine.complete(&prompt, 8).await;
        }
        let memory = pair.each_ref().map(Engine::memory);
        let name = match kind {
            Kind::Worker => "worker",
            Kind::LlamaServer => "llama-server",
        };
        println!(
            "| {name}, {context} tokens | {} and {} MiB | {} and {} MiB | {} MiB |",
            memory[0].resident >> 10,
            memory[1].resident >> 10,
            memory[0].private >> 10,
            memory[1].private >> 10,
            (memory[0].share + memory[1].share) >> 10
        );
    }
}

//! The candle engine, `slotd worker`: serves one model, a GGUF file or an embedder's folder, over a
//! part of the OpenAI API, on the CPU or, where built in, on CUDA or Metal, with no other engine installed.
//!
//! It is a program of its own inside the binary. It shares nothing with the supervisor but the
//! quantities of [`crate::spec`], and is supervised like any other engine: by its health, its log
//! on stderr and its exit code (see [`exit`]).
//!
//! ```text
//! client ──HTTP──▶ http ──job──▶ engine ──▶ schedule (a thread) ──▶ model (weights)
//!           ▲                                  │ seats: caches, sampler, stop strings, text
//!           └──────────── events ──────────────┘
//! ```
//!
//! The listener is open before the model is loaded, and answers 503 with the progress until then.
//! A client that leaves drops its receiver, and its seat is free before the next step.

mod clock;
mod engine;
pub mod exit;
mod grammar;
mod http;
mod job;
mod listen;
mod load;
mod memory;
mod model;
mod options;
mod outgoing;
mod report;
mod sampler;
mod schedule;
mod seat;
mod serve;
mod text;
mod threads;

use std::{process::ExitCode, time::Duration};

use tokio::runtime::Builder;

use self::exit::Ending;
pub use self::options::Options;

/// Serves the model of `options` until a signal comes; the code is one of [`exit`].
///
/// Builds its own runtime, and replaces the process by itself where the number of threads has to
/// be set first: call it from `main`, outside any runtime, before anything else is started.
pub fn run(options: Options) -> ExitCode {
    match try_run(options) {
        Ok(()) => ExitCode::from(exit::STOPPED),
        Err(ending) => ending.report(),
    }
}

fn try_run(options: Options) -> Result<(), Ending> {
    let address = options.address()?;
    load::check_file(&options.model)?;
    threads::settle(options.threads)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Ending::internal(format!("cannot start a runtime: {error}")))?;
    let result = runtime.block_on(serve::serve(options, address));
    // Prompts that are still being prepared belong to clients that are gone.
    runtime.shutdown_timeout(Duration::from_millis(50));
    result
}

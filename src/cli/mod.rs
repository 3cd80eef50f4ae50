//! The command line: argv in, exit code out.
//!
//! A file a subcommand. The clients (`ps`, `status`, `why`, `plan`, `logs`, `load`, `unload`, `restart`, `requests`, `cancel`) talk to a
//! daemon over its control socket; `fit` does without where none
//! answers; `validate`, `pull`, `schema`, `completions` and `man` need none. Only
//! `out` writes, only `exit` knows exit codes, only [`main`] reports failures.

mod advice;
mod bench;
mod cancel;
mod client;
mod completions;
#[cfg(test)]
mod example;
mod events;
mod exit;
mod failure;
mod fit;
mod gpus;
mod guard;
mod journal;
mod key;
mod logs;
mod man;
mod models;
mod order;
mod out;
mod progress;
mod plan;
mod ps;
mod pull;
mod requests;
mod rules;
mod schema;
mod serve;
mod status;
mod stay;
mod table;
mod text;
mod upgrade;
mod validate;
mod why;
mod worker;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

pub use self::exit::Exit;
use self::{
    client::{Client, Order, Place},
    failure::Failure,
    stay::Word,
};

/// Keeps inference servers alive: one supervised engine a slot, one OpenAI-compatible endpoint
#[derive(Debug, Parser)]
#[command(
    name = "slotd",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = exit::TABLE
)]
struct Cli {
    /// The daemon's control socket; `SLOTD_CONTROL` if absent, else `control.sock` in its runtime
    /// directory
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The endpoint of a daemon to talk to instead, `http://HOST:PORT`; `SLOTD_URL` if absent
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// A file with the admin key for `--url`; `SLOTD_KEY_FILE` if absent, else `SLOTD_ADMIN_KEY` is
    /// the key
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Serve(serve::Options),
    /// Check profiles and tell every fault with its place
    Validate(validate::Options),
    /// Tell what an edit of profiles would do: which slots restart, drain, come, go or stay
    Plan(plan::Options),
    /// Tell how much memory a model or slot will take, and whether that is there
    Fit(fit::Options),
    /// List the models on disk and what they lack; check them
    Models(models::Options),
    /// Fetch a model from the hub into the Hugging Face cache; no daemon is needed
    Pull(pull::Options),
    /// Print the JSON Schema of a profile
    Schema,
    /// List the slots
    Ps(ps::Options),
    /// Tell how a slot is, why, and what can be done; or how the daemon is
    Status(status::Options),
    /// Tell the story of a slot's last death
    Why(why::Options),
    /// Show what a slot's engines wrote
    Logs(logs::Options),
    /// Load a slot and wait until it is ready
    Load(order::Options),
    /// Unload a slot; the next request loads it again
    Unload(order::Options),
    /// Replace a slot's engine by a new one and wait until it is ready
    Restart(order::Options),
    /// Keep a slot loaded: nothing unloads it but a person
    Pin(stay::Options),
    /// Let a slot make room for others
    Unpin(stay::Options),
    /// Say who gives way first: those with less
    Priority(stay::PriorityOptions),
    /// Take a slot down one rung of its ladder, to less memory
    Offload(stay::Options),
    /// Have memory made free, by the same order in which slots make room for each other
    Ensure(stay::EnsureOptions),
    /// Measure how fast a slot is, and compare with the last time
    Bench(bench::Options),
    /// Tell what happens, as it happens: changes of slots, pressure, rules
    Events(events::Options),
    /// List the rules with their next times
    Rules(rules::Options),
    /// Tell the rules that something has happened
    Signal(rules::SignalOptions),
    /// List the requests in flight
    Requests(requests::Options),
    /// End a request in flight with an error
    Cancel(cancel::Options),
    /// Make, list and remove the keys that clients of the endpoint need
    Key(key::Options),
    /// Let the running daemon go on as the program on disk, without refusing a client
    Upgrade(upgrade::Options),
    /// Serve one model with the candle engine; the daemon starts it for slots
    Worker(worker::Options),
    /// End what a killed daemon leaves behind; started by the daemon alone
    #[command(hide = true)]
    Guard,
    /// Print the completion script of a shell
    Completions(completions::Options),
    /// Write the manual pages
    Man(man::Options),
}

/// Runs slotd with these arguments, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version are answers; a reader that left needs none.
            drop(answer.print());
            return if answer.use_stderr() { Exit::Usage } else { Exit::Success }.into();
        }
    };
    dispatch(cli)
}

fn dispatch(cli: Cli) -> ExitCode {
    let place = Place { control: cli.control, url: cli.url, key_file: cli.key_file };
    match cli.command {
        Command::Serve(options) => end(serve::run(options, place.control)),
        Command::Worker(options) => worker::run(options),
        Command::Guard => guard::run(),
        Command::Validate(options) => end(validate::run(options)),
        Command::Pull(options) => here(&place, "`slotd pull`", || pull::run(&options)),
        Command::Schema => end(schema::run()),
        Command::Key(options) => here(&place, "`slotd key`", || key::run(options)),
        Command::Completions(options) => end(completions::run(&options)),
        Command::Man(options) => end(man::run(options)),
        Command::Ps(options) => talk(&place, async |client| ps::run(&options, client).await),
        Command::Requests(options) => {
            talk(&place, async |client| requests::run(&options, client).await)
        }
        Command::Pin(options) => {
            talk(&place, async |client| stay::run(Word::Pin, &options, client).await)
        }
        Command::Unpin(options) => {
            talk(&place, async |client| stay::run(Word::Unpin, &options, client).await)
        }
        Command::Offload(options) => {
            talk(&place, async |client| stay::run(Word::Offload, &options, client).await)
        }
        Command::Priority(options) => {
            talk(&place, async |client| stay::prioritise(&options, client).await)
        }
        Command::Ensure(options) => {
            talk(&place, async |client| stay::ensure(&options, client).await)
        }
        Command::Bench(options) => talk(&place, async |client| bench::run(&options, client).await),
        Command::Rules(options) => talk(&place, async |client| rules::run(&options, client).await),
        Command::Signal(options) => {
            talk(&place, async |client| rules::signal(&options, client).await)
        }
        Command::Events(options) => {
            talk(&place, async |client| events::run(&options, client).await)
        }
        Command::Cancel(options) => {
            talk(&place, async |client| cancel::run(&options, client).await)
        }
        Command::Status(options) => {
            talk(&place, async |client| status::run(&options, client).await)
        }
        Command::Why(options) => talk(&place, async |client| why::run(&options, client).await),
        Command::Logs(options) => talk(&place, async |client| logs::run(&options, client).await),
        Command::Plan(options) => talk(&place, async |client| plan::run(&options, client).await),
        Command::Fit(options) => talk(&place, async |client| fit::run(&options, client).await),
        Command::Models(options) => {
            talk(&place, async |client| models::run(&options, client).await)
        }
        Command::Upgrade(options) => {
            talk(&place, async |client| upgrade::run(&options, client).await)
        }
        Command::Load(options) => give(&place, Order::Load, &options),
        Command::Unload(options) => give(&place, Order::Unload, &options),
        Command::Restart(options) => give(&place, Order::Restart, &options),
    }
}

/// Gives an order of one slot.
fn give(place: &Place, order: Order, options: &order::Options) -> ExitCode {
    talk(place, async |client| order::run(order, options, client).await)
}

/// Does what is done here, unless a daemon elsewhere was named.
fn here(place: &Place, order: &str, done: impl FnOnce() -> Result<Exit, Failure>) -> ExitCode {
    end(place.beside_daemon(order).and_then(|()| done()))
}

/// Talks to the daemon.
fn talk(
    place: &Place,
    conversation: impl AsyncFnOnce(&Client) -> Result<Exit, Failure>,
) -> ExitCode {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(Failure::System);
    end(runtime.and_then(|runtime| {
        runtime.block_on(async {
            let client = Client::new(place)?;
            conversation(&client).await
        })
    }))
}

/// Reports a failure and gives the exit code.
fn end(result: Result<Exit, Failure>) -> ExitCode {
    let exit = result.unwrap_or_else(|failure| {
        out::note(&failure.report());
        failure.exit()
    });
    exit.into()
}

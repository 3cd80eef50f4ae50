//! The command line: argv in, exit code out.
//!
//! A file a subcommand. The clients (`ps`, `status`, `why`, `plan`, `logs`, `load`, `unload`, `restart`, `requests`, `cancel`) talk to a
//! daemon over its control socket; `fit` does without where none
//! answers; `validate`, `schema`, `completions` and `man` need none. Only
//! `out` writes, only `exit` knows exit codes, only [`main`] reports failures.

mod advice;
mod cancel;
mod client;
mod completions;
#[cfg(test)]
mod example;
mod exit;
mod failure;
mod fit;
mod guard;
mod journal;
mod key;
mod logs;
mod man;
mod order;
mod out;
mod progress;
mod plan;
mod ps;
mod requests;
mod schema;
mod serve;
mod status;
mod table;
mod text;
mod upgrade;
mod validate;
mod why;
mod worker;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

pub use self::exit::Exit;
use self::{
    client::{Client, Order},
    failure::Failure,
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
    let control = cli.control;
    match cli.command {
        Command::Serve(options) => end(serve::run(options, control)),
        Command::Worker(options) => worker::run(options),
        Command::Guard => guard::run(),
        Command::Validate(options) => end(validate::run(options)),
        Command::Schema => end(schema::run()),
        Command::Key(options) => end(key::run(options)),
        Command::Completions(options) => end(completions::run(&options)),
        Command::Man(options) => end(man::run(options)),
        Command::Ps(options) => {
            talk(control.as_deref(), async |client| ps::run(&options, client).await)
        }
        Command::Requests(options) => {
            talk(control.as_deref(), async |client| requests::run(&options, client).await)
        }
        Command::Cancel(options) => {
            talk(control.as_deref(), async |client| cancel::run(&options, client).await)
        }
        Command::Status(options) => {
            talk(control.as_deref(), async |client| status::run(&options, client).await)
        }
        Command::Why(options) => {
            talk(control.as_deref(), async |client| why::run(&options, client).await)
        }
        Command::Logs(options) => {
            talk(control.as_deref(), async |client| logs::run(&options, client).await)
        }
        Command::Plan(options) => {
            talk(control.as_deref(), async |client| plan::run(&options, client).await)
        }
        Command::Fit(options) => {
            talk(control.as_deref(), async |client| fit::run(&options, client).await)
        }
        Command::Upgrade(options) => {
            talk(control.as_deref(), async |client| upgrade::run(&options, client).await)
        }
        Command::Load(options) => {
            talk(control.as_deref(), async |client| order::run(Order::Load, &options, client).await)
        }
        Command::Unload(options) => talk(control.as_deref(), async |client| {
            order::run(Order::Unload, &options, client).await
        }),
        Command::Restart(options) => talk(control.as_deref(), async |client| {
            order::run(Order::Restart, &options, client).await
        }),
    }
}

/// Talks to the daemon.
fn talk(
    control: Option<&Path>,
    conversation: impl AsyncFnOnce(&Client) -> Result<Exit, Failure>,
) -> ExitCode {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(Failure::System);
    end(runtime.and_then(|runtime| {
        runtime.block_on(async {
            let client = Client::new(control)?;
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

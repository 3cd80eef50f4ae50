//! `slotd serve`: the daemon, in the foreground.

use std::{env, io, path::PathBuf, time::Duration};

use clap::Args;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

use super::{
    exit::Exit,
    failure::{Failure, chain},
    journal::{self, Entry},
    out,
};
use crate::{
    config::{
        Fault,
        daemon::{Flags, LogFormat, Settings},
    },
    runtime::{self, Addresses, LogWriter, StartFault, finish_log},
    store::OpenFault,
};

/// Options of `slotd serve`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The daemon's own file, in place of the usual one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A directory of profiles in place of the usual one; may be repeated
    #[arg(long, value_name = "DIR")]
    profiles: Vec<PathBuf>,
    /// Where state and engine logs are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the endpoint listens; port 0 takes any free port, other machines need keys [default: 127.0.0.1:7568]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Where Ollama's clients are served, 127.0.0.1:11434 say; as for --listen [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    ollama_listen: Option<String>,
    /// The file of keys, in place of the usual one
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

/// How long calls that still block are waited for in the end.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// Runs the daemon until a signal ends it.
pub(super) fn run(options: Options, control: Option<PathBuf>) -> Result<Exit, Failure> {
    let Options { config, profiles, state_dir, listen, ollama_listen, keys } = options;
    let named = profiles.clone();
    let flags = Flags { config, profiles, state_dir, listen, ollama_listen, keys, control };
    let settings =
        Settings::resolve(&flags, &|name: &str| env::var_os(name)).map_err(Failure::Settings)?;
    // A directory that was named and is not there is a slip; the usual one may come later.
    let missing: Vec<Fault> = named
        .iter()
        .filter(|directory| !directory.is_dir())
        .map(|directory| Fault {
            file: Some(directory.clone()),
            line: None,
            column: None,
            key: None,
            message: "there is no such directory, `--profiles` names it".to_owned(),
            hint: Some("make it and put profiles in it, one `NAME.toml` a slot".to_owned()),
        })
        .collect();
    if !missing.is_empty() {
        return Err(Failure::Settings(missing));
    }
    log_to_stderr(settings.log_format);
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::System)?;
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let announce = |addresses| announce(scheme, addresses);
    let ended = runtime.block_on(Box::pin(runtime::run(settings, announce)));
    // A read of a dead mount may never return; nothing waits for it.
    runtime.shutdown_timeout(LEFTOVERS);
    finish_log();
    match ended {
        Ok(()) => Ok(Exit::Success),
        Err(fault) => {
            out::note(&format!("slotd: {}\n", told(&fault)));
            Ok(exit_of(&fault))
        }
    }
}

/// The first lines on standard output: scripts wait for them.
fn announce(scheme: &str, Addresses { endpoint, ollama }: Addresses) {
    let ollama =
        ollama.map(|address| format!("listening on {scheme}://{address} for Ollama's clients\n"));
    let ollama = ollama.unwrap_or_default();
    // Nobody may be reading, and the daemon runs all the same.
    drop(out::print(format!("listening on {scheme}://{endpoint}\n{ollama}")));
}

fn told(fault: &StartFault) -> String {
    match fault {
        StartFault::State(OpenFault::Held { .. } | OpenFault::Newer { .. })
        | StartFault::NoSocket { .. }
        | StartFault::ControlTaken { .. }
        | StartFault::NoKeys { .. }
        | StartFault::Access(_)
        | StartFault::Broken => chain(fault),
        StartFault::State(OpenFault::Unusable { .. })
        | StartFault::Listen { .. }
        | StartFault::Make { .. }
        | StartFault::Spawner(_)
        | StartFault::Become { .. }
        | StartFault::System(_) => format!("failed to {}", chain(fault)),
    }
}

fn exit_of(fault: &StartFault) -> Exit {
    match fault {
        StartFault::State(OpenFault::Held { .. }) | StartFault::ControlTaken { .. } => {
            Exit::TryAgain
        }
        StartFault::State(OpenFault::Newer { .. })
        | StartFault::NoSocket { .. }
        | StartFault::NoKeys { .. }
        | StartFault::Access(_) => Exit::BadConfig,
        StartFault::State(OpenFault::Unusable { source, .. }) | StartFault::Make { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            Exit::NoPermission
        }
        StartFault::Listen { .. } => Exit::Unavailable,
        StartFault::State(OpenFault::Unusable { .. })
        | StartFault::Make { .. }
        | StartFault::Spawner(_)
        | StartFault::Become { .. }
        | StartFault::System(_)
        | StartFault::Broken => Exit::Software,
    }
}

/// Logs go to standard error: `RUST_LOG` says how much, the settings say in which form.
fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    let lost: fn(u64) -> String = match format {
        LogFormat::Json => |lost| {
            format!("{{\"level\":\"WARN\",\"message\":\"log lines lost\",\"lines\":{lost}}}\n")
        },
        LogFormat::Text => |lost| format!("WARN log lines lost lines={lost}\n"),
    };
    let writer = LogWriter::new(lost);
    let logs = logs.with_writer(move || writer);
    // A second subscriber in one process cannot be: this is called once.
    match format {
        LogFormat::Text if journal::is_stderr() => {
            drop(logs.with_ansi(false).event_format(Entry::new()).try_init());
        }
        LogFormat::Text => {
            let is_seen = out::notes_are_seen();
            drop(logs.with_ansi(is_seen).with_target(false).try_init());
        }
        LogFormat::Json => drop(logs.json().flatten_event(true).try_init()),
    }
}

//! Why a subcommand did not do what was asked, and how that is told.

use std::{error::Error, io, path::PathBuf};

use thiserror::Error;

use super::{exit::Exit, text::brief};
use crate::{
    config::{Fault, keys::EditFault},
    models::pull::PullFault,
    spec::SlotName,
    store::BenchFault,
};

/// Why a subcommand failed.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// Nobody listens on the control socket.
    #[error("no daemon answers at {}; start one with `slotd serve`", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
    },
    /// The socket may not be opened.
    #[error("you may not talk to the daemon at {}; ask as its user or as root", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed in another way.
    #[error("talk to the daemon at {}", path.display())]
    Talk {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// What was given for a daemon's endpoint is none that can be talked to.
    #[error(
        "`{url}` is not `http://HOST:PORT`, all that orders go to over the network; for one that speaks TLS, ask on its machine or with curl"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// The file of the admin key is not there.
    #[error("there is no key in `{}`; `slotd key new --admin NAME` shows one to put there", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The daemon refused: its own sentence.
    #[error("{message}")]
    Refused {
        /// The sentence.
        message: String,
    },
    /// The daemon answered something else than expected.
    #[error(
        "understand the daemon's answer; `slotd status` shows whether it is of another version"
    )]
    Answer(#[source] serde_json::Error),
    /// The profile of a slot may not be read.
    #[error("you may not read `{}`, the profile of `{slot}`; ask as the daemon's user or as root", path.display())]
    Unreadable {
        /// The slot.
        slot: SlotName,
        /// Its file.
        path: PathBuf,
    },
    /// A change was waited for and can no longer come.
    #[error("`{slot}` is gone: its profile was removed, or the daemon ended")]
    Gone {
        /// The slot.
        slot: SlotName,
    },
    /// The slot did not come to what was asked.
    #[error("{message}")]
    Outcome {
        /// What happened in one sentence.
        message: String,
    },
    /// The file of keys was not changed.
    #[error(transparent)]
    Key(#[from] EditFault),
    /// A model was not pulled.
    #[error("{}", chain(.0))]
    Pull(PullFault),
    /// A bench cannot begin.
    #[error("{}", bench(fault, *now_unix_ms))]
    Bench {
        /// Why.
        fault: BenchFault,
        /// The present moment.
        now_unix_ms: u64,
    },
    /// The settings have faults.
    #[error("{}", listed(.0))]
    Settings(Vec<Fault>),
    /// The reader of the output has left.
    #[error("the reader of the output has left")]
    ReaderGone,
    /// The output cannot be written.
    #[error("write to standard output")]
    Write(#[source] io::Error),
    /// Files cannot be written.
    #[error("write to `{}`", path.display())]
    WriteFile {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A value cannot be written as JSON.
    #[error("write JSON")]
    Encode(#[source] serde_json::Error),
    /// The operating system refused what every program needs.
    #[error("start")]
    System(#[source] io::Error),
    /// Ctrl-C while waiting.
    #[error("{message}")]
    Interrupted {
        /// What goes on without us.
        message: String,
    },
}

impl Failure {
    /// Returns the exit code.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Key(EditFault::Taken { .. })
            | Self::NoDaemon { .. }
            | Self::Talk { .. }
            | Self::Refused { .. }
            | Self::Gone { .. }
            | Self::Outcome { .. } => Exit::Unavailable,
            Self::Bench { fault: BenchFault::Held(_), .. } => Exit::TryAgain,
            Self::Bench { fault: BenchFault::Unusable { source, .. }, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::NoPermission
            }
            Self::Denied { .. } | Self::Unreadable { .. } => Exit::NoPermission,
            Self::Settings(_)
            | Self::Key(EditFault::Faults(_))
            | Self::NoKey { .. }
            | Self::Pull(PullFault::Environment(_)) => Exit::BadConfig,
            Self::Key(EditFault::Name(_)) | Self::Url { .. } => Exit::Usage,
            Self::Key(EditFault::Write { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::NoPermission
            }

            Self::ReaderGone => Exit::Success,
            Self::WriteFile { source, .. } | Self::Pull(PullFault::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::NoPermission
            }
            Self::Pull(PullFault::Cancelled) | Self::Interrupted { .. } => Exit::Interrupted,
            Self::Pull(fault) if !matches!(fault, PullFault::Broken(_)) => Exit::Unavailable,
            Self::Pull(_)
            | Self::Answer(_)
            | Self::Write(_)
            | Self::WriteFile { .. }
            | Self::Encode(_)
            | Self::Key(_)
            | Self::Bench { .. }
            | Self::System(_) => Exit::Software,
        }
    }

    /// Returns what is told on standard error, with line ends; empty where nothing is to be said.
    pub(super) fn report(&self) -> String {
        match self {
            Self::ReaderGone => String::new(),
            Self::Settings(_) => format!("{self}\n"),
            Self::Key(EditFault::Faults(faults)) => format!("{}\n", listed(faults)),
            Self::Key(EditFault::Name(_) | EditFault::Taken { .. })
            | Self::NoDaemon { .. }
            | Self::Denied { .. }
            | Self::Unreadable { .. }
            | Self::Url { .. }
            | Self::NoKey { .. }
            | Self::Refused { .. }
            | Self::Gone { .. }
            | Self::Outcome { .. }
            | Self::Pull(_)
            | Self::Bench { .. }
            | Self::Interrupted { .. } => format!("slotd: {self}\n"),
            Self::Talk { .. }
            | Self::Answer(_)
            | Self::Write(_)
            | Self::WriteFile { .. }
            | Self::Encode(_)
            | Self::Key(_)
            | Self::System(_) => format!("slotd: failed to {}\n", chain(self)),
        }
    }
}

/// Joins an error with its causes: `write to standard output: no space left on device`.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Says why a bench cannot begin.
fn bench(fault: &BenchFault, now_unix_ms: u64) -> String {
    match fault {
        BenchFault::Held(Some(holder)) => format!(
            "`slotd bench {}` runs already, for {} (pid {}); two at once would measure each other",
            holder.slot,
            brief(now_unix_ms.saturating_sub(holder.since_unix_ms)),
            holder.pid
        ),
        BenchFault::Held(None) => {
            "another `slotd bench` runs already; two at once would measure each other".to_owned()
        }
        BenchFault::Unusable { .. } => format!("failed to {}", chain(fault)),
    }
}

/// Lists faults, one after the other.
pub(super) fn listed(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

//! Why a pull did not come to its end.

use std::{error::Error, io, path::PathBuf, time::Duration};

use thiserror::Error as Fault;

use crate::spec::Bytes;

/// Says why a model was not pulled. Each text is a sentence with what to do about it; none holds a token
/// or the query of an address. What was fetched stays and is not fetched again.
#[derive(Debug, Fault)]
pub enum PullFault {
    /// The environment says how to reach the hub, and that cannot be used.
    #[error("{0}")]
    Environment(String),
    /// The hub must not be asked.
    #[error(
        "model `{model}` is not whole on this disk, and the hub is not asked while `HF_HUB_OFFLINE` is set{missing}"
    )]
    Offline {
        /// What was asked for.
        model: String,
        /// How much is missing, where that is known: `: 2 files of 4.1 GiB are missing`.
        missing: String,
    },
    /// Nothing answers there, or not to the end.
    #[error(
        "the hub at `{host}` could not be heard, {tries} times in a row ({reason}); what came so far is kept: try again later"
    )]
    Unreachable {
        /// The host.
        host: String,
        /// How often it was tried without a byte in between.
        tries: u32,
        /// What happened the last time.
        reason: String,
    },
    /// It asks for patience that nobody has.
    #[error("the hub at `{host}` wants to be asked again in {} s only; try again then", wait.as_secs())]
    ComeBackLater {
        /// The host.
        host: String,
        /// How long it wants to be left alone.
        wait: Duration,
    },
    /// It wants to know who asks.
    #[error(
        "the hub does not show `{repo}` to {who}; check its name, ask for access on its page, and set `HF_TOKEN` or run `hf auth login`"
    )]
    NoAccess {
        /// `org/repo`.
        repo: String,
        /// `anybody`, or `the holder of this token`.
        who: &'static str,
    },
    /// There is no such repository.
    #[error("the hub has no repository `{0}`; check its name")]
    NoRepo(String),
    /// There is no such branch, tag or commit.
    #[error("repository `{repo}` has no revision `{revision}`; check its name")]
    NoRevision {
        /// `org/repo`.
        repo: String,
        /// What was asked for.
        revision: String,
    },
    /// It holds nothing that was asked for.
    #[error("`{model}` names no model in its repository, which has {found}; correct its name")]
    NoModel {
        /// What was asked for.
        model: String,
        /// The models that it has.
        found: String,
    },
    /// It answered something else than a hub does.
    #[error("`{host}` does not answer as a hub of models does ({what}); is `HF_ENDPOINT` right?")]
    Answer {
        /// The host.
        host: String,
        /// What was wrong.
        what: String,
    },
    /// It does not give a file.
    #[error("`{host}` answered {status} to the request for `{file}`; try again later")]
    Refused {
        /// The host.
        host: String,
        /// The status.
        status: u16,
        /// What was asked for.
        file: String,
    },
    /// It gave a file of another length than its list says.
    #[error(
        "`{file}` is {found} bytes long where the hub's list says {expected}; its upload may still be under way, try again later"
    )]
    Size {
        /// The file.
        file: String,
        /// What the list says.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// It gave other content than its list says, twice.
    #[error(
        "`{file}` came with other content than the hub's list says (its hash is {found}, not {expected}); nothing of it is kept, try again or tell its owner"
    )]
    Hash {
        /// The file.
        file: String,
        /// What the list says.
        expected: String,
        /// What came.
        found: String,
    },
    /// The disk does not hold what is missing.
    #[error("`{}` has {free} free, and {needed} more are needed with {reserve} to stay free{}; make room, or set `HF_HUB_CACHE` to another disk", folder.display(), freeable_text(*freeable))]
    Disk {
        /// The cache.
        folder: PathBuf,
        /// What is to be fetched.
        needed: Bytes,
        /// What is free.
        free: Bytes,
        /// What is not to be used up.
        reserve: Bytes,
        /// What partial and unused files in the cache take.
        freeable: Bytes,
    },
    /// A file or folder of the cache cannot be used.
    #[error("`{}` cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody ended it.
    #[error("the pull was cancelled; what came so far is kept, the next pull goes on from there")]
    Cancelled,
    /// A task of slotd's own broke off.
    #[error("slotd's own work on it broke off: {0}")]
    Broken(String),
}

impl PullFault {
    /// Returns the code that scripts know it by.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Environment(_) => "bad_environment",
            Self::Offline { .. } => "offline",
            Self::Unreachable { .. } | Self::ComeBackLater { .. } => "hub_unreachable",
            Self::NoAccess { .. } => "no_access",
            Self::NoRepo(_) | Self::NoRevision { .. } | Self::NoModel { .. } => "no_such_model",
            Self::Answer { .. } | Self::Refused { .. } => "bad_answer",
            Self::Size { .. } | Self::Hash { .. } => "bad_content",
            Self::Disk { .. } => "insufficient_disk",
            Self::Io { .. } => "cache_unusable",
            Self::Cancelled => "cancelled",
            Self::Broken(_) => "broken",
        }
    }
}

/// Says a fault with its cause.
pub fn said(fault: &PullFault) -> String {
    match fault.source() {
        Some(cause) => format!("{fault}: {cause}"),
        None => fault.to_string(),
    }
}

fn freeable_text(freeable: Bytes) -> String {
    match freeable {
        Bytes(0) => String::new(),
        bytes => format!(" ({bytes} of it are partial and unused files)"),
    }
}

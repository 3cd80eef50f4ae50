//! How a slot's requests are treated: who goes first, how long they wait, what a client's leaving means.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a profile says of its slot's requests.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Requests {
    /// Which lane requests are in that do not say.
    pub lane: Lane,
    /// How long a request waits for the slot and for its turn; the daemon's `queue_timeout` without it.
    pub queue_timeout: Option<Duration>,
    /// What the engine is told when a client leaves.
    pub on_client_gone: OnClientGone,
}

/// Who is served first where requests wait for one slot.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// It can wait.
    Batch,
}

impl Lane {
    /// Both lanes, in the order they are served.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Batch];

    /// Returns the word that clients, profiles and the control API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

/// What an engine is told when the client of a request leaves.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnClientGone {
    /// Its connection is closed at once: the engine stops working on the request.
    #[default]
    Cancel,
    /// Nothing: the answer is read to its end and thrown away. For engines that a hang-up hurts.
    Drain,
}

impl OnClientGone {
    /// Returns the word that profiles use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Drain => "drain",
        }
    }
}

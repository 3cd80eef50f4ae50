//! Why a slot waits for memory, as others see it.

use serde::{Deserialize, Serialize};

use crate::spec::{Bytes, SlotName};

/// What a slot waits for that is to be started.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// The machine's memory is being read.
    Look,
    /// Engines that are on their way out, whose memory will do.
    Leaving {
        /// What is lacking until then.
        lack: Shortage,
    },
    /// Engines that work, or have only just come: they go when it is their turn.
    Turn {
        /// What is lacking until then.
        lack: Shortage,
        /// Whose memory would do.
        holders: Vec<SlotName>,
    },
    /// Memory that nobody here can free: strangers have it, or those that keep their place.
    Room {
        /// What is lacking.
        lack: Shortage,
    },
    /// Nothing: it needs more than there is for it even without strangers.
    Never {
        /// What is lacking.
        lack: Shortage,
    },
}

/// What is lacking, with the numbers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shortage {
    /// Memory of the host.
    Host {
        /// What it needs.
        needed: Bytes,
        /// What it could have.
        free: Bytes,
    },
    /// Memory of the GPUs.
    Gpus {
        /// What it needs.
        needed: Bytes,
        /// What it could have, all GPUs together.
        free: Bytes,
    },
    /// A GPU that answers.
    NoGpu {
        /// What is wrong with one of them.
        reason: String,
    },
    /// As many engines are there as may be.
    Places,
}

impl Shortage {
    /// Says it in one clause.
    pub fn clause(&self) -> String {
        match self {
            Self::Host { needed, free } => {
                format!("it needs {needed} of memory, and {free} can be had")
            }
            Self::Gpus { needed, free } => {
                format!("it needs {needed} of GPU memory, and {free} can be had")
            }
            Self::NoGpu { reason } => format!("it needs a GPU, and none can be used ({reason})"),
            Self::Places => "as many slots are loaded as may be".to_owned(),
        }
    }
}

impl Wait {
    /// Says it in one sentence, without the full stop.
    pub fn sentence(&self) -> String {
        match self {
            Self::Look => "the machine's memory is being read".to_owned(),
            Self::Leaving { lack } => {
                format!("{}; engines that are on their way out make room", lack.clause())
            }
            Self::Turn { lack, holders } => {
                let names: Vec<_> = holders.iter().map(SlotName::as_str).collect();
                format!("{}; it waits for {}", lack.clause(), names.join(", "))
            }
            Self::Room { lack } => {
                format!("{}; no slot may make room for it", lack.clause())
            }
            Self::Never { lack } => {
                format!("{}, even if all that may go were gone", lack.clause())
            }
        }
    }
}

//! Why a slot waits for memory, as others see it.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::spec::{Bytes, SlotName, residence::Unmet};

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
        holders: Arc<[Holder]>,
    },
    /// One that was used just now: its load would cost far more than the wait so far.
    Spared {
        /// What is lacking until then.
        lack: Shortage,
        /// Who is spared.
        holder: SlotName,
        /// How long its load takes.
        load: Duration,
        /// How long those that wait have to wait, all together, for it to make room.
        until: Duration,
    },
    /// Memory that nobody here can free: strangers have it, or those that keep their place.
    Room {
        /// What is lacking.
        lack: Shortage,
    },
    /// Another machine: this one has less than its profile needs.
    Skipped {
        /// What it has less of.
        unmet: Unmet,
    },
    /// Nothing: it needs more than there is for it even without strangers, as long as some keep their place.
    Never {
        /// What is lacking.
        lack: Shortage,
        /// Who holds memory, and makes room for nobody: pinned, or there until memory runs short.
        #[serde(default)]
        stayers: Arc<[Holder]>,
    },
    /// Nothing: it needs more than this machine has for engines, whoever goes.
    TooLarge {
        /// What is lacking on an empty machine.
        lack: Shortage,
    },
}

/// One whose memory would do, and what it holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Holder {
    /// Who.
    pub slot: SlotName,
    /// Of the host's memory.
    pub host: Bytes,
    /// Of the memory of GPUs, all together.
    pub gpus: Bytes,
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

/// Most holders that are named.
const NAMED: usize = 4;

/// Picks those that hold something of what is lacking, most first; all where nobody does.
fn of_use<'a>(lack: &Shortage, holders: &'a [Holder]) -> Vec<(Option<Bytes>, &'a SlotName)> {
    let of = |holder: &Holder| match lack {
        Shortage::Host { .. } => Some(holder.host),
        Shortage::Gpus { .. } => Some(holder.gpus),
        Shortage::NoGpu { .. } | Shortage::Places => None,
    };
    let mut holders: Vec<_> = holders.iter().map(|one| (of(one), &one.slot)).collect();
    if holders.iter().any(|(bytes, _)| bytes.is_some_and(|bytes| bytes.0 > 0)) {
        holders.retain(|(bytes, _)| bytes.is_some_and(|bytes| bytes.0 > 0));
    }
    holders.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    holders
}

/// Names those that hold most of what is lacking.
fn held(lack: &Shortage, holders: &[Holder]) -> String {
    let holders = of_use(lack, holders);
    let named = holders.iter().take(NAMED).map(|(bytes, slot)| match bytes {
        Some(bytes) => format!("{slot} ({bytes})"),
        None => slot.to_string(),
    });
    let named = named.collect::<Vec<_>>().join(", ");
    match holders.len().saturating_sub(NAMED) {
        0 => named,
        1 => format!("{named} and one more"),
        more => format!("{named} and {more} more"),
    }
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
    /// Names those that hold something of what is lacking for good, and make room for nobody; most first.
    pub fn stayers(&self) -> Vec<SlotName> {
        let Self::Never { lack, stayers } = self else { return Vec::new() };
        of_use(lack, stayers).into_iter().map(|(_, slot)| slot.clone()).collect()
    }

    /// Says it in one sentence, without the full stop.
    pub fn sentence(&self) -> String {
        match self {
            Self::Look => "the machine's memory is being read".to_owned(),
            Self::Leaving { lack } => {
                format!("{}; engines that are on their way out make room", lack.clause())
            }
            Self::Turn { lack, holders } => {
                format!("{}; it waits for {}", lack.clause(), held(lack, holders))
            }
            Self::Spared { lack, holder, load, until } => format!(
                "{}; {holder} was used just now and takes {:.1} s to load again, so it makes room \
                 once the requests have waited {:.1} s together, or when it is idle",
                lack.clause(),
                load.as_secs_f64(),
                until.as_secs_f64()
            ),
            Self::Skipped { unmet } => format!("it is skipped on this machine: {}", unmet.clause()),
            Self::Room { lack } => {
                format!("{}; no slot may make room for it", lack.clause())
            }
            Self::Never { lack, stayers } => {
                let clause = format!("{}, even if all that may go were gone", lack.clause());
                match of_use(lack, stayers).len() {
                    0 => clause,
                    1 => format!("{clause}; {} makes room for nobody", held(lack, stayers)),
                    _ => format!("{clause}; {} make room for nobody", held(lack, stayers)),
                }
            }
            Self::TooLarge { lack } => {
                format!("{} on this machine, whoever goes", lack.clause())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(slot: &str, host: u64, gpus: u64) -> Holder {
        Holder { slot: slot.parse().unwrap(), host: Bytes(host << 30), gpus: Bytes(gpus << 30) }
    }

    #[test]
    fn those_that_hold_most_of_what_is_lacking_are_named() {
        let holders =
            [("a", 1, 0), ("b", 5, 0), ("c", 0, 9), ("d", 2, 1), ("e", 3, 0), ("f", 4, 0)];
        let holders = holders.map(|(slot, host, gpus)| holder(slot, host, gpus));
        let wait = |lack| Wait::Turn { lack, holders: holders.clone().into() }.sentence();
        let (needed, free) = (Bytes(9 << 30), Bytes(0));
        insta::assert_snapshot!(
            wait(Shortage::Host { needed, free }),
            @"it needs 9.0 GiB of memory, and 0 B can be had; it waits for b (5.0 GiB), f (4.0 GiB), e (3.0 GiB), d (2.0 GiB) and one more"
        );
        insta::assert_snapshot!(
            wait(Shortage::Gpus { needed, free }),
            @"it needs 9.0 GiB of GPU memory, and 0 B can be had; it waits for c (9.0 GiB), d (1.0 GiB)"
        );
        insta::assert_snapshot!(
            wait(Shortage::Places),
            @"as many slots are loaded as may be; it waits for a, b, c, d and 2 more"
        );
    }
}

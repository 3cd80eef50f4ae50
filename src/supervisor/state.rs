//! Where a slot can be in its life: the states, and the data that each of them carries.
//!
//! The moves between them are told at the top of `slot`; what each state does with each event is in
//! `states`. Nothing is decided here.

use std::sync::Arc;

use super::{health::Pulse, waits::Wait};
use crate::spec::{Monotime, death::Phase, memory::Need};

/// Where a slot is in its life. Data lives in the variant that owns it.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// No child; a demand brings one.
    Offline,
    /// What its start needs is found out. Its model may have to be fetched for that: `fetched` is how much of
    /// it is there, 0 to 100.
    Sizing { began: Monotime, cause: Cause, fetched: Option<u8> },
    /// It waits for memory.
    Queued(Queued),
    /// The spawn was ordered; there is no process id yet.
    Spawning { began: Monotime },
    /// The spawn was ordered and is no longer wanted.
    Cancelling { after: After },
    /// The child loads. Its time counts from `stepped_at`: its spawn, or the last step forward that it
    /// told. It does not count from the order, which `began` is: the checks before a spawn are no part
    /// of the load.
    Starting { pid: u32, began: Monotime, stepped_at: Monotime, percent: Option<u8> },
    /// It takes requests.
    Ready(Serving),
    /// It says that it is not ready.
    Unready(Serving),
    /// It takes no new requests. Those that it has are never cut without `cut_at`.
    Draining { began: Monotime, pid: u32, cut_at: Option<Monotime>, after: After },
    /// It was told to end.
    Stopping { began: Monotime, pid: u32, stop: Stop, after: After },
    /// It has ended, its group may still hold others.
    Reaping { pid: u32, after: After },
    /// The next attempt waits.
    Backoff { retry_at: Monotime },
    /// A person is needed.
    Failed,
    /// An engine that somebody else runs is looked for.
    Seeking { found: Found },
    /// An engine that somebody else runs takes requests.
    Present { is_asleep: bool },
    /// An engine that somebody else runs takes no new requests.
    Parting { cut_at: Monotime, after: After },
    /// Its profile is gone and nothing is left of it; the supervisor forgets it at once.
    Gone,
}

/// Why a slot is started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cause {
    /// A request asked, or one may come again.
    Demand,
    /// A person asked.
    Order,
    /// A rule asked.
    Rule,
    /// It is kept loaded.
    Keep,
    /// It had made room for another.
    Restore,
}

/// A slot that stands in line for memory.
#[derive(Clone, Debug)]
pub(super) struct Queued {
    /// When it came.
    pub(super) began: Monotime,
    pub(super) cause: Cause,
    /// What it takes on each rung.
    pub(super) needs: Arc<[Need]>,
    pub(super) wait: Wait,
}

/// What was seen so far of an engine that somebody else runs and that takes no requests.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// The first look is on its way.
    Unknown,
    /// Nothing, for this reason.
    Nothing { reason: String },
    /// It answers, and is not ready.
    Loading { percent: Option<u8> },
}

/// A child that has been ready.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    pub(super) began: Monotime,
    pub(super) pid: u32,
    /// When it was ready first.
    pub(super) ready_at: Monotime,
    /// When it has proven itself; `None` once it has, and while it is not ready.
    pub(super) proven_at: Option<Monotime>,
    /// When to ask how long it has been idle; `None` without an idle timeout.
    pub(super) idle_check_at: Option<Monotime>,
    /// When to look for room to climb; `None` on the first rung.
    pub(super) room_check_at: Option<Monotime>,
    /// What its vital signs have come to; `None` until they were read.
    pub(super) pulse: Option<Box<Pulse>>,
}

/// How a stop goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// `SIGTERM` was sent.
    Terminated { kill_at: Monotime, was: Phase },
    /// `SIGKILL` was sent after the grace.
    Killed { was: Phase },
    /// `SIGTERM` was sent because it hung or failed every request: its death is recorded already.
    Condemned { kill_at: Monotime },
    /// `SIGKILL` was sent because it did not become ready, or after the grace of a condemned one: its
    /// death is recorded already.
    TimedOut,
}

/// What follows once the child is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum After {
    /// Stay offline.
    Rest,
    /// Start the engine that the profile now describes: somebody asked.
    Start,
    /// Start one rung higher.
    Climb,
    /// Start on this lower rung: it makes room for another.
    Lower { rung: usize },
    /// Start again after a death.
    Restart,
    /// Wait for the next attempt.
    Backoff { retry_at: Monotime },
    /// Fail.
    Fail,
    /// Nothing: the child is not told to end but left running for the next daemon.
    Leave,
    /// Forget the slot.
    Remove,
}

impl State {
    /// Says why a slot is started that is not yet.
    pub(super) fn cause(&self) -> Option<Cause> {
        if let Self::Sizing { cause, .. } | Self::Queued(Queued { cause, .. }) = self {
            return Some(*cause);
        }
        None
    }

    /// Says anew why a slot is started that is not yet.
    pub(super) fn set_cause(&mut self, to: Cause) {
        if let Self::Sizing { cause, .. } | Self::Queued(Queued { cause, .. }) = self {
            *cause = to;
        }
    }

    /// Returns the state's name, for the table of cells.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Sizing { .. } => "sizing",
            Self::Queued(_) => "queued",
            Self::Spawning { .. } => "spawning",
            Self::Cancelling { .. } => "cancelling",
            Self::Starting { .. } => "starting",
            Self::Ready(_) => "ready",
            Self::Unready(_) => "unready",
            Self::Draining { .. } => "draining",
            Self::Stopping { .. } => "stopping",
            Self::Reaping { .. } => "reaping",
            Self::Backoff { .. } => "backoff",
            Self::Failed => "failed",
            Self::Seeking { .. } => "seeking",
            Self::Present { .. } => "present",
            Self::Parting { .. } => "parting",
            Self::Gone => "gone",
        }
    }
}

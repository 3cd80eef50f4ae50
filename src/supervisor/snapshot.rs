//! The published view of all slots.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;

use super::{event::EngineInfo, placing::Relieved, waits::Wait};
use crate::spec::{
    Bytes, Generation, Monotime, SlotName,
    death::Death,
    edit::Edits,
    ladder::RungView,
    memory::{Need, Share},
    profile::{Capability, Profile},
    residence::Orders,
};

/// All slots at one moment. Equal generations mean equal content.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Grows with each change.
    pub generation: u64,
    /// Every slot, by name.
    pub slots: BTreeMap<SlotName, Arc<SlotView>>,
}

/// One slot at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotView {
    /// The profile in force.
    pub profile: Arc<Profile>,
    /// The state.
    pub state: StateView,
    /// Since when it is in that state.
    pub since: Monotime,
    /// The present or last child.
    pub generation: Generation,
    /// The present or last engine, once one was chosen.
    pub engine: Option<EngineInfo>,
    /// The rung of the present engine, or of the next one where there is none; `None` while nothing is
    /// known of a ladder.
    pub rung: Option<RungView>,
    /// The rung of the next start, from 0; to be remembered.
    pub rung_index: usize,
    /// Which profile worked, and which one did not.
    pub edits: Edits,
    /// What a person has ordered of its stay; to be remembered.
    pub orders: Orders,
    /// Deaths in a row without a healthy run in between.
    pub tally: u32,
    /// Restarts after deaths that slotd made by itself, in this life of the daemon.
    pub restarts: u32,
    /// What it is counted with of the machine's memory, while an engine is there or ordered.
    pub promised: Option<Share>,
    /// The slot that it has made room for: while it is down for that, or on a lower rung.
    pub displaced_by: Option<SlotName>,
    /// What the machine ran short of when it was unloaded for that, and what keeps it out, while it is down.
    pub relieved: Option<Relieved>,
    /// Requests that wait for the slot.
    pub waiting: usize,
    /// How long a load is expected to take, from earlier ones.
    pub expected_load: Option<Duration>,
    /// Resident memory, once it was measured.
    pub rss: Option<Bytes>,
    /// The last deaths, our own stops among them, oldest first; at most 20.
    pub deaths: Vec<Arc<Death>>,
    /// How long earlier loads took, oldest first; at most 8.
    pub loads: Vec<Duration>,
}

impl SlotView {
    /// Returns what the slot's model does alone, once its files were looked at and the profile does not say.
    pub fn sole(&self) -> Option<Capability> {
        self.profile.sole(self.engine.as_ref()?.sole.as_ref())
    }
}

/// The state of a slot, with what belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum StateView {
    /// No child; a request or a person brings it up.
    Offline,
    /// It waits for memory.
    Queued {
        /// What it takes, on the rung that it is to be started on.
        need: Need,
        /// What it waits for.
        wait: Wait,
    },
    /// A child is coming up.
    Starting {
        /// Its process id, once it runs.
        pid: Option<u32>,
        /// How far the load has come, where the engine tells.
        percent: Option<u8>,
        /// Which attempt in a row this is, from 1.
        attempt: u32,
        /// When the attempt is given up.
        give_up_at: Monotime,
    },
    /// It takes requests.
    Ready {
        /// Its process id.
        pid: u32,
    },
    /// It runs but says that it is not ready; it takes none.
    Unready {
        /// Its process id.
        pid: u32,
    },
    /// It takes no new requests and finishes those it has.
    Draining {
        /// Its process id.
        pid: u32,
    },
    /// It was told to end.
    Stopping {
        /// Its process id, if it had come that far.
        pid: Option<u32>,
    },
    /// It has ended; its group is being emptied.
    Reaping {
        /// Its process id.
        pid: u32,
    },
    /// The next attempt waits.
    Backoff {
        /// When it starts.
        retry_at: Monotime,
    },
    /// It needs a person, an edit of its profile or a new file.
    Failed,
    /// Somebody else runs the engine, and it is not there, or was not looked at yet.
    #[serde(rename = "offline")]
    Absent {
        /// What was asked, and what came of it; `None` while the first look is on its way.
        reason: Option<String>,
    },
    /// Somebody else runs the engine; it answers, but takes no requests yet.
    #[serde(rename = "starting")]
    Coming {
        /// How far its load has come, where it tells.
        percent: Option<u8>,
    },
    /// Somebody else runs the engine, and it takes requests.
    #[serde(rename = "ready")]
    Present {
        /// It has put its model away and brings it back with the next request.
        is_asleep: bool,
    },
    /// Somebody else runs the engine; it gets no new requests and finishes those it has.
    #[serde(rename = "draining")]
    Parting,
}

impl StateView {
    /// Returns the state's name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Offline | Self::Absent { .. } => "offline",
            Self::Queued { .. } => "queued",
            Self::Starting { .. } | Self::Coming { .. } => "starting",
            Self::Ready { .. } | Self::Present { .. } => "ready",
            Self::Unready { .. } => "unready",
            Self::Draining { .. } | Self::Parting => "draining",
            Self::Stopping { .. } => "stopping",
            Self::Reaping { .. } => "reaping",
            Self::Backoff { .. } => "backoff",
            Self::Failed => "failed",
        }
    }

    /// Tells whether it takes requests.
    pub fn takes_requests(&self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Present { .. })
    }

    /// Returns the child's process id while there is one.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Starting { pid, .. } | Self::Stopping { pid } => *pid,
            Self::Ready { pid }
            | Self::Unready { pid }
            | Self::Draining { pid }
            | Self::Reaping { pid } => Some(*pid),
            Self::Offline
            | Self::Queued { .. }
            | Self::Backoff { .. }
            | Self::Failed
            | Self::Absent { .. }
            | Self::Coming { .. }
            | Self::Present { .. }
            | Self::Parting => None,
        }
    }
}

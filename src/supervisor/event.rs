//! What the core is told. Past tense: it has happened.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{health::Vitals, placing::RoomRequest};
use crate::spec::{
    Bytes, Generation, SlotName, WaiterId,
    death::{Evidence, Verdict},
    ladder::Rung,
    memory::{EngineReading, MemoryReading, Need},
    pressure::Strain,
    profile::{Profile, Sole},
    residence::StayOrder,
};

/// One thing that happened. Those about a child carry its generation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Event {
    /// The set of profiles on disk is now this one, whole.
    ProfilesChanged {
        /// Every slot that should exist.
        profiles: BTreeMap<SlotName, Arc<Profile>>,
    },
    /// An engine that an earlier daemon had left is ready and watched. Comes before the first
    /// [`Event::ProfilesChanged`], which then treats its slot as any other; of no effect for a slot
    /// that is there already.
    EngineAdopted {
        /// The slot.
        slot: SlotName,
        /// The engine's generation.
        generation: Generation,
        /// Its process id.
        pid: u32,
        /// Which engine it is.
        engine: EngineInfo,
        /// What it was started for.
        profile: Arc<Profile>,
    },
    /// Answer to [`super::Command::ReadMemory`].
    MemoryRead {
        /// The machine.
        reading: MemoryReading,
        /// Every engine that was there.
        engines: BTreeMap<SlotName, EngineReading>,
    },
    /// How short the machine is of something has changed, for a while at least.
    PressureChanged {
        /// How short it is of each.
        strain: Strain,
    },
    /// A person has ordered something of a slot's stay in memory.
    StayOrdered {
        /// The slot.
        slot: SlotName,
        /// What.
        order: StayOrder,
    },
    /// A person asks for room; answered by [`super::Command::AnswerRoom`].
    RoomRequested(RoomRequest),
    /// The daemon was told to end.
    ShutdownRequested,
    /// A deadline of [`super::Supervisor::deadline`] passed. Spurious ones change nothing.
    DeadlinePassed,
    /// Something about one slot.
    Slot {
        /// Which one.
        slot: SlotName,
        /// What.
        event: SlotEvent,
    },
}

/// One thing that happened to one slot.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum SlotEvent {
    /// A person asked for it to be loaded; clears delays and the tally of deaths.
    LoadRequested,
    /// A rule asked for it to be loaded: clears neither delays nor deaths, and a failed slot stays one.
    LoadOrderedByRule,
    /// The model is whole that it failed for want of: it starts, at nobody's cost.
    ModelBecameWhole,
    /// A person asked for it to be unloaded.
    UnloadRequested,
    /// A person asked for a new engine in place of the present one.
    RestartRequested,
    /// A request found no ready engine and waits.
    Demanded {
        /// The request.
        waiter: WaiterId,
    },
    /// A waiting request gave up: its client is gone, or its deadline passed.
    WaiterLeft {
        /// The request.
        waiter: WaiterId,
    },
    /// Something about one child.
    Child {
        /// Which one.
        generation: Generation,
        /// What.
        event: ChildEvent,
    },
}

/// One thing that happened to one child. Stale generations are dropped in one place.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum ChildEvent {
    /// What its start needs is there; answer to [`super::Command::Size`].
    Sized {
        /// The rungs that it could be started on, best first; never empty.
        rungs: Arc<[Rung]>,
        /// What it takes on each rung, in the same order.
        needs: Arc<[Need]>,
    },
    /// The process runs.
    Spawned {
        /// Its process id, which is its process group too.
        pid: u32,
        /// What was started, for people.
        engine: EngineInfo,
        /// The rungs that it could be started on, best first; never empty.
        rungs: Arc<[Rung]>,
    },
    /// There is no process: a check before the spawn, or the spawn itself, failed.
    SpawnFailed {
        /// Why.
        verdict: Verdict,
        /// One sentence: what, where, what next.
        reason: String,
        /// Wall-clock time in milliseconds since 1970, for people.
        at_unix_ms: u64,
        /// The engine that would have been used, where that was known.
        engine: Option<EngineInfo>,
    },
    /// It said how far its load has come.
    Progressed {
        /// 0 to 100.
        percent: u8,
    },
    /// Its health answer became 200 with the right model behind it.
    BecameReady,
    /// It answers, but no longer as ready.
    BecameUnready,
    /// All requests that it was serving have ended.
    Drained,
    /// Answer to [`super::Command::MeasureActivity`].
    ActivityMeasured {
        /// Requests being served.
        in_flight: u32,
        /// How long since the last one ended, or since it became ready.
        idle_for: Duration,
    },
    /// Answer to [`super::Command::MeasureRoom`].
    RoomMeasured {
        /// Requests being served.
        in_flight: u32,
        /// How long since the last one ended, or since it became ready.
        idle_for: Duration,
        /// Host memory that engines could still be given; `None` where that is not known.
        free: Option<Bytes>,
    },
    /// Memory in use by the child's processes.
    MemoryMeasured {
        /// Resident bytes.
        rss: Bytes,
    },
    /// Its vital signs were read: something is missing that a healthy engine shows, or no longer is.
    VitalsRead {
        /// What was seen.
        vitals: Vitals,
    },
    /// A look at an engine that somebody else runs found something new; the first look of a watch is
    /// always told.
    Looked {
        /// What.
        sight: Sight,
    },
    /// The process has ended. Its group may still hold others.
    Exited {
        /// What is known about it.
        evidence: Evidence,
        /// Wall-clock time in milliseconds since 1970, for people.
        at_unix_ms: u64,
    },
    /// Nothing of its process group or cgroup is left.
    Reaped,
}

/// What a look at an engine that somebody else runs found.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Sight {
    /// Nobody answers at its address, or not as it should.
    Absent {
        /// What was asked, and what came of it: one clause for a person.
        reason: String,
    },
    /// It answers, but takes no requests yet.
    Loading {
        /// How far its load has come, 0 to 100, where it tells.
        percent: Option<u8>,
    },
    /// It takes requests.
    Present {
        /// It has put its model away and brings it back with the next request.
        is_asleep: bool,
    },
}

/// Which engine a child is, for people and for the route.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EngineInfo {
    /// `llama-server`, `candle` or `command`.
    pub name: String,
    /// The program's path.
    pub program: String,
    /// How many requests it works on at once.
    pub parallel: u32,
    /// How many CPU cores it is counted with: its threads; 1 where a GPU computes, 0 where nobody knows.
    #[serde(default)]
    pub cores: u32,
    /// What its model does alone, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sole: Option<Sole>,
}

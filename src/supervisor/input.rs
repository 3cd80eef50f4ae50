//! Everything that can happen to a slot, as its states see it.

use std::{sync::Arc, time::Duration};

use super::{
    event::{ChildEvent, EngineInfo, Sight, SlotEvent},
    health::Vitals,
};
use crate::spec::{
    Bytes, Generation, WaiterId,
    death::{Evidence, Verdict},
    ladder::Rung,
    memory::Need,
    profile::Profile,
};

/// Who wants a slot up without sending it a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asker {
    /// Who has seen what was wrong, and knows better.
    Person,
    /// What fires by itself: it knows nothing of deaths.
    Rule,
}

/// Everything that can happen to a slot, as its states see it.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// A person or a rule wants it up.
    Load(Asker),
    /// Its model is whole.
    ModelCame,
    /// A person wants it down.
    Unload,
    /// A person wants a new engine.
    Restart,
    /// A request wants it.
    Demand(WaiterId),
    /// A request no longer waits.
    Leave(WaiterId),
    /// Its profile was edited; `Slot::profile` is the new one already.
    Edited { previous: Arc<Profile> },
    /// Its profile is gone.
    Removed,
    /// The daemon ends.
    Shutdown,
    /// One of its deadlines passed.
    TimerFired,
    /// What its start needs is there, and known.
    Sized { rungs: Arc<[Rung]>, needs: Arc<[Need]> },
    /// The child runs.
    Spawned { pid: u32, engine: EngineInfo, rungs: Arc<[Rung]> },
    /// There is no child.
    SpawnFailed { verdict: Verdict, reason: String, at_unix_ms: u64, engine: Option<EngineInfo> },
    /// The load has come this far.
    Progressed { percent: u8 },
    /// The child is ready.
    BecameReady,
    /// The child is no longer ready.
    BecameUnready,
    /// No request is in flight.
    Drained,
    /// How busy the gate is.
    ActivityMeasured { in_flight: u32, idle_for: Duration },
    /// How busy the gate is, and how much memory is free.
    RoomMeasured { in_flight: u32, idle_for: Duration, free: Option<Bytes> },
    /// Resident bytes of the child.
    MemoryMeasured { rss: Bytes },
    /// Vital signs of the child.
    VitalsRead { vitals: Vitals },
    /// A look at an engine that somebody else runs.
    Looked { sight: Sight },
    /// The child has ended.
    Exited { evidence: Evidence, at_unix_ms: u64 },
    /// Nothing of the child is left.
    Reaped,
}

impl Input {
    /// Returns the input's name, for the table of cells.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Load(Asker::Person) => "load",
            Self::Load(Asker::Rule) => "load-by-rule",
            Self::ModelCame => "model-came",
            Self::Unload => "unload",
            Self::Restart => "restart",
            Self::Demand(_) => "demand",
            Self::Leave(_) => "leave",
            Self::Edited { .. } => "edited",
            Self::Removed => "removed",
            Self::Shutdown => "shutdown",
            Self::TimerFired => "timer-fired",
            Self::Sized { .. } => "sized",
            Self::Spawned { .. } => "spawned",
            Self::SpawnFailed { .. } => "spawn-failed",
            Self::Progressed { .. } => "progressed",
            Self::BecameReady => "became-ready",
            Self::BecameUnready => "became-unready",
            Self::Drained => "drained",
            Self::ActivityMeasured { .. } => "activity-measured",
            Self::RoomMeasured { .. } => "room-measured",
            Self::MemoryMeasured { .. } => "memory-measured",
            Self::VitalsRead { .. } => "vitals-read",
            Self::Looked { .. } => "looked",
            Self::Exited { .. } => "exited",
            Self::Reaped => "reaped",
        }
    }

    /// Returns who wants the slot up at the cost of others, if somebody does.
    pub(super) fn insists(&self) -> Option<Asker> {
        match self {
            Self::Load(asker) => Some(*asker),
            Self::Restart => Some(Asker::Person),
            Self::ModelCame
            | Self::Unload
            | Self::Demand(_)
            | Self::Leave(_)
            | Self::Edited { .. }
            | Self::Removed
            | Self::Shutdown
            | Self::TimerFired
            | Self::Sized { .. }
            | Self::Spawned { .. }
            | Self::SpawnFailed { .. }
            | Self::Progressed { .. }
            | Self::BecameReady
            | Self::BecameUnready
            | Self::Drained
            | Self::ActivityMeasured { .. }
            | Self::RoomMeasured { .. }
            | Self::MemoryMeasured { .. }
            | Self::VitalsRead { .. }
            | Self::Looked { .. }
            | Self::Exited { .. }
            | Self::Reaped => None,
        }
    }

    /// Tells whether it says that memory is free.
    pub(super) fn says_free(&self) -> bool {
        matches!(self, Self::RoomMeasured { free: Some(_), .. })
    }

    /// Reads a slot's event; the generation is the child's that it speaks of, if it does.
    pub(super) fn of(event: SlotEvent) -> (Option<Generation>, Self) {
        match event {
            SlotEvent::LoadRequested => (None, Self::Load(Asker::Person)),
            SlotEvent::LoadOrderedByRule => (None, Self::Load(Asker::Rule)),
            SlotEvent::ModelBecameWhole => (None, Self::ModelCame),
            SlotEvent::UnloadRequested => (None, Self::Unload),
            SlotEvent::RestartRequested => (None, Self::Restart),
            SlotEvent::Demanded { waiter } => (None, Self::Demand(waiter)),
            SlotEvent::WaiterLeft { waiter } => (None, Self::Leave(waiter)),
            SlotEvent::Child { generation, event } => (Some(generation), Self::of_child(event)),
        }
    }

    fn of_child(event: ChildEvent) -> Self {
        match event {
            ChildEvent::Sized { rungs, needs } => Self::Sized { rungs, needs },
            ChildEvent::Spawned { pid, engine, rungs } => Self::Spawned { pid, engine, rungs },
            ChildEvent::SpawnFailed { verdict, reason, at_unix_ms, engine } => {
                Self::SpawnFailed { verdict, reason, at_unix_ms, engine }
            }
            ChildEvent::Progressed { percent } => Self::Progressed { percent },
            ChildEvent::BecameReady => Self::BecameReady,
            ChildEvent::BecameUnready => Self::BecameUnready,
            ChildEvent::Drained => Self::Drained,
            ChildEvent::ActivityMeasured { in_flight, idle_for } => {
                Self::ActivityMeasured { in_flight, idle_for }
            }
            ChildEvent::RoomMeasured { in_flight, idle_for, free } => {
                Self::RoomMeasured { in_flight, idle_for, free }
            }
            ChildEvent::MemoryMeasured { rss } => Self::MemoryMeasured { rss },
            ChildEvent::VitalsRead { vitals } => Self::VitalsRead { vitals },
            ChildEvent::Looked { sight } => Self::Looked { sight },
            ChildEvent::Exited { evidence, at_unix_ms } => Self::Exited { evidence, at_unix_ms },
            ChildEvent::Reaped => Self::Reaped,
        }
    }
}

//! What the core asks for. Imperative: the shell does it, and reports back as an event.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::placing::RoomAnswer;
use crate::spec::{Generation, SlotName, WaiterId, death::Verdict, profile::Profile};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Command {
    /// Check what the spawn needs, and find out what memory the child will take. Answered by `Sized` or
    /// `SpawnFailed`.
    Size {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
        /// What is to be started.
        profile: Arc<Profile>,
    },
    /// Check what the spawn needs, start the child, watch it until it is ready and after. Answered
    /// by `Spawned` or `SpawnFailed`.
    Spawn {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
        /// What to start.
        profile: Arc<Profile>,
        /// On which rung of its ladder, from 0; the last one where there are fewer.
        rung: usize,
        /// With how many threads, should it be one that shares the CPU; at least 1.
        cores: u32,
        /// On which GPUs, by what stays the same when their order changes; empty where the engine is to
        /// choose, or computes on the CPU.
        devices: Vec<String>,
    },
    /// Look at an engine that somebody else runs, at once and from then on, until `Leave` or the slot's
    /// next `Watch`, which ends this one: requests that it still serves break. Answered by `Looked`.
    Watch {
        /// The slot.
        slot: SlotName,
        /// Counts as a child's.
        generation: Generation,
        /// Where it is.
        profile: Arc<Profile>,
    },
    /// Send a signal to the child's whole group.
    Signal {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
        /// Which signal.
        signal: StopSignal,
    },
    /// Tell when no request is being served any more. New ones no longer come: the snapshot says
    /// so before this command is performed. Answered by `Drained`.
    Drain {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
    },
    /// Let the child run on without us: it is to outlive the daemon, or is not ours. Nothing is heard of
    /// it any more.
    Leave {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
    },
    /// End all requests that are still being served, each with an error.
    CutRequests {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
    },
    /// Read the gate's counters. Answered by `ActivityMeasured`.
    MeasureActivity {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
    },
    /// Read the gate's counters, and how much memory is free. Answered by `RoomMeasured`.
    MeasureRoom {
        /// The slot.
        slot: SlotName,
        /// The child's generation.
        generation: Generation,
    },
    /// Read the memory of the machine and of all engines, and how busy they are. Answered by
    /// `MemoryRead`, also where a sensor fails.
    ReadMemory,
    /// Let a waiting request go to the slot's engine.
    Grant {
        /// The request.
        waiter: WaiterId,
    },
    /// Turn a waiting request away.
    Refuse {
        /// The request.
        waiter: WaiterId,
        /// Why.
        refusal: Refusal,
    },
    /// Tell who asked for room what comes of it.
    AnswerRoom {
        /// Who asked.
        asker: WaiterId,
        /// Who goes, or why nobody does.
        answer: RoomAnswer,
    },
    /// Everything is stopped; the daemon can end.
    Finish,
}

/// The two ways to end a child.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum StopSignal {
    /// `SIGTERM`, then `SIGCONT` so that a stopped one hears it.
    Terminate,
    /// `SIGKILL`.
    Kill,
}

/// Why a request for a slot is turned away.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub enum Refusal {
    /// There is no such slot any more.
    SlotGone,
    /// The daemon is stopping.
    ShuttingDown,
    /// The slot was unloaded while the request waited.
    Unloaded,
    /// As many requests as are allowed wait already.
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// The engine did not start; it is tried again.
    LoadFailed {
        /// Why.
        verdict: Verdict,
        /// One sentence for a person.
        reason: String,
        /// How long until an engine may be ready, as far as is known.
        retry_in: Duration,
    },
    /// Memory does not allow it, and waiting would not help.
    NoRoom {
        /// One sentence with the numbers, without the full stop.
        reason: String,
    },
    /// Somebody else runs the engine, and it is not there.
    Absent {
        /// What was asked, and what came of it.
        reason: String,
        /// When it is looked for again.
        retry_in: Duration,
    },
    /// Somebody else runs the engine, and a person has told slotd to send nothing to it.
    SetAside,
    /// The slot has failed because its model has to be fetched; it is started once that is done.
    DownloadRequired {
        /// What is missing, and how to get it: one sentence without the full stop.
        reason: String,
    },
    /// The slot has failed; a person or a profile edit has to clear it.
    Failed {
        /// Why.
        verdict: Verdict,
        /// One sentence for a person.
        reason: String,
    },
}

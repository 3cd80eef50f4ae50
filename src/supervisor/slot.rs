//! One slot: its profile, its state, its history, and the requests that wait for it.
//!
//! ```text
//!            demand, load            spawned             became ready
//!  offline ───────────────▶ spawning ───────▶ starting ──────────────▶ ready ⇄ unready
//!    ▲ ▲                       │ stop           │ stop, timeout          │ stop, edit, idle
//!    │ │                       ▼                │                        ▼
//!    │ │                  cancelling ───────────┼──▶ stopping ◀─────── draining
//!    │ │                    spawned             │        │ exited        │ exited
//!    │ │ rest                                   ▼        ▼               │
//!    │ └───────────────────────────────────── reaping ◀──┴───────────────┘
//!    │                                          │ │ └─ start again ─▶ spawning
//!    │ unload                                   │ └─── later ───────▶ backoff ─ timer ─▶ spawning
//!    └── failed ◀───────────────────────────────┘ give up
//! ```
//!
//! Every way to `spawning` leads through `sizing`, in which it is found out what the start takes, and
//! `queued`, in which it waits for memory: nothing is there yet that would have to end.
//!
//! An engine that somebody else runs is never spawned nor told to end. Its slot is looked at instead:
//!
//! ```text
//!             load              it is there             unload, edit
//!  offline ─────────▶ seeking ⇄──────────── present ──────────────▶ parting
//!    ▲                  │ unload                                       │
//!    └──────────────────┴───────────── drained, time is up ────────────┘
//! ```
//!
//! This file owns the data and the moves that several states share, `slot_view` what others see and ask of it, `state`
//! what a state carries, `requests` moves about waiting requests, `deaths` those about history, `ladder` about its rung,
//! `edits` about which profile is in force; `states` owns what each state does with each event. A state that waits for
//! something carries what follows it ([`After`]), so that "wanted" is never a flag beside the state.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

pub(super) use super::state::{After, Cause, Found, Queued, Serving, State, Stop};
use super::{
    Memory,
    command::{Command, Refusal, StopSignal},
    edits,
    event::EngineInfo,
    ladder::Ladder,
    policy::Policy,
    random::Random,
    restart::Tally,
    waits::Wait,
};
use crate::spec::{
    Bytes, Generation, Monotime, SlotName, WaiterId,
    death::{Death, Phase},
    edit::Edits,
    ladder::Rung,
    memory::{Need, Share},
    profile::Profile,
    residence::Orders,
};

/// What a state function works with besides the slot.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) now: Monotime,
    pub(super) policy: &'a Policy,
    pub(super) random: &'a mut Random,
    pub(super) commands: &'a mut Vec<Command>,
}

/// One slot.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: SlotName,
    /// The one in force.
    pub(super) profile: Arc<Profile>,
    pub(super) edits: Edits,
    pub(super) orders: Orders,
    pub(super) state: State,
    pub(super) since: Monotime,
    pub(super) generation: Generation,
    pub(super) engine: Option<EngineInfo>,
    /// What was promised to the last start.
    pub(super) share: Share,
    /// What a start takes on each rung, once that was found out.
    pub(super) needs: Arc<[Need]>,
    /// CPU cores that the last start is counted with: what it was promised, then what it took.
    pub(super) cores: u32,
    pub(super) tally: Tally,
    pub(super) ladder: Ladder,
    pub(super) restarts: u32,
    pub(super) waiting: BTreeSet<WaiterId>,
    pub(super) rss: Option<Bytes>,
    pub(super) deaths: Vec<Arc<Death>>,
    pub(super) loads: Vec<Duration>,
    /// How often it was used lately in an earlier life of the daemon.
    pub(super) uses: u64,
}

impl Slot {
    /// Makes a slot that is offline; `profile` is what its file says.
    pub(super) fn new(
        name: SlotName,
        profile: Arc<Profile>,
        memory: Memory,
        clock: (Monotime, &Policy),
    ) -> Self {
        let (profile, edits) = edits::recall(profile, memory.edits.clone());
        Self::with_edits(name, (profile, edits), memory, clock)
    }

    /// Makes a slot whose engine is to be adopted; `profile` is what that was started for.
    pub(super) fn of_engine(
        name: SlotName,
        profile: Arc<Profile>,
        memory: Memory,
        clock: (Monotime, &Policy),
    ) -> Self {
        let Edits { worked, rejected } = memory.edits.clone();
        let is_same = worked.is_some_and(|worked| worked.profile.starts_same_engine(&profile));
        let edits = Edits { worked: None, rejected: rejected.filter(|_| is_same) };
        Self::with_edits(name, (profile, edits), memory, clock)
    }

    fn with_edits(
        name: SlotName,
        (profile, edits): (Arc<Profile>, Edits),
        memory: Memory,
        (now, policy): (Monotime, &Policy),
    ) -> Self {
        Self {
            name,
            profile,
            edits,
            orders: memory.orders,
            state: State::Offline,
            since: now,
            generation: memory.generation,
            engine: None,
            share: Share::default(),
            needs: Arc::default(),
            cores: 0,
            tally: Tally::default(),
            ladder: Ladder::new(memory.rung, now, policy),
            restarts: 0,
            waiting: BTreeSet::new(),
            rss: None,
            deaths: memory.deaths,
            loads: memory.loads,
            uses: memory.uses,
        }
    }

    /// Returns what is worth remembering when the slot goes.
    pub(super) fn memory(self) -> Memory {
        let rung = self.ladder.at();
        let Self { generation, loads, deaths, edits, orders, uses, .. } = self;
        // What it went for is the supervisor's to know.
        Memory { generation, loads, deaths, rung, edits, orders, uses, ..Memory::default() }
    }

    /// Forgets deaths: a person asked, an edit changed something, or a run proved healthy.
    pub(super) fn forgive(&mut self) {
        self.tally = Tally::default();
        self.ladder.forgive();
    }

    /// Has a new child prepared, or one looked at that is not ours.
    pub(super) fn start(&mut self, context: &mut Context<'_>) -> State {
        if self.profile.is_external() {
            return self.seek(Found::Unknown, context);
        }
        // Bump before spawning: news of the old child may already be in the mailbox.
        self.generation = self.generation.next();
        self.rss = None;
        self.share = Share::default();
        let cause = if self.profile.is_kept() { Cause::Keep } else { Cause::Demand };
        if self.profile.residence.asks.is_any() {
            // Whether the machine is one for it comes before everything else: nothing is known of it yet.
            let (began, needs) = (context.now, Arc::default());
            return State::Queued(Queued { began, cause, needs, wait: Wait::Look });
        }
        self.size(cause, context)
    }

    /// Has it found out what a start takes.
    pub(super) fn size(&self, cause: Cause, context: &mut Context<'_>) -> State {
        context.commands.push(Command::Size {
            slot: self.name.clone(),
            generation: self.generation,
            profile: Arc::clone(&self.profile),
        });
        State::Sizing { began: context.now, cause, fetched: None }
    }

    /// Orders a new child after a death.
    pub(super) fn restart(&mut self, context: &mut Context<'_>) -> State {
        self.restarts = self.restarts.saturating_add(1);
        let had_served = self.deaths.last().is_some_and(|death| death.phase != Phase::Starting);
        if had_served { self.start_again(context) } else { self.start(context) }
    }

    /// Orders a new child in place of one that served: it waits for its memory though nobody asks at the
    /// moment.
    fn start_again(&mut self, context: &mut Context<'_>) -> State {
        let mut next = self.start(context);
        next.set_cause(Cause::Keep);
        next
    }

    /// Does what was to follow once the child is gone.
    pub(super) fn settle(&mut self, after: After, context: &mut Context<'_>) -> State {
        match after {
            // One that was to be left and ended by itself is down like any other.
            After::Rest | After::Leave => {
                self.refuse_all(&Refusal::Unloaded, context);
                State::Offline
            }
            After::Start => self.start_again(context),
            After::Climb => {
                self.ladder.climb();
                self.start_again(context)
            }
            After::Lower { rung } => {
                self.ladder.settle_on(rung, context.now, context.policy);
                let mut next = self.start(context);
                next.set_cause(Cause::Restore);
                next
            }
            After::Restart => self.restart(context),
            After::Backoff { retry_at } if retry_at <= context.now => self.restart(context),
            After::Backoff { retry_at } => State::Backoff { retry_at },
            After::Fail => State::Failed,
            After::Remove => {
                self.refuse_all(&Refusal::SlotGone, context);
                State::Gone
            }
        }
    }

    /// Takes no more requests and lets those in flight end.
    pub(super) fn drain(
        &self,
        serving: &Serving,
        after: After,
        context: &mut Context<'_>,
    ) -> State {
        context
            .commands
            .push(Command::Drain { slot: self.name.clone(), generation: self.generation });
        State::Draining {
            began: serving.began,
            pid: serving.pid,
            cut_at: Some(context.now.after(self.profile.stop_timeout)),
            after,
        }
    }

    /// Ends the wait for requests in flight: the child is told to end, or left alone.
    pub(super) fn part(
        &mut self,
        child: (u32, Monotime),
        after: After,
        context: &mut Context<'_>,
    ) -> State {
        if after == After::Leave {
            let (slot, generation) = (self.name.clone(), self.generation);
            context.commands.push(Command::Leave { slot, generation });
            return State::Offline;
        }
        self.terminate(child, Phase::Serving, after, context)
    }

    /// Tells a child to end. `began` is when it was spawned, `was` how far it had come.
    pub(super) fn terminate(
        &self,
        (pid, began): (u32, Monotime),
        was: Phase,
        after: After,
        context: &mut Context<'_>,
    ) -> State {
        self.signal(StopSignal::Terminate, context);
        let kill_at = context.now.after(self.profile.stop_timeout);
        State::Stopping { began, pid, stop: Stop::Terminated { kill_at, was }, after }
    }

    /// Sends a signal to the child's group.
    pub(super) fn signal(&self, signal: StopSignal, context: &mut Context<'_>) {
        context.commands.push(Command::Signal {
            slot: self.name.clone(),
            generation: self.generation,
            signal,
        });
    }

    /// Returns when a load that last came forward at `stepped_at` is given up, by the profile now in force.
    pub(super) fn give_up_at(&self, stepped_at: Monotime) -> Monotime {
        stepped_at.after(self.profile.start_timeout)
    }

    /// Takes over what the start has found out.
    pub(super) fn learn(&mut self, engine: EngineInfo, rungs: Arc<[Rung]>) {
        self.cores = engine.cores;
        self.engine = Some(engine);
        self.ladder.learn(rungs);
    }
}

//! Random sequences of events: what proptest draws, and what it comes to in a given situation.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use slotd::{
    spec::{
        Bytes, Generation, Monotime, SlotName, WaiterId,
        death::{ExitStatus, LogCause, Verdict},
        memory::{Basis, EngineReading, MemoryReading, Need, Room},
        pressure::{Pressure, Strain},
        profile::{OnExit, Profile},
        residence::StayOrder,
    },
    supervisor::{ChildEvent, Event, Policy, Purpose, RoomRequest, Sight, SlotEvent, Vitals},
};

use super::{
    checker::Checker, deaths, exited, external, logged, looked, model::Child, of_child, of_slot,
    profile, sized, slot, spawned,
};

/// One run: a box, and what happens to it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) slots: Vec<Traits>,
    /// Engines that an earlier daemon had left, each started for what it was then.
    pub(crate) left: Vec<(usize, Traits)>,
    pub(crate) actions: Vec<(Pause, Action)>,
}

/// What the core decides by, of a profile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits {
    autostart: bool,
    essential: bool,
    max_restarts: u32,
    start_timeout_s: u64,
    stop_timeout_s: u64,
    idle_timeout_s: Option<u64>,
    hang_timeout_s: Option<u64>,
    /// Changes the engine.
    context: u32,
    on_exit: OnExit,
    is_external: bool,
}

/// How the clock moves before an action.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pause {
    None,
    Millis(u64),
    /// To the next deadline, and this much beyond it.
    ToDeadline {
        late_ms: u64,
    },
}

/// What happens. A number picks among what fits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Load(usize),
    Rule(usize),
    ModelCame(usize),
    Unload(usize),
    Restart(usize),
    Demand(usize),
    Leave(usize),
    /// The shell reports what may come next.
    Answer(usize, usize),
    /// The shell reports anything, for any generation.
    Report {
        slot: usize,
        what: usize,
        generation: Which,
    },
    /// A profile is edited or comes back.
    Edit(usize, Traits),
    /// A profile goes.
    Remove(usize),
    Wake,
    /// The machine runs short of memory, or is no longer.
    Strain(usize),
    /// It is read, whether it was asked for or not.
    Read(usize),
    /// A person orders something of a slot's stay.
    Stay(usize, StayOrder),
    /// A person asks for room.
    Room(u64),
    Shutdown,
}

/// Whose news a report is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Present,
    Old,
    Future,
}

/// Draws runs of one to four slots.
pub(crate) fn script() -> impl Strategy<Value = Script> {
    let slots = vec(traits(), 1..=4);
    let actions = vec((pause(), action()), 1..200);
    let left = vec((0..4_usize, traits()), 0..3);
    (any::<u64>(), slots, left, actions).prop_map(|(seed, slots, left, actions)| Script {
        seed,
        slots,
        left,
        actions,
    })
}

fn traits() -> impl Strategy<Value = Traits> {
    let on_exit = prop_oneof![Just(OnExit::Stop), Just(OnExit::Keep)];
    let flags = (any::<bool>(), proptest::bool::weighted(0.25), 0..4_u32);
    let is_external = proptest::bool::weighted(0.3);
    let start = prop_oneof![1 => Just(1_u64), 2 => Just(30), 3 => Just(600)];
    let stop = prop_oneof![1 => Just(0_u64), 2 => Just(2), 3 => Just(10), 1 => Just(90)];
    let idle = prop_oneof![2 => Just(None), 1 => Just(Some(0_u64)), 2 => Just(Some(30))];
    let hang = prop_oneof![1 => Just(None), 2 => Just(Some(2_u64)), 1 => Just(Some(60))];
    (flags, start, stop, (idle, hang), (0..3_u32, on_exit, is_external)).prop_map(
        |(
            (autostart, essential, max_restarts),
            start_timeout_s,
            stop_timeout_s,
            (idle, hang),
            (context, on_exit, is_external),
        )| {
            Traits {
                autostart,
                essential,
                max_restarts,
                start_timeout_s,
                stop_timeout_s,
                idle_timeout_s: idle,
                hang_timeout_s: hang,
                context,
                on_exit,
                is_external,
            }
        },
    )
}

fn pause() -> impl Strategy<Value = Pause> {
    prop_oneof![
        6 => Just(Pause::None),
        4 => (0..200_u64).prop_map(Pause::Millis),
        3 => (0..8000_u64).prop_map(Pause::Millis),
        1 => (0..400_000_u64).prop_map(Pause::Millis),
        3 => prop_oneof![Just(0_u64), 0..50_u64, 0..20_000_u64]
            .prop_map(|late_ms| Pause::ToDeadline { late_ms }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let slot = 0..4_usize;
    let which = prop_oneof![
        4 => Just(Which::Present),
        1 => Just(Which::Old),
        1 => Just(Which::Future),
    ];
    prop_oneof![
        3 => slot.clone().prop_map(Action::Load),
        1 => slot.clone().prop_map(Action::Rule),
        1 => slot.clone().prop_map(Action::ModelCame),
        3 => slot.clone().prop_map(Action::Unload),
        2 => slot.clone().prop_map(Action::Restart),
        10 => slot.clone().prop_map(Action::Demand),
        3 => (0..16_usize).prop_map(Action::Leave),
        45 => (slot.clone(), 0..64_usize).prop_map(|(slot, pick)| Action::Answer(slot, pick)),
        14 => (slot.clone(), 0..64_usize, which)
            .prop_map(|(slot, what, generation)| Action::Report { slot, what, generation }),
        4 => (slot.clone(), traits()).prop_map(|(slot, traits)| Action::Edit(slot, traits)),
        2 => slot.prop_map(Action::Remove),
        3 => Just(Action::Wake),
        // Mostly there is enough: a short machine sees few climbs.
        1 => (0..8_usize).prop_map(Action::Strain),
        1 => (0..64_usize).prop_map(Action::Read),
        1 => (0..4_usize, stay()).prop_map(|(slot, order)| Action::Stay(slot, order)),
        1 => (0..4_u64).prop_map(Action::Room),
        // Mostly late in a run, or little else would be seen: see `Player::play`.
        1 => Just(Action::Shutdown),
    ]
}

/// Steps down by hand are played elsewhere: the model keeps no account of them.
fn stay() -> impl Strategy<Value = StayOrder> {
    prop_oneof![
        Just(StayOrder::Pin),
        Just(StayOrder::Unpin),
        (0..100_u32).prop_map(|priority| StayOrder::Priority(Some(priority))),
    ]
}

/// Turns actions into events.
pub(crate) struct Player {
    pub(crate) checker: Checker,
    profiles: BTreeMap<SlotName, Arc<Profile>>,
    names: Vec<SlotName>,
    next_waiter: u64,
    memory: Memory,
}

/// What memory is like in a run. Left to chance few come as far as the end of a ladder, or up again: the few
/// runs that are not as usual are of one slot, which is tried often and starts unless it is for memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Memory {
    Usual,
    /// Every start runs out of memory.
    Cramped,
    /// The first rung runs out of memory; below it there is room to climb, and time.
    Roomy,
}

impl Player {
    /// Plays a whole run and ends it; the checker that saw it.
    pub(crate) fn play(script: &Script) -> (Result<(), String>, Checker) {
        let policy = Policy {
            waiting_limit: 3,
            climb_after: Duration::from_secs(20),
            memory_limit: Some(Bytes(2 << 30)),
            min_residency: Duration::from_secs(1),
            restore_after: Duration::from_secs(2),
            same_cause_deaths: 2,
            ..Policy::default()
        };
        let memory = match script.seed % 16 {
            0 => Memory::Cramped,
            1 | 2 => Memory::Roomy,
            _ => Memory::Usual,
        };
        let slots = if memory == Memory::Usual { script.slots.len() } else { 1 };
        let names: Vec<_> = ["a", "b", "c", "d"].iter().take(slots).collect();
        let mut player = Self {
            checker: Checker::new(policy, script.seed),
            profiles: BTreeMap::new(),
            names: names.into_iter().map(|name| slot(name)).collect(),
            next_waiter: 0,
            memory,
        };
        let result = player.run(script);
        (result, player.checker)
    }

    fn run(&mut self, script: &Script) -> Result<(), String> {
        for (name, traits) in self.names.iter().zip(&script.slots) {
            let traits = match self.memory {
                Memory::Usual => *traits,
                Memory::Cramped | Memory::Roomy => {
                    Traits { max_restarts: 9, is_external: false, ..*traits }
                }
            };
            self.profiles.insert(name.clone(), Arc::new(traits.of(name)));
        }
        for (pick, traits) in &script.left {
            let event = self.adoption(*pick, *traits);
            self.checker.step(Monotime::default(), event)?;
        }
        let profiles = self.profiles.clone();
        self.checker.step(Monotime::default(), Event::ProfilesChanged { profiles })?;
        let early = script.actions.len() * 3 / 4;
        for (index, (pause, action)) in script.actions.iter().enumerate() {
            if matches!(action, Action::Shutdown) && index < early {
                continue;
            }
            let now = self.after(*pause);
            if let Some(event) = self.event(*action) {
                self.checker.step(now, event)?;
            }
        }
        self.checker.drive_to_the_end()?;
        self.checker.replay()
    }

    /// Some are of slots whose profile is gone.
    fn adoption(&self, pick: usize, traits: Traits) -> Event {
        let names = ["a", "b", "c", "d"];
        let slot = slot(names[pick % names.len()]);
        let profile = match self.profiles.get(&slot) {
            Some(same) if traits.autostart && !same.is_external() => Arc::clone(same),
            // Only what was spawned is left.
            _ => Arc::new(Traits { is_external: false, ..traits }.of(&slot)),
        };
        let ChildEvent::Spawned { pid, engine, .. } = spawned(77) else { unreachable!() };
        Event::EngineAdopted { slot, generation: Generation(5), pid, engine, profile }
    }

    fn after(&self, pause: Pause) -> Monotime {
        let now = self.checker.now;
        match pause {
            Pause::None => now,
            Pause::Millis(millis) if self.memory == Memory::Roomy => {
                now.after(Duration::from_millis(4 * millis))
            }
            Pause::Millis(millis) => now.after(Duration::from_millis(millis)),
            Pause::ToDeadline { late_ms } => {
                let at = self.checker.deadline().unwrap_or(now);
                at.after(Duration::from_millis(late_ms))
            }
        }
    }

    fn name(&self, pick: usize) -> SlotName {
        self.names[pick % self.names.len()].clone()
    }

    fn event(&mut self, action: Action) -> Option<Event> {
        Some(match action {
            Action::Load(pick) => of_slot(&self.name(pick), SlotEvent::LoadRequested),
            Action::Rule(pick) => of_slot(&self.name(pick), SlotEvent::LoadOrderedByRule),
            Action::ModelCame(pick) => of_slot(&self.name(pick), SlotEvent::ModelBecameWhole),
            Action::Unload(pick) => of_slot(&self.name(pick), SlotEvent::UnloadRequested),
            Action::Restart(pick) => of_slot(&self.name(pick), SlotEvent::RestartRequested),
            Action::Demand(pick) => {
                self.next_waiter += 1;
                let waiter = WaiterId(self.next_waiter);
                of_slot(&self.name(pick), SlotEvent::Demanded { waiter })
            }
            Action::Leave(pick) => self.leave(pick),
            Action::Answer(pick, choice) => self.answer(pick, choice)?,
            Action::Report { slot, what, generation } => self.report(slot, what, generation),
            Action::Edit(pick, traits) => {
                let name = self.name(pick);
                self.profiles.insert(name.clone(), Arc::new(traits.of(&name)));
                Event::ProfilesChanged { profiles: self.profiles.clone() }
            }
            Action::Remove(pick) => {
                self.profiles.remove(&self.name(pick));
                Event::ProfilesChanged { profiles: self.profiles.clone() }
            }
            Action::Wake => Event::DeadlinePassed,
            Action::Strain(level) => {
                let memory = match level {
                    0 => Pressure::Elevated,
                    1 => Pressure::Critical,
                    _ => Pressure::Normal,
                };
                Event::PressureChanged { strain: Strain { memory, ..Strain::default() } }
            }
            Action::Read(choice) => self.reading(choice),
            Action::Stay(pick, order) => Event::StayOrdered { slot: self.name(pick), order },
            Action::Room(gib) => {
                self.next_waiter += 1;
                let need = Need { host: Bytes(gib << 30), basis: Basis::Profile, gpu: None };
                let asker = WaiterId(self.next_waiter);
                Event::RoomRequested(RoomRequest {
                    asker,
                    need,
                    gpu: None,
                    slot: None,
                    purpose: Purpose::Make,
                })
            }
            Action::Shutdown => Event::ShutdownRequested,
        })
    }

    /// One that waits leaves, else one that has been answered, whose leaving crossed the answer.
    fn leave(&self, pick: usize) -> Event {
        let pending = &self.checker.model.pending;
        let waiting = pending.iter().nth(pick % pending.len().max(1));
        let (waiter, name) = match waiting {
            Some((waiter, name)) => (*waiter, name.clone()),
            None => (WaiterId(self.next_waiter), self.name(pick)),
        };
        of_slot(&name, SlotEvent::WaiterLeft { waiter })
    }

    fn answer(&self, pick: usize, choice: usize) -> Option<Event> {
        let name = self.name(pick);
        let truth = self.checker.model.slots.get(&name)?;
        let deaths = deaths();
        let death = exited(deaths[choice % deaths.len()].clone());
        let event = match truth.child {
            Child::None => return None,
            Child::Queued => return Some(self.reading(choice)),
            Child::Sizing if self.memory != Memory::Usual => sized(None),
            Child::Ordered { .. } if choice.is_multiple_of(4) && self.memory == Memory::Usual => {
                spawn_failed(choice)
            }
            Child::Sizing => while_sizing(choice),
            Child::Ordered { .. } => spawned(pid_of(truth.generation)),
            Child::Dead { .. } => ChildEvent::Reaped,
            Child::Outside(outside) if outside.drain.is_some() => ChildEvent::Drained,
            Child::Outside(_) => look(choice),
            Child::Alive(alive) if alive.is_stopping() => death,
            Child::Alive(alive) if alive.drain.is_some() && !choice.is_multiple_of(3) => {
                ChildEvent::Drained
            }
            Child::Alive(alive) if !alive.is_ready && self.is_short(truth.ladder.rung, choice) => {
                exited(logged(ExitStatus::Code(1), LogCause::OutOfMemory))
            }
            // Few come as far as a climb.
            Child::Alive(_)
                if truth.ladder.is_on_trial
                    && (choice.is_multiple_of(2) || self.memory == Memory::Roomy) =>
            {
                death
            }
            Child::Alive(alive)
                if alive.is_ready && self.memory == Memory::Roomy && truth.ladder.rung > 0 =>
            {
                ChildEvent::RoomMeasured {
                    in_flight: 0,
                    idle_for: Duration::from_secs(31),
                    free: Some(Bytes(1 << 33)),
                }
            }
            Child::Alive(_) if choice.is_multiple_of(5) => death,
            Child::Alive(alive) if alive.ready_since.is_some() && choice % 16 < 3 => {
                ChildEvent::VitalsRead { vitals: vital_signs(choice) }
            }
            Child::Alive(alive) if alive.is_ready => while_ready(choice, truth.ladder.rung),
            Child::Alive(_) if choice % 8 == 1 => ChildEvent::Progressed { percent: 40 },
            Child::Alive(_) => ChildEvent::BecameReady,
        };
        Some(of_child(&name, truth.generation, event))
    }

    /// Tells whether a start runs out of memory on this rung.
    fn is_short(&self, rung: usize, choice: usize) -> bool {
        match self.memory {
            Memory::Usual => false,
            Memory::Cramped => true,
            Memory::Roomy => rung == 0 && choice.is_multiple_of(2),
        }
    }

    /// Some engines are busy, some idle.
    fn reading(&self, choice: usize) -> Event {
        let slots = self.checker.model.slots.iter();
        let engines = slots.zip(0..).map(|((name, truth), index)| {
            let read = EngineReading {
                generation: truth.generation,
                in_flight: u32::from((choice + index).is_multiple_of(3)),
                idle_for: Duration::from_secs(if choice.is_multiple_of(2) { 3 } else { 400 }),
                host: (!choice.is_multiple_of(5)).then_some(Bytes(1 << 29)),
                ..EngineReading::default()
            };
            (name.clone(), read)
        });
        let room = Room { total: Bytes(8 << 30), free: Bytes(6 << 30) };
        let host = (!choice.is_multiple_of(7)).then_some(room);
        let reading = MemoryReading { host, ..MemoryReading::default() };
        Event::MemoryRead { reading, engines: engines.collect() }
    }

    fn report(&self, pick: usize, what: usize, which: Which) -> Event {
        let name = self.name(pick);
        let present =
            self.checker.model.slots.get(&name).map_or(Generation(0), |truth| truth.generation);
        let generation = match which {
            Which::Present => present,
            Which::Old => Generation(present.0.saturating_sub(1)),
            Which::Future => present.next(),
        };
        let deaths = deaths();
        let event = match what % 14 {
            13 => sized(need(what / 14)),
            0 => spawned(pid_of(generation)),
            1 => spawn_failed(what),
            2 => ChildEvent::Progressed { percent: u8::try_from(what * 2).unwrap_or(255) },
            3 => ChildEvent::BecameReady,
            4 => ChildEvent::BecameUnready,
            5 => ChildEvent::Drained,
            6 => ChildEvent::ActivityMeasured { in_flight: 0, idle_for: Duration::from_secs(99) },
            7 => ChildEvent::MemoryMeasured { rss: Bytes(u64::try_from(what).unwrap() << 20) },
            8 => ChildEvent::VitalsRead { vitals: vital_signs(what / 11) },
            9 => ChildEvent::RoomMeasured {
                in_flight: 0,
                idle_for: Duration::from_secs(99),
                free: Some(Bytes(1 << 33)),
            },
            10 => look(what / 13),
            11 => exited(deaths[what % deaths.len()].clone()),
            _ => ChildEvent::Reaped,
        };
        of_child(&name, generation, event)
    }
}

impl Traits {
    fn of(self, name: &SlotName) -> Profile {
        Profile {
            // Refused in the profile of an engine that somebody else runs.
            autostart: self.autostart && !self.is_external,
            essential: self.essential && !self.is_external,
            max_restarts: self.max_restarts,
            start_timeout: Duration::from_secs(self.start_timeout_s),
            stop_timeout: Duration::from_secs(self.stop_timeout_s),
            hang_timeout: self.hang_timeout_s.map(Duration::from_secs),
            idle_timeout: self.idle_timeout_s.map(Duration::from_secs),
            context: Some(1024 << self.context),
            on_exit: self.on_exit,
            engine: if self.is_external { external("up") } else { profile("any").engine },
            ..profile(name.as_str())
        }
    }
}

fn pid_of(generation: Generation) -> u32 {
    1000 + u32::try_from(generation.0 % 1_000_000).unwrap()
}

/// Mostly of an engine that stands still; some of one that spins, stalls or fails all it is asked.
fn vital_signs(choice: usize) -> Vitals {
    let silent = Vitals { has_answered: false, ..super::vitals() };
    match choice % 8 {
        0 => super::vitals(),
        1 => Vitals { failed_in_row: 5, ..super::vitals() },
        2 => Vitals { cpu: None, ..silent },
        3 => Vitals { in_flight: 1, ..super::vitals() },
        4 => Vitals { continues: false, pieces: 1, ..silent },
        _ => silent,
    }
}

/// What fits beside another, what does not, and what never does.
fn need(choice: usize) -> Option<Bytes> {
    [None, Some(Bytes(1 << 30)), Some(Bytes(3 << 29)), Some(Bytes(5 << 30))][choice / 3 % 4]
}

fn look(choice: usize) -> ChildEvent {
    looked(match choice % 5 {
        0 => Sight::Absent { reason: "nobody listens there".to_owned() },
        1 => Sight::Loading { percent: None },
        2 => Sight::Present { is_asleep: true },
        _ => Sight::Present { is_asleep: false },
    })
}

fn spawn_failed(choice: usize) -> ChildEvent {
    let verdicts =
        [Verdict::UnexpectedExit, Verdict::ModelNotFetched, Verdict::OomHost, Verdict::SpawnFailed];
    ChildEvent::SpawnFailed {
        verdict: verdicts[choice / 4 % verdicts.len()],
        reason: "it could not be started".to_owned(),
        at_unix_ms: 0,
        engine: None,
    }
}

/// What may come of an order to size: a fault, news of a download, a need.
fn while_sizing(choice: usize) -> ChildEvent {
    match choice % 16 {
        0 => spawn_failed(choice),
        1 => ChildEvent::Progressed { percent: u8::try_from(choice % 101).unwrap_or(100) },
        _ => sized(need(choice)),
    }
}

/// What may be told of an engine that is ready, on this rung.
fn while_ready(choice: usize, rung: usize) -> ChildEvent {
    match choice % 8 {
        // Few come as far as a climb.
        0 | 4 if rung > 0 => ChildEvent::RoomMeasured {
            in_flight: 0,
            idle_for: Duration::from_secs(31),
            free: Some(Bytes(1 << 33)),
        },
        0..4 => ChildEvent::BecameUnready,
        4 | 5 => ChildEvent::ActivityMeasured {
            in_flight: u32::from(choice % 16 > 12),
            idle_for: Duration::from_secs(if choice.is_multiple_of(2) { 31 } else { 3 }),
        },
        _ => ChildEvent::RoomMeasured {
            in_flight: u32::from(choice % 16 > 14),
            idle_for: Duration::from_secs(if choice.is_multiple_of(3) { 29 } else { 31 }),
            free: (!choice.is_multiple_of(7)).then_some(Bytes(1 << 33)),
        },
    }
}

//! The core: decides everything, does nothing.
//!
//! [`Supervisor`] owns every slot's lifecycle and every timer. It takes `(now, event)` and appends
//! commands; the shell performs them and reports back as events. There is no clock, no I/O, no
//! `async`, no logging and no randomness but a seeded one, so that the same events at the same times
//! give the same commands.

mod command;
mod cores;
mod deaths;
mod edits;
mod event;
mod eviction;
mod health;
mod input;
mod ladder;
mod ledger;
mod limits;
mod offload;
mod orders;
mod placement;
mod placing;
mod policy;
mod random;
mod requests;
mod restart;
mod slot;
mod slot_view;
mod slots;
mod snapshot;
mod state;
mod states;
mod verdict;
mod waits;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub use self::{
    command::{Command, Refusal, StopSignal},
    event::{ChildEvent, EngineInfo, Event, Sight, SlotEvent},
    health::Vitals,
    placing::{KeptOut, Purpose, Relieved, RoomAnswer, RoomRequest},
    policy::Policy,
    snapshot::{SlotView, Snapshot, StateView},
    waits::{Holder, Shortage, Wait},
};
use self::{
    cores::Neighbours,
    input::{Asker, Input},
    placing::{Displaced, Gone, How, Look, Looked, Relief},
    random::Random,
    slot::{Context, Slot},
    slots::Slots,
};
use crate::spec::{
    Bytes, Generation, Monotime, SlotName, death::Death, edit::Edits, pressure::Source,
    profile::Profile, residence::Orders,
};

/// What an earlier life of the daemon remembered of a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The last generation.
    pub generation: Generation,
    /// How long loads took, oldest first.
    pub loads: Vec<Duration>,
    /// Deaths, oldest first.
    pub deaths: Vec<Arc<Death>>,
    /// The rung of the next start, from 0.
    pub rung: usize,
    /// Which profile worked, and which one did not.
    pub edits: Edits,
    /// What a person has ordered of its stay.
    pub orders: Orders,
    /// How often it was used lately, at the start of this life.
    pub uses: u64,
    /// The slot that it has made room for, where it was down for that.
    pub displaced_by: Option<SlotName>,
    /// What the machine ran short of, and what it held of that, where it was down for that.
    pub relieved: Option<(Source, Bytes)>,
}

/// Where an event would land: the state and the input, as a cell of the table of all of them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Cell {
    /// The state's name.
    pub state: &'static str,
    /// The event's name.
    pub event: &'static str,
}

/// The pure core.
#[derive(Debug)]
pub struct Supervisor {
    policy: Policy,
    random: Random,
    now: Monotime,
    mode: Mode,
    slots: Slots,
    memory: BTreeMap<SlotName, Memory>,
    look: Look,
    /// Slots that have made room for others, in the order in which they went.
    displaced: Vec<Displaced>,
    relief: Relief,
    /// Room that a person asks for.
    rooms: Vec<RoomRequest>,
    /// Nobody who was displaced comes back before.
    kept_free_until: Monotime,
    published: Arc<Snapshot>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Running,
    /// Everything is being stopped.
    Stopping,
    /// Everything is stopped, and that has been said.
    Finished,
}

impl Supervisor {
    /// Makes a core without slots. `seed` decides all jitter; `memory` is used for slots that come.
    pub fn new(policy: Policy, seed: u64, memory: BTreeMap<SlotName, Memory>) -> Self {
        Self {
            policy,
            random: Random::new(seed),
            now: Monotime::default(),
            mode: Mode::Running,
            slots: Slots::default(),
            memory,
            look: Look::default(),
            displaced: Vec::new(),
            relief: Relief::default(),
            rooms: Vec::new(),
            kept_free_until: Monotime::default(),
            published: Arc::new(Snapshot::default()),
        }
    }

    /// Takes one event and appends what is to be done. Never fails, never blocks. Timers that are
    /// due at `now` fire first; time that runs backwards stands still.
    pub fn handle(&mut self, now: Monotime, event: Event, commands: &mut Vec<Command>) {
        self.now = self.now.max(now);
        self.fire_timers(commands);
        self.place(commands);
        // The last drain may have been what was due.
        self.finish_when_stopped(commands);
        match event {
            Event::ProfilesChanged { profiles } => self.change_profiles(profiles, commands),
            Event::EngineAdopted { slot, generation, pid, engine, profile } => {
                self.adopt(slot, (generation, pid), engine, profile);
            }
            Event::MemoryRead { reading, engines } => {
                self.look.take(self.now, Looked { memory: reading, engines });
            }
            Event::PressureChanged { strain } => {
                self.relief.take(self.now, strain);
                self.look.touch();
            }
            Event::StayOrdered { slot, order } => self.order_stay(&slot, order, commands),
            Event::RoomRequested(request) => {
                self.rooms.push(request);
                // One that has become ready since the last reading could go for it, too.
                self.look.outdate();
            }
            Event::ShutdownRequested => self.shut_down(commands),
            Event::DeadlinePassed => {}
            Event::Slot { slot, event } => self.slot_event(&slot, event, commands),
        }
        self.fire_timers(commands);
        self.place(commands);
        self.finish_when_stopped(commands);
        self.slots.note_alarms();
    }

    /// Returns when [`Event::DeadlinePassed`] is to be sent if nothing else comes before. May change
    /// with each `handle`; never lies before the `now` of the last one.
    pub fn deadline(&self) -> Option<Monotime> {
        let of_slots = self.slots.next_alarm();
        let of_memory = self.look.deadline().into_iter().chain(self.relief.deadline());
        of_slots.into_iter().chain(of_memory).min()
    }

    /// Returns the slots whose own timers are due at `now`; an [`Event::DeadlinePassed`] may be for none of them
    /// (memory is to be read again) and still move others. Changes nothing: for tests that count.
    pub fn due(&self, now: Monotime) -> impl Iterator<Item = &SlotName> {
        self.slots.noted_due(now)
    }

    /// Returns the present view; the same one, with the same generation, while nothing has changed. Views of
    /// slots that have not changed are those of the last one.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        let touched = self.slots.take_touched();
        if touched.is_empty() {
            return Arc::clone(&self.published);
        }
        let displaced: BTreeMap<_, _> =
            self.displaced.iter().map(|one| (&one.slot, &one.by)).collect();
        let mut news = BTreeMap::new();
        for name in touched {
            let slot = self.slots.get(&name);
            let by = displaced.get(&name).map(|by| (*by).clone());
            let relieved = self.relieved(&name);
            let view = slot.map(|slot| SlotView { displaced_by: by, relieved, ..slot.view() });
            if self.published.slots.get(&name).map(AsRef::as_ref) != view.as_ref() {
                news.insert(name, view.map(Arc::new));
            }
        }
        if !news.is_empty() {
            let generation = self.published.generation.saturating_add(1);
            let mut slots = self.published.slots.clone();
            for (name, view) in news {
                match view {
                    Some(view) => drop(slots.insert(name, view)),
                    None => drop(slots.remove(&name)),
                }
            }
            self.published = Arc::new(Snapshot { generation, slots });
        }
        debug_assert!(self.is_published(), "a slot has changed and nobody noticed");
        Arc::clone(&self.published)
    }

    /// Tells whether the published view is that of all slots: for debug builds, in which simulations run.
    fn is_published(&self) -> bool {
        let displaced: BTreeMap<_, _> =
            self.displaced.iter().map(|one| (&one.slot, &one.by)).collect();
        let mut shown = self.published.slots.iter();
        let is_shown = |(name, slot): (&SlotName, &Slot)| {
            let by = displaced.get(name).map(|by| (*by).clone());
            let relieved = self.relieved(name);
            let view = SlotView { displaced_by: by, relieved, ..slot.view() };
            shown.next().is_some_and(|(other, shown)| other == name && **shown == view)
        };
        self.slots.iter().all(is_shown) && shown.next().is_none()
    }

    /// Returns how many slots were looked at in all decisions so far, one as often as it was: the work that
    /// grows with their number. For tests that hold its growth.
    pub fn looks(&self) -> u64 {
        self.slots.looks()
    }

    /// Returns which cell `event` would land in now; `None` for events about no slot that exists,
    /// for stale ones, and for wishes that come after the end was asked for. Costs nothing and
    /// changes nothing: for logs and for tests that count.
    pub fn cell(&self, event: &Event) -> Option<Cell> {
        let Event::Slot { slot, event } = event else { return None };
        let slot = self.slots.get(slot)?;
        let (generation, input) = Input::of(event.clone());
        let is_current = generation.is_none_or(|generation| generation == slot.generation);
        let lands = is_current && !self.comes_too_late(&input);
        lands.then(|| Cell { state: slot.state.name(), event: input.name() })
    }

    fn slot_event(&mut self, name: &SlotName, event: SlotEvent, commands: &mut Vec<Command>) {
        let (generation, input) = Input::of(event);
        if self.comes_too_late(&input) {
            refuse_demand(&input, Refusal::ShuttingDown, commands);
            return;
        }
        let Some(slot) = self.slots.get(name) else {
            refuse_demand(&input, Refusal::SlotGone, commands);
            return;
        };
        // The one place where stale news of an earlier child is dropped.
        if generation.is_none_or(|generation| generation == slot.generation) {
            let (was_free, input) = (input.says_free(), self.weigh_climb(slot, input));
            if was_free && !input.says_free() && !self.look.is_fresh(self.now) {
                // What is known may be of long ago, and nobody else may ask: the next try has this reading.
                self.look.ask(self.now, commands);
            }
            let insists = input.insists();
            self.tell(name, input, commands);
            if let Some(asker) = insists {
                self.with(name, commands, |slot, _| slot.insist(asker));
            }
        }
    }

    /// Takes room to climb away where it is promised to others.
    fn weigh_climb(&self, slot: &Slot, input: Input) -> Input {
        if let Input::RoomMeasured { in_flight, idle_for, free: Some(_) } = input
            && !self.has_room_above(slot)
        {
            return Input::RoomMeasured { in_flight, idle_for, free: None };
        }
        input
    }

    /// Tells whether an input wants a slot up that the end of the daemon takes down.
    fn comes_too_late(&self, input: &Input) -> bool {
        let wants_up =
            matches!(input, Input::Load(_) | Input::ModelCame | Input::Restart | Input::Demand(_));
        wants_up && self.mode != Mode::Running
    }

    /// Lets one slot handle one input, and forgets the slot if that was its end.
    fn tell(&mut self, name: &SlotName, input: Input, commands: &mut Vec<Command>) {
        if matches!(input, Input::Unload) {
            // It is to stay away.
            self.forget_displaced(|one| one.slot != *name);
            self.forget_relieved_of(name);
        }
        self.with(name, commands, |slot, context| slot.handle(input, context));
        if self.slots.get(name).is_some_and(Slot::is_gone) {
            self.forget(name);
        }
    }

    /// Lets one slot do something, and notes what may matter to those that wait for memory.
    fn with(
        &mut self,
        name: &SlotName,
        commands: &mut Vec<Command>,
        act: impl FnOnce(&mut Slot, &mut Context<'_>),
    ) {
        let Self { slots, look, policy, random, now, .. } = self;
        slots.change(name, |slot| {
            let before = (slot.has_child(), slot.standing());
            act(slot, &mut Context { now: *now, policy, random, commands });
            if before.0 && !slot.has_child() {
                look.outdate();
            } else if before.1 != slot.standing() {
                look.touch();
            }
        });
    }

    /// Sums up all slots, as far as the cores are concerned. One that stands in computes in its slot's place, of
    /// which the earlier engine is about to go: for a moment two share it, and none keeps less for good.
    fn neighbours(&self) -> Neighbours {
        let mut neighbours = Neighbours::default();
        for (_, slot) in self.slots.iter().filter(|(name, _)| !name.is_stand_in()) {
            neighbours.add(slot, &self.policy);
        }
        neighbours
    }

    /// Returns what is worth remembering, also of slots whose profile is gone.
    pub fn memory(self) -> BTreeMap<SlotName, Memory> {
        let mut memory = self.memory;
        memory.extend(self.slots.into_iter().map(|(name, slot)| (name, slot.memory())));
        for one in self.displaced.into_iter().filter(|one| one.how == How::Away) {
            if let Some(slot) = memory.get_mut(&one.slot) {
                slot.displaced_by = Some(one.by);
            }
        }
        for (name, gone) in self.relief.gone {
            if let Some(slot) = memory.get_mut(&name) {
                slot.relieved = Some((gone.source, gone.took));
            }
        }
        memory
    }

    fn forget(&mut self, name: &SlotName) {
        if let Some(slot) = self.slots.remove(name) {
            // The profile may come back; its generations must not begin again.
            // Its rung, its edits and its orders were those of a profile that is gone.
            let memory = Memory {
                rung: 0,
                edits: Edits::default(),
                orders: Orders::default(),
                ..slot.memory()
            };
            self.memory.insert(name.clone(), memory);
        }
    }

    fn fire_timers(&mut self, commands: &mut Vec<Command>) {
        loop {
            let due = self.slots.due(self.now);
            if due.is_empty() {
                return;
            }
            // A slot's timer fires nobody else's.
            for name in due {
                self.tell(&name, Input::TimerFired, commands);
            }
        }
    }

    fn change_profiles(
        &mut self,
        profiles: BTreeMap<SlotName, Arc<Profile>>,
        commands: &mut Vec<Command>,
    ) {
        if self.mode != Mode::Running {
            return;
        }
        let removed: Vec<_> =
            self.slots.keys().filter(|name| !profiles.contains_key(*name)).cloned().collect();
        for name in removed {
            self.tell(&name, Input::Removed, commands);
        }
        // All are there before the first starts: each start thinks of those that are still to come.
        let is_new = |name: &&SlotName| !self.slots.contains_key(name);
        let added: BTreeSet<_> = profiles.keys().filter(is_new).cloned().collect();
        for name in &added {
            if let Some(profile) = profiles.get(name) {
                self.add(name, Arc::clone(profile));
            }
        }
        for (name, profile) in profiles {
            // One that went because the machine ran short comes back when there is enough again.
            if added.contains(&name) && self.is_kept_out(&name) {
                continue;
            }
            match self.slots.get_mut(&name) {
                // Nobody has to ask for an engine that runs anyway.
                Some(_)
                    if added.contains(&name) && (profile.autostart || profile.is_external()) =>
                {
                    self.tell(&name, Input::Load(Asker::Person), commands);
                }
                Some(slot) if *slot.profile_on_disk() == profile && !slot.is_being_removed() => {}
                Some(slot) => {
                    let previous = slot.take_edit(profile);
                    self.tell(&name, Input::Edited { previous }, commands);
                }
                None => {}
            }
        }
    }

    fn add(&mut self, name: &SlotName, profile: Arc<Profile>) {
        let mut memory = self.memory.remove(name).unwrap_or_default();
        if let Some(by) = memory.displaced_by.take() {
            self.displaced.push(Displaced { slot: name.clone(), by, how: How::Away });
        }
        if let Some((source, took)) = memory.relieved.take() {
            self.relief.gone.insert(name.clone(), Gone::new(source, took, self.now, None));
        }
        if !self.displaced.is_empty() || !self.relief.gone.is_empty() {
            self.look.touch();
        }
        let slot = Slot::new(name.clone(), profile, memory, (self.now, &self.policy));
        self.slots.insert(name.clone(), slot);
    }

    /// Takes over an engine that is ready, with the profile that it was started for.
    fn adopt(
        &mut self,
        name: SlotName,
        (generation, pid): (Generation, u32),
        engine: EngineInfo,
        profile: Arc<Profile>,
    ) {
        if self.mode != Mode::Running || self.slots.contains_key(&name) {
            return;
        }
        // The state file may be older than the engine.
        let memory = self.memory.remove(&name).unwrap_or_default();
        let memory = Memory { generation, ..memory };
        let mut slot = Slot::of_engine(name.clone(), profile, memory, (self.now, &self.policy));
        slot.adopt(pid, engine, &self.policy);
        self.slots.insert(name, slot);
    }

    fn shut_down(&mut self, commands: &mut Vec<Command>) {
        if self.mode == Mode::Running {
            self.mode = Mode::Stopping;
        }
        let names: Vec<_> = self.slots.keys().cloned().collect();
        for name in names {
            self.tell(&name, Input::Shutdown, commands);
        }
    }

    fn finish_when_stopped(&mut self, commands: &mut Vec<Command>) {
        if self.mode == Mode::Stopping && self.slots.values().all(Slot::is_down) {
            self.mode = Mode::Finished;
            commands.push(Command::Finish);
        }
    }
}

fn refuse_demand(input: &Input, refusal: Refusal, commands: &mut Vec<Command>) {
    if let Input::Demand(waiter) = input {
        commands.push(Command::Refuse { waiter: *waiter, refusal });
    }
}

//! A machine in virtual time: it performs what the core orders, and reports back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use slotd::{
    spec::{
        Bytes, Generation, Monotime, SlotName, WaiterId,
        death::{Evidence, ExitStatus, Verdict},
        ladder::Rung,
        memory::{
            Basis, EngineReading, GpuNeed, GpuReading, GpuState, MemoryReading, Need, Room, Share,
        },
        pressure::Strain,
        profile::Profile,
        residence::Residence,
    },
    supervisor::{
        ChildEvent, Command, EngineInfo, Event, Policy, Refusal, RoomAnswer, SlotEvent, SlotView,
        Snapshot, StopSignal, Supervisor,
    },
};

use super::{promises, random::Dice};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// What is going to happen.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    News(Event),
    Served { slot: SlotName, generation: Generation },
    Exit { slot: SlotName, generation: Generation, status: ExitStatus },
}

/// One slot as it really is.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub(crate) needs: Vec<Need>,
    /// What its start comes to.
    pub(crate) fate: Fate,
    pub(crate) load: Duration,
    pub(crate) request: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    Works,
    /// Its model is not there.
    CannotStart,
    /// It dies while it loads.
    DiesLoading,
}

/// One engine.
#[expect(clippy::struct_excessive_bools, reason = "what has happened to it, each by itself")]
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) generation: Generation,
    pub(crate) share: Share,
    pub(crate) is_ready: bool,
    pub(crate) is_draining: bool,
    pub(crate) has_exited: bool,
    pub(crate) in_flight: u32,
    /// What it was given to compute on.
    pub(crate) cores: u32,
    is_spawned: bool,
    last_use: Monotime,
}

#[derive(Clone, Debug)]
pub(crate) struct Gpu {
    pub(crate) total: u64,
    pub(crate) strangers: u64,
    pub(crate) is_lost: bool,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) events: u64,
    pub(crate) loads: Vec<(Monotime, SlotName)>,
    pub(crate) displaced: u64,
    pub(crate) came_back: u64,
    pub(crate) granted: u64,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) longest_wait: Duration,
    /// How many slots the core looked at for one event, at most.
    pub(crate) most_looks: u64,
}

pub(crate) struct Machine {
    pub(crate) core: Supervisor,
    pub(crate) policy: Policy,
    pub(crate) now: Monotime,
    pub(crate) dice: Dice,
    pub(crate) host: u64,
    pub(crate) strangers: u64,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) truths: BTreeMap<SlotName, Truth>,
    pub(crate) profiles: BTreeMap<SlotName, Arc<Profile>>,
    pub(crate) processes: BTreeMap<SlotName, Process>,
    pub(crate) waiting: BTreeMap<WaiterId, (SlotName, Monotime)>,
    pub(crate) put_down: BTreeSet<SlotName>,
    pub(crate) figures: Figures,
    pub(crate) last: Arc<Snapshot>,
    pub(crate) refusals: Vec<(SlotName, Refusal)>,
    /// What the core was told last.
    pub(crate) read: Option<(MemoryReading, BTreeMap<SlotName, EngineReading>)>,
    /// What came of asking for room.
    pub(crate) rooms: Vec<RoomAnswer>,
    /// How short it was said to be.
    pub(crate) strain: Strain,
    /// What gates count as rest besides: that of an earlier engine of the slot.
    pub(crate) rested_before: Duration,
    agenda: BTreeMap<(Monotime, u64), Happening>,
    planned: u64,
    waiters: u64,
}

pub(crate) fn slot(name: &str) -> SlotName {
    name.parse().unwrap()
}

/// A slot that is loaded on demand.
pub(crate) fn profile(name: &str) -> Profile {
    let value = json!({
        "slot": name, "source": format!("{name}.toml"), "engine": "Auto", "args": [], "env": {},
        "aliases": [], "capabilities": [], "autostart": false, "essential": false,
        "max_restarts": 3,
        "start_timeout": { "secs": 600, "nanos": 0 }, "stop_timeout": { "secs": 10, "nanos": 0 },
    });
    serde_json::from_value(value).unwrap()
}

pub(crate) fn residence(name: &str, residence: Residence) -> Profile {
    Profile { residence, ..profile(name) }
}

/// What takes `host` MiB, and `gpu` MiB of GPUs that may be spread, with 256 on each.
pub(crate) fn need(host: u64, gpu: Option<u64>) -> Need {
    let gpu = gpu.map(|spread| GpuNeed { spread: Bytes(spread * MIB), each: Bytes(256 * MIB) });
    Need { host: Bytes(host * MIB), gpu, basis: Basis::Header }
}

pub(crate) fn works(needs: Vec<Need>) -> Truth {
    let (load, request) = (Duration::from_secs(5), Duration::from_secs(3));
    Truth { needs, fate: Fate::Works, load, request }
}

impl Machine {
    pub(crate) fn new(host: u64, gpus: &[u64], policy: Policy, seed: u64) -> Self {
        let gpus = gpus.iter().map(|total| Gpu { total: *total, strangers: 0, is_lost: false });
        Self {
            core: Supervisor::new(policy.clone(), seed, BTreeMap::new()),
            policy,
            now: Monotime::default(),
            dice: Dice(seed),
            host,
            strangers: 0,
            gpus: gpus.collect(),
            truths: BTreeMap::new(),
            profiles: BTreeMap::new(),
            processes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            put_down: BTreeSet::new(),
            figures: Figures::default(),
            last: Arc::default(),
            refusals: Vec::new(),
            read: None,
            rooms: Vec::new(),
            strain: Strain::default(),
            rested_before: Duration::ZERO,
            agenda: BTreeMap::new(),
            planned: 0,
            waiters: 0,
        }
    }

    /// Adds slots, all at once.
    pub(crate) fn have(&mut self, slots: impl IntoIterator<Item = (Profile, Truth)>) {
        for (profile, truth) in slots {
            self.truths.insert(profile.slot.clone(), truth);
            self.profiles.insert(profile.slot.clone(), Arc::new(profile));
        }
        self.tell(&Event::ProfilesChanged { profiles: self.profiles.clone() });
    }

    /// The daemon ends with all engines, and another begins with what it remembered.
    pub(crate) fn restart(&mut self) {
        let next = Supervisor::new(self.policy.clone(), 1, BTreeMap::new());
        let memory = std::mem::replace(&mut self.core, next).memory();
        self.core = Supervisor::new(self.policy.clone(), 1, memory);
        self.processes.clear();
        self.agenda.clear();
        self.last = Arc::default();
        self.tell(&Event::ProfilesChanged { profiles: self.profiles.clone() });
    }

    pub(crate) fn view(&self, name: &str) -> &SlotView {
        &self.last.slots[&slot(name)]
    }

    pub(crate) fn state(&self, name: &str) -> &'static str {
        self.view(name).state.as_str()
    }

    pub(crate) fn ask(&mut self, name: &SlotName, event: SlotEvent) {
        match event {
            SlotEvent::UnloadRequested => drop(self.put_down.insert(name.clone())),
            SlotEvent::LoadRequested | SlotEvent::LoadOrderedByRule => {
                self.put_down.remove(name);
            }
            _ => {}
        }
        self.tell(&Event::Slot { slot: name.clone(), event });
    }

    /// A client comes: it is served at once by a ready engine, else it waits.
    pub(crate) fn request(&mut self, name: &SlotName) {
        let takes = self.last.slots.get(name).is_some_and(|view| view.state.takes_requests());
        if takes {
            self.serve(name);
            return;
        }
        self.put_down.remove(name);
        self.waiters += 1;
        let waiter = WaiterId(self.waiters);
        self.waiting.insert(waiter, (name.clone(), self.now));
        self.ask(name, SlotEvent::Demanded { waiter });
    }

    /// Lets time pass until nothing is planned and nothing due before `until`.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.step(until) {}
        self.now = self.now.max(until);
    }

    /// Lets time pass until nobody waits; whoever waits longer than an hour is forgotten.
    pub(crate) fn settle(&mut self) {
        let until = self.now.after(Duration::from_hours(1));
        while !self.waiting.is_empty() && self.step(until) {}
        assert!(self.waiting.is_empty(), "{:?} wait for ever", self.waiting);
    }

    /// Does the next thing that is due by `until`; tells whether there was one.
    pub(crate) fn step(&mut self, until: Monotime) -> bool {
        let next = self.agenda.keys().next().map(|(at, _)| *at);
        let due = self.core.deadline();
        match (next, due) {
            (Some(next), due) if next <= until && due.is_none_or(|due| next <= due) => {
                let (_, happening) = self.agenda.pop_first().unwrap();
                self.now = self.now.max(next);
                self.happen(happening);
                true
            }
            (_, Some(due)) if due <= until => {
                self.now = self.now.max(due);
                self.tell(&Event::DeadlinePassed);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn plan(&mut self, later: Duration, happening: Happening) {
        self.planned += 1;
        self.agenda.insert((self.now.after(later), self.planned), happening);
    }

    fn report(&mut self, later: Duration, child: (&SlotName, Generation), event: ChildEvent) {
        let (slot, generation) = (child.0.clone(), child.1);
        let event = SlotEvent::Child { generation, event };
        self.plan(later, Happening::News(Event::Slot { slot, event }));
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::News(mut event) => {
                self.notice(&event);
                self.add_traffic(&mut event);
                self.tell(&event);
            }
            Happening::Served { slot, generation } => {
                let now = self.now;
                let Some(process) = self.process(&slot, generation) else { return };
                process.last_use = now;
                process.in_flight = process.in_flight.saturating_sub(1);
                if process.in_flight == 0 && process.is_draining {
                    self.report(Duration::ZERO, (&slot, generation), ChildEvent::Drained);
                }
            }
            Happening::Exit { slot, generation, status } => self.exit(&slot, generation, status),
        }
    }

    fn notice(&mut self, event: &Event) {
        let Event::Slot { slot, event: SlotEvent::Child { generation, event } } = event else {
            return;
        };
        let now = self.now;
        match event {
            ChildEvent::Spawned { .. } => {
                if let Some(process) = self.process(slot, *generation) {
                    process.is_spawned = true;
                }
            }
            ChildEvent::BecameReady => {
                if let Some(process) = self.process(slot, *generation) {
                    (process.is_ready, process.last_use) = (true, now);
                }
            }
            ChildEvent::Reaped if self.process(slot, *generation).is_some() => {
                self.processes.remove(slot);
            }
            _ => {}
        }
    }

    /// How busy engines are is read at the moment that the core is told.
    fn add_traffic(&self, event: &mut Event) {
        let Event::MemoryRead { engines, .. } = event else { return };
        for (slot, read) in engines {
            let Some(process) = self.processes.get(slot) else { continue };
            if process.generation == read.generation {
                read.in_flight = process.in_flight;
                let is_idle = process.in_flight == 0;
                let idle = self.now.since(process.last_use) + self.rested_before;
                read.idle_for = if is_idle { idle } else { Duration::ZERO };
            }
        }
    }

    pub(crate) fn process(
        &mut self,
        slot: &SlotName,
        generation: Generation,
    ) -> Option<&mut Process> {
        self.processes.get_mut(slot).filter(|process| process.generation == generation)
    }

    /// An engine ends, with all that it serves.
    pub(crate) fn exit(&mut self, slot: &SlotName, generation: Generation, status: ExitStatus) {
        let Some(process) = self.process(slot, generation).filter(|one| !one.has_exited) else {
            return;
        };
        if !process.is_spawned {
            // Nobody hears of an end before the beginning.
            let slot = slot.clone();
            self.plan(Duration::from_millis(30), Happening::Exit { slot, generation, status });
            return;
        }
        (process.has_exited, process.in_flight) = (true, 0);
        let reaping = self.dice.millis(1, 2000);
        let evidence = Evidence { oom_kills: Some(0), ..Evidence::of(status) };
        let event = ChildEvent::Exited { evidence, at_unix_ms: 1 };
        let event = SlotEvent::Child { generation, event };
        self.tell(&Event::Slot { slot: slot.clone(), event });
        self.report(reaping, (slot, generation), ChildEvent::Reaped);
    }

    pub(crate) fn tell(&mut self, event: &Event) {
        self.figures.events += 1;
        if let Event::MemoryRead { reading, engines } = event {
            self.read = Some((reading.clone(), engines.clone()));
        }
        if let Event::PressureChanged { strain } = event {
            self.strain = strain.clone();
        }
        let before = Arc::clone(&self.last);
        let mut commands = Vec::new();
        let looks = self.core.looks();
        self.core.handle(self.now, event.clone(), &mut commands);
        self.figures.most_looks = self.figures.most_looks.max(self.core.looks() - looks);
        self.last = self.core.snapshot();
        promises::hold(self, event, &before, &commands);
        for command in commands {
            self.perform(command);
        }
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::Size { slot, generation, .. } => self.size(&slot, generation),
            Command::Spawn { slot, generation, cores, .. } => {
                self.spawn((&slot, generation), cores);
            }
            Command::ReadMemory => {
                let later = self.dice.millis(1, 30);
                let event = self.reading();
                self.plan(later, Happening::News(event));
            }
            Command::Signal { slot, generation, signal } => {
                let later = self.dice.millis(1, 1500);
                let status = match signal {
                    StopSignal::Terminate => ExitStatus::Code(0),
                    StopSignal::Kill => ExitStatus::Signal(9),
                };
                self.plan(later, Happening::Exit { slot, generation, status });
            }
            Command::Drain { slot, generation } => {
                let Some(process) = self.process(&slot, generation) else { return };
                process.is_draining = true;
                if process.in_flight == 0 {
                    self.report(Duration::ZERO, (&slot, generation), ChildEvent::Drained);
                }
            }
            Command::CutRequests { slot, generation } => {
                if let Some(process) = self.process(&slot, generation) {
                    process.in_flight = 0;
                }
            }
            Command::Grant { waiter } => {
                let (slot, since) = self.waiting.remove(&waiter).unwrap();
                let waited = self.now.since(since);
                self.figures.longest_wait = self.figures.longest_wait.max(waited);
                self.figures.granted += 1;
                self.serve(&slot);
            }
            Command::Refuse { waiter, refusal } => {
                let (slot, _) = self.waiting.remove(&waiter).unwrap();
                let name = format!("{refusal:?}");
                let name = name.split([' ', '{']).next().unwrap().to_owned();
                *self.figures.refused.entry(name).or_default() += 1;
                self.refusals.push((slot, refusal));
            }
            Command::AnswerRoom { answer, .. } => self.rooms.push(answer),
            Command::MeasureRoom { slot, generation } => self.measure_room(&slot, generation),
            Command::MeasureActivity { .. }
            | Command::Watch { .. }
            | Command::Leave { .. }
            | Command::Finish => {}
        }
    }

    fn measure_room(&mut self, slot: &SlotName, generation: Generation) {
        let taken: u64 = self.processes.values().map(|one| Self::taken(one).host.0).sum();
        let free = self.host.saturating_sub(self.strangers + taken);
        let now = self.now;
        let Some(process) = self.process(slot, generation) else { return };
        let in_flight = process.in_flight;
        let idle_for = if in_flight == 0 { now.since(process.last_use) } else { Duration::ZERO };
        let event = ChildEvent::RoomMeasured { in_flight, idle_for, free: Some(Bytes(free)) };
        self.report(Duration::ZERO, (slot, generation), event);
    }

    fn size(&mut self, slot: &SlotName, generation: Generation) {
        let later = self.dice.millis(1, 40);
        let truth = self.truths[slot].clone();
        let event = if truth.fate == Fate::CannotStart {
            let reason = "model `o/r` has to be downloaded".to_owned();
            let verdict = Verdict::ModelNotFetched;
            ChildEvent::SpawnFailed { verdict, reason, at_unix_ms: 1, engine: None }
        } else {
            let rungs = rungs(truth.needs.len());
            ChildEvent::Sized { rungs, needs: truth.needs.into() }
        };
        self.report(later, (slot, generation), event);
    }

    fn spawn(&mut self, (slot, generation): (&SlotName, Generation), cores: u32) {
        self.figures.loads.push((self.now, slot.clone()));
        let truth = self.truths[slot].clone();
        let process = Process {
            generation,
            share: self.last.slots[slot].promised.clone().unwrap(),
            is_ready: false,
            is_draining: false,
            has_exited: false,
            in_flight: 0,
            cores,
            is_spawned: false,
            last_use: self.now,
        };
        self.processes.insert(slot.clone(), process);
        let engine = EngineInfo {
            name: "engine".to_owned(),
            program: "engine".to_owned(),
            parallel: 1,
            cores,
            sole: None,
        };
        let rungs = rungs(truth.needs.len());
        let spawned = ChildEvent::Spawned { pid: 1, engine, rungs };
        let child = (slot, generation);
        self.report(Duration::from_millis(20), child, spawned);
        let load = Duration::from_millis(30) + truth.load;
        if truth.fate == Fate::DiesLoading {
            let (slot, status) = (slot.clone(), ExitStatus::Code(1));
            self.plan(load, Happening::Exit { slot, generation, status });
        } else {
            self.report(load, child, ChildEvent::BecameReady);
        }
    }

    fn serve(&mut self, slot: &SlotName) {
        let length = self.truths[slot].request;
        let length =
            length.mul_f64(f64::from(u32::try_from(self.dice.within(2, 20)).unwrap()) / 10.0);
        let Some(process) = self.processes.get_mut(slot) else { return };
        process.in_flight += 1;
        let generation = process.generation;
        self.plan(length, Happening::Served { slot: slot.clone(), generation });
    }

    /// What engines really take: half of their share while they load.
    fn taken(process: &Process) -> Share {
        let part = |bytes: Bytes| if process.is_ready { bytes } else { Bytes(bytes.0 / 2) };
        let gpus = process.share.gpus.iter().map(|(gpu, bytes)| (*gpu, part(*bytes)));
        Share { host: part(process.share.host), gpus: gpus.collect() }
    }

    fn reading(&self) -> Event {
        let mut engines = BTreeMap::new();
        let mut ours = Share::default();
        for (slot, process) in &self.processes {
            let taken = Self::taken(process);
            ours.host.0 += taken.host.0;
            for (gpu, bytes) in &taken.gpus {
                ours.gpus.entry(*gpu).or_default().0 += bytes.0;
            }
            let read = EngineReading {
                generation: process.generation,
                host: Some(taken.host),
                gpus: taken.gpus,
                ..EngineReading::default()
            };
            engines.insert(slot.clone(), read);
        }
        let room = |total: u64, used: u64| Room {
            total: Bytes(total),
            free: Bytes(total.saturating_sub(used)),
        };
        let gpus = (0_u32..).zip(&self.gpus).map(|(index, gpu)| {
            let used = gpu.strangers + ours.gpus.get(&index).copied().unwrap_or_default().0;
            let state = if gpu.is_lost {
                GpuState::Lost { reason: "it fell off the bus".to_owned() }
            } else {
                GpuState::Present(room(gpu.total, used))
            };
            (index, GpuReading { uuid: format!("GPU-{index}"), name: "test".to_owned(), state })
        });
        let host = Some(room(self.host, self.strangers + ours.host.0));
        Event::MemoryRead { reading: MemoryReading { host, gpus: gpus.collect() }, engines }
    }
}

fn rungs(count: usize) -> Arc<[Rung]> {
    let rung = |index: usize| match u32::try_from(index).unwrap() {
        0 => Rung::default(),
        index => Rung { context: Some(65_536 >> index), ..Rung::default() },
    };
    (0..count).map(rung).collect()
}

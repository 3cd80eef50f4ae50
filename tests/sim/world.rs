//! A day of a box in virtual time: engines with their moods, clients, a person, edits.
//!
//! Plays the shell: performs each command after a random delay and reports back as events. It keeps
//! the requests in flight itself, so that "nothing in flight is stopped before its time" is seen
//! from the data plane's side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use slotd::{
    spec::{
        Bytes, Generation, Monotime, SlotName, WaiterId,
        death::{Evidence, ExitStatus, LogCause, Verdict},
        memory::{EngineReading, MemoryReading, Room},
        pressure::{Pressure, Strain},
        profile::{OnExit, Profile},
    },
    supervisor::{
        ChildEvent, Command, Event, Policy, Refusal, Sight, SlotEvent, StateView, StopSignal,
        Vitals,
    },
};

use super::{
    Dice, absent, checker::Checker, ended, exited, external, logged, looked, of_child, of_slot,
    present, profile, sized, spawned, vitals,
};

const DAY: Duration = Duration::from_hours(24);

/// What a day came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    pub(crate) demands: u64,
    pub(crate) spawns: u64,
    pub(crate) watches: u64,
    pub(crate) grants: u64,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    pub(crate) left: u64,
    pub(crate) cut: u64,
    pub(crate) broken: u64,
    pub(crate) kills: u64,
    pub(crate) edits: u64,
    pub(crate) deaths: BTreeMap<Verdict, u64>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, demands, spawns, grants, left, .. } = self;
        writeln!(f, "{requests} requests of which {demands} had to wait, {spawns} spawns,")?;
        writeln!(f, "  {grants} grants, {left} left, refusals {:?},", self.refusals)?;
        let Self { cut, broken, kills, edits, watches, .. } = self;
        writeln!(
            f,
            "  {cut} cut, {broken} broken, {kills} kills, {edits} edits, {watches} watches,"
        )?;
        write!(f, "  deaths {:?}", self.deaths)
    }
}

/// What is going to happen.
#[derive(Clone, Debug)]
enum Happening {
    /// News for the core.
    News(Event),
    /// A client comes for a slot.
    Arrival(SlotName),
    /// A request that was being served ends.
    Served { slot: SlotName, generation: Generation },
    /// An engine dies by itself.
    Death { slot: SlotName, generation: Generation },
    /// A process has ended.
    Exit { slot: SlotName, generation: Generation, evidence: Evidence },
    /// A person does something.
    Person,
    /// Somebody edits the profiles.
    Edit,
    /// A removed profile comes back.
    Return(Arc<Profile>),
}

/// One engine process, as the box has it.
#[derive(Clone, Copy, Debug)]
struct Process {
    generation: Generation,
    has_exited: bool,
    in_flight: u32,
    is_draining: bool,
    last_use: Monotime,
}

pub(crate) struct World {
    pub(crate) checker: Checker,
    pub(crate) figures: Figures,
    dice: Dice,
    agenda: BTreeMap<(Monotime, u64), Happening>,
    planned: u64,
    profiles: BTreeMap<SlotName, Arc<Profile>>,
    names: Vec<SlotName>,
    processes: BTreeMap<SlotName, Process>,
    waiting: BTreeSet<WaiterId>,
    next_waiter: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let policy = Policy { waiting_limit: 24, ..Policy::default() };
        let profiles: BTreeMap<_, _> =
            residents().into_iter().map(|p| (p.slot.clone(), Arc::new(p))).collect();
        Self {
            checker: Checker::new(policy, seed),
            figures: Figures::default(),
            dice: Dice(seed),
            agenda: BTreeMap::new(),
            planned: 0,
            names: profiles.keys().cloned().collect(),
            profiles,
            processes: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_waiter: 0,
        }
    }

    /// Lives through the day and the shutdown after it.
    pub(crate) fn live(&mut self) -> Result<(), String> {
        let profiles = self.profiles.clone();
        self.plan(Duration::ZERO, Happening::News(Event::ProfilesChanged { profiles }));
        self.plan(Duration::from_mins(5), Happening::Person);
        self.plan(Duration::from_mins(10), Happening::Edit);
        for name in self.names.clone() {
            self.plan(Duration::from_secs(1), Happening::Arrival(name));
        }
        let night = Monotime::from_start(DAY);
        let mut is_night = false;
        while !self.checker.model.is_finished {
            let now = self.checker.now;
            if !is_night && now >= night {
                is_night = true;
                self.tell(now, Event::ShutdownRequested)?;
                continue;
            }
            let next = self.agenda.keys().next().map(|(at, _)| *at);
            let due = self.checker.deadline();
            // The clock is late now and then, as clocks are.
            let due = due.map(|at| at.after(self.lateness()));
            match (next, due) {
                (Some(next), due) if due.is_none_or(|due| next <= due) => {
                    let (_, happening) = self.agenda.pop_first().unwrap();
                    self.happen(next.max(now), happening)?;
                }
                (_, Some(due)) => self.tell(due, Event::DeadlinePassed)?,
                (_, None) => return Err("nothing will ever happen again".to_owned()),
            }
        }
        self.checker.replay()
    }

    fn lateness(&mut self) -> Duration {
        if self.dice.chance(100) { self.dice.millis(0, 40) } else { Duration::ZERO }
    }

    fn plan(&mut self, later: Duration, happening: Happening) {
        self.planned += 1;
        self.agenda.insert((self.checker.now.after(later), self.planned), happening);
    }

    fn report(
        &mut self,
        later: Duration,
        (slot, generation): (&SlotName, Generation),
        event: ChildEvent,
    ) {
        self.plan(later, Happening::News(of_child(slot, generation, event)));
    }

    fn happen(&mut self, now: Monotime, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::News(event) => {
                self.notice(now, &event);
                self.tell(now, event)
            }
            Happening::Arrival(name) => self.arrive(now, &name),
            Happening::Served { slot, generation } => {
                self.finish_request(now, &slot, generation);
                self.wake(now)
            }
            Happening::Death { slot, generation } => {
                let evidence = self.death(false);
                self.happen(now, Happening::Exit { slot, generation, evidence })
            }
            Happening::Exit { slot, generation, evidence } => {
                self.exit(now, &slot, generation, evidence)
            }
            Happening::Person => self.person(now),
            Happening::Edit => self.edit(now),
            Happening::Return(profile) => {
                self.profiles.entry(profile.slot.clone()).or_insert(profile);
                self.publish_profiles(now)
            }
        }
    }

    /// Moves the clock without news.
    fn wake(&mut self, now: Monotime) -> Result<(), String> {
        if self.checker.deadline().is_some_and(|at| at <= now) {
            return self.tell(now, Event::DeadlinePassed);
        }
        self.checker.now = self.checker.now.max(now);
        Ok(())
    }

    fn tell(&mut self, now: Monotime, event: Event) -> Result<(), String> {
        for command in self.checker.step(now, event)? {
            self.perform(command)?;
        }
        Ok(())
    }

    fn perform(&mut self, command: Command) -> Result<(), String> {
        match command {
            Command::Spawn { slot, generation, .. } => {
                self.figures.spawns += 1;
                self.spawn(&slot, generation);
            }
            Command::Size { slot, generation, .. } => self.size(&slot, generation),
            Command::ReadMemory => self.read_memory(),
            Command::Watch { slot, generation, .. } => self.watch(&slot, generation),
            Command::Signal { slot, generation, signal } => {
                self.signal(&slot, generation, signal)?;
            }
            Command::Drain { slot, generation } => {
                if let Some(process) = self.process(&slot, generation) {
                    process.is_draining = true;
                    if process.in_flight == 0 {
                        self.report(Duration::ZERO, (&slot, generation), ChildEvent::Drained);
                    }
                }
            }
            Command::Leave { slot, generation } => {
                if self.process(&slot, generation).is_some_and(|process| process.in_flight > 0) {
                    return Err(format!("{slot} was left with requests in flight"));
                }
                self.processes.remove(&slot);
            }
            Command::CutRequests { slot, generation } => {
                let cut = self
                    .process(&slot, generation)
                    .map(|process| std::mem::take(&mut process.in_flight));
                self.figures.cut += u64::from(cut.unwrap_or_default());
                // The drain's own task sees the gate empty, and says so after the fact.
                self.report(Duration::ZERO, (&slot, generation), ChildEvent::Drained);
            }
            Command::MeasureActivity { slot, generation } => {
                let now = self.checker.now;
                if let Some(process) = self.process(&slot, generation) {
                    let (in_flight, idle_for) = (process.in_flight, now.since(process.last_use));
                    let event = ChildEvent::ActivityMeasured { in_flight, idle_for };
                    self.report(Duration::ZERO, (&slot, generation), event);
                }
            }
            Command::MeasureRoom { slot, generation } => self.measure_room(&slot, generation),
            Command::Grant { waiter } => {
                self.figures.grants += 1;
                self.waiting.remove(&waiter);
                let slot = self.slot_of(waiter);
                self.serve(&slot);
            }
            Command::Refuse { waiter, refusal } => {
                self.waiting.remove(&waiter);
                *self.figures.refusals.entry(name_of(&refusal)).or_default() += 1;
            }
            Command::AnswerRoom { .. } => {}
            Command::Finish => {
                if let Some((slot, _)) = self.processes.first_key_value() {
                    return Err(format!("`Finish` while a process of {slot} is there"));
                }
            }
        }
        Ok(())
    }

    fn measure_room(&mut self, slot: &SlotName, generation: Generation) {
        let now = self.checker.now;
        let free = match self.dice.within(0, 10) {
            0 => None,
            1 | 2 => Some(Bytes(1 << 20)),
            _ => Some(Bytes(1 << 50)),
        };
        let later = self.dice.millis(0, 5);
        if let Some(process) = self.process(slot, generation) {
            let (in_flight, idle_for) = (process.in_flight, now.since(process.last_use));
            let event = ChildEvent::RoomMeasured { in_flight, idle_for, free };
            self.report(later, (slot, generation), event);
        }
    }

    /// Waiters carry their slot in their number.
    fn slot_of(&self, waiter: WaiterId) -> SlotName {
        let count = u64::try_from(self.names.len()).unwrap();
        self.names[usize::try_from(waiter.0 % count).unwrap()].clone()
    }

    fn process(&mut self, slot: &SlotName, generation: Generation) -> Option<&mut Process> {
        self.processes.get_mut(slot).filter(|process| process.generation == generation)
    }

    /// Where the model is found, it is known for most slots what they take.
    fn size(&mut self, slot: &SlotName, generation: Generation) {
        let latency = self.dice.millis(1, 30);
        let child = (slot, generation);
        if self.dice.chance(20) {
            let event = ChildEvent::SpawnFailed {
                verdict: Verdict::ModelNotFetched,
                reason: "it is not there".to_owned(),
                at_unix_ms: 1,
                engine: None,
            };
            *self.figures.deaths.entry(Verdict::ModelNotFetched).or_default() += 1;
            self.report(latency, child, event);
            return;
        }
        self.report(latency, child, sized(need_of(slot)));
    }

    fn read_memory(&mut self) {
        let now = self.checker.now;
        let engines = self.processes.iter().map(|(slot, process)| {
            let idle_for =
                if process.in_flight > 0 { Duration::ZERO } else { now.since(process.last_use) };
            let read = EngineReading {
                generation: process.generation,
                in_flight: process.in_flight,
                idle_for,
                host: need_of(slot),
                ..EngineReading::default()
            };
            (slot.clone(), read)
        });
        let engines: BTreeMap<_, _> = engines.collect();
        let ours: u64 = engines.values().filter_map(|read| read.host).map(|bytes| bytes.0).sum();
        // Strangers come and go.
        let strangers = self.dice.within(0, 4) << 30;
        let total = 29_u64 << 30;
        let room =
            Room { total: Bytes(total), free: Bytes(total.saturating_sub(ours + strangers)) };
        let reading = MemoryReading { host: Some(room), ..MemoryReading::default() };
        let later = self.dice.millis(1, 20);
        self.plan(later, Happening::News(Event::MemoryRead { reading, engines }));
    }

    fn spawn(&mut self, slot: &SlotName, generation: Generation) {
        // Now and then the model lies on a disk that has to wake up first.
        let is_slow = self.dice.chance(160);
        let latency = self.dice.millis(2, if is_slow { 25_000 } else { 400 });
        let child = (slot, generation);
        if self.dice.chance(60) {
            let verdicts = [
                Verdict::SpawnFailed,
                Verdict::MissingFile,
                Verdict::BadModel,
                Verdict::OomHost,
                Verdict::UnexpectedExit,
            ];
            let verdict = *self.dice.pick(&verdicts);
            *self.figures.deaths.entry(verdict).or_default() += 1;
            let event = ChildEvent::SpawnFailed {
                verdict,
                reason: "it could not be started".to_owned(),
                at_unix_ms: 1,
                engine: None,
            };
            self.report(latency, child, event);
            return;
        }
        let pid = u32::try_from(self.planned % 4_000_000).unwrap() + 1;
        self.report(latency, child, spawned(pid));
        let load = latency + self.dice.exponential(Duration::from_secs(12));
        let way = self.dice.within(0, 100);
        if way < 6 {
            // Dies while it loads.
            let evidence = self.death(true);
            let slot = slot.clone();
            self.plan(load, Happening::Exit { slot, generation, evidence });
            return;
        }
        for part in 1..4_u32 {
            let percent = u8::try_from(part * 25).unwrap();
            self.report(load * part / 4, child, ChildEvent::Progressed { percent });
        }
        if way < 10 {
            return; // Never finishes loading.
        }
        self.report(load, child, ChildEvent::BecameReady);
        self.report(load, child, ChildEvent::MemoryMeasured { rss: Bytes(self.planned << 20) });
        let life = load + self.dice.exponential(Duration::from_mins(25));
        self.plan(life, Happening::Death { slot: slot.clone(), generation });
        if self.dice.chance(150) {
            self.fall_ill(load, child);
        }
        if self.dice.chance(200) {
            let from = load + self.dice.exponential(Duration::from_mins(4));
            let to = from + self.dice.exponential(Duration::from_secs(20));
            self.report(from, child, ChildEvent::BecameUnready);
            self.report(to, child, ChildEvent::BecameReady);
        }
    }

    /// Whoever runs the engine starts and ends it as they like. Whoever asks anew has a look anew.
    fn watch(&mut self, slot: &SlotName, generation: Generation) {
        self.figures.watches += 1;
        if let Some(lost) = self.processes.remove(slot) {
            self.figures.broken += u64::from(lost.in_flight);
        }
        let outside = (slot, generation);
        let mut at = self.dice.millis(1, 2000);
        if self.dice.chance(400) {
            self.report(at, outside, absent());
            at += self.dice.exponential(Duration::from_mins(3));
        }
        if self.dice.chance(500) {
            self.report(at, outside, looked(Sight::Loading { percent: Some(10) }));
            at += self.dice.exponential(Duration::from_secs(20));
        }
        self.report(at, outside, present());
        if self.dice.chance(300) {
            let asleep = at + self.dice.exponential(Duration::from_mins(2));
            self.report(asleep, outside, looked(Sight::Present { is_asleep: true }));
        }
        at += self.dice.exponential(Duration::from_mins(20));
        self.report(at, outside, absent());
    }

    /// Some engines stand still some day, and are looked at until they are gone; some fail all that
    /// they are asked.
    fn fall_ill(&mut self, load: Duration, child: (&SlotName, Generation)) {
        let from = load + self.dice.exponential(Duration::from_mins(8));
        if self.dice.chance(300) {
            let vitals = Vitals { failed_in_row: 5, ..vitals() };
            self.report(from, child, ChildEvent::VitalsRead { vitals });
            return;
        }
        // Some get over it.
        let looks = self.dice.within(5, 60);
        for look in 0..looks {
            let later = from + Duration::from_secs(2) * u32::try_from(look).unwrap();
            let vitals = Vitals { continues: look > 0, has_answered: false, ..vitals() };
            self.report(later, child, ChildEvent::VitalsRead { vitals });
        }
    }

    fn signal(
        &mut self,
        slot: &SlotName,
        generation: Generation,
        signal: StopSignal,
    ) -> Result<(), String> {
        let Some(process) = self.process(slot, generation) else {
            return Err(format!("a signal for a process of {slot} that is not there"));
        };
        let in_flight = process.in_flight;
        let death = self.checker.view(slot).and_then(|view| view.deaths.last());
        let is_condemned = death.is_some_and(|death| {
            let is_ill = matches!(death.verdict, Verdict::Hung | Verdict::Poisoned);
            death.generation == generation && is_ill
        });
        if in_flight > 0 && !is_condemned {
            return Err(format!("{slot} was told to end with requests in flight"));
        }
        let later = match signal {
            StopSignal::Kill => {
                self.figures.kills += 1;
                self.dice.millis(1, 20)
            }
            // Some are deaf to it.
            StopSignal::Terminate if self.dice.chance(120) => return Ok(()),
            StopSignal::Terminate => self.dice.millis(1, 3000),
        };
        let status = match signal {
            StopSignal::Kill => ExitStatus::Signal(9),
            StopSignal::Terminate if self.dice.chance(500) => ExitStatus::Code(0),
            StopSignal::Terminate => ExitStatus::Signal(15),
        };
        let evidence = ended(status);
        self.plan(later, Happening::Exit { slot: slot.clone(), generation, evidence });
        Ok(())
    }

    /// Draws how an engine dies.
    fn death(&mut self, is_loading: bool) -> Evidence {
        use ExitStatus::{Code, Signal, Unknown};
        let common = [
            ended(Signal(9)),
            ended(Signal(11)),
            ended(Signal(6)),
            ended(Code(134)),
            ended(Code(137)),
            ended(Code(1)),
            ended(Unknown),
            Evidence { oom_kills: Some(1), ..ended(Signal(9)) },
            Evidence { oom_kills: None, ..ended(Signal(9)) },
            logged(Signal(6), LogCause::OutOfMemory),
            logged(Code(1), LogCause::OutOfDeviceMemory),
        ];
        let while_loading = [
            logged(Code(1), LogCause::BadConfig),
            logged(Code(1), LogCause::MissingFile),
            logged(Code(1), LogCause::BadModel),
            logged(Code(1), LogCause::PortBusy),
        ];
        let on_purpose = [ended(Code(0)), ended(Signal(15))];
        match self.dice.within(0, 10) {
            0..5 if is_loading => self.dice.pick(&while_loading).clone(),
            0..3 => self.dice.pick(&on_purpose).clone(),
            _ => self.dice.pick(&common).clone(),
        }
    }

    /// Keeps the box in step with the news it is about to tell.
    fn notice(&mut self, now: Monotime, event: &Event) {
        let Event::Slot { slot, event: SlotEvent::Child { generation, event } } = event else {
            if let Event::Slot { event: SlotEvent::WaiterLeft { waiter }, .. } = event
                && self.waiting.remove(waiter)
            {
                self.figures.left += 1;
            }
            return;
        };
        match event {
            ChildEvent::Looked { sight: Sight::Present { .. } }
                if self.process(slot, *generation).is_some() => {}
            ChildEvent::Spawned { .. } | ChildEvent::Looked { sight: Sight::Present { .. } } => {
                let is_present =
                    self.checker.view(slot).is_some_and(|view| view.generation == *generation);
                let is_watched = !matches!(self.checker.view(slot), Some(view)
                    if view.state == StateView::Parting || view.state == StateView::Offline);
                if matches!(event, ChildEvent::Looked { .. }) && !(is_present && is_watched) {
                    return;
                }
                let process = Process {
                    generation: *generation,
                    has_exited: false,
                    in_flight: 0,
                    is_draining: false,
                    last_use: now,
                };
                self.processes.insert(slot.clone(), process);
            }
            ChildEvent::BecameReady => {
                if let Some(process) = self.process(slot, *generation) {
                    process.last_use = now;
                }
            }
            ChildEvent::Reaped if self.process(slot, *generation).is_some() => {
                self.processes.remove(slot);
            }
            _ => {}
        }
    }

    fn exit(
        &mut self,
        now: Monotime,
        slot: &SlotName,
        generation: Generation,
        evidence: Evidence,
    ) -> Result<(), String> {
        // A process dies once, whatever else was planned for it.
        let Some(process) = self.process(slot, generation).filter(|p| !p.has_exited) else {
            return self.wake(now);
        };
        process.has_exited = true;
        let broken = std::mem::take(&mut process.in_flight);
        self.figures.broken += u64::from(broken);
        let reaping = if self.dice.chance(300) {
            self.dice.millis(500, 4000)
        } else {
            self.dice.millis(0, 30)
        };
        self.tell(now, of_child(slot, generation, exited(evidence)))?;
        if let Some(death) = self.checker.view(slot).and_then(|view| view.deaths.last().cloned()) {
            *self.figures.deaths.entry(death.verdict).or_default() += 1;
        }
        self.report(reaping, (slot, generation), ChildEvent::Reaped);
        Ok(())
    }

    fn arrive(&mut self, now: Monotime, name: &SlotName) -> Result<(), String> {
        let index = self.names.iter().position(|known| known == name).unwrap();
        let mean = Duration::from_secs([10, 20, 40, 120][index % 4]);
        let next = self.dice.exponential(mean);
        // Quiet hours, so that slots idle, and rushes, so that queues fill.
        let hour = now.since_start().as_secs() / 3600;
        let next = if hour % 5 == 3 { next * 20 } else { next };
        self.plan_at(now, next, Happening::Arrival(name.clone()));
        let rush = if self.dice.chance(8) { self.dice.within(10, 40) } else { 1 };
        for _ in 0..rush {
            self.figures.requests += 1;
            self.request(now, index, name)?;
        }
        Ok(())
    }

    fn plan_at(&mut self, now: Monotime, later: Duration, happening: Happening) {
        self.planned += 1;
        self.agenda.insert((now.after(later), self.planned), happening);
    }

    /// A ready slot is used without the core; any other is asked for.
    fn request(&mut self, now: Monotime, index: usize, name: &SlotName) -> Result<(), String> {
        let is_ready = self.checker.view(name).is_some_and(|view| view.state.takes_requests());
        if is_ready && self.processes.get(name).is_some_and(|process| !process.has_exited) {
            self.wake(now)?;
            // The wake-up may have changed that.
            let view = self.checker.view(name);
            if view.is_some_and(|view| view.state.takes_requests()) {
                self.serve(name);
            }
            return Ok(());
        }
        let count = u64::try_from(self.names.len()).unwrap();
        let waiter = WaiterId(self.next_waiter * count + u64::try_from(index).unwrap());
        self.next_waiter += 1;
        self.figures.demands += 1;
        self.waiting.insert(waiter);
        self.tell(now, of_slot(name, SlotEvent::Demanded { waiter }))?;
        if self.waiting.contains(&waiter) {
            let patience = self.dice.millis(500, 90_000);
            let left = of_slot(name, SlotEvent::WaiterLeft { waiter });
            self.plan(patience, Happening::News(left));
        }
        Ok(())
    }

    fn serve(&mut self, slot: &SlotName) {
        let length = self.dice.exponential(Duration::from_secs(9));
        if let Some(process) = self.processes.get_mut(slot) {
            process.in_flight += 1;
            let generation = process.generation;
            self.plan(length, Happening::Served { slot: slot.clone(), generation });
        }
    }

    fn finish_request(&mut self, now: Monotime, slot: &SlotName, generation: Generation) {
        let Some(process) = self.process(slot, generation) else { return };
        process.last_use = now;
        if process.in_flight == 0 {
            return; // It was cut, or broke with its engine.
        }
        process.in_flight -= 1;
        if process.in_flight == 0 && process.is_draining {
            self.plan_at(
                now,
                Duration::ZERO,
                Happening::News(of_child(slot, generation, ChildEvent::Drained)),
            );
        }
    }

    /// A person mends what has failed, and now and then does something else.
    fn person(&mut self, now: Monotime) -> Result<(), String> {
        let next = self.dice.exponential(Duration::from_mins(3));
        self.plan_at(now, next, Happening::Person);
        if self.dice.chance(100) {
            let memory = match self.dice.within(0, 6) {
                0 => Pressure::Elevated,
                1 => Pressure::Critical,
                _ => Pressure::Normal,
            };
            let strain = Strain { memory, ..Strain::default() };
            return self.tell(now, Event::PressureChanged { strain });
        }
        let snapshot = self.checker.snapshot();
        let failed = snapshot.slots.iter().find(|(_, view)| view.state == StateView::Failed);
        let any = self.dice.pick(&self.names.clone()).clone();
        let event = match failed {
            Some(_) if self.dice.chance(600) => SlotEvent::LoadRequested,
            Some(_) | None => match self.dice.within(0, 3) {
                0 => SlotEvent::LoadRequested,
                1 => SlotEvent::UnloadRequested,
                _ => SlotEvent::RestartRequested,
            },
        };
        let name = match (failed, &event) {
            (Some((name, _)), SlotEvent::LoadRequested) => name.clone(),
            _ => any,
        };
        self.tell(now, of_slot(&name, event))
    }

    fn edit(&mut self, now: Monotime) -> Result<(), String> {
        self.figures.edits += 1;
        let next = self.dice.exponential(Duration::from_mins(10));
        self.plan_at(now, next, Happening::Edit);
        let name = self.dice.pick(&self.names.clone()).clone();
        let Some(profile) = self.profiles.get(&name) else { return self.wake(now) };
        let mut edited = Profile::clone(profile);
        match self.dice.within(0, 8) {
            0 => edited.aliases.push("another".to_owned()),
            1 | 2 => edited.context = Some(u32::try_from(self.planned % 100_000).unwrap() + 256),
            3 => edited.start_timeout = self.dice.millis(20_000, 120_000),
            4 => edited.stop_timeout = self.dice.millis(0, 15_000),
            5 | 6 if edited.is_external() => edited.aliases.clear(),
            5 => edited.essential = !edited.essential,
            6 => edited.autostart = !edited.autostart,
            _ => {
                let returns = self.dice.exponential(Duration::from_secs(90));
                let gone = self.profiles.remove(&name);
                self.plan_at(now, returns, Happening::Return(gone.unwrap()));
                return self.publish_profiles(now);
            }
        }
        self.profiles.insert(name, Arc::new(edited));
        self.publish_profiles(now)
    }

    fn publish_profiles(&mut self, now: Monotime) -> Result<(), String> {
        self.tell(now, Event::ProfilesChanged { profiles: self.profiles.clone() })
    }
}

/// Not all of them fit at once; of one nothing is known.
fn need_of(slot: &SlotName) -> Option<Bytes> {
    let gib = match slot.as_str() {
        "chat" | "coder" => 5_u64,
        "large" => 9,
        "vision" => return None,
        _ => 2,
    };
    Some(Bytes(gib << 30))
}

fn residents() -> Vec<Profile> {
    let idle = |minutes| Some(Duration::from_mins(minutes));
    let start_timeout = Duration::from_mins(1);
    let base = |name| Profile { start_timeout, ..profile(name) };
    vec![
        Profile { autostart: true, essential: true, ..base("chat") },
        Profile { idle_timeout: idle(5), ..base("coder") },
        Profile { idle_timeout: idle(1), max_restarts: 1, ..base("embed") },
        Profile { autostart: true, idle_timeout: idle(30), ..base("large") },
        Profile {
            max_restarts: 0,
            stop_timeout: Duration::from_secs(3),
            on_exit: OnExit::Keep,
            ..base("rerank")
        },
        Profile { essential: true, idle_timeout: idle(10), ..base("speech") },
        Profile { engine: external("up"), stop_timeout: Duration::from_secs(5), ..base("remote") },
        Profile { max_restarts: 10, stop_timeout: Duration::ZERO, ..base("vision") },
    ]
}

fn name_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::SlotGone => "slot-gone",
        Refusal::ShuttingDown => "shutting-down",
        Refusal::Unloaded => "unloaded",
        Refusal::QueueFull { .. } => "queue-full",
        Refusal::LoadFailed { .. } => "load-failed",
        Refusal::NoRoom { .. } => "no-room",
        Refusal::Absent { .. } => "absent",
        Refusal::SetAside => "set-aside",
        Refusal::DownloadRequired { .. } => "download-required",
        Refusal::Failed { .. } => "failed",
    }
}
